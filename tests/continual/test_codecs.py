"""What each codec keeps of a feature, to the byte, and how far what it gives back may be off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.continual.codecs import Codec, CodecConfig, nbytes
from fedvad.errors import ConfigError

SHAPE = (24, 32, 32)  # of MCUNet's block 5 at 256 pixels


def features(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 10, (shape[0], 1, 1))
    mixed = rng.normal(size=(shape[0], shape[0])) / shape[0] ** 0.5
    grids = [np.tensordot(mixed, rng.normal(size=shape), 1) * scale for _ in range(count)]
    return [grid.astype(np.float32) for grid in grids]


def fitted(samples: list[Any], **options: Any) -> Codec:
    codec = Codec(CodecConfig(**options))
    codec.fit(samples, seed=0)
    return codec


@pytest.mark.parametrize(
    ("options", "bytes_of_100", "learned"),
    [
        ({"name": "float32"}, 9_830_400, 0),
        ({"name": "float16"}, 4_915_200, 0),
        ({"name": "uint8", "granularity": "sample"}, 2_457_600 + 800, 0),
        ({"name": "uint8", "granularity": "channel"}, 2_457_600 + 100 * 24 * 8, 0),
        ({"name": "uint8", "granularity": "calibrated"}, 2_457_600, 24 * 8),
        ({"name": "uint8", "granularity": "calibrated", "bits": 4}, 1_228_800 + 600, 24 * 8),
        ({"name": "pq", "groups": 6}, 614_400 + 400, 256 * 24 * 2),
        ({"name": "pca", "components": 8}, 819_200 + 400, (24 + 8 * 24 + 16) * 4),
    ],
)
def test_bytes_are_those_of_the_arithmetic(
    options: dict[str, Any], bytes_of_100: int, learned: int
) -> None:
    samples = features(2)
    codec = fitted(samples, **options)
    assert 100 * nbytes(codec.encode(samples[0])) == bytes_of_100
    assert codec.nbytes == learned


def test_images_take_the_bytes_of_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    codec = Codec(CodecConfig("pixels"))
    assert 100 * nbytes(codec.encode(image)) == 19_660_800
    np.testing.assert_array_equal(codec.decode(codec.encode(image)), image)
    smooth = np.linspace(0, 255, 256 * 256 * 3).reshape(256, 256, 3).astype(np.uint8)
    jpeg = Codec(CodecConfig("jpeg", quality=90))
    kept = jpeg.encode(smooth)
    assert nbytes(kept) < smooth.nbytes / 10
    assert np.abs(jpeg.decode(kept).astype(int) - smooth).mean() < 3


@given(
    seed=st.integers(0, 10_000),
    granularity=st.sampled_from(["sample", "channel", "calibrated"]),
    bits=st.sampled_from([4, 8]),
)
def test_uint8_is_off_by_half_a_step_at_most(seed: int, granularity: Any, bits: int) -> None:
    samples = features(2, (5, 3, 7), seed)
    codec = fitted(samples, name="uint8", granularity=granularity, bits=bits)
    values = {"sample": (0, 1, 2), "channel": (1, 2), "calibrated": (1, 2)}[granularity]
    over = samples if granularity == "calibrated" else samples[:1]
    low = np.min([s.min(values, keepdims=True) for s in over], axis=0)
    high = np.max([s.max(values, keepdims=True) for s in over], axis=0)
    step = (high - low) / (2**bits - 1)
    error = np.abs(codec.decode(codec.encode(samples[0])) - samples[0])
    assert (error <= step / 2 * 1.001 + 1e-6).all()


def test_one_outlier_costs_the_whole_sample_with_one_range_and_one_channel_with_its_own() -> None:
    sample = features(1)[0]
    sample[3, 0, 0] = 1e4
    errors = {}
    for granularity in ("sample", "channel"):
        codec = fitted([sample], name="uint8", granularity=granularity)
        error = np.abs(codec.decode(codec.encode(sample)) - sample)
        errors[granularity] = np.delete(error, 3, axis=0).mean()
    assert errors["channel"] < errors["sample"] / 50


@pytest.mark.parametrize("granularity", ["sample", "channel", "calibrated"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_constant_map_comes_back_as_it_was(granularity: Any, bits: int) -> None:
    flat = np.full((3, 5, 5), 0.7, np.float32)
    codec = fitted([flat], name="uint8", granularity=granularity, bits=bits)
    np.testing.assert_array_equal(codec.decode(codec.encode(flat)), flat)


def test_pca_keeps_the_variance_it_was_asked_for() -> None:
    sample = features(1)[0]
    rows = sample.reshape(24, -1).T
    total = ((rows - rows.mean(0)) ** 2).sum()
    for variance in (0.5, 0.9, 0.98, 1.0):
        codec = fitted([sample], name="pca", variance=variance)
        kept = codec.encode(sample)
        lost = ((codec.decode(kept) - sample) ** 2).sum() / total
        assert lost <= 1 - variance + 1e-5
        assert kept["scores"].shape[1] <= 24
    one = fitted([sample], name="pca", variance=0.01).encode(sample)
    assert one["scores"].shape[1] == 1


def test_a_basis_of_the_first_task_is_as_good_on_its_like() -> None:
    samples = features(3)
    for bits, worst in ((4, 1e-3), (8, 1e-2)):  # float16 scores, then bytes
        codec = fitted(samples, name="pca", components=24, bits=bits)
        back = codec.decode(codec.encode(samples[1]))
        assert np.abs(back - samples[1]).max() < worst * np.abs(samples[1]).max()


def test_product_quantisation_takes_the_nearest_code() -> None:
    samples = features(2)
    codec = fitted(samples, name="pq", groups=6)
    kept = codec.encode(samples[0])
    books = codec.learned["codebooks"].astype(np.float64)
    part = samples[0].reshape(24, -1).T.reshape(-1, 6, 4)[:50]
    for row, codes in zip(part, kept["codes"][:50], strict=True):
        for i, value in enumerate(row):
            distances = ((books[i] - value) ** 2).sum(1)
            assert distances[codes[i]] <= distances.min() * 1.0001 + 1e-9
    coarse = fitted(samples, name="pq", groups=2)
    errors = [
        np.square(c.decode(c.encode(samples[0])) - samples[0]).mean() for c in (codec, coarse)
    ]
    assert errors[0] < errors[1]


def test_few_distinct_values_are_kept_exactly() -> None:
    steps = np.random.default_rng(0).integers(0, 4, (4, 16, 16)).astype(np.float32)
    codec = fitted([steps], name="pq", groups=4)
    np.testing.assert_array_equal(codec.decode(codec.encode(steps)), steps)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "zip"},
        {"granularity": "patch"},
        {"bits": 3},
        {"clip": 50},
        {"variance": 0},
        {"components": 0},
        {"groups": 0},
        {"quality": 100},
    ],
)
def test_odd_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CodecConfig(**options)


def test_what_does_not_fit_is_refused() -> None:
    samples = features(1)
    with pytest.raises(ConfigError, match="divide"):
        fitted(samples, name="pq", groups=7)
    with pytest.raises(ConfigError, match="25 components of 24"):
        fitted(samples, name="pca", components=25)
    with pytest.raises(ConfigError, match="cannot keep"):
        Codec(CodecConfig("pixels")).encode(samples[0])
    with pytest.raises(ConfigError, match="cannot keep"):
        Codec(CodecConfig("float16")).encode(np.zeros((8, 8, 3), np.uint8))


def test_codes_are_learned_from_every_column() -> None:
    """Enough positions that only some are looked at, and columns that take turns at two modes."""
    rng = np.random.default_rng(0)
    modes = rng.normal(size=(2, 4)).astype(np.float32) * 5
    column = np.tile(modes.T[:, None, :], (1, 32, 16))
    samples = [column + rng.normal(size=column.shape).astype(np.float32) for _ in range(100)]
    codec = fitted(samples, name="pq", groups=2)
    gap = codec.decode(codec.encode(samples[0])) - samples[0]
    even, odd = (float(np.square(gap[..., start::2]).mean() ** 0.5) for start in (0, 1))
    assert 0.8 < even / odd < 1.25
