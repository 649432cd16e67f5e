"""What files of a reading hold, as far as sizes, headers and bytes say: copies and odd shapes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from fedvad.data.cubes.names import files_of
from fedvad.data.headers import read_header
from fedvad.data.images import read_rgb
from fedvad.data.reading import DataReading
from fedvad.data.region import Region, is_shape
from fedvad.data.sets import ImageItem, Site
from fedvad.data.views import Size, View, is_plain
from fedvad.errors import DataError, ImageError, join_names

_BLOCK = 4096
_MOST_BYTES = 1 << 30  # of files that agree in size and in three blocks, to be read whole
_LOOKED_AT = 32  # images a site whose headers are read
_FAR_FROM_SQUARE = 1.5
_FAR_LARGER = 3.0
_STRETCHED = 1.05  # by which a region's mask no longer means the same places
_SHOWN = 3
_DECODED = 3  # images of 16 bits a site
_NEARLY_BLACK = 16  # of 255; what 12 bits reach of 16


def check_contents(
    reading: DataReading, image_size: Size | View, region: str | None = None
) -> DataReading:
    """The reading with notes on images of equal content, and on shapes that training spoils.

    image_size: at which images will be read; `auto` and `short:256` follow from theirs. region: see
    `Region`. Files of one size are compared, and headers are read; none but some images of 16 bits
    are decoded.
    """
    settled = isinstance(image_size, View) or is_plain(image_size)
    view = View.of(image_size) if settled else None
    notes = [*_copies(reading.sites), *_shapes(reading.sites, view)]
    return reading.noted([*notes, *_misfit(reading.sites, region), *_dark(reading.sites)])


def distinct(paths: Iterable[Path]) -> int:
    """How many different contents files have."""
    known = list(paths)
    return len(known) - sum(len(group) - 1 for group in copies(known))


def once(paths: Sequence[Path]) -> list[Path]:
    """The paths in order, each content once.

    A copy teaches nothing. Among held-out images it would count as one more witness of a
    threshold, and beside a copy that was trained on as an image that always scores low.
    """
    again = {path for group in copies(paths) for path in group[1:]}
    return [path for path in paths if path not in again]


def normals(images: Iterable[ImageItem]) -> list[Path]:
    """Paths of the normal images, in order, each content `once`."""
    return once([item.path for item in images if item.label == 0])


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
            sizes[_values(path).stat().st_size].append(path)
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
    with _values(path).open("rb") as file:
        parts = []
        for start in sorted({0, max(0, size // 2), max(0, size - _BLOCK)}):
            file.seek(start)
            parts.append(file.read(_BLOCK))
    return hashlib.sha256(b"".join(parts)).digest()


def _values(path: Path) -> Path:
    """The file in which an image's values lie: of ENVI's not the header, which others share."""
    with suppress(DataError):  # whoever reads it says what is missing
        return files_of(path)[-1] if path.suffix.lower() == ".hdr" else path
    return path


def _whole(path: Path, size: int) -> bytes:
    with _values(path).open("rb") as file:
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


def _misfit(sites: Iterable[Site], region: str | None) -> Iterator[str]:
    """A note where the mask of a region has other proportions than the images under it."""
    if not region or is_shape(region):
        return
    height, width = Region.of(region).shape
    paths = [item.path for site in sites for item in site.train[:_LOOKED_AT]]
    for header in filter(None, map(read_header, paths)):
        stretch = header.height * width / max(1, header.width * height)
        if not 1 / _STRETCHED < stretch < _STRETCHED:
            yield (
                f"the mask of the region is {width} x {height} pixels, and images are "
                f"{header.width} x {header.height}: it is stretched to their proportions"
            )
            return


def _dark(sites: Iterable[Site]) -> Iterator[str]:
    """A note on sites whose images of 16 bits hold 12 bits or fewer, and so are read as black."""
    dark = []
    for site in sites:
        paths = [item.path for item in site.train[:_DECODED]]
        deep = [path for path in paths if (header := read_header(path)) and header.deep]
        with suppress(ImageError):
            if deep and max(int(read_rgb(path).max()) for path in deep) <= _NEARLY_BLACK:
                dark.append(site.name)
    if dark:
        yield (
            f"16-bit images of {join_names(dark, _SHOWN)} use at most a sixteenth of their range "
            "and are read as nearly black: multiply the values of all images by 16, if the camera "
            "gives 12 bits"
        )


def _shapes(sites: Iterable[Site], view: View | None) -> Iterator[str]:
    """Notes on images of unlike kinds, and on images that a view spoils."""
    longest, ratio, kinds = 0, 1.0, set()
    grey: dict[str, bool] = {}
    for site in sites:
        for item in site.train[:_LOOKED_AT]:
            if (header := read_header(item.path)) is None:
                continue
            sides = header.height, header.width
            grey[site.name] = header.grey and grey.get(site.name, True)
            longest = max(longest, *sides)
            seen = (1, 1) if view is None else view.shape(*sides)
            stretch = sides[0] * seen[1] / max(1, sides[1] * seen[0])
            ratio = max(ratio, stretch, 1 / max(stretch, 1e-9))
            kinds.add(round(math.log2(max(1, max(sides))), 1))
    if view is not None and ratio >= _FAR_FROM_SQUARE and not view.varies:
        yield (
            f"images are stretched up to {ratio:.1f} times to {view.height} x {view.width} pixels: "
            "--image-size auto keeps their proportions"
        )
    if view is not None and longest >= _FAR_LARGER * max(view.height, view.width):
        cell = math.ceil(longest / max(view.height, view.width))
        yield (
            f"images of up to {longest} pixels become {max(view.height, view.width)}: a defect of "
            f"{cell} pixels shrinks to one; if yours are that small, raise --image-size or use "
            "--tiles"
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
