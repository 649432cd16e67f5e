"""Which mask belongs to which image: by every usual way of naming, and several per image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.formats import image_suffix
from fedvad.data.frames import split_frame, stem_of
from fedvad.data.images import read_mask

# A file and the names of the folders between it and the folder that is paired.
Placed = tuple[tuple[str, ...], Path]
BESIDE = "mask beside its image"

_FOLDERS = frozenset({"groundtruth", "groundtruths", "gt", "gts", "mask", "masks"})
# Beside train and test, in any number: ground_truth_masks.
_OF_SET = re.compile(r"(?:groundtruths?|gts?|masks?|labels?|annotations?|segs?|segmentations?)+")
# Words that stand around those: anomaly_mask, test_masks, mask_images, masks_png.
_AROUND = frozenset(
    {"anomaly", "anomalies", "anomal", "defect", "defects", "binary", "pixel", "test", "image",
     "images", "png", "bmp", "tif", "tiff", "jpg", "jpeg"}
)  # fmt: skip
_WORD = r"(?:mask|masks|gt|label|labels|seg|segmentation|annotation|ground[-_ ]?truth)"
_SMALL = r"(?:thumb|thumbnail|thumbs)"
_AFTER = re.compile(rf"(.+?)[-_ .]?(?:(?<=[-_ .]){_WORD}|mask)(?:[-_ .]*\(?(\d+)\)?)?", re.I)
_BEFORE = re.compile(rf"{_WORD}[-_ .](.+)", re.I)
# What names say besides where a folder of masks leaves no doubt: 7_defect, 7_mask_final, mask7.
_LOOSE = (
    r"(?:masks?|gt|labels?|lbl|seg|segmentations?|annotations?|annot|ground[-_ ]?truth|truth|"
    r"binary|bin|defects?|anomaly|anomalies|anomalous|pixels?|pixelwise|target|final|manual|"
    r"image|img|map|m)"
)
_LAST = re.compile(rf"(.+)[-_ .]+(?:\(?\d+\)?|{_LOOSE})", re.I)
_FIRST = re.compile(rf"{_LOOSE}(?:[-_ .]+(.+)|(\d.*))", re.I)
_OF_FOLDER = re.compile(
    r"(.+)[-_ .](?:masks?|gts?|ground[-_ ]?truths?)|(?:masks?|gts?|ground[-_ ]?truths?)[-_ .](.+)",
    re.I,
)
_THUMB = re.compile(rf"(.+?)[-_ .]{_SMALL}|{_SMALL}[-_ .](.+)", re.I)
_COUNTED = re.compile(r"(.+?)[-_ .]\(?\d+\)?")


def is_mask_folder(name: str, *, of_set: bool = False) -> bool:
    """Whether a folder's name says that it holds masks.

    of_set: it lies beside train and test, where more names can mean only that.
    """
    plain = re.sub(r"[-_ .]", "", name.casefold())
    if not of_set:
        return plain in _FOLDERS
    words = re.split(r"[-_ .]+", name.casefold())
    around = [word for word in words if word not in _AROUND]
    return _OF_SET.fullmatch("".join(around)) is not None


def masks_of(name: str, beside: Iterable[str]) -> str | None:
    """The folder of images, of those `beside` it, whose masks a folder holds by its name.

    >>> masks_of("hole_mask", ["good", "hole", "hole_mask"])
    'hole'
    """
    match = _OF_FOLDER.fullmatch(name)
    wanted = (match[1] or match[2]).casefold() if match else None
    return next((other for other in beside if other.casefold() == wanted), None)


def companions(images: Iterable[Path]) -> dict[Path, str]:
    """Files of one folder that are no images of their own, with the reason.

    Those are masks (7_mask.png beside 7.png) and thumbnails (7_thumb.jpg beside 7.jpg).
    """
    paths = list(images)
    stems = {_fold(stem_of(path)) for path in paths}
    found = {}
    for path in paths:
        stem, frame = _named(path)
        stem = stem.casefold()
        if any({base + frame, base} & stems for base, _ in _worded(stem)):
            found[path] = BESIDE
        elif (small := _THUMB.fullmatch(stem)) and (small[1] or small[2]) + frame in stems:
            found[path] = "thumbnail beside its image"
    return found


def pair_masks(
    images: Sequence[Placed], masks: Sequence[Placed]
) -> tuple[dict[Path, tuple[Path, ...]], list[Path]]:
    """The masks of each image that has some, and the masks that belong to none.

    An image may be called as its mask is (7.png), with a word after or before it (7_mask, 7-gt,
    mask_7, in any case), with a number where there are several (7_mask_1, 7_mask_2), or be a
    folder of masks (7/000.png). Pages of a mask belong to the pages of the image, or all to an
    image that has one page. Images and masks in folders of the same names belong together;
    without such folders the name alone decides if it is unique. A named mask is preferred to one
    that is called as the image is, PNG to other formats. Only a mask that belongs to none so far
    may say more: 7_defect, 7_mask_final, mask7, 7.png_mask, or the folder's name, hole_7.
    """
    index = _Index(images)
    worded: dict[Path, dict[str, Path]] = {}
    plain: dict[Path, dict[str, Path]] = {}
    several: dict[Path, list[Path]] = {}
    unpaired: list[Path] = []
    loose: list[Placed] = []
    loosely: dict[Path, list[Path]] = {}
    ordered = sorted(masks, key=lambda placed: placed[1].suffix.lower() != ".png")
    for parts, path in ordered:
        stem, frame = _named(path)
        bases = [stem + frame, *(base + frame for base, _ in _worded(stem))]
        in_place = any(index.exact(parts, base) for base in bases)
        if parts and not in_place and (owner := index.find(parts[:-1], parts[-1])):
            several.setdefault(owner, []).append(path)
            continue
        if owner := index.find(parts, stem + frame):
            if plain.setdefault(owner, {}).setdefault("", path) is not path:
                unpaired.append(path)
            continue
        for base, number in _worded(stem):
            if owner := index.find(parts, base + frame):
                if worded.setdefault(owner, {}).setdefault(number, path) is not path:
                    unpaired.append(path)
                break
        else:
            bases = [stem, *(base for base, _ in _worded(stem))]
            of_all = (index.find(parts, base) for base in bases) if frame else ()
            if owner := next((owner for owner in of_all if owner is not None), None):
                several.setdefault(owner, []).append(path)
            else:
                loose.append((parts, path))
    for parts, path in loose:
        stem, frame = _named(path)
        owners = (index.find(parts, base + frame) for base in _loosely(stem, path.parent.name))
        owner = next((owner for owner in owners if owner is not None), None)
        if owner is None or owner in worded or owner in plain or owner in several:
            unpaired.append(path)
        else:
            loosely.setdefault(owner, []).append(path)
    several |= loosely
    paired: dict[Path, tuple[Path, ...]] = {}
    for _, image in images:
        named = sorted(worded.get(image, {}).values())
        if not named and image not in several:
            named = list(plain.get(image, {}).values())
        else:
            unpaired += plain.get(image, {}).values()
        if chosen := named + sorted(several.get(image, [])):
            paired[image] = tuple(chosen)
    return paired, sorted(unpaired)


def fitting_several(images: Sequence[Placed], masks: Sequence[Placed]) -> set[Path]:
    """Masks whose names fit two images or more, such as 7.jpg and 7.png, equally well."""
    index = _Index(images)
    found = set()
    for parts, path in masks:
        stem, frame = _named(path)
        bases = [stem, *(base for base, _ in _worded(stem))]
        if any(index.fits_several(parts, base + frame) for base in bases):
            found.add(path)
    return found


def _worded(stem: str) -> list[tuple[str, str]]:
    """(name of the image, number of the mask) that a mask's name may mean, likeliest first."""
    found = []
    if match := _AFTER.fullmatch(stem):
        base, number = match[1], match[2] or ""
        found.append((base, number))
        if not number and (counted := _COUNTED.fullmatch(base)):
            found.append((counted[1], base))  # 7_1_mask is of 7 where there is no image 7_1
    if match := _BEFORE.fullmatch(stem):
        found.append((match[1], ""))
        if counted := _COUNTED.fullmatch(match[1]):
            found.append((counted[1], match[1]))
    return found


def _loosely(stem: str, folder: str) -> Iterator[str]:
    """Names of images that a mask's name may mean, if nothing stricter is there: longest first."""
    waiting, seen = [stem], {stem}
    while waiting:
        name = waiting.pop(0)
        found = [match[1] for match in [_LAST.fullmatch(name)] if match]
        found += [match[1] or match[2] for match in [_FIRST.fullmatch(name)] if match]
        suffix = Path(name).suffix
        if image_suffix(Path(name)):
            found.append(name.removesuffix(suffix))
        if name.casefold().startswith(folder.casefold()):
            found.append(name[len(folder) :].lstrip("-_ ."))
        for shorter in sorted(found, key=len, reverse=True):
            if shorter and shorter not in seen:
                seen.add(shorter)
                waiting.append(shorter)
                yield shorter


class _Index:
    """Images by folder and name: exactly, else in any case, else in any folder."""

    def __init__(self, images: Sequence[Placed]) -> None:
        self._keys: list[dict[object, list[Path]]] = [{}, {}, {}, {}]
        for parts, path in images:
            for table, key in zip(self._keys, _keys(parts, _key(stem_of(path))), strict=True):
                table.setdefault(key, []).append(path)

    def exact(self, parts: tuple[str, ...], stem: str) -> bool:
        return bool(parts) and any(
            len(table.get(key, [])) == 1
            for table, key in list(zip(self._keys, _keys(parts, stem), strict=True))[:2]
        )

    def find(self, parts: tuple[str, ...], stem: str) -> Path | None:
        for table, key in zip(self._keys, _keys(parts, stem), strict=True):
            found = table.get(key, [])
            if len(found) == 1:
                return found[0]
        return None

    def fits_several(self, parts: tuple[str, ...], stem: str) -> bool:
        return self.find(parts, stem) is None and any(
            len(table.get(key, [])) > 1
            for table, key in zip(self._keys, _keys(parts, stem), strict=True)
        )


def _keys(parts: tuple[str, ...], stem: str) -> tuple[object, ...]:
    folded = tuple(map(_fold, parts))
    return (parts, stem), (folded, _fold(stem)), stem, _fold(stem)


def _key(stem: str) -> str:
    # One name may be composed differently (é as one or two code points) by the tools and file
    # systems that images and masks went through.
    return unicodedata.normalize("NFC", stem)


def _named(path: Path) -> tuple[str, str]:
    """The name of a mask's file without its suffix, and "#2" for its second image."""
    file, number = split_frame(path)
    return _key(stem_of(file)), "" if number is None else f"#{number}"


def _fold(stem: str) -> str:
    return _key(stem).casefold()


def read_masks(masks: Sequence[Path]) -> npt.NDArray[np.bool_]:
    """The union of one image's masks as bool (H, W), in the size of the first.

    Raises `ImageError` as `read_mask` does.
    """
    united = read_mask(masks[0], max_pixels=ANY_SIZE)
    for path in masks[1:]:
        other = read_mask(path, max_pixels=ANY_SIZE)
        united |= other if other.shape == united.shape else nearest(other, united.shape)
    return united


def nearest(mask: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """A mask resized to (h, w) by nearest neighbour."""
    rows, columns = (
        (2 * np.arange(wanted) + 1) * side // (2 * wanted)
        for wanted, side in zip(shape, mask.shape, strict=True)
    )
    resized: npt.NDArray[np.bool_] = np.ascontiguousarray(mask[np.ix_(rows, columns)])
    return resized
