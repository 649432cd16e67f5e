"""A federation as the server sees it: rounds, the result, and word of where it stands."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any

from fedvad._version import __version__
from fedvad.data.files import locked, write_atomically
from fedvad.deploy.settings import ServerSettings
from fedvad.deploy.sharing import KEY, hand_back, shared_values, summed, together
from fedvad.errors import ArtefactError, ConfigError, FederationError, FedvadError
from fedvad.evaluation.histograms import to_pairs
from fedvad.features.config import FeatureConfig
from fedvad.federation.ledger import RoundEntry
from fedvad.federation.mailboxes.flower.rounds import Links, RemoteRounds
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.payload import Payload
from fedvad.runs.config import OWN_OF_SITE, TrainConfig, resolve_config
from fedvad.runs.families import method_class
from fedvad.runs.method import Method, remote
from fedvad.runs.plan import check_join
from fedvad.runs.run_folder import write_config, write_json, write_ledger
from fedvad.runs.site_scores import SCORES

log = logging.getLogger(__name__)
_CONFIG = "federation.toml"
_RECORD, _STATUS = "federation.json", "status.json"
RESULT, STATE = "result", "state"
# of a run's record: who has left, who is about to, and the last round if not that of the config
LEFT, LEAVING, ROUNDS = "left", "leaving", "rounds"
REPORTED = "reported"  # by site, the facts of its last accepted answer


def begin(settings: ServerSettings, name: str) -> Path:
    """Make the folder of a run, or take up the one there is; returns it.

    Raises `ConfigError` when it was begun with other options or sites, which must not change on
    the way.
    """
    folder = settings.run(name)
    config = _train_config(settings)
    check_join(config, settings.sites)
    wanted = {
        "config": config.model_dump(mode="json"),
        "sites": sorted(settings.sites),
    }
    if not (folder / _RECORD).exists():
        # the sites keep their state under this name: two servers must not share one
        identity = f"{name[:48]}-{secrets.token_hex(4)}"
        write_json(folder / _RECORD, {"federation": identity, "fedvad": __version__} | wanted)
        return folder
    before = read_record(folder)
    left = set(before.get(LEFT, []))
    wanted["sites"] = sorted(set(settings.sites) | left)
    # through the model: a newer fedvad may have got options that the record does not have yet
    stored = TrainConfig.model_validate(before["config"]).model_dump(mode="json")
    changed = [
        key for key in ("config", "sites") if (before | {"config": stored})[key] != wanted[key]
    ]
    if changed:
        raise ConfigError(
            f"run {name} was begun with another {' and '.join(changed)}: undo that in "
            f"{settings.folder}, or launch under another --name"
        )
    return folder


def federate(
    settings: ServerSettings,
    name: str,
    links: Links,
    *,
    clock: Callable[[], float] = monotonic,
) -> Path:
    """Run or finish the federation `name`; returns the folder of its result.

    Everything is kept after each round, so that calling it again continues. Raises
    `FederationError` when too few sites answered in time.
    """
    folder = begin(settings, name)
    taken = FederationError(f"run {name} is already under way")
    with locked(folder / "lock", otherwise=taken):
        status = _Status(folder)
        try:
            return _federate(settings, folder, links, status, clock)
        except FedvadError as error:
            status.write(state="failed", error=str(error))
            raise
        except BaseException as error:
            status.write(state="failed", error=repr(error))
            raise


def _federate(
    settings: ServerSettings,
    folder: Path,
    links: Links,
    status: _Status,
    clock: Callable[[], float],
) -> Path:
    record = read_record(folder)
    if LEAVING in record:
        raise ConfigError(
            f"the removal of {record[LEAVING]} from {folder.name} was interrupted: "
            f"finish it with fedvad deploy forget {record[LEAVING]}"
        )
    config = TrainConfig.model_validate(record["config"])
    kind = _checked(config, settings)
    last = rounds_of(record)
    present = sorted(set(record["sites"]) - set(record.get(LEFT, [])))
    patience = settings.patience()
    patience = replace(patience, quorum=min(patience.quorum, len(present)))
    joins = {site: round_ for site, round_ in config.join.items() if site in present}

    def waiting(round_: int, names: Sequence[str]) -> None:
        status.write(state="running", round=round_, rounds=last, waiting=list(names))

    def done(entry: RoundEntry) -> None:
        for site, facts in rounds.facts.items():
            record.setdefault(REPORTED, {}).setdefault(site, {}).update(facts)
        write_record(folder, record)

    rounds = RemoteRounds(
        links,
        present,
        Schedule(last, config.participation, joins, config.seed),
        patience,
        partial(kind.exchange_for, config),
        federation=record["federation"],
        config=config.model_dump_json(exclude=set(OWN_OF_SITE) - {"engine"}),
        state_dir=folder / STATE,
        names=record["sites"],
        features=settings.features,
        max_bytes=kind.max_upload(config, settings.max_weight_bytes),
        clock=clock,
        on_wait=waiting,
        on_round=done,
    )
    final = rounds.run()
    finished: dict[str, Any] = record.setdefault("finished", {})
    waited_for = [site for site in rounds.sites if site not in finished]
    replies, missing = rounds.hand_out(final, waited_for)
    for site in sorted(set(replies) - missing):
        finished[site] = replies[site].facts
    if config.shared_threshold:
        counts = summed(rounds, finished)
        total = {name: to_pairs(own) for name, own in counts.items()}
        parts = {site: {KEY: total} for site in finished} if total else {}
        without = hand_back(rounds, finished, parts, final.manifest.round)
        values = shared_values(counts, config.target_fpr)
        record["shared_threshold"] = values | {"without": sorted(without)}
    elif config.threshold_rule == "federated":
        parts = together(rounds, finished, config.target_fpr)
        without = hand_back(rounds, finished, parts, final.manifest.round)
        record["thresholds_together"] = {"sites": sorted(parts), "without": sorted(without)}
    write_record(folder, record)
    result = folder / RESULT
    _write_result(result, config, final, record, rounds, missing, replies)
    status.write(state="done", round=last, rounds=last, missing=sorted(missing))
    return result


def _write_result(
    out: Path,
    config: TrainConfig,
    final: Payload,
    record: dict[str, Any],
    rounds: RemoteRounds,
    missing: set[str],
    replies: dict[str, Any],
) -> None:
    """The run folder of the server: what all sites share, without any site's own part."""
    results = {
        "federation": record["federation"],
        "method": config.method,
        "backbone": config.backbone,
        "sites": sorted(rounds.sites),
        "rounds": rounds_of(record),
        "n_images": final.manifest.n_images,
        "n_patches": final.manifest.n_patches,
        REPORTED: record.get(REPORTED, {}),
        "finished": {
            site: {key: value for key, value in facts.items() if key not in ("shared", KEY, SCORES)}
            for site, facts in record.get("finished", {}).items()
        },
        "shared_threshold": record.get("shared_threshold"),
        "thresholds_together": record.get("thresholds_together"),
        "missing": {
            site: replies[site].refusal if site in replies else "no answer in time"
            for site in sorted(missing)
        },
        "ledger": rounds.ledger.summary(),
    }
    write_config(out, config)
    write_ledger(out, rounds.ledger)
    write_json(out / "results.json", results)
    write_atomically(out / "global.safetensors", final.to_bytes())
    kind = method_class(config.method)
    if not kind.sends_weights:  # what scores needs statistics of images, which only sites have
        kind.run_of_server(config, final, _features(record, final)).save(out)


def _features(record: dict[str, Any], final: Payload) -> FeatureConfig:
    """What a site said its features are, if it fits the key that all of them have."""
    for facts in record.get(REPORTED, {}).values():
        try:
            said = dict(facts["features"])
            layers = said.pop("layers")
            features = FeatureConfig(layers=None if layers is None else tuple(layers), **said)
            if features.key() == final.manifest.features:
                return features
        except (KeyError, TypeError, ValueError, ConfigError):
            continue
    raise FederationError("no site described the features that the memory has")


def site_keys(settings: ServerSettings) -> dict[bytes, str]:
    """Public keys, in PEM, of the files `sites/NAME.pub`, to the names of their sites.

    Removing a file locks its site out. Raises `ConfigError`.
    """
    from fedvad.deploy.keys import public_pem

    keys: dict[bytes, str] = {}
    for name in settings.sites:
        path = settings.folder / "sites" / f"{name}.pub"
        if not path.is_file():
            log.warning("no key of site %s in %s: it cannot take part", name, path.parent)
            continue
        key = public_pem(path)
        if key in keys:
            raise ConfigError(f"sites {keys[key]} and {name} have the same key in {path.parent}")
        keys[key] = name
    return keys


def _train_config(settings: ServerSettings) -> TrainConfig:
    config = resolve_config(settings.folder / _CONFIG)
    _checked(config, settings)
    if config.split is not None:
        raise ConfigError("`split` divides one set in one place; here each site has its own images")
    return config


def _checked(config: TrainConfig, settings: ServerSettings) -> type[Method]:
    return remote(
        config,
        allow_weights=settings.allow_weights,
        consent="allow_weights = true in server.toml, and in each site's site.toml",
    )


def rounds_of(record: Mapping[str, Any]) -> int:
    """The last round that a run is to make."""
    return int(record.get(ROUNDS, record["config"]["rounds"]))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Keep what a run is; raises `StorageError`."""
    write_json(folder / _RECORD, dict(record))


def read_record(folder: Path) -> dict[str, Any]:
    """What a run of this server is; raises `ArtefactError` for a missing or damaged record."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        TrainConfig.model_validate(record["config"])
        "".join((record["federation"], *record["sites"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder / _RECORD} is damaged ({error}): restore it from a copy, or launch under "
            "another --name"
        ) from error
    if "told" in record:  # of an older release
        record[REPORTED] = record.pop("told")
    return dict(record)


class _Status:
    """One small file by which whoever launched the run follows it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _STATUS
        self._last: dict[str, Any] = {}
        self._at = 0.0
        self.write(state="running", round=0, rounds=0, waiting=[])

    def write(self, **values: Any) -> None:
        if values != self._last or time() - self._at > 5:
            self._last, self._at = values, time()
            write_atomically(self._path, json.dumps(values | {"time": self._at}).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """What a run said about itself last; empty before it said anything."""
    try:
        return dict(json.loads((folder / _STATUS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
