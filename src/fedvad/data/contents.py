"""What files of a reading hold, as far as sizes, headers and bytes say: copies and odd shapes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from fedvad.data.headers import read_header
from fedvad.data.reading import DataReading
from fedvad.data.sets import Site

__all__ = ["check_contents", "copies", "described", "distinct"]

_BLOCK = 4096
_MOST_BYTES = 1 << 30  # of files that agree in size and in three blocks, to be read whole
_LOOKED_AT = 32  # images a site whose headers are read
_FAR_FROM_SQUARE = 1.5
_FAR_LARGER = 3.0
_SHOWN = 3


def check_contents(reading: DataReading, image_size: int) -> DataReading:
    """The reading with notes on images of equal content, and on shapes that training spoils.

    image_size: pixels a side that images will be resized to. No image is decoded: files of one
    size are compared, and headers are read.
    """
    return reading.noted([*_copies(reading.sites), *_shapes(reading.sites, image_size)])


def distinct(paths: Iterable[Path]) -> int:
    """How many different contents files have."""
    known = list(paths)
    return len(known) - sum(len(group) - 1 for group in copies(known))


def described(paths: Sequence[Path]) -> str:
    """How many images there are, and how many of them are distinct, in words."""
    different = distinct(paths)
    images = f"{different} distinct image{'s' * (different != 1)}"
    return images if different == len(paths) else f"{images} of {len(paths)}"


def copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of at least two files with the same bytes; a file that cannot be read is in none.

    Only files of one size are read, first in three blocks, then whole, up to a gigabyte in all.
    """
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            sizes[path.stat().st_size].append(path)
        except OSError:
            continue
    left = _MOST_BYTES
    groups: list[list[Path]] = []
    for size, same in sorted(sizes.items()):
        for alike in _by(_blocks, same, size):
            if size > 3 * _BLOCK:
                left -= size * len(alike)
                if left < 0:
                    return groups
                groups += _by(_whole, alike, size)
            else:
                groups.append(alike)
    return groups


def _by(key: Callable[[Path, int], bytes], paths: list[Path], size: int) -> Iterator[list[Path]]:
    if len(paths) < 2 or size == 0:
        return
    found: dict[bytes, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            found[key(path, size)].append(path)
        except OSError:
            continue
    yield from (group for group in found.values() if len(group) > 1)


def _blocks(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        parts = []
        for start in sorted({0, max(0, size // 2), max(0, size - _BLOCK)}):
            file.seek(start)
            parts.append(file.read(_BLOCK))
    return hashlib.sha256(b"".join(parts)).digest()


def _whole(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _copies(sites: Sequence[Site]) -> Iterator[str]:
    """Notes on copies within a site and between sites, which are used all the same."""
    groups = copies({item.path: None for site in sites for item in (*site.train, *site.test)})
    for site in sites:
        yield from _own_copies(site, groups)
    train = {item.path: site.name for site in sites for item in site.train}
    test = {item.path: site.name for site in sites for item in site.test}
    common, leaked = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for group in groups:
        learnt = sorted({train[path] for path in group if path in train})
        common.update(combinations(learnt, 2))
        tested = {test[path] for path in group if path in test}
        leaked.update((here, there) for here in tested for there in learnt if here != there)
    notes = [
        f"{one} and {other} have {_images(count)} in common for training"
        for (one, other), count in sorted(common.items())
    ]
    yield from _first(notes)
    notes = [
        f"{here}: {_images(count)} for testing {_are(count)} among the training images of "
        f"{there}: its figures are too good"
        for (here, there), count in sorted(leaked.items())
    ]
    yield from _first(notes)


def _first(notes: Sequence[str]) -> Iterator[str]:
    yield from notes[:_SHOWN]
    if len(notes) > _SHOWN:
        yield f"so it is with {len(notes) - _SHOWN} more pairs of sites"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "are" if count != 1 else "is"


def _own_copies(site: Site, groups: Iterable[Sequence[Path]]) -> Iterator[str]:
    part = {item.path: "train" for item in site.train} | {i.path: "test" for i in site.test}
    label = {item.path: item.label for item in (*site.train, *site.test)}
    again = leaked = 0
    contrary: list[Path] = []
    for everywhere in groups:
        group = [path for path in everywhere if path in part]
        if len(group) < 2:
            continue
        if len({label[path] for path in group}) > 1:
            contrary += group
            continue
        learnt = sum(part[path] == "train" for path in group)
        again += (learnt or len(group)) - 1
        leaked += len(group) - learnt if learnt else 0
    if again:
        normals = [item.path for item in site.train]
        yield (
            f"{site.name}: {again} image{'s repeat' if again != 1 else ' repeats'} the content of "
            f"others; training has {described(normals)}"
        )
    if leaked:
        yield (
            f"{site.name}: {leaked} test image{'s' * (leaked != 1)} {_are(leaked)} among the "
            "training images, too: its figures are too good"
        )
    if contrary:
        shown = ", ".join(path.name for path in contrary[:_SHOWN])
        yield f"{site.name}: {len(contrary)} images are equal and labelled differently ({shown})"


def _shapes(sites: Iterable[Site], image_size: int) -> Iterator[str]:
    """Notes on images that a square of `image_size` pixels spoils."""
    longest, ratio, kinds = 0, 1.0, set()
    grey: dict[str, bool] = {}
    for site in sites:
        for item in site.train[:_LOOKED_AT]:
            if (header := read_header(item.path)) is None:
                continue
            sides = header.height, header.width
            grey[site.name] = header.grey and grey.get(site.name, True)
            longest = max(longest, *sides)
            ratio = max(ratio, max(sides) / max(1, min(sides)))
            kinds.add(round(math.log2(max(1, max(sides))), 1))
    if ratio >= _FAR_FROM_SQUARE:
        yield (
            f"images are up to {ratio:.1f} times as long as wide and are squashed to a square of "
            f"{image_size} pixels: a larger --image-size keeps more of the long side"
        )
    if longest >= _FAR_LARGER * image_size:
        cell = math.ceil(longest / image_size)
        yield (
            f"images of up to {longest} pixels become {image_size}: a defect of {cell} pixels "
            "shrinks to one; raise --image-size if yours are that small"
        )
    if kinds and max(kinds) - min(kinds) >= 2:
        yield (
            "images differ in size by four times or more: those of low resolution look blurred to "
            "a detector that learns from both"
        )
    if len(set(grey.values())) == 2:
        shown = ", ".join([name for name, is_grey in grey.items() if is_grey][:_SHOWN])
        yield (
            f"images of some sites are grey ({shown}) and those of others are not: what one site "
            "shares tells the others little"
        )
