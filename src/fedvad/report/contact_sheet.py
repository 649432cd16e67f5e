"""The contact sheet: one picture that shows what the detector finds, misses and mistakes.

Drawn with Pillow, pixel by pixel, so that no photograph is resampled twice and any text can be
measured before it is set; of matplotlib only the colours and the bundled DejaVu fonts are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.files import write_atomically
from fedvad.data.views import Size, View
from fedvad.errors import ImageError
from fedvad.evaluation.judgement import BORDER
from fedvad.report.choice import CLEAR, FAINT, NEAR, NORMAL, choose_groups
from fedvad.report.lettering import INK, Fonts, chip, write
from fedvad.report.overlay import (
    draw_outline,
    heatmap_overlay,
    in_a_row,
    marked_png,
    own_range,
    stacked,
)
from fedvad.report.panels import Panel, display_ranges, drawn_mask, score_in_words

if TYPE_CHECKING:
    from PIL import Image

# Of each group: explanation, what to say when it is empty.
_ABOUT = {
    CLEAR: ("the highest scores among images with defects", "no image with a defect was caught"),
    FAINT: ("the lowest scores among images with defects", "no further image with a defect"),
    NEAR: (
        f"further images within {100 * BORDER:.0f} % of their site's threshold",
        f"no further image lies within {100 * BORDER:.0f} % of its site's threshold",
    ),
    NORMAL: ("the highest scores among images of good parts", "no image of a good part"),
}

_WIDTH, _MARGIN, _GAP, _SEAM = 1920, 48, 36, 6
_MAX_BYTES = 3_000_000
_PAGE, _FRAME, _RULE = "#FFFFFF", "#F0F2F4", "#D5DADF"
_QUIET = "#5C6670"
# Dark enough for white words on them (contrast over 4.5), apart for colour-blind eyes.
_VERDICTS = {
    "caught": ("#00735A", "defect above the threshold"),
    "missed": ("#B8400A", "defect not above it"),
    "false alarm": ("#8A3A86", "normal, above it"),
    "passed": ("#56616C", "normal, not above it"),
}
_UNJUDGED = ("no threshold", "#7A8590")


def contact_sheet(
    panels: Sequence[Panel], out: Path, *, title: str, image_size: Size | View, per_group: int = 4
) -> Path:
    """Draw the telling images of all sites as one PNG file, 1920 pixels wide; returns `out`.

    Each chosen image (`choose_groups`) is shown as the photograph with the outline of its ground
    truth, where there is one, and as the photograph under its heat map. Photographs have the detail
    that the detector saw (`image_size`, see `View`) in their own proportions. The colours of a
    site are ranged by the normal images among `panels` (`display_ranges`), so pass all test images,
    not a selection. Files that cannot be read become grey placeholders; a mask that
    cannot be read is left out. Sheets over 3 MB are reduced to 256 colours.
    Raises ConfigError for per_group < 1 or image_size < 1, DataError for a score or map that is
    not finite, StorageError when the disk refuses.
    """
    view = View.of(image_size)
    groups = choose_groups(panels, per_group=per_group)
    ranges = display_ranges(panels)
    columns = min(4, max(3, *(len(group) for group in groups.values())))
    panel_width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) // columns
    tile = (panel_width - _SEAM) // 2

    # The height is known only once every picture has its size: draw strips, then join them.
    fonts = Fonts()
    strips = [_header(fonts, panels, title)]
    for name, group in groups.items():
        strips.append(_heading(fonts, name, _about(name, group, panels)))
        for start in range(0, len(group), columns):
            drawn = [
                _pair(panel, ranges[panel.site], tile, view, fonts)
                for panel in group[start : start + columns]
            ]
            strips.append(in_a_row(drawn, _WIDTH, _MARGIN, panel_width + _GAP))
    out = Path(out)
    write_atomically(out, _encoded(stacked(strips)))
    return out


def _header(fonts: Fonts, panels: Sequence[Panel], title: str) -> Image.Image:
    """Title, what was chosen from, and the legend."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (_WIDTH, 176), _PAGE)
    draw = ImageDraw.Draw(strip)
    write(draw, (_MARGIN, 66), title, fonts, 34, bold=True, room=_WIDTH - 2 * _MARGIN)
    n_sites, n_bad = len({panel.site for panel in panels}), sum(bool(p.label) for p in panels)
    chosen_from = (
        f"Chosen from {_count(len(panels), 'image')} of {_count(n_sites, 'site')}, "
        f"{n_bad} with defects. An image is flagged when its score exceeds its site's threshold."
    )
    write(draw, (_MARGIN, 102), chosen_from, fonts, 18, colour=_QUIET)

    x, y = float(_MARGIN), 146
    sample = Image.fromarray(draw_outline(np.full((24, 34, 3), 150, np.uint8), _blob(24, 34)))
    strip.paste(sample, (round(x), y - 18))
    x += 34 + 8
    x += write(draw, (x, y), "ground truth", fonts, 16) + 30
    # The ramp shows what the eye meets in the pictures: colours over a grey photograph.
    ramp = np.tile(np.linspace(0, 1, 130, dtype=np.float32), (18, 1))
    grey = np.full((18, 130, 3), 150, np.uint8)
    x += write(draw, (x, y), "heat map: normal", fonts, 16) + 8
    strip.paste(Image.fromarray(heatmap_overlay(grey, ramp, low=0, high=1)), (round(x), y - 15))
    x += 130 + 8
    x += write(draw, (x, y), "anomalous (by site)", fonts, 16) + 30
    for word, (colour, meaning) in _VERDICTS.items():
        x += chip(draw, (x, y), word, colour, fonts) + 8
        x += write(draw, (x, y), meaning, fonts, 16) + 24
    return strip


def _about(name: str, group: Sequence[Panel], panels: Sequence[Panel]) -> str:
    """What a group shows, or why it is empty."""
    if not group and name in (CLEAR, FAINT) and not any(panel.label for panel in panels):
        return "no image with a defect among those tested"
    return _ABOUT[name][not group]


def _heading(fonts: Fonts, name: str, about: str) -> Image.Image:
    """A rule, the group's name and what it shows."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (_WIDTH, 70), _PAGE)
    draw = ImageDraw.Draw(strip)
    draw.line((_MARGIN, 10, _WIDTH - _MARGIN, 10), fill=_RULE, width=1)
    heading = name[:1].upper() + name[1:]
    x = _MARGIN + write(draw, (_MARGIN, 48), heading, fonts, 22, bold=True) + 16
    write(draw, (x, 48), about, fonts, 17, colour=_QUIET)
    return strip


def _pair(
    panel: Panel, limits: tuple[float, float], tile: int, view: View, fonts: Fonts
) -> Image.Image:
    """Photograph and heat map with three lines of caption."""
    from PIL import Image, ImageDraw

    try:
        whole = read_picture(panel.path, max_pixels=ANY_SIZE)
    except ImageError:
        height = tile
        pictures = None
    else:
        pictures = _pictures(panel, whole, limits, tile, view)
        height = pictures[0].height
    width = 2 * tile + _SEAM
    part = Image.new("RGB", (width, height + 102), _PAGE)
    draw = ImageDraw.Draw(part)
    for index in range(2):
        left = index * (tile + _SEAM)
        draw.rectangle((left, 0, left + tile - 1, height - 1), fill=_FRAME)
        if pictures is not None:
            part.paste(pictures[index], (left + (tile - pictures[index].width) // 2, 0))
    if pictures is None:
        draw.rectangle((0, 0, width - 1, height - 1), fill="#C9CED3")
        text = "image cannot be read"
        draw.text((width / 2, height / 2), text, INK, fonts.get(text, 18), anchor="mm")

    word, colour = _UNJUDGED
    if panel.outcome != "not judged":
        word, colour = panel.outcome, _VERDICTS[panel.outcome][0]
    chip_width = fonts.get(word, 15, bold=True).getlength(word) + 16
    y = height + 26
    chip(draw, (width - chip_width, y), word, colour, fonts)
    write(draw, (0, y), panel.site, fonts, 18, bold=True, room=width - chip_width - 12)
    score = score_in_words(panel.score, panel.threshold) + ", borderline" * panel.borderline
    room = width - fonts.get(score, 17).getlength(score)
    write(draw, (room, y + 26), score, fonts, 17)
    write(draw, (0, y + 26), panel.defect, fonts, 17, room=room - 12)
    write(draw, (0, y + 49), panel.file, fonts, 14, colour=_QUIET, room=width)
    return part


def _pictures(
    panel: Panel,
    whole: NDArray[np.uint8],
    limits: tuple[float, float],
    tile: int,
    view: View,
) -> tuple[Image.Image, Image.Image]:
    """Photograph with outline, photograph with heat map, fitted into a tile."""
    from PIL import Image

    scale = tile / max(whole.shape[:2])
    height, width = (max(1, round(side * scale)) for side in whole.shape[:2])
    seen = Image.fromarray(view.scaled(whole))
    photograph = np.asarray(seen.resize((width, height), Image.Resampling.BICUBIC))
    low, high = own_range(panel.map, *limits)
    heated = heatmap_overlay(photograph, panel.map, low=low, high=high)
    mask = drawn_mask(panel, width, height)
    outlined = photograph if mask is None else draw_outline(photograph, mask)
    return Image.fromarray(outlined), Image.fromarray(heated)


def _blob(height: int, width: int) -> NDArray[np.bool_]:
    """The legend's defect."""
    y, x = np.mgrid[:height, :width]
    inside: NDArray[np.bool_] = ((x - width / 2) / 8) ** 2 + ((y - height / 2) / 4) ** 2 < 1
    return inside


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _encoded(sheet: Image.Image) -> bytes:
    data = marked_png(sheet, "contact sheet")
    return data if len(data) <= _MAX_BYTES else marked_png(sheet.quantize(256), "contact sheet")
