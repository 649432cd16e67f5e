"""One picture of doubtful normal images, for a person to decide which of them are no good parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.cubes.pixels import read_picture
from fedvad.memory.bank import FloatArray
from fedvad.report.lettering import Fonts, write
from fedvad.report.overlay import fitted, heatmap_overlay, save_png

_PER_ROW, _TILE, _GAP, _HEAD, _FOOT = 4, 220, 24, 96, 56
_WIDTH = _PER_ROW * (2 * _TILE + _GAP) + _GAP


@dataclass(frozen=True, eq=False)
class DoubtfulImage:
    """file: as it is shown and listed. times: its score in multiples of the usual. map: (h, w)."""

    path: Path
    file: str
    times: float
    map: FloatArray


def doubt_sheet(images: Sequence[DoubtfulImage], out: Path, *, title: str) -> Path:
    """Draw each image, and beside it where it is unlike the others, as one PNG file.

    Raises `ImageError` for an image that vanished, `StorageError` when the disk refuses.
    """
    from PIL import Image, ImageDraw

    fonts = Fonts()
    rows = -(-len(images) // _PER_ROW)
    sheet = Image.new("RGB", (_WIDTH, _HEAD + rows * (_TILE + _FOOT)), "#FFFFFF")
    draw = ImageDraw.Draw(sheet)
    write(draw, (_GAP, 58), title, fonts, 28, bold=True, room=_WIDTH - 2 * _GAP)
    for number, one in enumerate(images):
        left = _GAP + number % _PER_ROW * (2 * _TILE + _GAP)
        top = _HEAD + number // _PER_ROW * (_TILE + _FOOT)
        photograph = fitted(read_picture(one.path, max_pixels=ANY_SIZE), _TILE)
        low, high = (float(v) for v in np.quantile(one.map, [0.5, 1.0]))
        heated = heatmap_overlay(photograph, one.map, low=low, high=high)
        sheet.paste(Image.fromarray(photograph), (left, top))
        sheet.paste(Image.fromarray(heated), (left + _TILE, top))
        words = f"{one.times:.2g} x  {one.file}"
        write(draw, (left, top + _TILE + 22), words, fonts, 16, room=2 * _TILE)
    save_png(out, np.asarray(sheet))
    return out
