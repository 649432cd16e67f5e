from __future__ import annotations

import numpy as np
import pytest

from fedvad.detectors.calibration import UnseenScorer
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.errors import MismatchError
from fedvad.memory.bank import MemoryBank


def test_the_common_start_is_the_identity():
    generator = Generator.identity(4)
    patches = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(generator(patches), patches)
    assert generator.is_identity
    assert generator.hash() == Generator.identity(4).hash()
    assert len(generator.hash()) == 16


def test_residual_map_by_hand():
    weight = np.array([[0, 1], [2, 0]], np.float32)
    generator = Generator(weight, np.array([10, 20], np.float32))
    # p + p W^T + b
    patches = np.array([[1, 2], [3, 4]], np.float32)
    assert generator(patches).tolist() == [[1 + 2 + 10, 2 + 2 + 20], [3 + 4 + 10, 4 + 6 + 20]]
    assert generator(patches).dtype == np.float32
    np.testing.assert_array_equal(
        generator(patches[None, :, None]), generator(patches)[None, :, None]
    )
    assert not generator.is_identity


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_any_parameter_ends_the_identity_and_changes_the_hash(part):
    generator = Generator.identity(3)
    getattr(generator, part).flat[1] = 1e-7
    assert not generator.is_identity
    assert generator.hash() != Generator.identity(3).hash()


def test_another_descriptor_length_is_refused_by_name():
    with pytest.raises(MismatchError, match="expects 4 channels, descriptors have 5"):
        Generator.identity(4)(np.zeros((2, 5), np.float32))


def test_a_memory_goes_through_the_generator_that_patches_go_through():
    bank = MemoryBank(np.eye(2), np.array([3, 1]), np.array([0.5, 0.0]))
    generator = Generator(np.array([[0, 1], [2, 0]], np.float32), np.ones(2, np.float32))
    seen = generator.embedded(bank)
    np.testing.assert_array_equal(seen.vectors, generator(bank.vectors))
    assert seen.weights.tolist() == [3, 1]
    assert seen.spread.tolist() == [0.5, 0]
    assert Generator.identity(2).embedded(bank) is bank


def test_an_image_is_scored_without_its_own_rows_whatever_the_generator():
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=(2, 4, 4, 6)).astype(np.float32)
    generator = Generator(2 * np.eye(6, dtype=np.float32), np.ones(6, np.float32))

    def scorer(*images: np.ndarray) -> MemoryScorer:
        rows = np.concatenate([image.reshape(-1, 6) for image in images])
        bank = generator.embedded(MemoryBank.of_patches(rows))
        return MemoryScorer(bank, ScoringConfig(density=0))

    unseen = UnseenScorer(scorer(own, other), leave_one_out=True)
    expected, _ = scorer(other).score(generator(own))
    assert unseen.score(own, generator) == pytest.approx(expected, rel=1e-6)
    assert expected > 1


def test_trainable_parameters_are_copies():
    generator = Generator.identity(2)
    weight, bias = generator.parameters()
    assert weight.requires_grad
    assert bias.requires_grad
    weight.data += 1
    bias.data += 1
    assert generator.is_identity
