"""audit: the pixels that a decoder is judged by lie behind the patches that it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from fedvad.verbs.audit import _windows


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 8)])
def test_windows_lie_around_their_cells(height: int, width: int, tmp_path: Path) -> None:
    rows, columns = np.indices((64, 64), dtype=np.uint8)
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    Image.fromarray(picture).save(tmp_path / "x.png")
    config = SimpleNamespace(side=64)
    extractor = cast(Any, SimpleNamespace(grid=(height, width, 8), config=config))
    cells = np.arange(height * width)
    found = _windows(tmp_path / "x.png", cells, extractor)
    side = 2 * 64 // min(height, width)
    assert found.shape == (len(cells), side, side, 3)
    # at the edge a window holds mirrored pixels
    means = found.mean((1, 2)).reshape(height, width, 3)[1:-1, 2:-2]
    centres = np.stack(np.indices((height, width)), axis=2)[1:-1, 2:-2] + 0.5
    np.testing.assert_allclose(means[..., :2], centres * [64 / height, 64 / width] - 0.5)
