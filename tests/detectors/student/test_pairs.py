"""Synthetic anomalies are made once, by their seed, and never from images that are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.synthesis import SynthesisConfig, find_foreground, synthesise
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.pairs import PairPool, covered
from fedvad.detectors.student.rd.net import build_reverse
from fedvad.detectors.student.targets import TrainingSet
from fedvad.errors import ConfigError, DataError
from tests.conftest import MakeImages
from tests.detectors.student.test_branches import network
from tests.detectors.student.test_targets import NORMALISE

CONFIG = AmplifyConfig(pairs=7)
DRAWING = SynthesisConfig(area=(0.02, 0.1))
OWN = np.array([0, 2, 3])


@pytest.fixture(scope="module")
def net() -> Any:
    return build_reverse(network("test_efficientnet"), (1, 2, 3), (1, 2), image_size=64, seed=1)


@pytest.fixture
def paths(make_images: MakeImages) -> list[Path]:
    return make_images(4)


@pytest.fixture
def normals(net: Any, paths: list[Path]) -> Iterator[TrainingSet]:
    made = TrainingSet(net, NORMALISE, image_size=64, capacity=4)
    made.extend(resize_rgb(read_rgb(path), 64) for path in paths)
    yield made
    made.close()


def pool(normals: TrainingSet, paths: list[Path], **changes: Any) -> PairPool:
    options: dict[str, Any] = {
        "config": CONFIG, "synthesis": DRAWING, "textures": None, "seed": 3, "own": OWN,
    } | changes  # fmt: skip
    own, config = options.pop("own"), options.pop("config")
    return PairPool(normals, own, [paths[i] for i in own], config, **options)


def test_features_and_masks_are_those_of_the_defects_drawn(
    net: Any, normals: TrainingSet, paths: list[Path]
) -> None:
    made = pool(normals, paths)
    assert len(made) == 7
    rows = made._first.defects.batch(range(7)).teacher
    for index in range(7):
        source = made._sources[index]
        pixels = resize_rgb(read_rgb(paths[source]), 64)
        defect = synthesise(pixels, DRAWING, seed=(3, index))
        with torch.inference_mode():
            expected = net.teacher(NORMALISE(torch.from_numpy(defect.image[None])))
        for level, grid in enumerate(normals.grids):
            torch.testing.assert_close(rows[level][index], expected[level][0], rtol=2e-3, atol=2e-3)
            cells = covered(defect.mask, grid) > 0.3
            np.testing.assert_array_equal(made._first.masks[level][index], cells)
    made.close()


def test_each_pass_draws_its_own_defects_on_the_same_images(
    normals: TrainingSet, paths: list[Path]
) -> None:
    def masks(made: PairPool, seed: int) -> torch.Tensor:
        # in the order of the sources, whatever the order of the pass
        order = np.argsort(np.random.default_rng(seed).permutation(7))
        (batch,) = made.batches(16, np.random.default_rng(seed))
        return batch.masks[0][order]

    config = replace(CONFIG, anomaly_prob=1.0)
    made, kept = (pool(normals, paths, config=replace(config, fresh=f)) for f in (True, False))
    assert torch.equal(masks(made, 1), masks(made, 1))
    assert not torch.equal(masks(made, 1), masks(made, 2))
    assert torch.equal(masks(kept, 1), masks(kept, 2))
    made.close()
    kept.close()


def test_sources_come_in_turn_and_are_never_held_out(
    normals: TrainingSet, paths: list[Path]
) -> None:
    counts = np.bincount(pool(normals, paths)._sources, minlength=4)
    assert counts[1] == 0  # not one of its own
    assert sorted(counts[OWN].tolist()) == [2, 2, 3]
    assert pool(normals, paths, own=np.array([2]))._sources.tolist() == [2] * 7


def test_the_seed_decides_all(normals: TrainingSet, paths: list[Path]) -> None:
    one, same, other = (pool(normals, paths, seed=s) for s in (3, 3, 4))

    def first(made: PairPool, seed: int) -> Any:
        return next(made.batches(4, np.random.default_rng(seed)))

    a, b = first(one, 1), first(same, 1)
    for x, y in zip(a.teacher + a.masks + a.normal, b.teacher + b.masks + b.normal, strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(a.teacher[0], first(other, 1).teacher[0])
    assert not torch.equal(a.teacher[0], first(one, 2).teacher[0])


def test_a_pass_has_every_source_once_with_a_defect_or_without(
    normals: TrainingSet, paths: list[Path]
) -> None:
    made = pool(normals, paths, config=replace(CONFIG, anomaly_prob=0.5, pairs=40))
    batches = list(made.batches(16, np.random.default_rng(0)))
    assert sum(len(b) for b in batches) == 40
    assert len(batches) == 3
    defective = sum(int((b.masks[0].amax((1, 2, 3)) > 0).sum()) for b in batches)
    assert 8 < defective < 32
    for b in batches:
        for mask, normal, anomalous in zip(b.masks, b.normal, b.anomalous, strict=True):
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
            assert torch.equal(mask[:, 0] > 0, anomalous)
            assert torch.equal(~anomalous, normal)
    always = pool(normals, paths, config=replace(CONFIG, anomaly_prob=1.0))
    assert sum(len(b) for b in always.batches(16, np.random.default_rng(0))) == 7


def test_cells_compared_are_on_the_object_and_no_more_than_allowed(
    normals: TrainingSet, paths: list[Path]
) -> None:
    drawing = replace(DRAWING, foreground=127, side="bright")
    config = replace(CONFIG, normals=20, anomalies=3, anomaly_prob=1.0)
    made = pool(normals, paths, config=config, synthesis=drawing)
    (b,) = made.batches(16, np.random.default_rng(0))
    assert int(b.normal[0].sum()) == 20
    assert int(b.anomalous[0].sum()) == 3
    assert b.masks[0].sum() > 3  # the gate sees them all
    order = np.random.default_rng(0).permutation(7)
    for row, index in enumerate(order):
        pixels = resize_rgb(read_rgb(paths[made._sources[index]]), 64)
        found = covered(find_foreground(pixels, drawing), normals.grids[0])
        assert (found[b.normal[0][row].numpy()] >= 0.5).all()


def test_shares_of_cells_are_exact_for_any_size() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[:4, :8] = True
    shares = covered(mask, (8, 8))
    assert shares[0, 0] == 0.5
    assert shares.sum() == 0.5
    assert covered(np.ones((50, 50), np.bool_), (7, 7)).min() == 1


def test_textures_fill_defects(
    normals: TrainingSet, paths: list[Path], make_images: MakeImages
) -> None:
    folder = make_images(2, seed=9, folder="textures")[0].parent
    drawing = replace(DRAWING, kinds={"texture": 1.0}, source="textures")
    assert len(pool(normals, paths, synthesis=drawing, textures=folder)) == 7
    with pytest.raises(ConfigError, match="texture"):
        pool(normals, paths, synthesis=drawing)


def test_an_image_that_vanished_is_reported(normals: TrainingSet, paths: list[Path]) -> None:
    paths[2].unlink()
    with pytest.raises(DataError, match=r"vanished.*0002\.png"):
        pool(normals, paths)
