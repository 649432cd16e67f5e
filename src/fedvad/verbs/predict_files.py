"""What `predict` writes of each image: overlays, maps, masks, regions, and a table of results."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedvad._version import __version__
from fedvad.data.arrays import npy
from fedvad.data.bounds import ANY_SIZE
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.files import write_atomically
from fedvad.data.frames import split_frame
from fedvad.data.images import read_bytes
from fedvad.data.inputs import Listed, Listing
from fedvad.data.output_folder import OutputFolder
from fedvad.data.outputs import holding_folders, real
from fedvad.data.pictures import Picture
from fedvad.errors import ConfigError, ImageError, StorageError
from fedvad.evaluation.regions import regions
from fedvad.evaluation.thresholds import Threshold
from fedvad.memory.bank import FloatArray
from fedvad.report.lettering import Fonts
from fedvad.report.overlay import enlarged, marked_png, save_png
from fedvad.report.result_picture import result_picture
from fedvad.report.tables import neutral_cell

KINDS = ("overlays", "maps", "maps16", "masks", "boxes", "csv")
NEED_THRESHOLD = frozenset({"masks", "boxes"})
_ENDINGS = (".png", ".npy", ".map.png", ".mask.png")  # of one image, all claimed together
_COLUMNS = ("path", "site", "score", "threshold", "anomalous", "reason", "error", *KINDS[:4])


def check_kinds(save: str | Sequence[str] | None, out: Path | None) -> frozenset[str]:
    """What to save, of `KINDS`, given as a list or with commas; raises `ConfigError`."""
    if save is None:
        return frozenset({"overlays"} if out is not None else ())
    parts = save.split(",") if isinstance(save, str) else [str(part) for part in save]
    wanted = frozenset(part.strip() for part in parts if part.strip())
    unknown = sorted(wanted - set(KINDS))
    if unknown or not wanted:
        raise ConfigError(
            f"nothing called {', '.join(map(repr, unknown)) or repr(save)} can be saved; choose "
            f"from {', '.join(KINDS)}"
        )
    if out is None:
        raise ConfigError(f"--save {','.join(sorted(wanted))} needs --out, the folder to write to")
    return wanted


class SavedFiles:
    """The files of one call of `predict`, written as its results come.

    Of an image `test/hole/000.png`, found below the one folder given: `hole/000.png` (overlay, see
    `result_picture`), `.npy` (the map, float32 (h, w) on the patch grid), `.map.png` (the same in
    16 bit; value = low + pixel x step, both in its metadata) and `.mask.png` (0 or 255 at the
    image's size, 255 where the map, enlarged bilinearly, exceeds the threshold). Of all together:
    `predict.csv`, a row per image, and `predict.coco.json`, the regions of the masks.
    """

    def __init__(
        self,
        out: Path,
        kinds: frozenset[str],
        listing: Listing,
        given: Sequence[Path],
        limit: Threshold | None,
    ) -> None:
        """Raises as `OutputFolder`."""
        inputs = holding_folders(given, listing.paths)
        self._folder = OutputFolder(out, "--out", inputs=inputs)
        self._kinds = kinds
        self._limit = limit
        self._fonts = Fonts() if "overlays" in kinds else None
        self._table: _Table | None = None
        self._regions: _Regions | None = None
        owner = f"predict of {_fingerprint(listing.paths)}"
        if "csv" in kinds:
            self._table = _Table(self._claim(owner, ".csv"))
        if "boxes" in kinds and limit is not None:
            self._regions = _Regions(self._claim(owner, ".coco.json"), limit)

    def _claim(self, owner: str, ending: str) -> Path:
        place = self._folder.claim(owner, PurePath("predict"), (ending,))
        return place.with_name(place.name + ending)

    def write(self, image: Listed, row: dict[str, Any], map_: FloatArray | None) -> None:
        """Write an image's files and name them in its row; an image without a map has none."""
        if map_ is not None and self._kinds - {"csv"}:
            self._write_image(image, row, map_)
        if self._table is not None:
            self._table.add(row)

    def _write_image(self, image: Listed, row: dict[str, Any], map_: FloatArray) -> None:
        kinds, limit = self._kinds, None if self._limit is None else self._limit.value
        stem = self._folder.claim(_owner(image.path), image.name, _ENDINGS)
        places = {
            kind: stem.with_name(stem.name + ending)
            for kind, ending in zip(KINDS, _ENDINGS, strict=False)
            if kind in kinds
        }
        if "maps" in kinds:
            write_atomically(places["maps"], npy(np.asarray(map_, np.float32)))
        if "maps16" in kinds:
            write_atomically(places["maps16"], _sixteen_bit(map_))
        if kinds & {"overlays", "masks", "boxes"}:
            photograph = read_picture(image.path, max_pixels=ANY_SIZE)
            if self._fonts is not None:
                name = "  ".join(filter(None, [row["site"], str(image.path)]))
                picture = result_picture(
                    photograph, map_, score=row["score"], limit=limit, name=name, fonts=self._fonts
                )
                save_png(places["overlays"], picture)
                row["overlay"] = str(places["overlays"])
            if limit is not None and kinds & NEED_THRESHOLD:
                large = enlarged(map_, *photograph.shape[:2])
                mask = large > limit
                if "masks" in kinds:
                    write_atomically(places["masks"], _mask_png(mask))
                if self._regions is not None:
                    self._regions.add(row, mask, large)
        row["files"] = {kind: str(place) for kind, place in places.items()}

    def close(self) -> None:
        """Finish the table and write the regions of all images that were scored."""
        if self._table is not None:
            self._table.close()
        if self._regions is not None:
            self._regions.write()


class _Table:
    """`predict.csv`: UTF-8, a header, a row per image, each on the disk before the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.unlink(missing_ok=True)  # a link in its place is not followed
            self._file: IO[str] = path.open(
                "x", newline="", encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise _refused(path, error) from error
        self._write(_COLUMNS)

    def add(self, row: dict[str, Any]) -> None:
        known = row | row["files"]
        self._write([known.get(column) for column in _COLUMNS])

    def _write(self, cells: Sequence[Any]) -> None:
        try:
            csv.writer(self._file, lineterminator="\n").writerow([neutral_cell(c) for c in cells])
            self._file.flush()
        except OSError as error:
            raise _refused(self._path, error) from error

    def close(self) -> None:
        self._file.close()


class _Regions:
    """`predict.coco.json`: connected regions of the masks as boxes and polygons."""

    def __init__(self, path: Path, limit: Threshold) -> None:
        self._path = path
        self._limit = limit
        self._images: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any], mask: NDArray[np.bool_], large: NDArray[np.float32]) -> None:
        number = len(self._images) + 1
        self._images.append(
            {
                "id": number,
                "file_name": row["path"],
                "height": mask.shape[0],
                "width": mask.shape[1],
                "score": row["score"],
                "anomalous": row["anomalous"],
            }
        )
        for region in regions(mask, large):
            self._found.append(
                {
                    "id": len(self._found) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": list(region.box),
                    "area": region.area,
                    "segmentation": [[float(value) for value in region.polygon.ravel()]],
                    "iscrowd": 0,
                    "score": region.highest,
                }
            )

    def write(self) -> None:
        document = {
            "info": {"description": f"fedvad {__version__}", "threshold": self._limit.value},
            "images": self._images,
            "annotations": self._found,
            "categories": [{"id": 1, "name": "anomaly"}],
        }
        write_atomically(self._path, json.dumps(document).encode())


def _owner(path: Path) -> str:
    """Who owns an image's outputs: its place and its content, of which each makes it another.

    A picture in memory has pixels in place of a file.
    """
    try:
        if isinstance(path, Picture):
            pixels = path.rgb()
            return f"{path} {pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}"
        content = hashlib.sha256(read_bytes(path)).hexdigest()
    except ImageError:
        content = ""
    return f"{real(path)} {content}"


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        identity = _owner(path) if isinstance(path, Picture) else str(real(path))
        with suppress(OSError):
            status = split_frame(path)[0].stat()
            identity += f" {status.st_size} {status.st_mtime_ns}"
        digest.update(f"{identity}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _sixteen_bit(map_: FloatArray) -> bytes:
    from PIL import Image

    low, high = float(map_.min()), float(map_.max())
    step = (high - low) / 65535 or 1.0
    pixels = np.rint((np.asarray(map_, np.float64) - low) / step).astype(np.uint16)
    return marked_png(Image.fromarray(pixels), "map", low=repr(low), step=repr(step))


def _mask_png(mask: NDArray[np.bool_]) -> bytes:
    from PIL import Image

    return marked_png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)), "mask")


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another --out"
    )
