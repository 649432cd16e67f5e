"""min_count and the Gaussian mechanism: what an average may be of, and what one image changes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError
from fedvad.memory.bank import MemoryBank
from fedvad.memory.coreset import CandidateSampler
from fedvad.memory.private import PrivatePositionMeans
from fedvad.memory.reduce import reduce_patches, renew


def _patches(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


@pytest.mark.parametrize("mode", ["coreset", "cluster"])
@pytest.mark.parametrize("min_count", [2, 3])
def test_every_row_is_an_average_over_enough_images(mode: str, min_count: int) -> None:
    patches, images = _patches(60), np.repeat(np.arange(10), 6)
    everything = reduce_patches(patches, 20, mode=mode, seed=0, pull=1)  # type: ignore[arg-type]
    bank = reduce_patches(
        patches,
        20,
        mode=mode,
        seed=0,
        pull=1,
        images=images,
        min_count=min_count,  # type: ignore[arg-type]
    )
    assert 0 < len(bank) < len(everything)
    # by brute force: every row is the mean of a set of patches of enough images
    from fedvad.memory.coreset import k_center
    from fedvad.memory.kmeans import weighted_kmeans

    if mode == "coreset":
        centres = patches[k_center(patches, 20, seed=0).indices]
    else:
        centres = weighted_kmeans(MemoryBank.of_patches(patches), 20, seed=0, restarts=1).vectors
    label = ((patches[:, None] - centres[None]) ** 2).sum(2).argmin(1)
    expected = [
        patches[label == i].mean(0)
        for i in range(len(centres))
        if len(np.unique(images[label == i])) >= min_count
    ]
    assert np.allclose(np.sort(bank.vectors, 0), np.sort(expected, 0), atol=1e-5)


def test_without_cells_of_enough_images_there_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"min_count = 5 images \(there are 2\): lower it"):
        reduce_patches(
            _patches(20), 4, mode="coreset", seed=0, pull=1,
            images=np.repeat([0, 1], 10), min_count=5,
        )  # fmt: skip


def test_a_row_that_too_few_images_would_move_stays() -> None:
    bank = MemoryBank.of_patches(np.array([[0, 0], [10, 10]], np.float32))
    patches = np.array([[1, 0], [0, 1], [9, 9], [11, 9]], np.float32)
    moved = renew(bank, patches, keep=0.5, images=np.array([0, 1, 2, 2]), min_count=2)
    assert np.allclose(moved.vectors, [[0.25, 0.25], [10, 10]])


def test_sampled_rows_know_their_images() -> None:
    sampler = CandidateSampler(
        n_images=5, patches_per_image=8, dim=2, fraction=0.5, max_bytes=1 << 20, seed=0
    )
    for i in range(5):
        sampler.add(np.full((2, 4, 2), i, np.float16))
    assert np.array_equal(sampler.result()[:, 0], sampler.images())


@given(scale=st.floats(0.1, 50), clip=st.floats(0.1, 10), n=st.integers(1, 6))
def test_one_image_changes_the_sums_by_no_more_than_the_bound(
    scale: float, clip: float, n: int
) -> None:
    rng = np.random.default_rng(7)
    images = rng.normal(size=(n, 3, 2, 4)) * scale
    images[0] *= 100

    def sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        means = PrivatePositionMeans(clip=clip, noise=0, rng=rng)
        means.add(values)
        return means.result().vectors.astype(np.float64) * n

    without = images.copy()
    without[0] = 0
    change = float(np.linalg.norm(sums(images) - sums(without)))
    assert change <= clip * np.sqrt(6) * (1 + 1e-4)


def test_noise_has_the_size_that_epsilon_is_computed_for() -> None:
    n, clip, noise = 50, 3.0, 0.7
    means = PrivatePositionMeans(clip=clip, noise=noise, rng=np.random.default_rng(0))
    means.add(np.zeros((n, 20, 20, 64)))
    bank = means.result()
    expected = noise * clip * 20 / n
    assert bank.vectors.std() == pytest.approx(expected, rel=0.02)
    assert not bank.spread.any()
    assert (bank.weights == n).all()


@pytest.mark.parametrize(("clip", "noise"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -0.1)])
def test_impossible_options_are_refused(clip: float, noise: float) -> None:
    with pytest.raises(ConfigError):
        PrivatePositionMeans(clip=clip, noise=noise, rng=np.random.default_rng(0))
