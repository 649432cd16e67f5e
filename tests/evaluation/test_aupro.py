from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.aupro import aupro


def brute_aupro(maps, masks, max_fpr):
    """The definition, word for word: every distinct threshold, every region, every time."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, n = ndimage.label(mask, np.ones((3, 3)))
        regions += [maps[index][labelled == k + 1] for k in range(n)]
    normal = maps[~masks]
    fpr, pro = [0.0], [0.0]
    for t in np.unique(maps)[::-1]:
        fpr.append(np.mean(normal >= t))
        pro.append(np.mean([np.mean(region >= t) for region in regions]))
    area = 0.0
    for x0, x1, y0, y1 in zip(fpr, fpr[1:], pro, pro[1:], strict=False):
        if x0 >= max_fpr or x1 == x0:
            continue
        end = min(x1, max_fpr)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / max_fpr


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 12, 10_000]),
    st.sampled_from([0.03, 0.2, 0.6]),
    st.sampled_from([0.01, 0.05, 0.3, 0.7, 1.0]),
)
def test_equals_brute_force_with_ties(seed, levels, share, max_fpr):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 7, 6)) < share
    masks[2] = False  # a normal image counts in the FPR
    masks[0, 0, 0] = True
    maps = ((rng.integers(0, levels, masks.shape) + masks * levels // 3) / 64).astype(np.float32)
    before = maps.copy()
    expected = brute_aupro(maps, masks, max_fpr)
    assert aupro(maps, masks, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-9)
    assert aupro(zip(maps, masks, strict=True), max_fpr=max_fpr) == pytest.approx(
        expected, abs=1e-9
    )
    np.testing.assert_array_equal(maps, before)


def single_pixel():
    """10 normal pixels of scores 0 ... 9, and one anomalous pixel."""
    maps = np.append(np.arange(10.0), np.nan).reshape(1, 1, 11)
    masks = np.zeros(maps.shape, bool)
    masks[0, 0, 10] = True
    return maps, masks


@pytest.mark.parametrize(
    ("score", "max_fpr", "expected"),
    [
        (9.5, 0.3, 1.0),  # above all normals
        (8.5, 0.3, 2 / 3),  # found after FPR 0.1: area 0.2 of 0.3
        (6.5, 0.3, 0.0),  # found only at FPR 0.3
        (6.5, 0.4, 1 / 4),
        (9.0, 0.3, 0.25 / 0.3),  # tied with the first normal: a ramp from (0, 0) to (0.1, 1)
        (7.0, 0.25, 0.05 * 0.25 / 0.25),  # on the ramp from 0.2 to 0.3, cut at 0.25
    ],
)
def test_single_pixel_region_by_hand(score, max_fpr, expected):
    maps, masks = single_pixel()
    maps[0, 0, 10] = score
    assert aupro(maps, masks, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-12)


def test_regions_of_unequal_size_weigh_the_same():
    maps = np.zeros((1, 6, 6))
    masks = np.zeros((1, 6, 6), bool)
    masks[0, :4, :4] = masks[0, 5, 5] = True  # regions of 16 pixels and of 1
    maps[0, :4, :4] = -1.0  # the large one lies below all 19 normals, which tie at 0 ...
    maps[0, 5, 5] = 2.0  # ... and the small one above: flat from (0, 1/2) to (1, 1/2)
    assert aupro(maps, masks) == pytest.approx(0.5, abs=1e-12)


def test_diagonal_neighbours_are_one_region():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one region by its corner
    masks[0, 3, 3] = True
    maps = np.zeros((1, 4, 4))
    maps[0, 0, 0] = 1.0  # half of the first region: PRO 1/4 before the first normal
    maps[0, 3, 3] = maps[0, 1, 1] = -1.0
    assert aupro(maps, masks) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_perfect_inverted_and_constant_maps(max_fpr):
    rng = np.random.default_rng(1)
    masks = rng.random((4, 16, 16)) < 0.1
    assert aupro(masks.astype(np.float32), masks, max_fpr=max_fpr) == pytest.approx(1.0, abs=1e-12)
    assert aupro(masks + rng.random(masks.shape) / 2, masks, max_fpr=max_fpr) == pytest.approx(1.0)
    assert aupro(-masks.astype(np.float32) - rng.random(masks.shape) / 2, masks) == 0.0
    # a constant map goes straight from (0, 0) to (1, 1)
    assert aupro(np.ones(masks.shape), masks, max_fpr=max_fpr) == pytest.approx(max_fpr / 2)


def test_binary_inverted_map_is_zero():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    assert aupro(1.0 - masks, masks) == 0.0


def test_no_region_or_no_normal_pixel_has_no_answer():
    maps = np.random.default_rng(0).random((2, 4, 4))
    assert aupro(maps, np.zeros(maps.shape, bool)) is None
    assert aupro(maps, np.ones(maps.shape, bool)) is None
    assert aupro([]) is None


@pytest.mark.parametrize("max_fpr", [0.0, -1.0, 1.1, float("nan")])
def test_bad_limit_is_refused(max_fpr):
    with pytest.raises(ConfigError, match="max_fpr"):
        aupro(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool), max_fpr=max_fpr)


def test_bad_maps_are_refused():
    with pytest.raises(DataError, match="NaN"):
        aupro(np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2), bool))


def test_close_to_anomalib():
    """Optional: anomalib resamples each region's curve before averaging, hence the tolerance."""
    pytest.importorskip("anomalib")
    torch = pytest.importorskip("torch")
    from anomalib.metrics.aupro import _AUPRO

    rng = np.random.default_rng(0)
    masks = np.zeros((6, 64, 64), bool)
    for index in range(5):
        row, column = rng.integers(5, 40, 2)
        masks[index, row : row + 5 + index, column : column + 12] = True
    maps = ndimage.gaussian_filter(masks * 1.0 + rng.normal(0, 1, masks.shape), (0, 2, 2))
    maps = ((maps - maps.min()) / np.ptp(maps)).astype(np.float32)
    theirs = _AUPRO(fpr_limit=0.3)
    theirs.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
    assert aupro(maps, masks) == pytest.approx(float(theirs.compute()), abs=2e-2)
