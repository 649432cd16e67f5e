"""Pictures that a watch keeps: of each day's highest scores, and of what changed."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvad.memory.bank import FloatArray
from fedvad.report.lettering import Fonts, fit, write
from fedvad.report.overlay import in_a_row, save_png, stacked
from fedvad.report.result_picture import result_picture
from fedvad.serving.watch.sources import Arrived

log = logging.getLogger(__name__)
_A_DAY, _SIDE = 20, 480
_SHOWN, _TILE, _GAP, _MARGIN = 6, 240, 12, 24

Pixels = npt.NDArray[np.uint8]


def picture_of(folder: Path, number: int) -> Path:
    """Where the picture of a row is, if it is kept."""
    return folder / "pictures" / f"{number:07d}.png"


def read_kept(path: Path) -> Pixels | None:
    """A picture that a watch kept; None for one that is gone, or damaged, with a warning."""
    from PIL import Image

    if not path.is_file():
        return None
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for broken files
        log.warning("%s is damaged and left out: %s", path, error)
        return None


class DayPictures:
    """Keeps the pictures of the twenty highest scores of each day; of a camera the frames, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fonts = Fonts()
        self._day, self._highest = "", list[tuple[float, int]]()

    def add(self, number: int, day: str, score: float) -> bool:
        """Whether an image is among its day's highest now; the one it replaces goes."""
        if day != self._day:
            self._day, self._highest = day, []
        if len(self._highest) < _A_DAY:
            heapq.heappush(self._highest, (score, number))
            return True
        _, gone = heapq.heappushpop(self._highest, (score, number))
        if gone == number:
            return False
        for path in (picture_of(self._folder, gone), self._frame(gone)):
            path.unlink(missing_ok=True)
        return True

    def keep(
        self, number: int, arrived: Arrived, pixels: Pixels, map_: FloatArray, score: float,
        limit: float | None, site: str | None,
    ) -> None:  # fmt: skip
        """Write the picture of a row, and its frame where no file has it."""
        name = "  ".join(filter(None, [site, arrived.name]))
        picture = result_picture(
            shrunk(pixels, _SIDE), map_, score=score, limit=limit, name=name, fonts=self._fonts
        )
        save_png(picture_of(self._folder, number), picture)
        if not isinstance(arrived.image, Path):
            save_png(self._frame(number), pixels)

    def _frame(self, number: int) -> Path:
        return self._folder / "frames" / f"{number:07d}.png"


class Recent:
    """The first images of a watch, and the last ones: a sheet of both says what changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "before"
        self._first = len(list(self._folder.glob("*.png")))
        self._last: deque[Pixels] = deque(maxlen=_SHOWN)

    def begin(self, pictures: Sequence[Pixels]) -> None:
        """Show these as the images before; without any, the first ones from here on."""
        for path in self._folder.glob("*.png"):
            if path.stem.isdecimal():
                path.unlink()
        self._first = 0
        for pixels in pictures[:_SHOWN]:
            self._keep(pixels)

    def add(self, pixels: Pixels) -> None:
        """Take in an image."""
        self._last.append(shrunk(pixels, _TILE))
        if self._first < _SHOWN:
            self._keep(pixels)

    def sheet(self, out: Path, title: str) -> None:
        """Write the images before above the last ones."""
        from PIL import Image, ImageDraw

        width = 2 * _MARGIN + _SHOWN * _TILE + (_SHOWN - 1) * _GAP
        fonts, strips = Fonts(), []
        kept = (read_kept(path) for path in sorted(self._folder.glob("*.png")))
        before = [Image.fromarray(picture) for picture in kept if picture is not None]
        for text, size, pictures in (
            (title, 22, []), ("before", 18, before),
            ("now", 18, [Image.fromarray(pixels) for pixels in self._last]),
        ):  # fmt: skip
            strip = Image.new("RGB", (width, 44), "#FFFFFF")
            text = fit(text, width - 2 * _MARGIN, fonts, size, bold=True)
            write(ImageDraw.Draw(strip), (_MARGIN, 34), text, fonts, size, bold=True)
            strips.append(strip)
            if pictures:
                strips.append(in_a_row(pictures, width, _MARGIN, _TILE + _GAP))
        save_png(out, np.asarray(stacked(strips)))

    def _keep(self, pixels: Pixels) -> None:
        self._first += 1
        save_png(self._folder / f"{self._first}.png", shrunk(pixels, _TILE))


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """A photograph with `side` pixels along its longer side, or as it is where it has fewer."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return np.asarray(picture)
