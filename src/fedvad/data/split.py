"""Split one site into several, evenly or skewed, to rehearse a federation with one image set.

Source: ours; the Dirichlet skew follows the label skew of Hsu et al. 2019 (arXiv 1909.06335), with
appearance clusters in place of classes. A small descriptor of a thumbnail describes appearance,
never the backbone, so that a split does not depend on the model under test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvad.data.folders import ImageItem, ImageSet, Site
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.errors import ConfigError, DataError, ImageError

_FORMS = "iid:N, dirichlet:N:ALPHA or style:N (N parts, 2 to 1000; ALPHA > 0), e.g. dirichlet:4:0.5"
_THUMB = 32
_LUMINANCE = slice(8, 24)  # where _appearance puts the 4 × 4 luminance layout


@dataclass(frozen=True)
class Split:
    """How to split a site: `kind` iid, dirichlet or style; `alpha` for dirichlet only.

    Raises `ConfigError` for anything that `parse_split` would refuse.
    """

    kind: str
    parts: int
    alpha: float | None = None

    def __post_init__(self) -> None:
        skewed = self.kind == "dirichlet"
        sound = self.alpha is not None and math.isfinite(self.alpha) and self.alpha > 0
        known = self.kind in ("iid", "dirichlet", "style") and (self.alpha is not None) == skewed
        if not known or not 2 <= self.parts <= 1000 or (skewed and not sound):
            raise ConfigError(f"unknown split {str(self)!r}; use {_FORMS}")

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f":{self.alpha:.15g}"
        return f"{self.kind}:{self.parts}{alpha}"


def parse_split(text: str) -> Split:
    """Read a split from its text form; raises `ConfigError` naming the three forms."""
    match = re.fullmatch(r"([a-z]+):([0-9]{1,4})(?::([0-9.]+(?:[eE][+-]?[0-9]+)?))?", text.strip())
    try:
        if match:
            kind, parts, alpha = match.groups()
            return Split(kind, int(parts), None if alpha is None else float(alpha))
    except (ConfigError, ValueError):
        pass
    raise ConfigError(f"unknown split {text!r}; use {_FORMS}")


def split_site(
    site: Site, split: Split, seed: int, *, loader: Callable[[Path], np.ndarray] = read_rgb
) -> list[Site]:
    """Split `site` into sites part1..partN; every image lands in exactly one part.

    iid deals all kinds of images evenly. dirichlet clusters the training normals by appearance and
    shares each cluster out by its own Dirichlet(ALPHA) draw, which skews sizes and content; a test
    image follows the shares of its cluster by lot. style makes each cluster one part, darker
    ones first. Every part gets 2 training normals (style: n / 4N if more), and a test normal and an
    anomaly where there are N of them: too small a part takes the nearest (dirichlet: random) images
    of larger ones. Images that `loader` (path to uint8 (H, W, 3)) cannot read are dealt in turn.
    The outcome depends on seed, file names and contents, not on the order of the items.

    Raises `DataError` with fewer than 2 N training normals, `ConfigError` for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}")
    train, test = (sorted(images, key=_order) for images in (site.train, site.test))
    items = train + test
    learn = np.array([i < len(train) and not item.label for i, item in enumerate(items)], bool)
    if learn.sum() < 2 * split.parts:
        raise DataError(
            f"site {site.name!r} has {learn.sum()} normal training images; "
            f"splitting it into {split.parts} parts needs at least {2 * split.parts}"
        )
    rng = np.random.default_rng(seed)
    if split.kind == "iid":
        part = _deal(items, learn, split.parts, rng)
    else:
        part = _by_appearance(items, learn, split, rng, loader)
    return [
        Site(
            f"part{number + 1}",
            ImageSet(tuple(items[i] for i in np.flatnonzero(part == number) if i < len(train))),
            ImageSet(tuple(items[i] for i in np.flatnonzero(part == number) if i >= len(train))),
        )
        for number in range(split.parts)
    ]


def _order(item: ImageItem) -> tuple[int, str, str, str]:
    # By name before path: the same set split in another folder falls into the same parts.
    return item.label, item.defect, item.path.name, str(item.path)


def _groups(items: list[ImageItem], learn: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of what each part needs some of: training normals, test normals, anomalies."""
    labels = np.array([item.label for item in items])
    yield np.flatnonzero(learn)
    yield np.flatnonzero(~learn & (labels == 0))
    yield np.flatnonzero(labels == 1)


def _deal(
    items: list[ImageItem], learn: np.ndarray, parts: int, rng: np.random.Generator
) -> np.ndarray:
    """Part of each image: each kind shuffled, then dealt on from where the last one ended."""
    part = np.zeros(len(items), np.int64)
    dealt = 0
    for group in _groups(items, learn):
        defects = np.array([items[i].defect for i in group])
        order = rng.permutation(len(group))
        order = order[np.argsort(defects[order], kind="stable")]
        part[group[order]] = (dealt + np.arange(len(group))) % parts
        dealt += len(group)
    return part


def _by_appearance(
    items: list[ImageItem],
    learn: np.ndarray,
    split: Split,
    rng: np.random.Generator,
    loader: Callable[[Path], np.ndarray],
) -> np.ndarray:
    """Part of each image, for dirichlet and style."""
    descriptors, readable = _appearances(items, loader)
    sighted = np.flatnonzero(learn & readable)
    part = np.arange(len(items)) % split.parts
    part[~readable] = np.arange(np.count_nonzero(~readable)) % split.parts
    cost = np.zeros((len(items), split.parts))  # of moving an image to a part
    wanted = max(2, int(learn.sum()) // (4 * split.parts)) if split.kind == "style" else 2
    if sighted.size:
        descriptors = _standardised(descriptors, sighted)
        n_clusters = split.parts
        if split.kind == "dirichlet":
            n_clusters = min(max(split.parts, 8), 32, max(1, sighted.size // 4))
        distance = _distances(descriptors, sighted, n_clusters, int(rng.integers(2**31)))
        cluster = distance.argmin(axis=1)
        if split.kind == "style":
            part[readable] = cluster[readable]
            cost[:, : distance.shape[1]] = distance
        else:
            cost = rng.random(cost.shape)
            part[sighted] = _dirichlet(cluster[sighted], split, rng)
        cost[~readable] = 0
        _top_up(part, cost, sighted, split.parts, wanted)
        if split.kind == "dirichlet":
            others = np.flatnonzero(~learn & readable)
            part[others] = _follow(cluster[others], cluster[sighted], part[sighted], split, rng)
    for group, minimum in zip(_groups(items, learn), (wanted, 1, 1), strict=True):
        _top_up(part, cost, group, split.parts, minimum)
    return part


def _dirichlet(cluster: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Part of each training image, sharing every cluster out by its own Dirichlet draw."""
    part = np.zeros(len(cluster), np.int64)
    # Beyond these bounds a draw is one-hot or even already, and numpy's sampler breaks down.
    alpha = min(max(split.alpha or 1.0, 1e-6), 1e6)
    for label in np.unique(cluster):
        members = rng.permutation(np.flatnonzero(cluster == label))
        share = rng.dirichlet(np.full(split.parts, alpha))
        cuts = np.rint(np.cumsum(share)[:-1] * len(members)).astype(np.int64)
        for number, chunk in enumerate(np.split(members, cuts)):
            part[chunk] = number
    return part


def _follow(
    cluster: np.ndarray,
    train_cluster: np.ndarray,
    train_part: np.ndarray,
    split: Split,
    rng: np.random.Generator,
) -> np.ndarray:
    """Part of each test image: that of a random training image of its cluster."""
    pools = {int(label): train_part[train_cluster == label] for label in np.unique(train_cluster)}
    chosen = [pools.get(int(label), train_part) for label in cluster]
    draws = rng.random(len(cluster))
    return np.array(
        [pool[int(draw * len(pool))] for pool, draw in zip(chosen, draws, strict=True)], np.int64
    )


def _top_up(
    part: np.ndarray, cost: np.ndarray, group: np.ndarray, parts: int, minimum: int
) -> None:
    """Move the cheapest images (in place) to parts with under `minimum` of the group's images."""
    counts = np.bincount(part[group], minlength=parts)
    while counts.min() < minimum < counts.max():
        needy = int(counts.argmin())
        donors = group[counts[part[group]] > minimum]
        moved = donors[cost[donors, needy].argmin()]
        counts[part[moved]] -= 1
        counts[needy] += 1
        part[moved] = needy


def _appearances(
    items: list[ImageItem], loader: Callable[[Path], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (n, 32), and which images could be read (n,); the others' rows are zero."""
    descriptors = np.zeros((len(items), 32))
    readable = np.zeros(len(items), bool)
    for index, item in enumerate(items):
        try:
            descriptors[index] = _appearance(loader(item.path))
        except (ImageError, OSError):
            continue  # reported when features are extracted
        readable[index] = True
    return descriptors, readable


def _appearance(image: np.ndarray) -> np.ndarray:
    """Colour (6), gradient energy (2), luminance layout (16) and orientations (8) of an image."""
    thumb = resize_rgb(image, _THUMB) / 255.0
    luminance = thumb @ np.array([0.299, 0.587, 0.114])
    dy, dx = np.gradient(luminance)
    energy = np.hypot(dx, dy)
    angle = np.mod(np.arctan2(dy, dx), np.pi)
    orientations, _ = np.histogram(angle, bins=8, range=(0, np.pi), weights=energy)
    return np.concatenate(
        [
            thumb.mean(axis=(0, 1)),
            thumb.std(axis=(0, 1)),
            [np.abs(dx).mean(), np.abs(dy).mean()],
            luminance.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel(),
            orientations / (energy.sum() + 1.0),
        ]
    )


def _standardised(descriptors: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Unit variance over the training images, then each kind of feature weighted alike."""
    mean, std = descriptors[train].mean(axis=0), descriptors[train].std(axis=0)
    kinds = [6, 2, 16, 8]
    # Under these deviations (of 0..1) a feature holds camera noise, which must not be blown up.
    std = np.maximum(std, np.repeat([0.01, 0.002, 0.02, 0.03], kinds))
    scaled: np.ndarray = (descriptors - mean) / std / np.sqrt(np.repeat(kinds, kinds))
    return scaled.round(9)


def _distances(
    descriptors: np.ndarray, train: np.ndarray, n_clusters: int, seed: int
) -> np.ndarray:
    """Squared distances (n, k) to k-means centres of the training images, darker ones first."""
    from sklearn.cluster import KMeans  # here: it takes most of a second to import

    points = descriptors[train]
    n_clusters = min(n_clusters, len(np.unique(points, axis=0)))  # fewer only if images repeat
    # One start for hundreds of clusters: seeding them takes seconds, and hardly differs.
    kmeans = KMeans(n_clusters, n_init=4 if n_clusters <= 64 else 1, random_state=seed)
    centres = np.round(kmeans.fit(points).cluster_centers_, 9)  # threads sum in any order
    centres = centres[np.argsort(centres[:, _LUMINANCE].sum(axis=1), kind="stable")]
    gaps: np.ndarray = (
        (descriptors**2).sum(axis=1)[:, None]
        - 2 * descriptors @ centres.T
        + (centres**2).sum(axis=1)
    )
    return gaps
