"""The picture of one scored image: photograph and heat map side by side, decision above them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedvad.report.lettering import Fonts, chip, write
from fedvad.report.overlay import (
    FOUND,
    Pixels,
    draw_outline,
    enlarged,
    fitted,
    heatmap_overlay,
    middle,
    own_range,
)

_SMALLEST, _LARGEST = 320, 1600  # pixels of a photograph's longer side in the picture
_FRAME, _SEAM, _MARGIN = 6, 8, 10
_HEAD, _FOOT = 66, 28
_PAGE, _QUIET = "#FFFFFF", "#5C6670"
_DECISIONS = {
    True: ("anomalous", "#C62828"),
    False: ("normal", "#56616C"),
    None: ("no decision", "#7A8590"),
}
_LEGEND = "right: heat map, brightest where least like good parts"
# the score of an image is a mean of its highest cells, so that one below may have some above
_LINE = {
    True: "; white line: pixels above the threshold",
    False: "; white line: too few pixels above it",
}


def result_picture(
    photograph: Pixels,
    map_: NDArray[np.floating[Any]],
    *,
    score: float,
    limit: float | None,
    name: str,
    fonts: Fonts,
) -> Pixels:
    """Photograph uint8 (H, W, 3) and its heat map (h, w), side by side, as uint8 (h', w', 3).

    Framed in red when `score` exceeds the threshold `limit` (None: not decided), with a white
    line around the pixels whose value does. name: of site and file, written above. Photographs are
    shown at their own size, but with 320 to 1600 pixels along the longer side.
    """
    from PIL import Image, ImageDraw

    longer = max(photograph.shape[:2])
    shown = fitted(photograph, min(max(longer, _SMALLEST), _LARGEST))
    height, width = shown.shape[:2]
    # a cell as bad as a whole image at the threshold is shown in full colour, up to `own_range`
    low = middle(map_)
    high = max(float(map_.max()) if limit is None else limit, low * 1.01 + 1e-6)
    low, high = own_range(map_, low, high)
    heated = heatmap_overlay(shown, map_, low=low, high=high)
    flagged: Literal[True, False] | None = None if limit is None else score > limit
    legend = _LEGEND
    if limit is not None and flagged is not None:
        above = enlarged(map_, height, width) > limit
        heated = draw_outline(heated, above, FOUND)
        legend += _LINE[flagged] * bool(above.any())
    word, colour = _DECISIONS[flagged]
    inner = max(2 * width + _SEAM, _SMALLEST + _SEAM)
    size = (inner + 2 * (_FRAME + _MARGIN), height + 2 * _FRAME + _HEAD + _FOOT)
    page = Image.new("RGB", size, _PAGE)
    draw = ImageDraw.Draw(page)
    left, top = _MARGIN + _FRAME, _HEAD + _FRAME
    box = (_MARGIN, _HEAD, size[0] - _MARGIN - 1, top + height + _FRAME - 1)
    draw.rectangle(box, outline=colour, width=_FRAME)
    page.paste(Image.fromarray(shown), (left, top))
    page.paste(Image.fromarray(heated), (size[0] - _MARGIN - _FRAME - width, top))
    room = size[0] - 2 * _MARGIN
    x = _MARGIN + chip(draw, (_MARGIN, 26), word, colour, fonts) + 12
    text = _comparison(score, limit)
    write(draw, (x, 26), text, fonts, 18, bold=True, room=size[0] - _MARGIN - x)
    write(draw, (_MARGIN, 54), name, fonts, 15, colour=_QUIET, room=room)
    write(draw, (_MARGIN, size[1] - 9), legend, fonts, 12, colour=_QUIET, room=room)
    return np.asarray(page)


def _comparison(score: float, limit: float | None) -> str:
    if limit is None:
        return f"score {score:.4g}"
    return f"score {score:.4g} {'>' if score > limit else '<='} threshold {limit:.4g}"
