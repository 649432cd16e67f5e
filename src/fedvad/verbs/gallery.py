"""`gallery`: synthetic defects on one's own normal images, to be looked at before training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedvad.data.bounds import MAX_PIXELS, check_limit
from fedvad.data.folders import Site
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.labels import LabelNames, Names
from fedvad.data.outputs import OWN_PNG
from fedvad.data.synthesis import KINDS, SynthesisConfig, TextureFolder, synthesise
from fedvad.features.names import IMAGE_SIZE
from fedvad.report.defect_sheet import PER_ROW, Example, defect_sheet
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import as_path
from fedvad.runs.data import load_sites
from fedvad.runs.guards import guard_output_file
from fedvad.runs.progress import Progress, Stage, no_progress

__all__ = ["gallery"]

_OTHERS = 8  # further images of a site that content is taken from


def gallery(
    data: AnyPath,
    out: AnyPath,
    *,
    kinds: str | Sequence[str] = KINDS,
    seed: int = 0,
    rows: int = 2,
    foreground: Literal["none", "otsu"] | int = "none",
    textures: AnyPath | None = None,
    image_size: int = IMAGE_SIZE,
    max_pixels: int = MAX_PIXELS,
    good: Names = (),
    defect: Names = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw synthetic defects on normal images of `data` into one PNG file.

    Sites take turns; every kind is shown on the same images. The same arguments give the same
    picture.

    Parameters
    ----------
    data : path
        Folder of sites or one set.
    out : path
        PNG file to write.
    kinds : str or list of str, default=all
        Kinds of defects; in a string, separated by commas.
    seed : int, default=0
        Fixes the choice of images and the defects.
    rows : int, default=2
        Rows of images per kind, >= 1.
    foreground : "none", "otsu" or int from 0 to 254, default="none"
        How the object is found; a number is a threshold of grey levels.
    textures : path, optional
        Folder of images to fill textures with.
    image_size : int, default=256
        Side of the images in pixels, >= 16.
    max_pixels : int, default=100 000 000
        An image of more pixels counts as unreadable.
    good, defect : str or several, default=()
        Names of folders with normal images and with defects, besides `good`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        Path, bytes, and the median milliseconds of a defect by kind. For every defect also the kind
        asked for, the kind drawn, site, file, area (share of the image) and change (mean absolute,
        in grey levels).

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> drawn = fedvad.gallery("plants", "gallery.png")
    >>> drawn["path"]
    'gallery.png'
    """
    progress = progress or no_progress
    data, out = as_path(data, "data"), as_path(out, "out")
    for name, value in {"rows": rows, "image_size": image_size, "max_pixels": max_pixels}.items():
        check_limit(value, name)
    check_limit(seed, "seed", least=0)
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.split(",")]
    configs = {
        kind: SynthesisConfig(kinds={kind: 1.0}, foreground=foreground)
        for kind in dict.fromkeys(kinds)
    }
    given = None
    if textures is not None:
        given = TextureFolder(as_path(textures, "textures"), size=image_size, max_pixels=max_pixels)
    sites = load_sites(data, None, seed, LabelNames.of(good, defect),
                       image_size=image_size)  # fmt: skip
    guard_output_file(
        out,
        "--out",
        data=data,
        sites=sites,
        own=OWN_PNG,
        others=() if given is None else given.paths,
    )
    read = partial(_read, size=image_size, max_pixels=max_pixels)
    shown = _images(sites, rows * PER_ROW, seed, read)
    stage = Stage(progress, "drawing", len(configs) * len(shown))
    groups: dict[str, list[Example]] = {kind: [] for kind in configs}
    seconds: dict[str, list[float]] = {kind: [] for kind in configs}
    defects = []
    for kind, config in configs.items():
        for index, (site, path, image, others) in enumerate(shown):
            start = time.perf_counter()
            # The number of the kind, so that a kind looks the same whichever others are shown.
            own = (seed, KINDS.index(kind), index)
            made = synthesise(image, config, seed=own, textures=given, others=others)
            seconds[kind].append(time.perf_counter() - start)
            example = Example(path.name, image, made)
            groups[kind].append(example)
            defects.append(
                {
                    "kind": kind,
                    "drawn": made.kind,
                    "site": site,
                    "file": path.name,
                    "area": example.area,
                    "change": example.change,
                }
            )
            stage()
    defect_sheet(groups, out, title=f"Synthetic defects on {data.name or data}, seed {seed}")
    return {
        "path": str(out),
        "bytes": out.stat().st_size,
        "milliseconds": {kind: 1e3 * float(np.median(s)) for kind, s in seconds.items()},
        "defects": defects,
    }


def _read(path: Path, *, size: int, max_pixels: int) -> NDArray[np.uint8]:
    return resize_rgb(read_rgb(path, max_pixels=max_pixels), size)


def _images(
    sites: Sequence[Site], count: int, seed: int, read: Callable[[Path], NDArray[np.uint8]]
) -> list[tuple[str, Path, NDArray[np.uint8], list[NDArray[np.uint8]]]]:
    """Site, path, image (size, size, 3) and other images of the site; each site in its turn."""
    shown = []
    others: dict[str, list[NDArray[np.uint8]]] = {}
    orders = [
        np.random.default_rng((seed, number)).permutation(len(site.train))
        for number, site in enumerate(sites)
    ]
    for index in range(count):
        number, turn = index % len(sites), index // len(sites)
        site, order = sites[number], orders[number]
        paths = [site.train[int(place)].path for place in order]
        if site.name not in others:
            # From the end of the order: those shown come from its beginning.
            others[site.name] = [read(p) for p in paths[-_OTHERS:]]
        path = paths[turn % len(paths)]
        shown.append((site.name, path, read(path), others[site.name]))
    return shown
