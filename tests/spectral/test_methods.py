"""Detectors of odd pixels: what the specification's table says, and what must hold of any scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.cubes.reading import read_scene
from fedvad.data.cubes.scene import Scene, normalised
from fedvad.errors import ConfigError, DataError
from fedvad.spectral.areas import areas
from fedvad.spectral.crd import crd
from fedvad.spectral.local_rx import local_rx
from fedvad.spectral.lrasr import dictionary, low_rank
from fedvad.spectral.methods import METHODS, score_cube
from fedvad.spectral.moments import Moments
from fedvad.spectral.rings import rings
from fedvad.spectral.rpca import robust_pca
from fedvad.spectral.rx import LineRx, line_rx, rx
from tests.spectral.drawn import ODD, drawn_scene

# AUC1, AUC2, AUC3 and average precision of plain RX; measured apart from this code, in float64
RX = {
    "HYDICE_urban": (0.9857, 0.0351, 0.2404, 0.2197),
    "sandiego_plane": (0.9403, 0.0589, 0.1778, 0.2015),
    "dataPavia": (0.9982, 0.0233, 0.1972, 0.6389),
    "abu-airport-1": (0.8221, 0.0424, 0.0987, 0.1012),
    "abu-airport-2": (0.8404, 0.0516, 0.1841, 0.2037),
    "abu-airport-4": (0.9526, 0.0248, 0.0736, 0.2102),
    "abu-beach-2": (0.9106, 0.0488, 0.1530, 0.1188),
    "abu-urban-3": (0.9513, 0.0351, 0.0963, 0.0641),
}

QUICK: dict[str, dict[str, Any]] = {
    "auto-ad": {"channels": 8, "steps": 101},
    "lrasr": {"clusters": 4},
    "dsformer": {"components": 10},
    "hypersigma": {"tile": 20, "overlap": 0, "components": 10},
}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return drawn_scene()


def _real(shared: Path, name: str) -> Scene:
    folder = shared / "data/hyperspectral"
    mask = folder / "maskPavia.mat" if name == "dataPavia" else None
    return read_scene(folder / f"{name}.mat", mask=mask)


@pytest.mark.real
@pytest.mark.parametrize("name", RX)
def test_rx_has_the_figures_of_the_literature(shared: Path, name: str) -> None:
    scene = _real(shared, name)
    assert scene.mask is not None
    found = areas(rx(scene.cube), scene.mask)
    assert found is not None
    measured = (found.auc1, found.auc2, found.auc3, found.ap)
    assert tuple(round(value, 4) for value in measured) == RX[name]


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("step", [1.0, 1e-160])
def test_local_rx_of_flat_ground_is_finite(components: int, step: float) -> None:
    cube = np.full((20, 20, 4), 3.0 if step == 1 else 0.0)
    cube[5, 5] += step
    found = local_rx(cube, windows=(9, 3), components=components)
    assert np.isfinite(found).all()
    assert np.unravel_index(found.argmax(), found.shape) == (5, 5)
    assert not local_rx(np.full((20, 20, 4), 3.0), windows=(9, 3), components=components).any()


@pytest.mark.real
@pytest.mark.slow
def test_local_rx_and_crd_have_the_figures_measured_apart(shared: Path) -> None:
    scene = _real(shared, "HYDICE_urban")
    assert scene.mask is not None
    for scores, expected in (
        (local_rx(scene.cube, windows=(13, 7)), 0.9974),
        (local_rx(scene.cube, windows=(17, 9)), 0.9937),
        (crd(scene.cube), 0.9940),
    ):
        found = areas(scores, scene.mask)
        assert found is not None
        assert found.auc1 == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_detector_finds_what_is_odd(method: str) -> None:
    scene = drawn_scene(height=40)
    scores = score_cube(scene.cube, method, **QUICK.get(method, {}))
    assert scene.mask is not None
    assert scores.shape == scene.mask.shape
    found = areas(scores, scene.mask)
    assert found is not None
    assert found.auc1 > 0.98


def test_lrasr_leaves_what_the_dictionary_says_too_dearly() -> None:
    # of one pixel (3, 4) and unit atoms: taking it all in costs 5 + 0.1 (3 + 4), leaving it 5 w
    pixel = np.array([[3.0, 4.0]])
    for weight, left in ((1.1, pixel), (1.2, 0 * pixel)):
        share, rest = low_rank(pixel, np.eye(2), beta=0.1, weight=weight, steps=500)
        np.testing.assert_allclose(rest, left, atol=1e-3)
        np.testing.assert_allclose(share + rest, pixel, atol=1e-3)


def test_the_dictionary_takes_the_most_usual_of_each_cluster() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(0, 1, (40, 3)), rng.normal(50, 1, (30, 3))
    rare = np.full((4, 3), 200.0)
    near[7] = (9, -9, 9)
    found = dictionary(np.concatenate([near, far, rare]), 3, 5, seed=0)
    assert found.shape == (10, 3)  # none of a cluster of four
    assert np.abs(found).max() < 60
    assert np.abs(found - near[7]).sum(1).min() > 9


def test_rx_of_summed_moments_is_that_of_all_pixels(scene: Scene, tmp_path: Path) -> None:
    parts = np.split(scene.cube, [5, 12])
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for part, file in zip(parts, files, strict=True):
        Moments.of(part).save(file)
    forth, back = (
        sum((Moments.load(file) for file in order), Moments.zero(scene.cube.shape[2]))
        for order in (files, files[::-1])
    )
    assert forth.count == 28 * 30
    pooled = rx(scene.cube)
    for merged in (forth, back):
        federated = np.concatenate([rx(part, moments=merged) for part in parts])
        assert np.allclose(federated, pooled, rtol=1e-9)
    alone = np.concatenate([rx(part) for part in parts])
    assert np.abs(alone / pooled - 1).max() > 0.1


def test_moments_of_other_bands_or_another_file_are_refused(scene: Scene, tmp_path: Path) -> None:
    few = Moments.of(scene.cube[:, :, :7])
    with pytest.raises(DataError, match="7 bands cannot be added"):
        Moments.of(scene.cube) + few
    with pytest.raises(DataError, match="has 40 bands, the moments 7"):
        rx(scene.cube, moments=few)
    Moments(3, few.mean, np.full((7, 7), np.nan)).save(tmp_path / "bad")
    with pytest.raises(DataError, match="no moments"):
        Moments.load(tmp_path / "bad")


def test_rx_needs_no_scaling_and_bears_constant_and_repeated_bands(scene: Scene) -> None:
    plain = rx(scene.cube)
    rng = np.random.default_rng(1)
    mixed = scene.cube.astype(np.float64) @ rng.normal(size=(40, 40)) + 5
    assert np.allclose(rx(mixed), plain, rtol=1e-5)
    padded = np.concatenate([scene.cube, scene.cube[:, :, :3], np.full((28, 30, 2), 7.0)], axis=2)
    assert np.allclose(rx(padded), plain, rtol=1e-3)


def test_a_line_scan_is_scored_by_what_came_before(scene: Scene) -> None:
    scores = line_rx(scene.cube)
    # row 14 is scored by rows 0 to 13: nothing that follows changes it
    until = line_rx(scene.cube[:15])
    assert np.array_equal(scores[:15], until)
    before = rx(scene.cube[14:15], moments=Moments.of(scene.cube[:14]), ridge=1e-6)
    assert np.allclose(scores[14], before[0])
    assert scores[14].argmax() == ODD[2][1]
    with pytest.raises(DataError, match="takes 160"):
        line_rx(scene.cube[:3])
    with pytest.raises(ConfigError, match="exceed the 40 bands"):
        LineRx(40, warm_up=40)


@pytest.mark.parametrize("border", ["wrap", "mirror", "shift"])
def test_a_ring_is_around_its_pixel_and_without_it(border: str) -> None:
    ((part, found),) = rings((9, 8), (5, 3), border, batch=99)  # type: ignore[arg-type]
    assert (part.start, part.stop, found.shape) == (0, 72, (72, 16))
    middle = 4 * 8 + 4
    rows, columns = np.divmod(found[middle], 8)
    assert set(np.maximum(abs(rows - 4), abs(columns - 4)).tolist()) == {2}
    assert len(set(found[middle].tolist())) == 16
    corner = set(found[0].tolist())
    assert 0 not in corner
    if border == "wrap":
        assert 7 * 8 + 6 in corner
    else:
        assert max(corner) <= 4 * 8 + 4
    assert (len(corner) == 16) == (border != "mirror")


def test_batches_of_pixels_make_no_difference(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = crd(scene.cube)
    monkeypatch.setattr("fedvad.spectral.crd._BATCH_VALUES", 64 * 64 * 7)
    assert np.allclose(crd(scene.cube), whole)


def test_robust_pca_takes_a_sparse_part_off_a_low_rank_one() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 60))
    sparse = np.where(rng.random((200, 60)) < 0.02, rng.normal(0, 9, (200, 60)), 0)
    background, rest = robust_pca(low + sparse)
    assert np.allclose(background, low, atol=1e-3)
    assert np.allclose(rest, sparse, atol=1e-3)


def test_figures_are_exact_or_by_trapezoids() -> None:
    scores, mask = np.array([[0.0, 2, 1, 4]]), np.array([[False, False, False, True]])
    exact = areas(scores, mask, integration="exact")
    assert exact is not None
    assert (exact.auc1, exact.auc2, exact.auc3, exact.ap) == (1, 0.25, 1, 1)
    assert (exact.auc4, exact.auc5) == (1.75, 4)
    usual = areas(scores, mask)
    assert usual is not None
    assert (usual.auc2, usual.auc3) == pytest.approx((5 / 12, 1))
    assert areas(scores, np.zeros((1, 4), np.bool_)) is None


def test_a_network_learns_the_background_before_it_weighs_pixels() -> None:
    # an untrained network draws 0.5 everywhere: by its errors the dark ground would be given up
    cube = np.full((20, 20, 8), 0.02)
    cube[4:6, 7] = cube[15, 3] = (*[0.5] * 7, 1)
    scores = score_cube(cube, "auto-ad", channels=4, steps=101)
    odd = cube[:, :, 0] > 0.1
    assert scores[odd].min() > scores[~odd].max()


def test_a_short_auto_ad_scores_by_what_it_learned() -> None:
    """Not by the network before its first step, as when the pixels are never weighed."""
    cube = np.repeat(np.linspace(0, 1, 16)[:, None, None], 16, axis=1).repeat(5, axis=2)
    untrained, trained = (score_cube(cube, "auto-ad", channels=4, steps=n) for n in (1, 40))
    assert trained.mean() < 0.9 * untrained.mean()


def test_a_network_s_map_depends_on_its_seed_alone(scene: Scene) -> None:
    cube = scene.cube[:16, :16]
    state = torch.random.get_rng_state()
    first, again, other = (
        score_cube(cube, "auto-ad", channels=2, steps=3, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_wrong_options_say_what_is_right(scene: Scene) -> None:
    for method, options, words in (
        ("rxx", {}, "choose from rx, line-rx"),
        ("rx", {"windows": (5, 3)}, "windows is no option of rx: it goes with lrx, crd"),
        ("crd", {"windows": (4, 3)}, "two odd numbers"),
        ("crd", {"border": "zero"}, "wrap, mirror, shift"),
        ("crd", {"norm": "unit"}, "global_minmax"),
        ("lrx", {"ridge": 0.0}, "above 0"),
        ("auto-ad", {"norm": "band_std"}, "takes global_minmax"),
        ("rx", {"ridge": -1.0}, "at least 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            score_cube(scene.cube, method, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not fit into a scene of 28 x 30"):
        score_cube(scene.cube, "lrx", windows=(29, 3))


def test_norms_have_the_ranges_they_name(scene: Scene) -> None:
    unit = normalised(scene.cube, "band_minmax")
    assert np.ptp(unit, axis=(0, 1)).tolist() == [1.0] * 40
    standard = normalised(scene.cube, "band_std")
    assert np.allclose(standard.std(axis=(0, 1)), 1)
    assert np.ptp(normalised(scene.cube)) == 1
    assert not normalised(np.ones((2, 2, 3)), "band_std").any()
