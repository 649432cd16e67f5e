"""Words on a picture: fonts for any script, text shortened to its room, lines and chips."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont

# The colour of text.
INK = "#1B1F24"
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


class Fonts:
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


def fit(text: str, width: float, fonts: Fonts, size: int, *, bold: bool = False) -> str:
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


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    fonts: Fonts,
    size: int,
    *,
    bold: bool = False,
    colour: str = INK,
    room: float | None = None,
) -> float:
    """Write one line, `at` its left end on the baseline; returns its width in pixels.

    room: greatest width, to which the text is shortened.
    """
    text = text if room is None else fit(text, room, fonts, size, bold=bold)
    font = fonts.get(text, size, bold=bold)
    draw.text(at, text, font=font, fill=colour, anchor="ls")
    return float(font.getlength(text))


def chip(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], word: str, colour: str, fonts: Fonts
) -> float:
    """A word in white on a rounded patch, `at` its left end on the text's baseline; its width."""
    font = fonts.get(word, 15, bold=True)
    width = float(font.getlength(word)) + 16
    x, y = at
    draw.rounded_rectangle((x, y - 17, x + width, y + 6), radius=5, fill=colour)
    draw.text((x + 8, y), word, font=font, fill="#FFFFFF", anchor="ls")
    return width
