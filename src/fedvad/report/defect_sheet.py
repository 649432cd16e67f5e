"""One picture of synthetic defects: original, defect and outline of its mask, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvad.data.synthesis import Defect
from fedvad.errors import ConfigError
from fedvad.report.lettering import Fonts, write
from fedvad.report.overlay import draw_outline, in_a_row, save_png, stacked

if TYPE_CHECKING:
    from PIL import Image

PER_ROW = 2
_WIDTH, _MARGIN, _GAP, _SEAM = 1920, 48, 36, 6
_PANEL = (_WIDTH - 2 * _MARGIN - (PER_ROW - 1) * _GAP) // PER_ROW
_TILE = (_PANEL - 2 * _SEAM) // 3
_PAGE, _FRAME, _QUIET = "#FFFFFF", "#F0F2F4", "#5C6670"


@dataclass(frozen=True)
class Example:
    """A normal image uint8 (H, W, 3), a defect drawn on it, and the name of its file."""

    name: str
    image: NDArray[np.uint8]
    defect: Defect

    @property
    def area(self) -> float:
        """Share of the image that the mask covers."""
        return float(self.defect.mask.mean())

    @property
    def change(self) -> float:
        """Mean absolute change inside the mask, in grey levels over all channels."""
        difference = self.defect.image.astype(np.int16) - self.image
        return float(np.abs(difference[self.defect.mask]).mean())


def defect_sheet(groups: Mapping[str, Sequence[Example]], out: Path, *, title: str) -> Path:
    """Draw the examples of each kind as one PNG file, 1920 pixels wide; returns `out`.

    A row shows two examples, each as original, defect, and defect with the outline of its mask.
    Raises ConfigError when there is no example, StorageError when the disk refuses.
    """
    if not any(groups.values()):
        raise ConfigError("no synthetic defect to draw: ask for at least one kind and one row")
    fonts = Fonts()
    strips = [_line(fonts, title, 34, height=96)]
    for kind, examples in groups.items():
        strips.append(_line(fonts, kind, 22, height=56))
        for start in range(0, len(examples), PER_ROW):
            panels = [_panel(example, kind, fonts) for example in examples[start : start + PER_ROW]]
            strips.append(in_a_row(panels, _WIDTH, _MARGIN, _PANEL + _GAP))
    save_png(out, np.asarray(stacked(strips)))
    return out


def _line(fonts: Fonts, text: str, size: int, *, height: int) -> Image.Image:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (_WIDTH, height), _PAGE)
    draw, at = ImageDraw.Draw(strip), (_MARGIN, height - 16)
    write(draw, at, text, fonts, size, bold=True, room=_WIDTH - 2 * _MARGIN)
    return strip


def _panel(example: Example, kind: str, fonts: Fonts) -> Image.Image:
    """Three pictures side by side and a line of caption."""
    from PIL import Image, ImageDraw

    sides = example.image.shape[:2]
    height, width = (max(1, round(side * _TILE / max(sides))) for side in sides)
    enlarged = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        for image in (example.image, example.defect.image)
    ]
    grey = Image.fromarray(example.defect.mask.astype(np.uint8) * 255)
    # Averaged, and any trace counts: a thin scratch would fall apart in a smaller picture.
    mask = np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0
    panel = Image.new("RGB", (_PANEL, height + 48), _PAGE)
    draw = ImageDraw.Draw(panel)
    for index, picture in enumerate([*enlarged, draw_outline(enlarged[1], mask)]):
        left = index * (_TILE + _SEAM)
        draw.rectangle((left, 0, left + _TILE - 1, height - 1), fill=_FRAME)
        panel.paste(Image.fromarray(picture), (left + (_TILE - width) // 2, 0))
    drawn = example.defect.kind
    caption = "" if drawn == kind else f"a {drawn} instead, "
    caption += f"{example.area:.2%} of the image, {example.change:.0f} grey levels"
    room = _PANEL - fonts.get(caption, 16).getlength(caption)
    write(draw, (room, height + 22), caption, fonts, 16)
    write(draw, (0, height + 22), example.name, fonts, 16, colour=_QUIET, room=room - 16)
    return panel
