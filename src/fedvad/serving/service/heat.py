"""A prediction's map as a small transparent PNG, to be laid over the photograph."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from fedvad.memory.bank import FloatArray
from fedvad.report.overlay import middle, own_range

_SIDE = 256  # pixels of the longer side: maps have 16 to 64 cells
_COLOURS = "plasma"  # as report.overlay


def heat_png(map_: FloatArray, size: tuple[int, int], threshold: float | None) -> bytes:
    """PNG bytes of an (h, w) map in the aspect ratio of `size`, the image's (height, width).

    Colour and opacity rise from the map's median to the threshold, and in an image far above it
    over its `own_range`, as in the overlays of `fedvad predict`; without a threshold to the map's
    largest value.
    """
    import matplotlib
    from PIL import Image

    low = middle(map_)
    high = max(threshold if threshold is not None else float(map_.max()), low * 1.01 + 1e-6)
    low, high = own_range(map_, low, high)
    height, width = (max(1, round(side * _SIDE / max(size))) for side in size)
    cells = Image.fromarray(np.asarray(map_, np.float32))
    wide = np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR))
    level = np.rint(np.clip((wide - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(level).convert("P")
    colours = np.rint(matplotlib.colormaps[_COLOURS](np.arange(256))[:, :3] * 255)
    picture.putpalette(colours.astype(np.uint8).tobytes())
    buffer = BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(range(256)))
    return buffer.getvalue()
