"""What a site answers: its rounds, and its own run folder from the final memory."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from fedvad._version import __version__
from fedvad.data.checked import first_fault
from fedvad.data.files import locked
from fedvad.data.locks import only_one
from fedvad.deploy.settings import SiteSettings, check_run_name
from fedvad.deploy.sharing import KEY, read_counts, take, write_counts
from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.errors import ConfigError, DataError, FedvadError, PayloadError
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import brings_weights, is_backbone_file
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.federation.payload import Payload
from fedvad.runs.bank_state import (
    SiteState,
    load_site,
    note_round,
    save_sent,
    save_site,
)
from fedvad.runs.config import OWN_OF_SITE, TrainConfig
from fedvad.runs.families import method_class
from fedvad.runs.feedback import keep_answers
from fedvad.runs.method import make_method, remote
from fedvad.runs.progress import no_progress
from fedvad.runs.run_folder import DETECTOR_FILE, write_json
from fedvad.runs.sharing import answered_at
from fedvad.runs.site_scores import SCORES, THRESHOLDS, adopt, scores_of
from fedvad.verbs.bank import one_round, one_site
from fedvad.verbs.bank_import import make_run

log = logging.getLogger(__name__)
_FACTS = "told.json"  # an older release left off with it


def answer(site: SiteSettings, instruction: Instruction) -> Reply:
    """A site's answer to a server; every error of ours becomes a refusal with its reason.

    The same question gets the same answer, so it may be asked again after any crash.
    """
    if instruction.kind == "hello":
        return Reply(site.name)
    try:
        check_run_name(instruction.federation)
        asked = {"finish": "final memory", "threshold": "shared threshold"}
        what = asked.get(instruction.kind, f"round {instruction.round}")
        log.info("%s of %s", what, instruction.federation)
        # one answer at a time: a question asked twice finds the first answer when it comes in
        with locked(_root(site) / "lock"):
            if instruction.kind == "round":
                return _round(site, instruction)
            if instruction.kind == "threshold":
                return _threshold(site, instruction)
            return _finish(site, instruction)
    except FedvadError as error:
        log.warning("refused: %s", error)
        return Reply(site.name, instruction.round, refusal=_reason(site, error))


def _reason(site: SiteSettings, error: FedvadError) -> str:
    """What the server may know of an error: no file of the site by name, images least of all."""
    if isinstance(error, DataError):
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else None
        kind = type(error).__name__
        return f"{kind} ({reason}): see the site's log" if reason else f"{kind}: see the site's log"
    text = str(error)
    for path in (site.data, site.weights, site.cache, site.state, site.folder):
        text = text if path is None else text.replace(str(path), "...")
    return text


def state_folder(site: SiteSettings, federation: str) -> Path:
    """Where a site keeps its part of a federation."""
    return _root(site) / "federations" / check_run_name(federation)


def run_folder(site: SiteSettings, federation: str) -> Path:
    """The run folder that a finished federation leaves at the site."""
    return _root(site) / "runs" / check_run_name(federation)


def _root(site: SiteSettings) -> Path:
    return site.state or site.folder / "state"


def _round(site: SiteSettings, instruction: Instruction) -> Reply:
    start = perf_counter()
    folder = state_folder(site, instruction.federation)
    before = load_site(folder)
    config, index = _agreed(site, instruction), _index(site, instruction)
    round_ = instruction.round
    known = _known(instruction)
    if known is not None and known.manifest.round >= round_:
        raise PayloadError(f"the memory of round {known.manifest.round} came with round {round_}")
    facts: dict[str, Any] = {"fedvad": __version__, "repeated": True}  # of older releases
    if before is not None:
        _same_federation(before, site, config, index)
        if known is not None:
            note_round(folder, before, known, len(instruction.payload))
    if before is None or before.round < round_:
        run = run_folder(site, instruction.federation)
        answered = None
        if (site.share_answers or site.share_defects) and (run / DETECTOR_FILE).is_file():
            answered = answered_at(run, site.name, share_defects=site.share_defects)
            if not site.share_answers:
                answered = replace(answered, normals={})
        state, facts = _make_round(site, config, index, before, known, round_, answered)
        # all of the answer before the state that counts it as made: a kill repeats the round
        save_sent(folder, round_, state.upload.to_bytes())
        write_json(folder / _FACTS, facts)
        save_site(folder, state)
    elif before.round > round_:
        raise ConfigError(
            f"site {site.name} already made round {before.round} of this federation and is asked "
            f"for round {round_}: the server lost its state. Restore it, or begin a new run"
        )
    else:
        facts = _facts_before(folder) | {"repeated": True}
    facts["seconds"] = round(perf_counter() - start, 3)
    # only rows of a memory may add to what was sent before
    replaced = "upload_rows" not in method_class(config.method).options
    held = max(instruction.held, round_ - 1) if replaced else instruction.held
    return Reply(site.name, round_, _unheld(folder, held, round_), facts)


def _unheld(folder: Path, held: int, round_: int) -> tuple[bytes, ...]:
    """Uploads after the last one that the server has; earlier ones may have been lost."""
    found = {
        int(named[1]): path
        for path in (folder / "sent").glob("round-*")
        if (named := re.fullmatch(r"round-(\d+)\.fedvad", path.name))  # no copy of somebody's
    }
    return tuple(found[r].read_bytes() for r in sorted(found) if held < r <= round_)


def _facts_before(folder: Path) -> dict[str, Any]:
    """What was reported with the last round; only its release where that is gone or damaged."""
    try:
        return dict(json.loads((folder / _FACTS).read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s is damaged and left out: %s", folder / _FACTS, error)
    return {"fedvad": __version__}


def _make_round(
    site: SiteSettings,
    config: TrainConfig,
    index: int,
    before: SiteState | None,
    known: Payload | None,
    round_: int,
    answered: AnsweredPatches | None,
) -> tuple[SiteState, dict[str, Any]]:
    data = _data(site)
    images = one_site(data, config, site.name, before)
    extractor = FeatureExtractor(config.features(), _cache(site))
    method = make_method(config, extractor)
    method.max_weight_bytes = site.max_weight_bytes
    state = one_round(
        method, images, data, index, before, known, round_, no_progress, answered
    )  # fmt: skip
    facts = {
        "fedvad": __version__,
        "repeated": False,
        "images": state.n_images,
        "images_computed": extractor.computed,
        "features": extractor.config.identity(),
    }
    return state, facts


def _finish(site: SiteSettings, instruction: Instruction) -> Reply:
    folder = state_folder(site, instruction.federation)
    out = run_folder(site, instruction.federation)
    config = _agreed(site, instruction)
    merged = _known(instruction)
    if merged is None:
        raise PayloadError("the final memory is missing")
    method_class(config.method).check_merged(merged)
    state = load_site(folder)
    if state is not None:
        _same_federation(state, site, config, _index(site, instruction))
        note_round(folder, state, merged, len(instruction.payload))
    else:
        state = _newcomer(site, config, _index(site, instruction), merged)
    digest = hashlib.sha256(instruction.payload).hexdigest()
    mark = out / "memory.sha256"
    facts: dict[str, Any] = {"fedvad": __version__, "run": out.name, "repeated": True}
    if not (
        (out / DETECTOR_FILE).is_file() and mark.is_file() and mark.read_bytes() == digest.encode()
    ):
        # made aside, so that a kill leaves no half run folder, and no answer is lost in one
        fresh, old = (out.with_name(f".{out.name}.{word}") for word in ("new", "old"))
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        made, calibration = make_run(
            config, state, merged, folder, fresh, _data(site), _cache(site), no_progress
        )
        if config.shared_threshold:
            write_counts(fresh, calibration.counts)
        if (out / DETECTOR_FILE).is_file():
            with only_one(out):  # an answer that is being written would bring the old run back
                keep_answers(out, fresh)
        (fresh / mark.name).write_text(digest)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        facts |= {"repeated": False, "calibration_images": made["calibration_images"]}
        facts["own_normals"] = made["own_normals"].get(site.name, {})
    if config.shared_threshold:
        facts[KEY] = read_counts(out)
    elif config.threshold_rule == "federated" and site.share_scores:
        facts[SCORES] = scores_of(out, site.name)
    log.info("run folder: %s", out)
    return Reply(site.name, instruction.round, (), facts)


def _threshold(site: SiteSettings, instruction: Instruction) -> Reply:
    out = run_folder(site, instruction.federation)
    if not (out / DETECTOR_FILE).is_file():
        raise ConfigError("a threshold of all sites came before the final memory")
    if THRESHOLDS in instruction.facts:
        adopt(out, site.name, instruction.facts)
    else:
        take(out, instruction.facts, _config(site, instruction).target_fpr)
    log.info("%s has the threshold found with all sites", out)
    return Reply(site.name, instruction.round)


def _newcomer(site: SiteSettings, config: TrainConfig, index: int, merged: Payload) -> SiteState:
    """A site that took part in no round scores with what the others made."""
    return SiteState(
        site=site.name,
        index=index,
        config=config,
        data=_data(site),
        kept={},
        upload=merged,
        n_images=0,
    )


def _agreed(site: SiteSettings, instruction: Instruction) -> TrainConfig:
    """`_config` of a method that may leave this site."""
    config, consent = _config(site, instruction), "allow_weights = true in site.toml"
    remote(config, allow_weights=site.allow_weights, consent=consent)
    return config


def _config(site: SiteSettings, instruction: Instruction) -> TrainConfig:
    """The federation's configuration with this site's own ways; raises `ConfigError`."""
    try:
        config = TrainConfig.model_validate_json(instruction.config)
    except ValidationError as error:
        raise ConfigError(
            f"the server's configuration (fedvad {instruction.version}) does not suit fedvad "
            f"{__version__} of this site: {first_fault(error)}"
        ) from error
    file = is_backbone_file(config.backbone)
    if not file and not re.fullmatch(r"[A-Za-z0-9_.-]+", config.backbone):
        raise ConfigError(f"the server asks for a backbone named {config.backbone[:80]!r}")
    if site.weights is None and (file or not brings_weights(config.backbone)):
        raise ConfigError(
            f"the federation's backbone is {config.backbone[:80]}, and a site downloads nothing: "
            "put its file on this machine and name it as weights in site.toml"
        )
    limited = "upload_bytes" in method_class(config.method).options
    if limited and config.upload_bytes > site.max_upload_bytes:
        raise ConfigError(
            f"the server asks for uploads of up to {config.upload_bytes} bytes per round, this "
            f"site sends at most {site.max_upload_bytes} (max_upload_bytes in site.toml)"
        )
    own: Mapping[str, Any] = {
        "weights": site.weights,
        "engine": site.engine or config.engine,
        "device": site.device or "cpu",
        "compare": (),
        "leave_out": site.leave_out,
    }
    return config.model_copy(update=dict(own))


def _same_federation(state: SiteState, site: SiteSettings, config: TrainConfig, index: int) -> None:
    before, now = state.config.model_dump(), config.model_dump()
    changed = [k for k in now if k not in OWN_OF_SITE and before[k] != now[k]]
    if state.site != site.name or state.index != index:
        changed.append("sites")
    if changed:
        raise ConfigError(
            f"the server changed {', '.join(changed)} in the middle of this federation: begin a "
            "new run under another name"
        )


def _index(site: SiteSettings, instruction: Instruction) -> int:
    names = sorted(instruction.sites)
    if site.name not in names:
        raise ConfigError(f"site {site.name} is not among the sites of this federation")
    return names.index(site.name)


def _known(instruction: Instruction) -> Payload | None:
    if not instruction.payload:
        return None
    payload = Payload.from_bytes(instruction.payload)
    if payload.manifest.kind != "global":
        raise PayloadError("the server sent an upload instead of a global memory")
    return payload


def _data(site: SiteSettings) -> Path:
    if site.data is None:
        raise ConfigError(f"{site.folder / 'site.toml'} names no data: give `fedvad site` --data")
    return site.data


def _cache(site: SiteSettings) -> DescriptorCache:
    return DescriptorCache(site.cache or default_cache_root())
