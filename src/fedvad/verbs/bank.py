"""A site's round in a federation by files: from its images to one signed upload."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.data.folders import Site
from fedvad.data.locks import only_one
from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.sums import has_sums
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.payload import Payload
from fedvad.federation.signed import (
    SigningKey,
    check_name,
    key_fingerprint,
    read_private_key,
)
from fedvad.runs.bank_state import (
    SiteState,
    load_global,
    load_site,
    next_config,
    save_sent,
    save_site,
)
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import load_sites
from fedvad.runs.guards import guard_output_file
from fedvad.runs.method import Method, make_method, remote
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.sharing import answered_at, check_sharing

log = logging.getLogger(__name__)


def export_upload(
    data: Path,
    state_dir: Path,
    key: Path,
    out: Path,
    *,
    site: str | None = None,
    index: int | None = None,
    config_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    cache: DescriptorCache | None = None,
    progress: Progress = no_progress,
    allow_weights: bool = False,
    answers: Path | None = None,
    with_defects: bool = False,
) -> dict[str, Any]:
    """A site's round: read its images, update its memory or its student, write what it sends as
    one signed file.

    The round is the one after the global message that the site took last, or the first. A round
    that was made already is written again, unchanged. site: name, else that of the folder.
    index: the site's position, from 0, among the sorted names of all sites of the federation; it
    sets the site's seed as in `train` and must be given at the first export. options: values of
    `TrainConfig`, see `next_config`. allow_weights: whether the file may hold weights, which a
    method with a student sends. answers: run folder of this site; patches of the false alarms that
    were answered there are sent before others. with_defects: those of confirmed defects, too.
    Returns what the file holds, in numbers. Raises
    `ConfigError` (also when another process works on `state_dir`), `DataError`, `FederationError`
    (see `fedvad.errors`).
    """
    with only_one(state_dir, private=True):
        signing = read_private_key(key)
        before = load_site(state_dir)
        config = next_config(before, config_file, dict(options or {}))
        remote(config, allow_weights=allow_weights, consent="--allow-weights")
        index = _same_index(before, index)
        member_site = one_site(data, config, site, before)
        guard_output_file(
            out, "--out", data=data, sites=[member_site],
            others=[key, config.weights, config_file, *state_dir.glob("**/*")],
            own=signing.beginning,
        )  # fmt: skip
        known = load_global(state_dir)
        round_ = 1 if known is None else known.manifest.round + 1
        if before is not None and before.round >= round_:
            log.info("round %d was made before: written again as it was", before.round)
            return _write_upload(before, signing, state_dir, out)
        method = make_method(config, FeatureExtractor(config.features(), cache))
        if with_defects and answers is None:
            raise ConfigError("--with-defects needs --answers, the run folder that has them")
        answered = None
        if answers is not None:
            answered = answered_at(answers, member_site.name, share_defects=with_defects)
        state = one_round(
            method, member_site, data, index, before, known, round_, progress, answered
        )  # fmt: skip
        save_site(state_dir, state)
        return _write_upload(state, signing, state_dir, out)


def _same_index(before: SiteState | None, index: int | None) -> int:
    if before is None:
        if index is None or index < 0:
            raise ConfigError(
                "the first export needs --site-index: the position of this site, from 0, in the "
                "sorted list of all site names of the federation"
            )
        return index
    if index not in (None, before.index):
        raise ConfigError(f"site {before.site} has the index {before.index}, not {index}")
    return before.index


def one_site(data: Path, config: TrainConfig, name: str | None, before: SiteState | None) -> Site:
    """The one set in `data`, by the name that is given, remembered, or else its folder's.

    Raises `ConfigError` for several sets, and for another name than the one remembered.
    """
    if config.split is not None:
        raise ConfigError("--split divides one set in one place; here each site has its own folder")
    sites = load_sites(
        data, None, config.seed, config.label_names(), image_size=config.features().view
    )
    if len(sites) != 1:
        raise ConfigError(f"{data} holds {len(sites)} sites: give the folder of one")
    name = check_name(name or (before.site if before is not None else sites[0].name))
    if before is not None and name != before.site:
        raise ConfigError(f"this state is of site {before.site}, not {name}: use another --state")
    return replace(sites[0], name=name)


def one_round(
    method: Method,
    site: Site,
    data: Path,
    index: int,
    before: SiteState | None,
    known: Payload | None,
    round_: int,
    progress: Progress,
    answered: AnsweredPatches | None = None,
) -> SiteState:
    """A site's state after a round, with its upload; `before` is that after the last one.

    answered: answers of the site. Raises `ConfigError` for it where they cannot be shared.
    """
    with method.member(site, index, round_, progress) as (exchange, member):
        if answered is not None and not answered.empty:
            check_sharing(method.config, site.name)
            member.answered = answered
        if before is not None:
            member.restore(before.kept)
        upload = exchange.site_step(member, known, round_)
        return SiteState(
            site=site.name,
            index=index,
            config=method.config,
            data=data.resolve(),
            kept=member.snapshot(),
            upload=upload,
            n_images=upload.manifest.n_images,
        )


def _write_upload(state: SiteState, key: SigningKey, folder: Path, out: Path) -> dict[str, Any]:
    signed = key.sign(state.upload.to_bytes())
    kept = save_sent(folder, state.round, signed)
    write_atomically(out, signed)
    manifest, arrays = state.upload.manifest, state.upload.arrays
    first = arrays.get("vectors", next(iter(arrays.values())))
    return {
        "path": str(out),
        "bytes": len(signed),
        "site": state.site,
        "round": state.round,
        "rows": state.upload.rows,
        "values_per_row": int(first.shape[1]) if "vectors" in arrays else None,
        "weights": sum(a.size for a in arrays.values()) if has_weights(state.upload) else 0,
        "sums": sum(a.size for a in arrays.values()) if has_sums(state.upload) else 0,
        "dtype": str(first.dtype),
        "n_images": manifest.n_images,
        "n_patches": manifest.n_patches,
        "features": manifest.features,
        "fingerprint": key_fingerprint(key.public),
        "copy": str(kept),
    }
