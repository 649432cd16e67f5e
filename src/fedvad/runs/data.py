"""Sites of a data folder, and their features, for every verb."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.contents import check_contents, normals
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.folders import ImageItem, Site, read_data, read_one, read_sites
from fedvad.data.frames import split_frame
from fedvad.data.labels import LabelNames
from fedvad.data.reading import DataReading
from fedvad.data.split import parse_split, split_site
from fedvad.data.views import Size, View
from fedvad.detectors.base import NormalFeatures
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.results import DataRead
from fedvad.evaluation.sites import SiteResult
from fedvad.evaluation.truth import read_truth
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.progress import Progress, Stage

Watcher = Callable[[npt.NDArray[np.float16]], None]

log = logging.getLogger(__name__)


def load_data(
    data: Path,
    split: str | None,
    seed: int,
    names: LabelNames | None = None,
    *,
    image_size: Size | View,
    max_pixels: int = MAX_PIXELS,
    allow_empty_train: bool = False,
    region: str | None = None,
) -> tuple[DataReading, list[Site]]:
    """The reading of a folder, and its sites or the parts of its one set.

    names: folders of normal images and of defects. image_size, region: at which images are read and
    where in them, for advice. max_pixels: of an image that a split looks at. What was omitted or
    guessed is logged as one line; the reading has all. Raises `DataError` or `ConfigError`.
    """
    if split is not None:
        wanted = parse_split(split)
    reading = read_data(data, names, allow_empty_train=allow_empty_train and split is None)
    reading = check_contents(reading, image_size, region)
    sites = reading.sites
    for site in sites:
        if not site.name.isprintable():  # names go into messages, tables and files
            raise DataError(f"site {site.name!r}: rename its folder, to printable characters")
    if split is not None:
        if len(sites) != 1:
            raise ConfigError(
                f"--split divides one set into sites, but {data} already holds {len(sites)} sites "
                f"({', '.join(s.name for s in sites[:4])}, ...): omit --split, or give one"
            )
        loader = partial(read_picture, max_pixels=max_pixels)
        sites = split_site(sites[0], wanted, seed, loader=loader)
    _say(reading, names)
    return reading, sites


def _say(reading: DataReading, names: LabelNames | None) -> None:
    if reading.notable:
        options = "" if names is None else "".join(
            f" {option} {name}"
            for option, given in (("--good", names.good), ("--defect", names.defect))
            for name in given
        )  # fmt: skip
        log.warning(
            "%s: %s. See: fedvad inspect %s%s",
            reading.root, reading.summary(), reading.root, options,
        )  # fmt: skip


def load_set(folder: Path, name: str, names: LabelNames | None = None) -> Site:
    """One set under a name of its own; what was omitted or guessed is logged as one line."""
    reading = read_one(folder, name, names)
    _say(reading, names)
    return reading.sites[0]


def load_sites(
    data: Path,
    split: str | None,
    seed: int,
    names: LabelNames | None = None,
    *,
    image_size: Size | View = 256,
    max_pixels: int = MAX_PIXELS,
    allow_empty_train: bool = False,
) -> list[Site]:
    """The sites of `load_data`."""
    return load_data(
        data, split, seed, names, image_size=image_size, max_pixels=max_pixels,
        allow_empty_train=allow_empty_train,
    )[1]  # fmt: skip


def fingerprint(data: Path, names: LabelNames | None = None) -> str:
    """`digest_of` all images in a folder of sites, wherever it lies."""
    sites = read_sites(data, names, allow_empty_train=True)
    return digest_of([item for site in sites for item in (*site.train, *site.test)])


def data_with_masks(reading: DataReading, image_size: Size | View) -> dict[str, Any]:
    """JSON values of a reading, with how many masks were paired with images, by site, and what all
    of them are worth.
    """
    found = {site.name: read_truth(site.test, image_size).note() for site in reading.sites}
    values = reading.noted(f"{name}: {note}" for name, note in found.items() if note).to_json()
    for site in reading.sites:
        masks = [len(item.masks) for item in site.test if item.label]
        values["sites"][site.name]["masks"] = {
            "files": sum(masks), "images": sum(map(bool, masks)), "of": len(masks),
        }  # fmt: skip
    return values


def data_of(reading: DataReading, results: Sequence[SiteResult]) -> DataRead:
    """What was read, with what scoring found of the test images and their masks.

    That is also logged, since it was not known when the folder was read.
    """
    notes = []
    for result in results:
        if result.bad:
            total = len(result.bad) + len(result.test)
            notes.append(
                f"{result.name}: {len(result.bad)} of {total} test images cannot be read; all "
                "figures rest on the others"
            )
        if result.truth is not None and (note := result.truth.note()):
            notes.append(f"{result.name}: {note}")
    for note in notes:
        log.warning("%s", note)
    return DataRead.model_validate(reading.noted(notes).to_json())


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

    `watch` is given all sites' features before that pass, and says who looks on at it, by site.
    """
    features = {
        site.name: NormalFeatures(
            extractor,
            normals(site.train),
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
