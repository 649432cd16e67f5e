"""Reverse distillation beyond the common contract: any backbone, the last step, files, sites."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.folders import ImageSet
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.detectors.student.graphs import normaliser
from fedvad.detectors.student.loss import level_maps
from fedvad.detectors.student.parameters import buffers_of, parameters_of
from fedvad.detectors.student.rd.detector import RD, adam
from fedvad.detectors.student.rd.loss import reverse_loss
from fedvad.errors import ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.detectors.student import support
from tests.helpers import OPTIONS

SHORT = replace(support.QUICK_ADAM, steps=6)


@pytest.fixture(scope="module")
def fitted(extractor: FeatureExtractor, images: ImageSet) -> RD:
    plain: dict[str, Any] = {"smooth": 1, "top": 0.0}
    return RD(extractor=extractor, train=SHORT, held_out=0.4, seed=3, **plain).fit(images)


def test_maps_and_scores_are_those_of_the_formula(fitted: RD, images: ImageSet) -> None:
    assert fitted.net_ is not None
    pixels = torch.from_numpy(resize_rgb(read_rgb(images[0].path), 64))[None]
    with torch.inference_mode():
        fine, coarse = level_maps(*fitted.net_(normaliser(fitted.extractor)(pixels)))
        coarse = torch.nn.functional.interpolate(coarse[None], (16, 16), mode="bilinear")[0]
    scores = fitted.score(images.paths[:1])
    np.testing.assert_allclose(scores.maps[0], (fine + coarse)[0] / fitted.scale_, rtol=1e-4)
    site = fitted.prepare(images)
    assert np.median(fitted.score(site.unseen).image) == pytest.approx(1, rel=1e-5)
    site.close()


def test_the_last_step_is_kept_unless_held_out_normals_may_choose(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = RD(extractor=extractor, train=SHORT, seed=3).prepare(images)
    log = site.train()
    assert (log.steps, log.best, log.validation) == (6, 5, [])
    measured = site.train(config=replace(SHORT, validate_every=2))
    assert (measured.at, measured.best, len(measured.validation)) == ([2, 4, 6], 2, 3)
    patient = site.train(config=replace(SHORT, patience=3))
    assert len(patient.validation) == len(patient.loss)
    assert site.validate() == pytest.approx(min(patient.validation), rel=1e-5)
    site.close()


@pytest.mark.parametrize("loss", ["global", "hard+global", "mean"])
def test_the_loss_is_the_one_chosen_and_falls(
    loss: Any, extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = RD(extractor=extractor, loss=loss, hard=4, train=SHORT, seed=3).prepare(images)
    (batch,) = site._set.batches(site._own, 16)
    expected = reverse_loss(batch.teacher, site.net.student(batch.teacher), loss, hard=4)
    assert float(site.loss(batch).detach()) == pytest.approx(float(expected.detach()))
    log = site.train()
    assert log.loss[-1] < 0.9 * log.loss[0]
    site.close()


def test_training_moves_the_student_alone(extractor: FeatureExtractor, images: ImageSet) -> None:
    site = RD(extractor=extractor, train=SHORT, seed=3).prepare(images)
    before = buffers_of(site.net.teacher) | {
        n: p.numpy().copy() for n, p in site.net.teacher.named_parameters()
    }
    start = parameters_of(site.student)
    site.train()
    after = buffers_of(site.net.teacher) | {
        n: p.numpy() for n, p in site.net.teacher.named_parameters()
    }
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert not [n for n, a in parameters_of(site.student).items() if (a == start[n]).all()]
    site.close()


@pytest.mark.parametrize("size", [64, 72])
def test_even_a_backbone_without_weights_has_maps_to_rebuild(size: int, images: ImageSet) -> None:
    extractor = FeatureExtractor(FeatureConfig(**OPTIONS | {"image_size": size}))
    detector = RD(extractor=extractor, width=0.5, train=SHORT).fit(images)
    scores = detector.score(images.paths[:2])
    assert scores.maps.shape[1:] == extractor.grid[:2]
    assert np.isfinite(scores.image).all()


def test_all_options_survive_a_file(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    train = replace(SHORT, drop=0.2)
    detector = RD(
        extractor=extractor, width=0.5, loss="hard+global", hard=3, layers=(2,), train=train,
        combine="product", smooth=3, top=0.1, seed=5,
    ).fit(images)  # fmt: skip
    detector.save(tmp_path / "d.safetensors")
    loaded = RD.load(tmp_path / "d.safetensors", extractor=extractor)
    assert loaded.state()[1] == detector.state()[1]
    assert (loaded.width, loaded.loss, loaded.hard, loaded.train) == (0.5, "hard+global", 3, train)
    json.dumps(detector.state()[1])
    found, expected = loaded.score(images.paths), detector.score(images.paths)
    np.testing.assert_array_equal(found.maps, expected.maps)
    fresh = loaded.fresh()
    assert fresh.net_ is None
    assert fresh.width == 0.5


def test_both_engines_give_the_same_maps(tiny: Path, fitted: RD, images: ImageSet) -> None:
    compiled = FeatureExtractor(FeatureConfig(**support.options(tiny, engine="openvino")))
    other = RD.from_state(*fitted.state(), extractor=compiled)
    found, expected = other.score(images.paths[:2]), fitted.score(images.paths[:2])
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"loss": "cosine"}, "unknown loss"),
        ({"hard": 0}, "hard"),
        ({"width": -1.0}, "width"),
        ({"layers": (7,)}, "layers"),
        ({"combine": "mean"}, "choose from product, sum"),
    ],
)
def test_impossible_options_are_reported_before_any_image_is_read(
    wrong: dict[str, Any], match: str, extractor: FeatureExtractor, images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=match):
        RD(extractor=extractor, train=SHORT, **wrong).fit(images)


def test_the_default_training_is_the_public_codes_optimiser() -> None:
    config = adam(100)
    assert (config.optimiser, config.momentum, config.learning_rate) == ("adam", 0.5, 0.005)
    assert config.rate(81) == pytest.approx(0.001)
    assert config.rate(91) == pytest.approx(0.0002)
