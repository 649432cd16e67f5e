"""A defect and the image that it was drawn on stay together, with the mask of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.images import read_rgb, resize_rgb
from fedvad.data.synthesis import SynthesisConfig, synthesise
from fedvad.detectors.student.dmdd.decouple import DualNet
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.pairs import DualPool, cells_of
from fedvad.detectors.student.targets import TrainingSet
from tests.conftest import MakeImages
from tests.detectors.student.test_decouple import dual
from tests.detectors.student.test_targets import NORMALISE

CONFIG = DualConfig(pairs=7, head_channels=8)
DRAWING = SynthesisConfig(area=(0.02, 0.1))
OWN = np.array([0, 2, 3])


@pytest.fixture
def paths(make_images: MakeImages) -> list[Path]:
    return make_images(4)


def normals_of(net: DualNet, paths: list[Path]) -> TrainingSet:
    made = TrainingSet(net, NORMALISE, image_size=64, capacity=4)
    made.extend(resize_rgb(read_rgb(path), 64) for path in paths)
    return made


@pytest.fixture
def normals(paths: list[Path]) -> Iterator[TrainingSet]:
    made = normals_of(dual("test_efficientnet"), paths)
    yield made
    made.close()


def pool(normals: TrainingSet, paths: list[Path], config: DualConfig = CONFIG) -> DualPool:
    return DualPool(
        normals, OWN, [paths[i] for i in OWN], config, synthesis=DRAWING, textures=None,
        seed=3,
    )  # fmt: skip


def test_pairs_and_masks_are_those_of_the_defects_drawn(
    normals: TrainingSet, paths: list[Path]
) -> None:
    made = pool(normals, paths)
    (batch,) = made.batches(16)  # in order
    assert len(batch) == len(made) == 7
    assert batch.inputs is batch.teacher
    net = dual("test_efficientnet")
    for index in range(7):
        source = int(made._sources[index])
        assert source in OWN  # never one that is held out
        pixels = resize_rgb(read_rgb(paths[source]), 64)
        defect = synthesise(pixels, DRAWING, seed=(3, index))
        both = torch.from_numpy(np.stack([pixels, defect.image]))
        with torch.inference_mode():
            expected = net.teacher(NORMALISE(both))
        for level, grid in enumerate(normals.grids):
            for found, row in ((batch.normal, 0), (batch, 1)):
                torch.testing.assert_close(
                    found.teacher[level][index], expected[level][row], rtol=2e-3, atol=2e-3
                )
            cells = torch.from_numpy(cells_of(defect.mask, grid, "bilinear")).float()
            assert torch.equal(batch.masks[level][index, 0], cells)
    assert made.masked()[0] > 0
    made.close()


def test_an_image_without_its_defect_is_its_own_twin(
    normals: TrainingSet, paths: list[Path]
) -> None:
    made = pool(normals, paths, replace(CONFIG, anomaly_prob=0.5, pairs=20))
    batches = list(made.batches(8, np.random.default_rng(0)))
    assert sum(len(b) for b in batches) == 20
    twins = 0
    for b in batches:
        for i in range(len(b)):
            same = torch.equal(b.teacher[0][i], b.normal.teacher[0][i])
            assert same or b.masks[0][i].any()
            if same:
                assert not any(m[i].any() for m in b.masks)
            twins += same
    assert 4 < twins < 16
    again = list(made.batches(8, np.random.default_rng(0)))
    assert all(torch.equal(a.teacher[0], b.teacher[0]) for a, b in zip(again, batches, strict=True))
    made.close()


def test_an_encoder_is_given_the_pixels_of_both(paths: list[Path]) -> None:
    normals = normals_of(dual("test_efficientnet", student="encoder"), paths)
    made = pool(normals, paths)
    (batch,) = made.batches(16)
    assert isinstance(batch.inputs, torch.Tensor)
    assert isinstance(batch.normal.inputs, torch.Tensor)
    assert batch.inputs.shape == batch.normal.inputs.shape == (7, 3, 64, 64)
    changed = (batch.inputs != batch.normal.inputs).any(1)
    shares = changed.float().mean((1, 2))
    assert ((shares > 0) & (shares < 0.2)).all()  # the defect and nothing else
    assert len(batch.joined(batch.normal)) == 14
    made.close()
    normals.close()


@pytest.mark.parametrize(("kind", "count"), [("bilinear", 0), ("max", 1)])
def test_small_defects_are_kept_by_the_maximum_alone(kind: Any, count: int) -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[9, 9] = True
    assert cells_of(mask, (8, 8), kind).sum() == count
    mask[8:16, 8:16] = True
    assert cells_of(mask, (8, 8), kind).sum() == 1
    assert cells_of(~np.zeros_like(mask), (7, 7), kind).all()
