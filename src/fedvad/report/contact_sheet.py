"""The contact sheet: one picture that shows what the detector finds, misses and mistakes.

Drawn with Pillow, pixel by pixel, so that no photograph is resampled twice and any text can be
measured before it is set; of matplotlib only the colours and the bundled DejaVu fonts are used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.files import write_atomically
from fedvad.data.images import read_mask, read_rgb, resize_rgb
from fedvad.errors import ConfigError, DataError, ImageError
from fedvad.report.overlay import heatmap_overlay, map_range, outline

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

__all__ = ["GROUPS", "Panel", "choose_panels", "contact_sheet"]

# The four groups of the sheet, in order: name, explanation, what to say when it is empty.
_CLEAR, _FAINT, _NEAR, _NORMAL = GROUPS = (
    "clearest defects",
    "missed or faintest defects",
    "borderline",
    "false alarms or highest-scoring normals",
)
_BORDER = 0.2  # borderline: within this share of the threshold
_ABOUT = {
    _CLEAR: ("the highest scores among images with defects", "no image with a defect was caught"),
    _FAINT: ("the lowest scores among images with defects", "no further image with a defect"),
    _NEAR: (
        f"others within {_BORDER:.0%} of their site's threshold",
        f"no further image lies within {_BORDER:.0%} of its site's threshold",
    ),
    _NORMAL: ("the highest scores among normal images", "no normal image"),
}

_WIDTH, _MARGIN, _GAP, _SEAM = 1920, 48, 36, 6
_MAX_BYTES = 3_000_000
_PAGE, _FRAME, _RULE = "#FFFFFF", "#F0F2F4", "#D5DADF"
_INK, _QUIET = "#1B1F24", "#5C6670"
_LINE, _HALO = (0, 229, 255), (10, 25, 35)
# Dark enough for white words on them (contrast over 4.5), apart for colour-blind eyes.
_VERDICTS = {
    "caught": ("#00735A", "defect above the threshold"),
    "missed": ("#B8400A", "defect not above it"),
    "false alarm": ("#8A3A86", "normal, above it"),
    "passed": ("#56616C", "normal, not above it"),
}
_UNJUDGED = ("no threshold", "#7A8590")
# Tried in this order for names that DejaVu cannot write; none needs to be there.
_OTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
)


@dataclass(frozen=True)
class Panel:
    """One scored image: label 0 normal, 1 anomalous; `map` (h, w) float32 as the score's unit.

    An image is flagged when score > threshold; without threshold (None) it is not judged.
    """

    site: str
    path: Path
    defect: str
    label: int
    score: float
    threshold: float | None
    map: NDArray[np.floating[Any]]
    mask: Path | None

    @property
    def ratio(self) -> float | None:
        """Score over threshold; None without a positive threshold."""
        if self.threshold is None or not 0 < self.threshold < math.inf:
            return None
        return self.score / self.threshold

    @property
    def verdict(self) -> str | None:
        """ "caught", "missed", "false alarm" or "passed"; None without a threshold."""
        if self.threshold is None:
            return None
        if self.score > self.threshold:
            return "caught" if self.label else "false alarm"
        return "missed" if self.label else "passed"


def choose_panels(panels: Iterable[Panel], *, per_group: int = 4) -> dict[str, list[Panel]]:
    """Choose at most `per_group` telling images for each of `GROUPS`; no image appears twice.

    * clearest defects: anomalous images with the highest score / threshold, never a missed one;
    * missed or faintest defects: those with the lowest, missed ones first;
    * false alarms or highest-scoring normals: normal images with the highest, alarms first;
    * borderline: of the images left, of either class, those closest to their threshold and no
      further than 20 % from it.

    The first two take turns, so few defects are shared out between them. Within a group sites take
    turns; where only some sites have missed defects (or alarms) these come first, but no site
    takes more than half a group while another has an image to show. Images without threshold
    follow those with one, by bare score. The order of `panels` does not matter.
    Raises ConfigError for per_group < 1, DataError for a score that is not finite.
    """
    if per_group < 1:
        raise ConfigError(f"per_group is {per_group}; show at least 1 image per group")
    pool = sorted(panels, key=lambda panel: (panel.site, str(panel.path)))
    for panel in pool:
        if not math.isfinite(panel.score):
            raise DataError(f"the score of {panel.path} is {panel.score}; mend the detector")
    anomalous = [panel for panel in pool if panel.label]
    normal = [panel for panel in pool if not panel.label]
    clear, faint, alarms, near = (_Group(per_group) for _ in GROUPS)

    taking = True
    while taking:
        caught = [panel for panel in anomalous if panel.verdict != "missed"]
        taking = clear.take(caught, anomalous, _highest)
        taking = faint.take(anomalous, anomalous, _lowest) or taking
    while alarms.take(normal, normal, _highest):
        pass
    rest = [panel for panel in anomalous + normal if _distance(panel) <= _BORDER]
    while near.take(rest, rest, lambda panel: (0, False, _distance(panel))):
        pass
    return {
        _CLEAR: sorted(clear.chosen, key=_highest),
        _FAINT: sorted(faint.chosen, key=_lowest),
        _NEAR: sorted(near.chosen, key=_distance),
        _NORMAL: sorted(alarms.chosen, key=_highest),
    }


def contact_sheet(
    panels: Sequence[Panel], out: Path, *, title: str, image_size: int, per_group: int = 4
) -> Path:
    """Draw the telling images of all sites as one PNG file, 1920 pixels wide; returns `out`.

    Each chosen image (`choose_panels`) is shown as the photograph with the outline of its ground
    truth, where there is one, beside the photograph under its heat map. Photographs have the detail
    that the detector saw (`image_size` pixels square) in their own proportions. The colours of a
    site are ranged by the normal images among `panels` (`map_range`), so pass all test images, not
    a selection. A site without normal images takes the range of all normal ones; if there
    are none, of all its maps. Files that cannot be read become grey placeholders; a mask that
    cannot be read is left out. Sheets over 3 MB are reduced to 256 colours.
    Raises ConfigError for per_group < 1 or image_size < 1, DataError for a score or map that is
    not finite, StorageError when the disk refuses.
    """
    from PIL import Image

    if image_size < 1:
        raise ConfigError(f"image size must be at least 1, not {image_size}")
    groups = choose_panels(panels, per_group=per_group)
    ranges = _ranges(panels)
    columns = min(4, max(3, *(len(group) for group in groups.values())))
    panel_width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) // columns
    tile = (panel_width - _SEAM) // 2

    # The height is known only once every picture has its size: draw strips, then join them.
    fonts = _Fonts()
    strips = [_header(fonts, panels, title)]
    for name, group in groups.items():
        strips.append(_heading(fonts, name, _about(name, group, panels)))
        for start in range(0, len(group), columns):
            drawn = [
                _pair(panel, ranges[panel.site], tile, image_size, fonts)
                for panel in group[start : start + columns]
            ]
            strip = Image.new("RGB", (_WIDTH, max(part.height for part in drawn)), _PAGE)
            for column, part in enumerate(drawn):
                strip.paste(part, (_MARGIN + column * (panel_width + _GAP), 0))
            strips.append(strip)
    sheet = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + 24), _PAGE)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    out = Path(out)
    write_atomically(out, _encoded(sheet))
    return out


class _Group:
    """Fills one group of the sheet, fair to the sites."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.chosen: list[Panel] = []
        self._taken: Counter[str] = Counter()

    def take(
        self,
        candidates: list[Panel],
        pool: list[Panel],
        order: Callable[[Panel], tuple[Any, ...]],
    ) -> bool:
        """Move the best candidate from the pool into the group; False when full or none is left.

        `order` gives (tier, ...), smallest first. Sorting is stable, so ties keep the pool's order.
        """
        if len(self.chosen) >= self.size or not candidates:
            return False

        def rank(panel: Panel) -> tuple[Any, ...]:
            tier, *rest = order(panel)
            taken = self._taken[panel.site]
            return (2 * taken >= self.size, tier, taken, *rest)

        best = min(candidates, key=rank)
        # By identity: panels hold arrays, whose == is not a truth value.
        for items in (pool, candidates) if candidates is not pool else (pool,):
            del items[next(i for i, panel in enumerate(items) if panel is best)]
        self.chosen.append(best)
        self._taken[best.site] += 1
        return True


def _strength(panel: Panel) -> float:
    return panel.score if panel.ratio is None else panel.ratio


def _highest(panel: Panel) -> tuple[int, bool, float]:
    return (int(panel.verdict != "false alarm"), panel.ratio is None, -_strength(panel))


def _lowest(panel: Panel) -> tuple[int, bool, float]:
    return (int(panel.verdict != "missed"), panel.ratio is None, _strength(panel))


def _distance(panel: Panel) -> float:
    return math.inf if panel.ratio is None else abs(panel.ratio - 1)


def _ranges(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """The display range of each site's maps."""
    normal = [panel.map for panel in panels if not panel.label]
    ranges = {}
    for site in {panel.site for panel in panels}:
        own = [panel for panel in panels if panel.site == site]
        maps = [panel.map for panel in own if not panel.label] or normal
        ranges[site] = map_range(maps or [panel.map for panel in own])
    return ranges


class _Fonts:
    """DejaVu in the sizes of one sheet, another installed font where DejaVu lacks a character."""

    def __init__(self) -> None:
        import matplotlib

        self._folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self._fonts: dict[tuple[str, int], FreeTypeFont] = {}
        self._characters: dict[str, frozenset[int]] = {}
        self._others: list[str] | None = None

    def get(self, text: str, size: int, *, bold: bool = False) -> FreeTypeFont:
        """The font for a text, `size` pixels high."""
        from PIL import ImageFont

        path = str(self._folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))
        if not text.isascii() and not self._covers(path, text):
            path = next((font for font in self._more() if self._covers(font, text)), path)
        if (path, size) not in self._fonts:
            self._fonts[path, size] = ImageFont.truetype(path, size)
        return self._fonts[path, size]

    def _covers(self, path: str, text: str) -> bool:
        if path not in self._characters:
            from matplotlib.ft2font import FT2Font

            self._characters[path] = frozenset(FT2Font(path).get_charmap())
        return {ord(character) for character in text} <= self._characters[path]

    def _more(self) -> list[str]:
        if self._others is None:
            from matplotlib.font_manager import fontManager

            found = {entry.name: entry.fname for entry in reversed(fontManager.ttflist)}
            self._others = [found[name] for name in _OTHER_FONTS if name in found]
        return self._others


def _fit(text: str, width: float, fonts: _Fonts, size: int, *, bold: bool = False) -> str:
    """The text on one line, shortened in its middle to `width` pixels: its end often tells most."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    font = fonts.get(text, size, bold=bold)
    if font.getlength(text) <= width:
        return text
    # Bisection over how many characters stay; the text's length grows with them.
    low, high = 0, len(text)
    while low < high:
        kept = (low + high + 1) // 2
        if font.getlength(_shortened(text, kept)) <= width:
            low = kept
        else:
            high = kept - 1
    return _shortened(text, low)


def _shortened(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{text[:head].rstrip()}…{text[len(text) - (kept - head) :].lstrip()}"


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    fonts: _Fonts,
    size: int,
    *,
    bold: bool = False,
    colour: str = _INK,
) -> float:
    """Write one line, `at` its left end on the baseline; returns its width in pixels."""
    font = fonts.get(text, size, bold=bold)
    draw.text(at, text, font=font, fill=colour, anchor="ls")
    return float(font.getlength(text))


def _chip(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], word: str, colour: str, fonts: _Fonts
) -> float:
    """A word in white on a rounded patch, `at` its left end on the text's baseline; its width."""
    font = fonts.get(word, 15, bold=True)
    width = float(font.getlength(word)) + 16
    x, y = at
    draw.rounded_rectangle((x, y - 17, x + width, y + 6), radius=5, fill=colour)
    draw.text((x + 8, y), word, font=font, fill="#FFFFFF", anchor="ls")
    return width


def _header(fonts: _Fonts, panels: Sequence[Panel], title: str) -> Image.Image:
    """Title, what was chosen from, and the legend."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (_WIDTH, 176), _PAGE)
    draw = ImageDraw.Draw(strip)
    room = _WIDTH - 2 * _MARGIN
    _write(draw, (_MARGIN, 66), _fit(title, room, fonts, 34, bold=True), fonts, 34, bold=True)
    n_sites, n_bad = len({panel.site for panel in panels}), sum(bool(p.label) for p in panels)
    chosen_from = (
        f"Chosen from {_count(len(panels), 'image')} of {_count(n_sites, 'site')}, "
        f"{n_bad} with defects. An image is flagged when its score exceeds its site's threshold."
    )
    _write(draw, (_MARGIN, 102), chosen_from, fonts, 18, colour=_QUIET)

    x, y = float(_MARGIN), 146
    sample = Image.fromarray(_outlined(np.full((24, 34, 3), 150, np.uint8), _blob(24, 34)))
    strip.paste(sample, (round(x), y - 18))
    x += 34 + 8
    x += _write(draw, (x, y), "ground truth", fonts, 16) + 30
    # The ramp shows what the eye meets in the pictures: colours over a grey photograph.
    ramp = np.tile(np.linspace(0, 1, 130, dtype=np.float32), (18, 1))
    grey = np.full((18, 130, 3), 150, np.uint8)
    x += _write(draw, (x, y), "heat map: normal", fonts, 16) + 8
    strip.paste(Image.fromarray(heatmap_overlay(grey, ramp, low=0, high=1)), (round(x), y - 15))
    x += 130 + 8
    x += _write(draw, (x, y), "anomalous (by site)", fonts, 16) + 30
    for word, (colour, meaning) in _VERDICTS.items():
        x += _chip(draw, (x, y), word, colour, fonts) + 8
        x += _write(draw, (x, y), meaning, fonts, 16) + 24
    return strip


def _about(name: str, group: Sequence[Panel], panels: Sequence[Panel]) -> str:
    """What a group shows, or why it is empty."""
    if not group and name in (_CLEAR, _FAINT) and not any(panel.label for panel in panels):
        return "no image with a defect among those tested"
    return _ABOUT[name][not group]


def _heading(fonts: _Fonts, name: str, about: str) -> Image.Image:
    """A rule, the group's name and what it shows."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (_WIDTH, 70), _PAGE)
    draw = ImageDraw.Draw(strip)
    draw.line((_MARGIN, 10, _WIDTH - _MARGIN, 10), fill=_RULE, width=1)
    heading = name[:1].upper() + name[1:]
    x = _MARGIN + _write(draw, (_MARGIN, 48), heading, fonts, 22, bold=True) + 16
    _write(draw, (x, 48), about, fonts, 17, colour=_QUIET)
    return strip


def _pair(
    panel: Panel, limits: tuple[float, float], tile: int, image_size: int, fonts: _Fonts
) -> Image.Image:
    """Photograph, heat map beside it and three lines of caption."""
    from PIL import Image, ImageDraw

    try:
        whole = read_rgb(panel.path)
    except ImageError:
        height = tile
        pictures = None
    else:
        pictures = _pictures(panel, whole, limits, tile, image_size)
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
        draw.text((width / 2, height / 2), text, _INK, fonts.get(text, 18), anchor="mm")

    word, colour = _UNJUDGED
    if panel.verdict is not None:
        word, colour = panel.verdict, _VERDICTS[panel.verdict][0]
    chip = fonts.get(word, 15, bold=True).getlength(word) + 16
    y = height + 26
    _chip(draw, (width - chip, y), word, colour, fonts)
    _write(
        draw,
        (0, y),
        _fit(panel.site, width - chip - 12, fonts, 18, bold=True),
        fonts,
        18,
        bold=True,
    )
    score = _score(panel)
    room = width - fonts.get(score, 17).getlength(score)
    _write(draw, (room, y + 26), score, fonts, 17)
    _write(draw, (0, y + 26), _fit(panel.defect, room - 12, fonts, 17), fonts, 17)
    name = _fit(panel.path.name, width, fonts, 14)
    _write(draw, (0, y + 49), name, fonts, 14, colour=_QUIET)
    return part


def _pictures(
    panel: Panel,
    whole: NDArray[np.uint8],
    limits: tuple[float, float],
    tile: int,
    image_size: int,
) -> tuple[Image.Image, Image.Image]:
    """Photograph with outline, photograph with heat map, fitted into a tile."""
    from PIL import Image

    scale = tile / max(whole.shape[:2])
    height, width = (max(1, round(side * scale)) for side in whole.shape[:2])
    seen = Image.fromarray(resize_rgb(whole, image_size))
    photograph = np.asarray(seen.resize((width, height), Image.Resampling.BICUBIC))
    low, high = limits
    heated = heatmap_overlay(photograph, panel.map, low=low, high=high)
    mask = _mask(panel, width, height)
    outlined = photograph if mask is None else _outlined(photograph, mask)
    return Image.fromarray(outlined), Image.fromarray(heated)


def _mask(panel: Panel, width: int, height: int) -> NDArray[np.bool_] | None:
    from PIL import Image

    if panel.mask is None:
        return None
    try:
        mask = read_mask(panel.mask, None)
    except ImageError:
        return None
    # Averaged, and any trace counts: by nearest neighbour a thin crack would fall apart.
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX)) > 0


def _outlined(photograph: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The photograph with a line around the mask, clear of the defect, and a dark rim outside."""
    from scipy.ndimage import binary_dilation

    if not mask.any():
        return photograph
    near = np.asarray(binary_dilation(mask, iterations=2), dtype=np.bool_)
    far = np.asarray(binary_dilation(near), dtype=np.bool_)
    drawn = photograph.copy()
    drawn[far & ~near] = _HALO
    drawn[outline(near)] = _LINE
    return drawn


def _blob(height: int, width: int) -> NDArray[np.bool_]:
    """The legend's defect."""
    y, x = np.mgrid[:height, :width]
    inside: NDArray[np.bool_] = ((x - width / 2) / 8) ** 2 + ((y - height / 2) / 4) ** 2 < 1
    return inside


def _score(panel: Panel) -> str:
    if panel.ratio is None:
        return f"score {panel.score:.3g}"
    # Near 1, two decimals would round a missed 0.998 to the threshold itself.
    digits = 3 if abs(panel.ratio - 1) < 0.005 else 2 if abs(panel.ratio) < 10 else 0
    return f"{panel.ratio:.{digits}f} × threshold"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _encoded(sheet: Image.Image) -> bytes:
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    if buffer.tell() > _MAX_BYTES:
        buffer = BytesIO()
        sheet.quantize(256).save(buffer, "PNG")
    return buffer.getvalue()
