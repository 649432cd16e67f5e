"""Images that are one picture saved again, or moved by a pixel.

Suspects lie much nearer to one another than to all other images of their site; so do parts of a
rare kind, or screws that lie alike. Only suspects are read again, and compared pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.cubes.pixels import read_picture

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]
_SIZE = 512  # values of a sketch: distances are right within about 6 %
# Chosen on mtd, hazelnut and brain_mri, tried on screws and others: see docs/lab/thresholds.md.
_SHARE = 0.7
_NEAR = 0.3
_SAME = 0.8
_SIDE, _SHIFT, _WAVES = 256, 4, (0.04, 0.15)  # pixels, and cycles per pixel
_MOST = 8
_BLOCK = 4096


class Sketches:
    """Short forms of a site's images that keep the distances between their descriptors.

    A count sketch: every value of an image is added, with a fixed random sign, to one of 512 sums
    (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009). Images of another number of
    cells are never near.
    """

    def __init__(self) -> None:
        self._found: list[Vectors] = []
        self._shapes: list[tuple[int, ...]] = []
        self._drawn: dict[
            tuple[int, ...], tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]
        ] = {}

    def add(self, values: npt.NDArray[np.float16]) -> None:
        """Take in the values of the next image; NaN, outside a region of interest, counts 0."""
        if values.shape not in self._drawn:
            rng = np.random.default_rng(0)
            self._drawn[values.shape] = (
                rng.integers(_SIZE, size=values.size),
                (1 - 2 * rng.integers(2, size=values.size)).astype(np.float32),
            )
        place, sign = self._drawn[values.shape]
        flat = np.nan_to_num(values.astype(np.float32).ravel(), copy=False) * sign
        self._found.append(np.bincount(place, flat, _SIZE).astype(np.float32))
        self._shapes.append(values.shape)

    def copies(self) -> list[list[int]]:
        """Positions of the images of each group of suspects, see `copies_of`."""
        groups = []
        for shape in dict.fromkeys(self._shapes):
            own = [i for i, other in enumerate(self._shapes) if other == shape]
            found = copies_of(np.stack([self._found[i] for i in own]))
            groups += [[own[i] for i in group] for group in found]
        return groups


def confirmed(
    groups: Iterable[Sequence[Path]], *, max_pixels: int = MAX_PIXELS
) -> dict[Path, list[Path]]:
    """Of groups of suspects, by the path of one those that are the same picture, read again."""
    found: dict[Path, list[Path]] = {}
    for group in groups:
        images = [(path, _small(read_picture(path, max_pixels=max_pixels))) for path in group]
        while len(images) > 1:
            (first, picture), *others = images
            same = [same_picture(picture, other) for _, other in others]
            if any(same):
                found[first] = [
                    path for (path, _), is_same in zip(others, same, strict=True) if is_same
                ]
            images = [other for other, is_same in zip(others, same, strict=True) if not is_same]
    return found


def _small(pixels: Pixels) -> Pixels:
    """No larger than is looked at, so that eight large images need no memory."""
    height, width = (min(_SIDE, side) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def same_picture(one: Pixels, other: Pixels) -> bool:
    """Whether two uint8 (H, W, 3) images are one picture, moved by up to four pixels.

    By the peak of their phase correlation (Kuglin and Hines 1975) over wave lengths of 7 to 25
    pixels, at up to 256 x 256: it is 1 for the same picture, and the pattern of a cloth, which has
    few wave lengths, counts little. From 0.8 on they are the same.
    """
    side = min(_SIDE, *one.shape[:2], *other.shape[:2])
    waves = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    band = ((waves >= _WAVES[0]) & (waves <= _WAVES[1])).astype(np.float64)
    product = _spectrum(one, side) * np.conj(_spectrum(other, side))
    phases = band * product / np.maximum(np.abs(product), 1e-12)
    peak, best = (
        np.roll(np.fft.irfft2(values, s=(side, side)), (_SHIFT, _SHIFT), (0, 1))[
            : 2 * _SHIFT + 1, : 2 * _SHIFT + 1
        ].max()
        for values in (phases, band)
    )
    return bool(peak >= _SAME * best > 0)


def _spectrum(pixels: Pixels, side: int) -> npt.NDArray[np.complex128]:
    resized = Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BILINEAR)
    grey = np.asarray(resized, np.float64)
    window = np.outer(np.hanning(side), np.hanning(side))
    spectrum: npt.NDArray[np.complex128] = np.fft.rfft2((grey - grey.mean()) * window)
    return spectrum


def thumbnail(pixels: Pixels) -> Vectors:
    """The (1024,) grey values of a uint8 (H, W, 3) image at 32 x 32."""
    small = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel()


def copies_of(vectors: Vectors) -> list[list[int]]:
    """Groups of suspects, each of at least two positions, ascending.

    A group is of two to eight images, any two of which are no further apart than 0.7 of the
    distance from the group to the nearest other image, and than 0.3 of their length. Where there
    is nothing but copies of one picture none is recognised: nobody knows then how far apart
    different ones lie. Of more than 4096 images, only those of each 4096 are compared. Source:
    ours; the groups are nodes of single linkage.

    Parameters
    ----------
    vectors : (n, d) float32 array
        One of each image.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.features.near_copies import copies_of
    >>> copies_of(np.float32([[9, 1], [9, 4], [9, 1.1], [7, 9], [9, 1.2]]))
    [[0, 2, 4]]
    """
    groups = []
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        groups += [[start + i for i in group] for group in _groups(block)]
    return groups


def _groups(vectors: Vectors) -> Iterator[list[int]]:
    count = len(vectors)
    if count < 3:
        return
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import pdist

    merges = linkage(pdist(vectors), "single")
    near = _NEAR * float(np.sqrt((vectors.astype(np.float64) ** 2).sum(1).mean()))
    members = {i: [i] for i in range(count)}
    inside: dict[int, list[list[int]]] = {}  # by node, the largest groups in it
    for node, (left, right, _, size) in enumerate(merges, start=count):
        parts = [int(left), int(right)]
        for part in parts:
            group = members[part]
            if 1 < len(group) <= _MOST:
                wide = float(pdist(vectors[group]).max())
                if wide <= min(near, _SHARE * merges[node - count, 2]):
                    inside[part] = [sorted(group)]
        inside[node] = [group for part in parts for group in inside.pop(part, [])]
        members[node] = members.pop(parts[0]) + members.pop(parts[1]) if size <= _MOST else []
    yield from sorted(inside.get(2 * count - 2, []))
