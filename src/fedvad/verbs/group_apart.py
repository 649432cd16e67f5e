"""`group` for sites that never meet: a summary and shares travel as files, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fedvad.data.sets import Site
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, ConfigError, DataError, MismatchError, join_names
from fedvad.features.cache import DescriptorCache
from fedvad.federation.grouping import (
    MIN_IMAGES,
    TOLERANCE,
    SiteSummary,
    find_groups,
    summarise_site,
)
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe, paths_of
from fedvad.runs.config import TrainConfig, as_path, resolve_config
from fedvad.runs.data import load_data
from fedvad.runs.guards import guard_output_file
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.group import Grouping, means_of_sites

__all__ = ["group_shares", "site_shares", "site_summary"]

_SUMMARY, _SHARES = "site summary", "shares of a site"
_Summed = tuple[Site, str, SiteSummary, npt.NDArray[np.float64]]


def site_summary(
    data: AnyPath,
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
    **options: Unpack[TrainOptions],
) -> int:
    """Write the summary of one site's normal images, for the other sites; returns its bytes.

    Parameters
    ----------
    data : path
        Folder of the site, with 8 normal images or more.
    out : path
        File for the summary: a mean, a covariance and a limit, see `SiteSummary`.
    config, cache, progress, options
        As those of `fedvad.train`; features and seed must be the same at all sites.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.
    """
    out, settled = as_path(out, "out"), resolve_config(maybe(config, "config"), **options)
    site, key, summary, _ = _summed(
        as_path(data, "data"), settled, cache_at(cache), progress or no_progress, out
    )
    values = {
        "kind": _SUMMARY, "site": site.name, "features": key, "seed": settled.seed,
        "limit": summary.limit, "n_images": summary.n_images,
    }  # fmt: skip
    write_arrays(out, {"mean": summary.mean, "precision": summary.precision}, values)
    return out.stat().st_size


def site_shares(
    data: AnyPath,
    summaries: AnyPath | Iterable[AnyPath],
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
    **options: Unpack[TrainOptions],
) -> dict[str, float]:
    """Write and return which share of one site's normal images look normal to each site.

    Parameters
    ----------
    data : path
        Folder of the site.
    summaries : paths
        Files of `site_summary`, of all sites; the site's own is not needed.
    out : path
        File for the shares.
    config, cache, progress, options
        As those of `site_summary`.

    Raises
    ------
    ConfigError, DataError, ArtefactError, MismatchError
        See `fedvad.errors`.
    """
    out, files = as_path(out, "out"), paths_of(summaries, "summaries")
    if not files:
        raise ConfigError("no summary is given: name those of the other sites")
    settled = resolve_config(maybe(config, "config"), **options)
    site, key, summary, projected = _summed(
        as_path(data, "data"), settled, cache_at(cache), progress or no_progress, out, files
    )
    known = {site.name: summary}
    for file in files:
        name, other = _read_summary(file, key, settled.seed, len(summary.mean))
        if not np.allclose(known.setdefault(name, other).mean, other.mean, rtol=1e-3):
            raise DataError(
                f"{file} is of another site that is called {name}, too, or of images that this one "
                "had earlier: give each site's folder a name of its own, and write its summary then"
            )
    shares = {name: other.share_within(projected) for name, other in known.items()}
    values = {
        "kind": _SHARES, "site": site.name, "features": key, "sites": list(shares),
        "bytes": summary.nbytes,
    }  # fmt: skip
    write_arrays(out, {"shares": np.array(list(shares.values()))}, values)
    return shares


def group_shares(shares: AnyPath | Iterable[AnyPath], *, tolerance: float = TOLERANCE) -> Grouping:
    """Groups of sites, from the files that `site_shares` wrote at each of them.

    Raises `ArtefactError` for another file, `DataError` where the share of one site for another is
    missing or two files are of one site, `MismatchError` for files of other features.
    """
    files = paths_of(shares, "shares")
    found: dict[str, dict[str, float]] = {}
    keys, size = set(), 0
    for file in files:
        arrays, values = read_arrays(file)
        named, numbers, sent = values.get("sites"), arrays.get("shares"), values.get("bytes")
        if (
            values.get("kind") != _SHARES
            or not isinstance(named, list)
            or numbers is None
            or numbers.shape != (len(named),)
            or not isinstance(sent, int)
            or not (np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all())
        ):
            raise ArtefactError(f"{file} holds no shares of a site: write them with --save-shares")
        if (name := _name(values.get("site"), file)) in found:
            raise DataError(f"{file} is a second file of the shares of site {name}: give one")
        names = [_name(other, file) for other in named]
        found[name] = dict(zip(names, numbers.tolist(), strict=True))
        keys.add(values.get("features"))
        size = max(size, sent)
    if len(keys) > 1:
        raise MismatchError(
            "the shares are of different features: give backbone, weights and image size alike"
        )
    if len(found) < 2:
        raise ConfigError("give the shares of two sites or more")
    names = sorted(found)
    if silent := {name for own in found.values() for name in own} - set(names):
        raise DataError(f"the shares that {join_names(silent)} wrote are missing: give all files")
    if lost := [f"{b} at {a}" for a in names for b in names if b not in found[a]]:
        raise DataError(f"these shares are missing: {join_names(lost)}: give every summary there")
    table = np.array([[found[a][b] for b in names] for a in names])
    return Grouping(find_groups(names, table, tolerance=tolerance), names, table.tolist(), size)


def _summed(
    data: Path,
    config: TrainConfig,
    cache: DescriptorCache,
    progress: Progress,
    out: Path,
    others: Sequence[Path] = (),
) -> _Summed:
    """The one site of a folder, the key of its features, its summary and its images in it."""
    sites = load_data(
        data, None, config.seed, config.label_names(), image_size=config.image_size,
        max_pixels=config.max_pixels,
    )[1]  # fmt: skip
    if len(sites) != 1 or config.split is not None:
        raise ConfigError(f"{data} must be the folder of one site, without --split")
    option, kind = ("--save-shares", _SHARES) if others else ("--save-summary", _SUMMARY)
    own = rf"\"kind\": \"{kind}\"".encode()  # as the header of such a file has it
    guard_output_file(out, option, data=data, sites=sites, others=others, own=own)
    means, key = means_of_sites(sites, config, cache, progress)
    summary, projected = summarise_site(means[sites[0].name], seed=config.seed)
    return sites[0], key, summary, projected


def _read_summary(file: Path, key: str, seed: int, directions: int) -> tuple[str, SiteSummary]:
    arrays, values = read_arrays(file)
    mean, precision = arrays.get("mean"), arrays.get("precision")
    limit: Any = values.get("limit")
    if values.get("kind") != _SUMMARY or mean is None or precision is None:
        raise ArtefactError(f"{file} holds no summary of a site: write it with --save-summary")
    if (values.get("features"), values.get("seed")) != (key, seed):
        raise MismatchError(
            f"{file} is of other features or another seed: give backbone, weights, image size and "
            "seed alike at all sites"
        )
    if (
        mean.shape != (directions,)
        or precision.shape != (directions, directions)
        or not isinstance(limit, float)
        or not (np.isfinite(mean).all() and np.isfinite(precision).all() and np.isfinite(limit))
    ):
        raise ArtefactError(f"{file} holds a damaged summary: ask for it again")
    images: Any = values.get("n_images")
    if type(images) is not int or images < MIN_IMAGES:
        raise ArtefactError(f"{file} is of {images!r} images, not {MIN_IMAGES} or more")
    return _name(values.get("site"), file), SiteSummary(mean, precision, limit, images)


def _name(given: Any, file: Path) -> str:
    """The name of a site in a file of another one, which goes into messages and tables."""
    if not (isinstance(given, str) and given.isprintable() and 0 < len(given) < 256):
        raise ArtefactError(f"{file} names a site {given!r}: ask for a file of printable names")
    return given
