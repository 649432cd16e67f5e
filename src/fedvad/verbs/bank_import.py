"""A site takes the global memory of a federation by files, and makes a run folder of it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedvad.data.locks import only_one
from fedvad.errors import ArtefactError, ConfigError, PayloadError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.sums import has_sums
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.signed import (
    MAX_BYTES,
    SignedMessage,
    read_bounded,
    read_trusted_keys,
)
from fedvad.runs.bank_state import (
    SiteState,
    load_global,
    load_ledger,
    load_site,
    note_round,
    save_global,
)
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import fingerprint
from fedvad.runs.feedback import keep_answers
from fedvad.runs.guards import guard_output_folder, guard_plain_folder
from fedvad.runs.method import Method, make_method, remote
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run_folder import (
    CONFIG_FILE,
    DETECTOR_FILE,
    check_configuration,
    write_config,
    write_ledger,
)
from fedvad.runs.thresholds import Calibration
from fedvad.verbs.bank import one_site

log = logging.getLogger(__name__)


def import_global(
    file: Path,
    state_dir: Path,
    trust: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    cache: DescriptorCache | None = None,
    max_bytes: int = MAX_BYTES,
    answers: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Take the global memory that a server signed; with `out` make a run folder of it.

    trust: the server's public key. data, weights: where the site's images and backbone weights
    are now, if not where they were at the export. answers: run folder whose answers to alarms count
    in the new one, too. The run folder holds the site's own memory and
    thresholds from its own normal images, as `train` makes them. Importing the same file again
    changes nothing. `own_rows` of the result: rows of the last upload that came back. Raises
    `PayloadError` naming the file for one that is not to be trusted, is older than what the site
    has, or is of another federation; `ConfigError` (also when another process works on
    `state_dir` or `out`), `DataError`.
    """
    with ExitStack() as stack:
        stack.enter_context(only_one(state_dir))
        if out is not None and not out.is_file():
            stack.enter_context(only_one(out))
        if trust.is_dir():
            raise ConfigError(
                f"{trust} is a folder: --trust takes the server's one public key here"
            )
        trusted = read_trusted_keys(trust)
        state, known = load_site(state_dir), load_global(state_dir)
        if out is not None:
            _check_out(out, state)
            assert state is not None
            images = state.data if data is None else data
            guard_plain_folder(out, "--out", [images])
            guard_output_folder(out, "--out", data=images, sites=[])
        try:
            signed = read_bounded(file, max_bytes)
            merged = _checked_global(signed, trusted, max_bytes)
            # what a site consents to is what leaves it, and here something comes
            kind = None if state is None else remote(state.config, allow_weights=True, consent="")
            if kind is not None:
                kind.check_merged(merged)
            elif not has_weights(merged) and not has_sums(merged):
                bank_from(merged)
            _check_fits(merged, known, state)
        except PayloadError as error:
            raise PayloadError(f"{file}: {error}") from error
        own_rows = None
        if state is not None and kind is not None:
            own_rows = _own_rows(kind, state, merged)
            note_round(state_dir, state, merged, len(signed))
        save_global(state_dir, signed)
        answer: dict[str, Any] = {
            "path": str(file),
            "round": merged.manifest.round,
            "rows": merged.rows,
            "sums": has_sums(merged),
            "n_images": merged.manifest.n_images,
            "n_patches": merged.manifest.n_patches,
            "features": merged.manifest.features,
            "own_rows": own_rows,
            "run": None if out is None else str(out),
        }
        if out is not None:
            assert state is not None  # `_check_out` saw to it
            config = state.config
            if weights is not None:
                config = config.model_copy(update={"weights": weights})
            made, _ = make_run(config, state, merged, state_dir, out, data, cache, progress)
            answer |= made
            if answers is not None:
                keep_answers(answers, out)
            if state.config.shared_threshold:
                log.warning(
                    "one threshold for all sites needs their counts, which files do not carry: "
                    "%s has its own",
                    state.site,
                )
        return answer


def _checked_global(data: bytes, trusted: dict[bytes, str], max_bytes: int) -> Payload:
    signed = SignedMessage.parse(data)
    signed.check(trusted)
    payload = Payload.from_bytes(signed.message, max_bytes=max_bytes)
    if payload.manifest.kind != "global":
        raise PayloadError(
            f"it is the upload of site {payload.manifest.site!r}, not a server's global memory"
        )
    return payload


def _check_fits(merged: Payload, known: Payload | None, state: SiteState | None) -> None:
    features = merged.manifest.features
    own = state.upload if state is not None else known
    if own is not None and features != own.manifest.features:
        raise PayloadError(
            f"it is of another federation: its features are {features}, this site's "
            f"{own.manifest.features} (backbone, weights, image size or layers differ)"
        )
    if own is not None and _shapes(merged) != _shapes(own):
        raise PayloadError("its rows or weights are of other shapes than this site's")
    if known is None:
        return
    before = known.manifest.round
    if merged.manifest.round < before:
        raise PayloadError(
            f"it is of round {merged.manifest.round}, but this site already has round {before}: "
            "it is an old file"
        )
    if merged.manifest.round == before and merged.to_bytes() != known.to_bytes():
        raise PayloadError(
            f"it differs from the memory of the same round {before} that this site already has: "
            "the server merged that round twice"
        )


def _shapes(payload: Payload) -> dict[str, tuple[int, ...]]:
    """What all messages of a federation share: values per row, the shapes of weights, or what
    sums are about.
    """
    if has_sums(payload):
        return {"form": tuple(payload.arrays["form"].tolist())}
    if "vectors" in payload.arrays:
        return {"vectors": payload.arrays["vectors"].shape[1:]}
    return {name: array.shape for name, array in payload.arrays.items()}


def _own_rows(kind: type[Method], state: SiteState, merged: Payload) -> int | None:
    """How many rows of the site's last upload are in the global memory as they were sent."""
    rows = kind.own_rows(state.upload, merged)
    if rows == 0 and state.config.merge == "concat":
        log.warning(
            "the global memory of round %d holds nothing of what site %s sent in round %d: that "
            "file came too late, was lost or refused. The server still takes it: hand in the copy "
            "in the folder `sent` of --state, together with or before the next upload",
            merged.manifest.round, state.site, state.round,
        )  # fmt: skip
    return rows


def _check_out(out: Path, state: SiteState | None) -> None:
    if state is None:
        raise ConfigError(
            "a run folder needs the site's own normal images for its thresholds, and no export "
            "was made from this --state yet: import without --out, or export first"
        )
    if (out / DETECTOR_FILE).exists() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"{out} already holds something: choose another --out, or remove it")
    check_configuration(out)
    if (out / CONFIG_FILE).exists() and (out / "state").exists():
        raise ConfigError(f"{out} holds an unfinished training: choose another --out")


def make_run(
    config: TrainConfig,
    state: SiteState,
    merged: Payload,
    state_dir: Path,
    out: Path,
    data: Path | None,
    cache: DescriptorCache | None,
    progress: Progress,
) -> tuple[dict[str, Any], Calibration]:
    """A site's run folder from the global message, with thresholds from its own normal images.

    Returns what to say about it, and what those images' scores said.
    """
    data = data or state.data
    site = one_site(data, config, None, state)
    extractor = FeatureExtractor(config.features(), cache)
    if extractor.config.key() != merged.manifest.features:
        raise ArtefactError(
            "the backbone gives other features than at the export: give the same --weights"
        )
    method = make_method(config, extractor)
    run, calibration = method.run_at(
        site, merged, fingerprint(data), progress,
        index=state.index, kept=dict(state.kept), n_images=state.n_images,
    )  # fmt: skip
    write_config(out, config)
    write_ledger(out, load_ledger(state_dir))
    run.save(out)  # last: with it the run counts as made
    answer = {
        "site": state.site,
        "threshold": run.limit(state.site),
        "calibration_images": calibration.images,
        "own_normals": calibration.own_normals,
    }
    return answer, calibration
