"""Sites of a data folder, and their features, for every verb."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.data.folders import ImageItem, Site, read_sites
from fedvad.data.frames import split_frame
from fedvad.data.split import parse_split, split_site
from fedvad.detectors.base import NormalFeatures
from fedvad.errors import ConfigError, DataError
from fedvad.features.extractor import FeatureExtractor
from fedvad.pipeline.progress import Progress, Stage

__all__ = ["Watcher", "digest_of", "fingerprint", "load_sites", "warm_up"]

Watcher = Callable[[npt.NDArray[np.float16]], None]

log = logging.getLogger(__name__)


def load_sites(
    data: Path, split: str | None, seed: int, *, allow_empty_train: bool = False
) -> list[Site]:
    """Sites of a folder, or the parts of one set; raises `DataError` or `ConfigError`."""
    if split is None:
        sites = read_sites(data, allow_empty_train=allow_empty_train)
        for site in sites:
            if not site.name.isprintable():  # names go into messages, tables and files
                raise DataError(f"site {site.name!r}: rename its folder, to printable characters")
        return sites
    wanted = parse_split(split)
    sites = read_sites(data)
    if len(sites) != 1:
        raise ConfigError(
            f"--split divides one set into sites, but {data} already holds {len(sites)} sites "
            f"({', '.join(s.name for s in sites[:4])}, ...): leave --split away, or give one"
        )
    return split_site(sites[0], wanted, seed)


def fingerprint(data: Path) -> str:
    """`digest_of` all images in a folder of sites, wherever it lies."""
    sites = read_sites(data, allow_empty_train=True)
    return digest_of([item for site in sites for item in (*site.train, *site.test)])


def digest_of(images: Iterable[ImageItem]) -> str:
    """16 hex digits over labels, names and sizes in bytes of image files, in this order."""
    digest = hashlib.sha256()
    for item in images:
        with suppress(OSError):  # what cannot be looked at has a name all the same
            digest.update(f"{split_frame(item.path)[0].stat().st_size} ".encode())
        digest.update(f"{item.label}/{item.defect}/{item.path.name}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def warm_up(
    sites: Sequence[Site],
    extractor: FeatureExtractor,
    max_bad: float,
    progress: Progress,
    watch: Callable[[Mapping[str, NormalFeatures]], Mapping[str, Watcher]] | None = None,
) -> dict[str, NormalFeatures]:
    """Features of every site's normal training images; each image passes the backbone once.

    `watch` is told all sites' features before that pass, and says who looks on at it, by site.
    """
    features = {
        site.name: NormalFeatures(
            extractor,
            [item.path for item in site.train if item.label == 0],
            max_bad=max_bad,
            where=site.name,
        )
        for site in sites
    }
    stage = Stage(progress, "features", sum(len(f.paths) for f in features.values()))
    watchers = {} if watch is None else watch(features)
    for name, feature in features.items():
        feature.warm_up(stage, watchers.get(name))
    return features
