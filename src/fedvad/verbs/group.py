"""`group`: which sites of a folder look at the same kind of product, and a federation for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import Site
from fedvad.data.locks import only_one
from fedvad.data.sealed import read_table
from fedvad.detectors.base import NormalFeatures
from fedvad.errors import ConfigError
from fedvad.evaluation.results import Results
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.grouping import TOLERANCE, find_groups, inlier_shares, summarise_site
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import TrainConfig, as_path, resolve_config
from fedvad.runs.data import Watcher, load_data, warm_up
from fedvad.runs.guards import guard_output_folder
from fedvad.runs.plan import check_join
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run_bands import keep_bands
from fedvad.runs.run_folder import write_json
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.train import at_settled_size, train

__all__ = ["Grouping", "group"]

_FILE = "groups.json"


@dataclass(frozen=True)
class Grouping:
    """Groups of sites, and what they were found from.

    Parameters
    ----------
    groups : list of lists of str
        Names of sites, in order; a site that no other resembles is alone.
    sites : list of str
        All sites, in the order of `shares`.
    shares : list of lists of float
        Share of the normal images of the row's site that look normal to the column's site.
    bytes_per_site : int
        Size of the summary that each site sends.
    runs : dict of str to Results
        Of the federation within each group, by name of its run folder; empty where none was asked
        for.
    """

    groups: list[list[str]]
    sites: list[str]
    shares: list[list[float]]
    bytes_per_site: int
    runs: dict[str, Results] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        runs = {name: results.to_dict() for name, results in self.runs.items()}
        own = {name: value for name, value in vars(self).items() if name != "runs"}
        return own | ({"runs": runs} if runs else {})


def group(
    data: AnyPath,
    out: AnyPath | None = None,
    *,
    tolerance: float = TOLERANCE,
    config: AnyPath | None = None,
    cache: AnyCache | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Unpack[TrainOptions],
) -> Grouping:
    """Find out which sites have the same kind of product, from their normal images.

    Parameters
    ----------
    data : path
        Folder with at least two sites, one folder each, with at least 8 normal images.
    out : path, optional
        Also train a federation within each group, into `out`/group1, `out`/group2, ...
    tolerance : float in [0, 1), default=0.25
        Share of a site's normal images that may look odd to another site of its group.
    config, cache, resume, progress, options
        As those of `fedvad.train`.

    Returns
    -------
    Grouping
        `groups` of names, the `shares` that they follow from, and with `out` results in `runs`.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.group("DATA").groups  # doctest: +SKIP
    """
    progress = progress or no_progress
    return train_groups(
        as_path(data, "data"), maybe(out, "out"),
        resolve_config(maybe(config, "config"), **options), tolerance=tolerance,
        cache=cache_at(cache), resume=resume, progress=progress,
    )  # fmt: skip


def train_groups(
    data: Path,
    out: Path | None,
    config: TrainConfig,
    *,
    tolerance: float,
    cache: DescriptorCache,
    resume: bool,
    progress: Progress,
) -> Grouping:
    """Groups, and with `out` a federation within each: runs `out`/group1, `out`/group2, ...

    Each run folder stands for itself; `out`/groups.json says which sites are in it, and
    `out`/sites/group1 holds links to their folders, for `evaluate` and `report`. Raises as `group`
    and `train` do; what was finished before stays, and `resume` continues.
    """
    sites = _sites(data, config)
    check_join(config, [site.name for site in sites])
    if out is None:
        return _group(sites, config, tolerance, cache, progress)
    guard_output_folder(out, "--out", data=data, sites=sites)
    with only_one(out):
        found = _group(sites, config, tolerance, cache, progress)
        _check_before(out / _FILE, found.groups)
        write_json(out / _FILE, found.to_json())
        results = {}
        for number, names in enumerate(found.groups, 1):
            name = f"group{number}"
            folder = out / "sites" / name
            for site in names:
                _link(data / site, folder / site)
            join = {site: round_ for site, round_ in config.join.items() if site in names}
            own = config.model_copy(update={"join": join})
            results[name] = train(
                folder, out / name, own, cache=cache, resume=resume, progress=progress
            )
    return replace(found, runs=results)


def _sites(data: Path, config: TrainConfig) -> list[Site]:
    if config.split is not None:
        raise ConfigError("groups are of sites with a folder each: omit --split")
    sites = load_data(
        data, None, config.seed, config.label_names(), image_size=config.image_size,
        max_pixels=config.max_pixels,
    )[1]  # fmt: skip
    if len(sites) < 2 or not all((data / site.name).is_dir() for site in sites):
        raise ConfigError(f"{data} must hold two or more folders of sites for groups of them")
    return sites


def _group(
    sites: list[Site],
    config: TrainConfig,
    tolerance: float,
    cache: DescriptorCache,
    progress: Progress,
) -> Grouping:
    means, _ = means_of_sites(sites, config, cache, progress)
    summaries = {name: summarise_site(found, seed=config.seed) for name, found in means.items()}
    shares = inlier_shares(summaries)
    names = sorted(summaries)
    groups = find_groups(names, shares, tolerance=tolerance)
    size = max(summary.nbytes for summary, _ in summaries.values())
    return Grouping(groups, names, shares.tolist(), size)


def means_of_sites(
    sites: list[Site], config: TrainConfig, cache: DescriptorCache, progress: Progress
) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    """Mean descriptors (n, d) of the normal images of each site, and the key of the features."""
    means: dict[str, list[npt.NDArray[np.float32]]] = {site.name: [] for site in sites}

    def watch(features: Mapping[str, NormalFeatures]) -> Mapping[str, Watcher]:
        return {name: partial(_add_mean, means[name]) for name in features}

    with TemporaryDirectory() as folder:  # cubes have axes of all sites here, in a group its own
        config = keep_bands(Path(folder), config, sites, progress, resume=False)
        extractor = FeatureExtractor(at_settled_size(config, sites).features(), cache)
        # in the pass that computes the descriptors: without a cache another would do so again
        warm_up(sites, extractor, config.max_bad, progress, watch)
        key = extractor.config.key()
    return {name: np.stack(found) for name, found in means.items()}, key


def _add_mean(means: list[npt.NDArray[np.float32]], descriptors: npt.NDArray[np.float16]) -> None:
    means.append(np.nanmean(descriptors.astype(np.float32), axis=(0, 1)))


def _check_before(file: Path, groups: list[list[str]]) -> None:
    """Raise `ConfigError` where runs of other groups are, or may be, in the folder of this file."""
    if file.is_file() and (before := read_table(file)[0].get("groups")) != groups:
        raise ConfigError(
            f"{file} has other groups, {before}, than those of now, {groups}: give the data and "
            "options of then, or choose another --out"
        )


def _link(source: Path, link: Path) -> None:
    """A link to a site's folder; one that is there already must lead to it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(source.resolve(), target_is_directory=True)
    elif link.resolve() != source.resolve():
        raise ConfigError(f"{link} is a link to another folder: choose another --out")
