"""The server's step in a federation by files: from the sites' signed files to a global memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from fedvad.data.checked import Closed, parse_values
from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError, ConfigError, PayloadError, join_names
from fedvad.federation.codecs import Precision
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.averages import weights_for
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.exchange.sums import has_sums, sums_for
from fedvad.federation.exchange.terms import Algorithm
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.mailboxes.files import receive_files
from fedvad.federation.mailboxes.state import RunState, load_state, save_state
from fedvad.federation.payload import Payload
from fedvad.federation.server import Receipt, Server
from fedvad.federation.signed import (
    MAX_BYTES,
    SigningKey,
    key_fingerprint,
    read_private_key,
    read_trusted_keys,
)
from fedvad.memory.merge import MergeMode
from fedvad.runs.config import Defence, TrainConfig, resolve_config
from fedvad.runs.guards import guard_output_file
from fedvad.runs.plan import upload_limits

_FEDERATION = "federation.json"
_FORGOTTEN = "forgotten.json"
_SHARED = ("merge", "merge_weights", "memory_rows", "precision", "seed", "defence", "malicious")


class _Federation(Closed):
    """What all rounds of a server must share; start: hash of weights or of what sums are about,
    empty for memories.
    """

    features: str
    dim: int = Field(ge=1)
    merge: MergeMode
    memory_rows: int | None
    precision: Precision
    seed: int
    patches_per_image: int | None = None
    upload_rows: int | None = None
    upload_bytes: int | None = None
    defence: Defence = "none"
    malicious: float = 1 / 3
    merge_weights: float = 1.0
    start: str = ""
    algorithm: Algorithm = "fedavg"

    @classmethod
    def of(cls, upload: Payload, config: TrainConfig, *, limited: bool) -> Self:
        """The federation that an upload belongs to; limited: whether `config` limits uploads."""
        chosen = _shared(config)
        if has_weights(upload) or has_sums(upload):
            manifest = upload.manifest
            return cls(features=manifest.features, dim=1, start=manifest.generator, **chosen)
        features, dim, patches = kind_of(upload)
        limits: dict[str, int | None] = {}
        if limited:
            allowed = upload_limits(config, dim, patches)
            limits = {"upload_rows": allowed.rows, "upload_bytes": allowed.upload_bytes}
        return cls(features=features, dim=dim, patches_per_image=patches, **limits, **chosen)

    def exchange_for(self, upload: Payload) -> Exchange[Any]:
        """See `Server`; an upload tells the shapes of weights, and nothing of a memory."""
        defence = RobustConfig(self.malicious) if self.defence == "robust" else None
        if has_sums(upload):
            return sums_for(upload)
        if self.start:
            return weights_for(upload, self.algorithm, defence=defence)
        return MemoryExchange(
            features=self.features,
            dim=self.dim,
            merge_mode=self.merge,
            size=self.memory_rows,
            temper=self.merge_weights,
            precision=self.precision,
            seed=self.seed,
            limits=self.limits(),
            defence=defence,
        )

    def limits(self) -> Limits:
        """What an upload may hold."""
        return Limits(
            rows=self.upload_rows,
            patches_per_image=self.patches_per_image,
            upload_bytes=self.upload_bytes,
        )


def merge_uploads(
    files: Sequence[Path],
    trust: Path | None,
    key: Path,
    state_dir: Path,
    out: Path,
    *,
    quorum: int = 1,
    features: str | None = None,
    config_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_BYTES,
    allow_weights: bool = False,
    take_back: Collection[str] = (),
) -> dict[str, Any]:
    """A server's round: check every file, merge those that pass, write the signed global memory.

    A file that is refused (reason in the result and the log) does not stop the others, as long as
    `quorum` sites passed. A file may come late: a site's rows count from the merge that they
    reach, and a site without a file keeps what it sent before. trust: the sites' public keys; the
    name of a key's file is the site that it speaks for. features: key of the feature
    configuration; by default what most files of the first merge have. options: `merge`,
    `merge_weights`, `memory_rows`, `precision`, `seed`, `defence`, `malicious`, `method` of
    `TrainConfig`. Uploads are limited by `upload_bytes` and `upload_rows` where the first merge's
    `config_file` has either. Without `files` the last global memory is written again.
    allow_weights: whether files may hold weights of a student, which are averaged. take_back: sites
    that `forget_site` took out and whose files count again from now on; those of others that left
    are refused.

    Raises `FederationError` when too few files pass (nothing is changed then), `ConfigError` for
    keys and options and when another process works on `state_dir`, `ArtefactError` for a damaged
    state.
    """
    with only_one(state_dir, private=True):
        signing = read_private_key(key)
        keys = [] if trust is None else [trust, *trust.glob("*.pub")]
        guard_output_file(
            out, "--out", others=[key, config_file, *keys, *files, *state_dir.glob("**/*")],
            own=signing.beginning,
        )  # fmt: skip
        state = load_state(state_dir)
        if state is not None:
            _check_left(state, state_dir)
        if not files:
            if state is None:
                raise ConfigError("no file to merge, and no round was merged in this --state yet")
            return _write_global(state, signing, out, [])
        if trust is None:
            raise ConfigError("--trust is missing: the folder of the sites' public keys")
        trusted = read_trusted_keys(trust)
        forgotten = forgotten_sites(state_dir)
        if unknown := sorted(set(take_back) - forgotten):
            raise ConfigError(
                f"--take-back {unknown[0]}: this server took out {join_names(forgotten)}"
            )
        forgotten -= set(take_back)
        given = {name: value for name, value in (options or {}).items() if value is not None}
        # a later round may omit all of it
        config = resolve_config(config_file, **given) if given or config_file is not None else None
        begun = None if state is None else read_federation(state_dir)
        if begun is not None:
            _check_same(begun, features, config)
        federation_of, largest = _federation(begun, config)
        server = Server(
            exchange_for=partial(_exchange, federation_of, allow_weights), features=features,
            quorum=max(1, quorum), max_bytes=min(max_bytes, largest),
        )  # fmt: skip
        if state is not None:
            server.restore(state)
        server.open(server.round + 1)
        receipts = receive_files(server, files, trusted, forgotten)
        server.close()
        accepted = [receipt for receipt in receipts if receipt.accepted]
        if begun is None:  # the mark of the round comes after it, so a kill here is harmless
            record = federation_of(accepted[0].payloads[0])
            write_sealed(state_dir / _FEDERATION, record.model_dump(mode="json"))
        if take_back:  # first: a kill must not leave who is back among those that left
            save_forgotten(state_dir, forgotten)
        save_state(state_dir, server.state())
        return _write_global(server.state(), signing, out, accepted)


def _check_left(state: RunState, state_dir: Path) -> None:
    """Raise `ConfigError` where a kill came between the last two steps of `forget_site`."""
    if leaving := sorted(forgotten_sites(state_dir) & set(state.server)):
        raise ConfigError(
            f"{leaving[0]} was being taken out when that was interrupted, and the memory still has "
            f"its rows: finish it with fedvad bank forget {leaving[0]}"
        )


def _federation(
    begun: _Federation | None, config: TrainConfig | None
) -> tuple[Callable[[Payload], _Federation], int]:
    """What an upload belongs to, as remembered or as it says; and the longest message to read."""
    if begun is not None:
        return lambda upload: begun, begun.limits().max_bytes
    wanted = config or resolve_config()
    limited = config is not None and bool({"upload_bytes", "upload_rows"} & config.model_fields_set)
    largest = Limits(upload_bytes=wanted.upload_bytes if limited else None).max_bytes
    return partial(_Federation.of, config=wanted, limited=limited), largest


def _exchange(
    federation_of: Callable[[Payload], _Federation], allow_weights: bool, upload: Payload
) -> Exchange[Any]:
    if has_weights(upload) and not allow_weights:
        raise PayloadError(
            "it holds the weights of a student, and no memory: merge with --allow-weights if that "
            "is what the sites agreed on"
        )
    return federation_of(upload).exchange_for(upload)


def _shared(config: TrainConfig) -> dict[str, Any]:
    shared = {name: getattr(config, name) for name in _SHARED}
    return shared | {"algorithm": config.student.algorithm}


def _check_same(begun: _Federation, features: str | None, config: TrainConfig | None) -> None:
    """Raise `ConfigError` for options other than those of the first round."""
    asked = {} if config is None else _shared(config)
    asked = asked if features is None else asked | {"features": features}
    changed = [k for k, v in asked.items() if getattr(begun, k) != v]
    if changed:
        raise ConfigError(
            "this federation was begun with other options: "
            + ", ".join(f"{k} was {getattr(begun, k)!r}, now {asked[k]!r}" for k in changed)
            + "; omit them, or begin again with another --state"
        )


def read_federation(state_dir: Path) -> _Federation:
    """What all rounds of the server share; raises `ArtefactError` for a damaged state."""
    path = state_dir / _FEDERATION
    try:
        return parse_values(_Federation, read_sealed(path), path)
    except ArtefactError as error:
        raise ArtefactError(f"the server's state is damaged: {error}") from error


def forgotten_sites(state_dir: Path) -> set[str]:
    """Sites that were taken out; raises `ArtefactError` for a damaged state."""
    path = state_dir / _FORGOTTEN
    if not path.exists():
        return set()
    sites = read_sealed(path).get("sites")
    if not isinstance(sites, list):
        raise ArtefactError(f"the server's state is damaged: {path} names no sites")
    return set(map(str, sites))


def save_forgotten(state_dir: Path, sites: Collection[str]) -> None:
    """Remember which sites were taken out."""
    write_sealed(state_dir / _FORGOTTEN, {"sites": sorted(sites)})


def _write_global(
    state: RunState, key: SigningKey, out: Path, accepted: Sequence[Receipt]
) -> dict[str, Any]:
    signed = key.sign(state.merged.to_bytes())
    write_atomically(out, signed)
    manifest, entry = state.merged.manifest, state.ledger.rounds[-1]
    files: dict[str, list[str]] = {}
    for receipt in sorted(accepted, key=lambda r: (r.site, r.first_round)):
        files.setdefault(receipt.site, []).append(receipt.label)
    return {
        "path": str(out),
        "bytes": len(signed),
        "round": state.round,
        "accepted": files,
        "refused": dict(entry.rejected) if files else {},
        "distrusted": dict(entry.distrusted) if files else {},
        "kept": sorted({site for site in state.server if site} - set(files)),
        "rows": entry.memory_rows,
        "sums": has_sums(state.merged),
        "n_images": manifest.n_images,
        "n_patches": manifest.n_patches,
        "features": manifest.features,
        "coverage": manifest.coverage,
        "fingerprint": key_fingerprint(key.public),
    }
