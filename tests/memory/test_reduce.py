from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.coreset import k_center
from fedvad.memory.reduce import PositionMeans, cells, reduce_patches, renew


def patches_of(n: int = 400, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32) + 2


def rms_per_cell(patches, centres, vectors):
    label = np.linalg.norm(patches[:, None] - centres[None], axis=2).argmin(1)
    return np.array(
        [
            np.sqrt(((patches[label == i] - vector) ** 2).sum(1).mean())
            for i, vector in enumerate(vectors)
        ]
    )


@given(cuts=st.lists(st.integers(0, 13), max_size=6), seed=st.integers(0, 50))
def test_streamed_position_means_equal_pooled_means_for_any_split(cuts, seed):
    images = np.random.default_rng(seed).normal(size=(13, 3, 2, 5)).astype(np.float16)
    means = PositionMeans()
    for batch in np.split(images, sorted(cuts)):  # ragged, and empty ones too
        means.add(batch)
    bank = means.result()
    pooled = images.astype(np.float64).reshape(13, 6, 5)
    np.testing.assert_allclose(bank.vectors, pooled.mean(0), atol=1e-6)
    rms = np.sqrt(((pooled - pooled.mean(0)) ** 2).sum(2).mean(0))
    np.testing.assert_allclose(bank.spread, rms, rtol=1e-5)
    assert bank.weights.tolist() == [13.0] * 6


def test_position_means_refuse_another_grid_and_no_image():
    means = PositionMeans()
    with pytest.raises(ConfigError, match="at least one image"):
        means.result()
    means.add(np.zeros((1, 2, 2, 3), np.float16))
    with pytest.raises(ConfigError, match="grid changed"):
        means.add(np.zeros((1, 2, 3, 3), np.float16))


@pytest.mark.parametrize("pull", [0.0, 0.3, 1.0])
def test_spread_is_the_root_mean_square_distance_to_the_vector(pull):
    patches = patches_of()
    bank = reduce_patches(patches, 25, mode="coreset", seed=1, pull=pull)
    centres = patches[k_center(patches, 25, seed=1).indices]
    np.testing.assert_allclose(bank.spread, rms_per_cell(patches, centres, bank.vectors), atol=3e-3)
    assert bank.spread.max() > 0.5
    assert bank.total_weight == 400


def test_clusters_are_cell_means_with_cell_sizes():
    patches = patches_of()
    bank = reduce_patches(patches, 25, mode="cluster", seed=1)
    assert len(bank) == 25
    assert bank.total_weight == 400
    # the weighted mean of means is the mean
    mean = (bank.vectors * bank.weights[:, None]).sum(0) / 400
    np.testing.assert_allclose(mean, patches.mean(0), atol=1e-5)
    # and the variance splits into that within and that between cells
    between = ((bank.vectors - patches.mean(0)) ** 2).sum(1) @ bank.weights
    within = (bank.spread.astype(np.float64) ** 2) @ bank.weights
    assert between + within == pytest.approx(((patches - patches.mean(0)) ** 2).sum(), rel=1e-5)


def test_pull_goes_from_real_patches_to_cell_means():
    patches = patches_of()
    kept, half, means = (
        reduce_patches(patches, 30, mode="coreset", seed=2, pull=pull) for pull in (0.0, 0.5, 1.0)
    )
    chosen = patches[k_center(patches, 30, seed=2).indices]
    np.testing.assert_array_equal(kept.vectors, chosen)
    label = np.linalg.norm(patches[:, None] - chosen[None], axis=2).argmin(1)
    for i in range(30):
        np.testing.assert_allclose(means.vectors[i], patches[label == i].mean(0), atol=1e-5)
        assert kept.weights[i] == (label == i).sum()
    np.testing.assert_allclose(half.vectors, (kept.vectors + means.vectors) / 2, atol=1e-5)
    np.testing.assert_array_equal(half.weights, kept.weights)


def test_single_patch_cells_have_no_spread_and_empty_cells_go():
    patches = np.array([[0, 0], [10, 0], [10, 2]], np.float32)
    centres = np.array([[0, 0], [10, 1], [50, 50]], np.float32)
    bank = cells(patches, centres)
    assert bank.vectors.tolist() == [[0, 0], [10, 1]]
    assert bank.weights.tolist() == [1, 2]
    np.testing.assert_allclose(bank.spread, [0, 1], atol=1e-3)


def test_initial_centres_send_the_choice_elsewhere_and_none_where_all_is_known():
    patches = np.concatenate([patches_of(100), patches_of(100) + 50])
    bank = reduce_patches(patches, 5, mode="coreset", seed=0, initial=patches[:100])
    assert (bank.vectors.mean(1) > 40).all()
    covered = reduce_patches(patches, 5, mode="coreset", seed=0, initial=patches)
    assert covered.vectors.shape == (0, patches.shape[1])


def test_projected_choice_keeps_whole_patches():
    patches = patches_of(500, dim=64)
    bank = reduce_patches(patches, 20, mode="coreset", seed=0, projection=8)
    gaps = np.linalg.norm(bank.vectors[:, None] - patches[None], axis=2).min(1)
    assert gaps.max() == 0


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="unknown reduce mode"):
        reduce_patches(patches_of(), 5, mode="mean", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pull"):
        reduce_patches(patches_of(), 5, mode="coreset", seed=0, pull=1.1)


def test_renewal_moves_vectors_weights_and_leaves_the_unvisited():
    bank = MemoryBank(
        np.array([[0, 0], [10, 0], [99, 99]], np.float32), [10, 30, 5], np.array([1, 2, 3.0])
    )
    patches = np.array([[0, 2], [2, 0], [2, 2], [10, 4]], np.float32)
    new = renew(bank, patches, keep=0.25)
    np.testing.assert_allclose(new.vectors, [[1, 1], [10, 3], [99, 99]], atol=1e-6)
    # 40 of weight in the visited cells, shared by 3 and 1 patches
    np.testing.assert_allclose(new.weights, [0.25 * 10 + 0.75 * 30, 0.25 * 30 + 0.75 * 10, 5])
    assert new.total_weight == pytest.approx(45)
    np.testing.assert_allclose(new.spread, [np.sqrt(2), 1, 3], atol=1e-3)


def test_renewal_keeps_the_weight_of_cells_with_too_few_images():
    bank = MemoryBank.of_patches(np.array([[0], [10]], np.float32)).rescaled(20)
    patches = np.array([[0], [1], [10], [10]], np.float32)
    new = renew(bank, patches, keep=0.5, images=np.array([0, 1, 1, 1]), min_count=2)
    # the second cell has patches of one image alone and stays, so the first keeps its 10
    np.testing.assert_allclose(new.weights, [10, 10])


def test_renewal_that_keeps_all_or_nothing():
    patches = patches_of()
    bank = reduce_patches(patches, 10, mode="coreset", seed=0)
    same = renew(bank, patches, keep=1.0)
    np.testing.assert_array_equal(same.vectors, bank.vectors)
    np.testing.assert_allclose(same.weights, bank.weights)
    np.testing.assert_allclose(same.spread, bank.spread, atol=1e-3)
    means = reduce_patches(patches, 10, mode="coreset", seed=0, pull=1.0)
    np.testing.assert_allclose(renew(bank, patches, keep=0.0).vectors, means.vectors, atol=1e-6)
