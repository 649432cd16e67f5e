from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedvad.detectors.scoring import (
    MemoryScorer,
    ScoringConfig,
    distance_scale,
    image_score,
    mean_of_highest,
    smooth,
    upsample,
)
from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.bank import MemoryBank


def line(*values: float, weights=None, spread=None) -> MemoryBank:
    """A memory of vectors on a line: distances are differences."""
    rows = np.array(values, np.float32)[:, None]
    return MemoryBank(
        rows,
        np.ones(len(rows)) if weights is None else np.array(weights, float),
        np.zeros(len(rows)) if spread is None else np.array(spread, np.float32),
    )


def score(bank: MemoryBank, *patches: float, **options) -> tuple[float, np.ndarray]:
    config = ScoringConfig(**{"smooth": 1, "top": 0.0, "density": 0.0, **options})
    return MemoryScorer(bank, config).score(np.array(patches, np.float32).reshape(1, -1, 1))


def test_nn1_is_the_distance_to_the_nearest_vector():
    image, map_ = score(line(0, 10), 1, 4, 7, 16)
    assert map_.tolist() == [[1, 4, 3, 6]]
    assert image == 6


def test_cfa_is_the_distance_times_the_softmin_share_among_three():
    _, map_ = score(line(0, 10, 13, 99), 4, map="cfa")
    assert map_[0, 0] == pytest.approx(4 / (1 + np.exp(4 - 6) + np.exp(4 - 9)), rel=1e-5)
    # three equally near vectors share alike
    assert score(line(0, 4, 4), 2, map="cfa")[1][0, 0] == pytest.approx(2 / 3)
    # of fewer vectors all there are
    assert score(line(0), 2, map="cfa")[1][0, 0] == 2


def test_patchcore_weighs_the_image_by_the_isolation_of_the_nearest_vector():
    image, map_ = score(line(0, 1, 2), 5, 1, map="patchcore")
    assert map_.tolist() == [[3, 0]]
    # nearest vector 2; all three vectors are its neighbours, at 5, 4 and 3 from the patch
    assert image == pytest.approx(3 * (1 - np.exp(3) / np.exp([5, 4, 3]).sum()), rel=1e-5)


def test_patchcore_looks_at_nine_neighbours_only():
    # the tenth, 500 from the nearest vector, would take all the softmax weight
    image, _ = score(line(*range(9), -500), 10, map="patchcore")
    expected = 2 * (1 - np.exp(2) / np.exp(10.0 - np.arange(9)).sum())
    assert image == pytest.approx(expected, rel=1e-5)


def test_patchcore_with_a_single_vector_is_nn1():
    assert score(line(0), 3, map="patchcore")[0] == 3


def test_spread_is_in_units_of_the_nearest_vectors_own_dispersion():
    bank = line(0, 100, weights=[30, 30], spread=[1, 3])
    _, map_ = score(bank, 2, 102, map="spread")
    variance = np.array([1.0, 9.0])
    shrunk = (variance * 30 + 10 * 5) / 40 / 5
    np.testing.assert_allclose(map_[0], 2 / shrunk**0.25, rtol=1e-5)
    assert map_[0, 0] > 2 > map_[0, 1]


def test_spread_of_a_single_patch_is_mostly_the_banks():
    bank = line(0, 100, weights=[1, 1000], spread=[0, 2])
    _, map_ = score(bank, 2, 102, map="spread")
    assert map_[0, 0] == pytest.approx(2 * 1.1**0.25, rel=1e-2)
    assert map_[0, 1] == pytest.approx(2, rel=1e-3)


def test_spread_falls_back_to_nn1_in_a_bank_without_spread():
    bank = line(0, 10, 20)
    assert score(bank, 3, 18, map="spread")[1].tolist() == score(bank, 3, 18)[1].tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("map_mode", ["nn1", "cfa", "patchcore", "spread"])
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_far_patches_do_not_overflow(map_mode, far):
    image, map_ = score(line(0, 1, 2, 5), far, 0.5, map=map_mode)
    assert np.isfinite(map_).all()
    assert 0.3 * far < image <= far
    spaced = score(line(0, -far, -2 * far), far, map=map_mode)[0]
    assert 0.3 * far < spaced <= far


@pytest.mark.parametrize("map_mode", ["nn1", "cfa", "patchcore", "spread"])
def test_left_out_rows_count_as_if_they_were_not_there(map_mode):
    rng = np.random.default_rng(0)
    bank = MemoryBank(rng.normal(size=(40, 5)), np.ones(40), np.zeros(40))
    patches = rng.normal(size=(4, 3, 5)).astype(np.float32)
    out = np.arange(25)
    config = ScoringConfig(map=map_mode, density=0, smooth=1, top=0.1)
    image, map_ = MemoryScorer(bank, config).score(patches, exclude=out)
    expected, other = MemoryScorer(bank.take(np.arange(25, 40)), config).score(patches)
    np.testing.assert_allclose(map_, other, rtol=1e-5)
    assert image == pytest.approx(expected, rel=1e-5)
    few = MemoryScorer(bank, config).score(patches, exclude=np.arange(4, 40))
    expected, _ = MemoryScorer(bank.take(np.arange(4)), config).score(patches)
    assert few[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cells", [1, 3, 5])
@pytest.mark.parametrize("shape", [(7, 9), (2, 2), (1, 6)])
def test_smoothing_keeps_constants_to_the_border(cells, shape):
    np.testing.assert_allclose(smooth(np.full(shape, 3.5, np.float32), cells), 3.5, rtol=1e-6)


def test_smoothing_is_the_mean_of_the_cells_that_exist():
    map_ = np.random.default_rng(0).uniform(size=(6, 7)).astype(np.float32)
    smoothed = smooth(map_, 3)
    assert smoothed[2, 3] == pytest.approx(map_[1:4, 2:5].mean(), rel=1e-5)
    assert smoothed[0, 0] == pytest.approx(map_[:2, :2].mean(), rel=1e-5)
    assert smoothed[5, 3] == pytest.approx(map_[4:, 2:5].mean(), rel=1e-5)
    assert smooth(map_, 1) is map_


def test_image_score_from_maximum_to_mean():
    map_ = np.random.default_rng(0).permutation(100).astype(np.float32).reshape(10, 10)
    assert image_score(map_, 0) == 99
    assert image_score(map_, 0.02) == 98.5
    assert image_score(map_, 0.1) == np.mean(range(90, 100))
    assert image_score(map_, 1) == 49.5
    assert image_score(map_[:1, :3], 0.01) == map_[:1, :3].max()


def test_scores_use_the_smoothed_map():
    bank = line(0)
    patches = np.zeros((3, 3, 1), np.float32)
    patches[1, 1] = 9
    image, map_ = MemoryScorer(bank, ScoringConfig(density=0, smooth=3, top=0)).score(patches)
    assert map_[1, 1] == pytest.approx(1)
    assert map_[0, 0] == image == pytest.approx(9 / 4)


def test_upsampling_keeps_constants_and_ranges():
    maps = np.random.default_rng(0).uniform(size=(2, 4, 5)).astype(np.float32)
    large = upsample(maps, (16, 20))
    assert large.shape == (2, 16, 20)
    assert maps.min() <= large.min() <= large.max() <= maps.max()
    # at the middle of the borders between cells bilinear weights are even
    assert large[0, 3:5, 3:5].mean() == pytest.approx(maps[0, :2, :2].mean(), rel=1e-5)
    even = upsample(np.full((1, 3, 3), 2.5, np.float32), (7, 5))
    np.testing.assert_allclose(even, 2.5, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"map": "nn2"}, {"smooth": 2}, {"smooth": 0}, {"top": -0.1}, {"top": 1.5}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        ScoringConfig(**options)


def test_an_empty_memory_is_refused():
    with pytest.raises(MemoryBankError, match="empty memory"):
        MemoryScorer(MemoryBank.empty(3), ScoringConfig())


def test_density_divides_by_the_gap_of_the_nearest_vector():
    # gaps 1, 1 and 8: the median is 1, so the lonely vector alone is scaled, by 8 ** 0.5
    bank = line(0, 1, 9)
    _, map_ = score(bank, -2, 9 + 4, density=0.5, density_neighbours=1)
    np.testing.assert_allclose(map_[0], [2, 4 / 8**0.5], rtol=1e-6)
    _, map_ = score(bank, -2, 9 + 4, density=1, map_density=1, density_neighbours=1)
    np.testing.assert_allclose(map_[0], [2, 4 / 8], rtol=1e-6)


def test_the_map_takes_a_smaller_exponent_and_the_scale_of_the_score():
    options = {"density": 1, "density_neighbours": 1, "top": 1}
    image, map_ = score(line(0, 1, 9), -2, 9 + 4, map_density=0.5, **options)
    assert image == (2 + 4 / 8) / 2 == pytest.approx(map_.mean(), rel=1e-6)
    assert map_[0, 1] / map_[0, 0] == pytest.approx(2 / 8**0.5, rel=1e-6)
    # no larger exponent than that of the score, and nothing to divide by where it is 0
    assert score(line(0, 1, 9), -2, 13, map_density=1, **options)[1].tolist() == [[2, 0.5]]
    assert score(line(0, 1, 9), -2, 13, top=1)[1].tolist() == [[2, 4]]
    assert score(line(0, 1, 9), 0, 9, map_density=0.5, **options)[1].tolist() == [[0, 0]]


@pytest.mark.parametrize("options", [{}, {"map": "cfa"}, {"density": 1, "density_neighbours": 1}])
def test_the_map_weighs_the_columns_and_takes_the_scale_of_the_score(options):
    bank = MemoryBank.of_patches(np.array([[0, 0], [4, 4]], np.float32))
    patches = np.array([[[3, 0], [0, 3]]], np.float32)  # both nearest to the first row
    config = ScoringConfig(**{"smooth": 1, "top": 0, "density": 0, **options})
    wanted, plain = MemoryScorer(bank, config).score(patches)
    image, map_ = MemoryScorer(bank, config, columns=np.float32([1, 0.25])).score(patches)
    assert plain[0, 0] == plain[0, 1] == wanted == image
    # the lower one is the median and stays as its weight makes it
    assert map_[0].tolist() == pytest.approx([image, image / 2], rel=1e-6)


@pytest.mark.parametrize("top", [0, 0.4, 0.8, 1])
def test_the_highest_cells_of_the_map_make_the_score_whatever_their_weights(top):
    rng = np.random.default_rng(0)
    bank = MemoryBank.of_patches(rng.normal(size=(40, 6)).astype(np.float32))
    patches = rng.normal(size=(5, 4, 6)).astype(np.float32)
    patches[0] = np.nan  # outside the region of interest
    config = ScoringConfig(top=top)
    image, map_ = MemoryScorer(bank, config, columns=np.linspace(0, 1, 6, dtype="f4")).score(
        patches
    )
    assert mean_of_highest(map_, config.count(16)) == pytest.approx(image, rel=1e-6)
    assert (map_[0] == 0).all()
    assert (map_[1:] > 0).all()
    same, flat = MemoryScorer(bank, config, columns=np.ones(6, "f4")).score(bank.vectors[None, :1])
    assert (same, flat.tolist()) == (0, [[0]])


def test_columns_weigh_only_where_layers_differ_and_the_run_knows_of_it():
    shares = np.float32([1, 1, 0.25])
    weights = [ScoringConfig().column_weights(shares, cells) for cells in (64, 4096, 8192, 16384)]
    assert [w if w is None else w.tolist() for w in weights] == [
        [1, 1, 0.25], [1, 1, 0.25], [1, 1, 0.5], None,
    ]  # fmt: skip
    assert ScoringConfig().column_weights(np.ones(3, np.float32), 64) is None
    assert ScoringConfig.from_values({"density": 0.5}).column_weights(shares, 64) is None


def test_density_joins_the_other_maps():
    bank = line(0, 1, 9)
    plain = score(bank, 9 + 4, map="cfa")[1]
    dense = score(bank, 9 + 4, map="cfa", density=0.5, density_neighbours=1)[1]
    np.testing.assert_allclose(dense, plain / 8**0.5, rtol=1e-6)


def test_density_of_a_single_vector_is_nn1():
    assert score(line(3), 1, 7, density=0.5)[1].tolist() == [[2, 4]]


def test_files_from_before_density_score_without_it():
    old = {"map": "nn1", "smooth": 3, "top": 0.03, "search": "fast"}
    assert ScoringConfig.from_values(old).density == 0
    assert ScoringConfig.from_values(old).count(10_000) == 300
    before = ScoringConfig.from_values(old | {"density": 0.75})
    assert (before.density, before.map_density) == (0.75, 1)
    assert distance_scale(line(0, 1, 9), before).shape == (3, 1)


@pytest.mark.parametrize(
    "options",
    [{"density": -0.1}, {"density": 1.1}, {"map_density": 2}, {"density_neighbours": 0}],
)
def test_density_out_of_range(options):
    with pytest.raises(ConfigError, match="density"):
        ScoringConfig(**options)


@pytest.mark.parametrize(
    ("cells", "count"), [(1, 1), (64, 2), (256, 8), (1024, 31), (4096, 32), (16384, 32)]
)
def test_larger_maps_do_not_dilute_a_defect(cells, count):
    assert ScoringConfig().count(cells) == count
    assert ScoringConfig(top=0).count(cells) == 1
    patches = np.zeros((1, cells, 1), np.float32)
    patches[0, :32] = 5
    config = ScoringConfig(smooth=1, density=0)
    assert MemoryScorer(line(0), config).score(patches)[0] == 5


def test_the_fast_search_looks_again_at_the_cells_that_make_the_score():
    rng = np.random.default_rng(0)
    # clusters in a space of decaying variances, as a backbone's
    axes = np.linalg.qr(rng.normal(size=(128, 128)))[0] / np.arange(1, 129)[:, None]
    centres = 3 * rng.normal(size=(300, 128))

    def drawn(count: int) -> np.ndarray:
        rows = centres[rng.integers(300, size=count)] + rng.normal(size=(count, 128))
        return (rows @ axes).astype(np.float32)

    bank, patches = MemoryBank.of_patches(drawn(4000)), drawn(1024).reshape(32, 32, 128)
    config = ScoringConfig(density=0, search="fast")
    fast, exact = MemoryScorer(bank, config), MemoryScorer(bank, replace(config, search="exact"))
    wanted, wanted_map = exact.score(patches)
    score, map_ = fast.score(patches)
    assert (map_ >= wanted_map * (1 - 1e-5)).all()
    quick, _ = fast._index.query(patches.reshape(-1, 128))
    once = mean_of_highest(smooth(quick.reshape(32, 32), 3), 31)
    assert wanted * (1 - 1e-5) <= score < wanted + 0.4 * (once - wanted)


def test_how_many_cells_are_looked_at_again():
    config = ScoringConfig()
    assert [config.searched_again(n) for n in (1, 64, 1024, 4096)] == [1, 8, 128, 512]
    assert ScoringConfig(top=0.9, top_cells=4096).searched_again(100) == 100
