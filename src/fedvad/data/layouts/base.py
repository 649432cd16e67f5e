"""What the readers of all layouts share: images below a folder, masks to pair, what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedvad.data.cubes.names import files_of
from fedvad.data.frames import split_frame
from fedvad.data.labels import LabelNames, contradicts
from fedvad.data.listing import UNLISTED, Folder, file_reason, is_image
from fedvad.data.masks import Placed, companions, fitting_several, is_mask_folder, pair_masks
from fedvad.data.reading import Label, SiteReading, Skipped
from fedvad.data.sets import ImageItem, ImageSet, Site
from fedvad.errors import DataError

_TEST_SHARE = 5  # of a set without a split of its own, every fifth normal image is for testing
# Other measurements of what a colour image beside them shows, in the sets that have several.
_OTHER_SENSORS = frozenset({"xyz", "depth", "pointcloud", "points", "pcd", "ply", "ir", "infrared"})
_PARTS_OF_A_SET = frozenset({"train", "test"})
_ANNOTATIONS = frozenset({".json", ".xml", ".txt"})
_SHOWN = 3
NO_PIXELS = "DICOM without pixels (a report, a structure)"
UNPAIRED = "mask that belongs to no image"
AMBIGUOUS = "mask whose name fits several images"
LEFT_OUT = "left out by --leave-out"


@dataclass(frozen=True)
class Group:
    """Test images of one label with the masks that lie in its folders; defect: None for good."""

    defect: str | None
    images: Sequence[Placed]
    masks: Sequence[Placed] = ()


@dataclass(eq=False)
class Draft:
    """A site in the making. top: the folder of the site; names: what folders may be called.

    train and test: images that were chosen; why: reason by folder or file that is not read.
    """

    top: Folder
    layout: str
    names: LabelNames
    train: list[ImageItem] = field(default_factory=list)
    normal: list[ImageItem] = field(default_factory=list)
    defective: list[ImageItem] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why: dict[Path, str] = field(default_factory=dict)
    masks: set[Path] = field(default_factory=set)

    def relative(self, path: Path) -> str:
        """A path as people see it: below the data folder, where it lies there."""
        inside = path.is_relative_to(self.top.root)
        return (path.relative_to(self.top.root) if inside else path).as_posix()

    def label(
        self, folder: Path, part: str, images: int, rule: str, *, defect: str | None = None,
        notable: bool = False,
    ) -> None:  # fmt: skip
        """Note that a folder was read, as normal images or as those of a defect."""
        label = "normal" if defect is None else f"defect {defect}"
        self.labels.append(Label(self.relative(folder), part, label, images, rule, notable))

    def images_of(self, folder: Folder, *, good: bool) -> list[Placed]:
        """Images at any depth below a folder of one label; what is not one of them is noted."""
        found = placed_images(folder, good=good, why=self.why)
        nested = sorted({parts[0] for parts, _ in found if parts})
        self._nested = ", ".join(nested[:_SHOWN]) + (", …" if len(nested) > _SHOWN else "")
        return found

    @property
    def nested(self) -> str:
        """The sub-folders that the latest `images_of` went into; "" for none."""
        return self._nested

    _nested: str = ""

    def finish(self, name: str) -> SiteReading:
        """The site as read, with every file that is not accounted for named."""
        out = {item.path for item in self.train if self.relative(item.path) in self.names.left_out}
        self.why.update((path, LEFT_OUT) for path in out)
        kept = tuple(item for item in self.train if item.path not in out)
        site = Site(
            name, ImageSet(kept), ImageSet((*self.normal, *self.defective))
        )  # fmt: skip
        read = {item.path for item in (*site.train, *site.test)} | self.masks
        skipped = left_over(self.top, read, self.why)
        return SiteReading(site, self.layout, tuple(self.labels), skipped, tuple(self.notes))

    def add_test(self, groups: Sequence[Group], flat: Sequence[Placed] = ()) -> None:
        """Test images of each label with their masks.

        flat: masks in no folder of a label, which are paired by names that occur only once.
        """
        paired: dict[Path, tuple[Path, ...]] = {}
        unpaired: list[Path] = []
        for group in groups:
            found, rest = pair_masks(group.images, group.masks)
            paired |= found
            unpaired += rest
        without = [p for g in groups for p in g.images if g.defect and p[1] not in paired]
        found, rest = pair_masks(without, flat)
        paired |= found
        for group in groups:
            items = [_item(p, group.defect, paired.get(p, ())) for _, p in group.images]
            (self.normal if group.defect is None else self.defective).extend(items)
        self.masks.update(path for chosen in paired.values() for path in chosen)
        lost = dict.fromkeys([*unpaired, *rest], UNPAIRED)
        self.why.update(lost)
        for images, masks in [*((g.images, g.masks) for g in groups), (without, flat)]:
            if left := [mask for mask in masks if mask[1] in lost]:
                self.why.update((path, AMBIGUOUS) for path in fitting_several(images, left))

    def note_masks(self) -> None:
        """Say so when there are masks or annotations and none belongs to a defective image.

        Where some do, scoring says how many: it looks at the masks, too.
        """
        if not self.defective or any(item.mask for item in self.defective):
            return
        unpaired = sum(reason in (UNPAIRED, AMBIGUOUS) for reason in self.why.values())
        if not unpaired and (files := self._annotations()):
            self.notes.append(
                f"{len(files)} files such as {self.relative(files[0])} seem to mark the defects, "
                "but masks are read from images only: save them as "
                "ground_truth/<defect>/<name>_mask.png for pixel figures"
            )
        if unpaired:
            self.notes.append(
                f"none of {unpaired} masks belongs to a defective image, so there are no pixel "
                "figures: call them <image>_mask.png, in ground_truth/<defect>, and no two images "
                "of a folder the same"
            )

    def _annotations(self) -> list[Path]:
        """Files of labelme, VOC, YOLO or COCO that annotate defective images."""
        stems = {split_frame(item.path)[0].stem for item in self.defective}
        beside = {item.path.parent for item in self.defective}
        found = []
        for folder in self.top.walk():
            own = folder.path in beside or any(
                is_mask_folder(name, of_set=True) for name in folder.parts[len(self.top.parts) :]
            )
            for path in folder.files if folder.barred is None else ():
                name, suffix = path.name.casefold(), path.suffix.casefold()
                if suffix in _ANNOTATIONS and (
                    (own and path.stem in stems) or (suffix == ".json" and "coco" in name)
                ):
                    found.append(path)
        return found


def _item(path: Path, defect: str | None, masks: Sequence[Path]) -> ImageItem:
    label = int(defect is not None)
    return ImageItem(path, label, defect or "good", masks[0] if masks else None, tuple(masks[1:]))


def placed_images(folder: Folder, *, good: bool, why: dict[Path, str]) -> list[Placed]:
    """Images at any depth below a folder of one label, with the folders that they lie in.

    `why` gets the reason of what is passed over: masks and thumbnails beside images, folders of
    masks, of other sensors beside rgb/, of the opposite label, and sets within the set.
    """
    images = folder.images()
    passed = companions(images)
    why.update(passed)
    found: list[Placed] = [((), path) for path in images if path not in passed]
    inside = folder.usable()
    colour = any(child.path.name.casefold() == "rgb" for child in inside)
    for child in inside:
        name = child.path.name
        if is_mask_folder(name):
            continue
        if colour and name.casefold() in _OTHER_SENSORS:
            why[child.path] = "another sensor than rgb/"
        elif name.casefold() in _PARTS_OF_A_SET or child.child("train", "test"):
            why[child.path] = "a set within the set"
        elif contradicts(name, good=good):
            why[child.path] = "its name contradicts the folder that it lies in"
        else:
            below = placed_images(child, good=good, why=why)
            found += [((name, *parts), path) for parts, path in below]
    return found


def every_fifth(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Normal images to learn from, and every fifth, beginning with the first, to test on."""
    return [p for i, p in enumerate(paths) if i % _TEST_SHARE], list(paths[::_TEST_SHARE])


def left_over(top: Folder, read: Iterable[Path], why: Mapping[Path, str]) -> tuple[Skipped, ...]:
    """All files of a tree that were not read, grouped by folder and reason.

    why: the reason by file or folder, where there is more to say than the name does.
    """
    known = {split_frame(path)[0] for path in read}.union(read)
    known.update(file for path in read for file in _parts(path))
    why = {split_frame(path)[0]: reason for path, reason in why.items()} | dict(why)
    groups: dict[tuple[Path, str], list[Path]] = {}
    notable: set[tuple[Path, str]] = set()
    for folder, place, barred in _reasons(top, why):
        if barred is not None and barred.startswith(UNLISTED):
            groups[place, barred] = []
            notable.add((place, barred))
        for path in folder.files:
            if path in known:
                continue
            own = file_reason(path)
            if path in folder.outputs:
                own = "picture that fedvad wrote", True
            elif path in folder.no_pixels:
                own = NO_PIXELS, True
            reason = why.get(path) or (own[0] if own else barred or _default(folder, top))
            if barred is not None and (own is None or barred in ("system folder", "hidden")):
                reason = barred
            groups.setdefault((place, reason), []).append(path)
            if own is None or (own[1] and barred is None):
                notable.add((place, reason))
    return tuple(
        Skipped(
            folder=place.relative_to(top.root).as_posix(),
            reason=reason,
            files=len(paths),
            images=sum(map(is_image, paths)),
            example=min(
                (path.name for path in paths),
                key=lambda name: (not is_image(Path(name)), name),
                default=place.name,
            ),
            notable=(place, reason) in notable,
        )
        for (place, reason), paths in groups.items()
    )


def _parts(path: Path) -> list[Path]:
    """The files of a cube of several."""
    with suppress(DataError):  # whoever reads it says what is missing
        return files_of(path) if path.suffix.lower() == ".hdr" else []
    return []


def _reasons(
    folder: Folder, why: Mapping[Path, str], given: tuple[Path, str] | None = None
) -> Iterable[tuple[Folder, Path, str | None]]:
    """Each folder, the folder that it is counted under, and why nothing in it is read."""
    reason = folder.barred or why.get(folder.path)
    if given is None and reason is not None:
        given = folder.path, reason
    yield folder, *((folder.path, None) if given is None else given)
    for child in folder.folders:
        yield from _reasons(child, why, given)


def _default(folder: Folder, top: Folder) -> str:
    if any(is_mask_folder(name) for name in folder.parts[len(top.parts) :]):
        return UNPAIRED
    return "loose file" if folder is top else "not part of the layout"
