"""AAND beyond the common contract: two stages, what they leave alone, files, and sites."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.folders import ImageSet, read_set
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.student.aand.detector import AAND
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.site import AANDSite
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.rd.detector import RD
from fedvad.errors import ArtefactError, ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from tests.detectors.student import support

SHORT = replace(support.QUICK_ADAM, steps=6)


def make(extractor: FeatureExtractor, **changes: Any) -> AAND:
    options: dict[str, Any] = {
        "train": SHORT, "stage1": SHORT, "amplify": support.AMPLIFY, "seed": 3,
    } | changes  # fmt: skip
    return AAND(extractor=extractor, **options)


@pytest.fixture(scope="module")
def fitted(extractor: FeatureExtractor, images: ImageSet) -> AAND:
    return make(extractor).fit(images)


def _teacher(site: AANDSite) -> dict[str, Any]:
    return {n: t.numpy().copy() for n, t in site.net.teacher.state_dict().items()}


def test_stage_one_trains_the_blocks_and_stage_two_the_student_alone(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor).prepare(images)
    teacher, start = _teacher(site), parameters_of(site.student)
    blocks = parameters_of(site.amplifier.student)
    site.amplify()
    amplified = parameters_of(site.amplifier.student)
    assert not [n for n, a in amplified.items() if (a == blocks[n]).all()]
    assert all((a == start[n]).all() for n, a in parameters_of(site.student).items())
    assert site.amplified is not None
    assert site.amplified.loss[-1] < site.amplified.loss[0]
    log = site.train()
    assert log.loss[-1] < log.loss[0]
    assert all((a == amplified[n]).all() for n, a in parameters_of(site.amplifier.student).items())
    assert not [n for n, a in parameters_of(site.student).items() if (a == start[n]).all()]
    for name, array in _teacher(site).items():
        np.testing.assert_array_equal(array, teacher[name])
    site.close()


def test_stage_two_is_given_the_amplified_maps_of_every_image(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor).prepare(images)
    own = site._set.batch(range(len(images))).teacher
    site.amplify()
    with torch.inference_mode():
        expected = site.net.advanced(own)
    for found, wanted in zip(site._set.batch(range(len(images))).teacher, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    assert "pool" not in vars(site.amplifier)  # given back
    once = site._set.batch([0]).teacher[0].clone()
    site.advance()  # once only
    site.amplify()
    torch.testing.assert_close(site._set.batch([0]).teacher[0], once, rtol=0, atol=0)
    site.close()


def test_a_closed_gate_leaves_plain_reverse_distillation(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    detector = make(extractor, loss="global")
    site = detector.prepare(images)
    with torch.no_grad():
        for block in site.net.blocks:
            for part in (block.residual.factors[-1].weight, block.residual.factors[-1].bias):
                part.zero_()
    site.advance()
    log = site.train()
    aand = detector.with_net(site.net, site.unseen, log)
    rd = RD(extractor=extractor, train=SHORT, seed=3).fit(images)
    np.testing.assert_allclose(
        aand.score(images.paths).maps, rd.score(images.paths).maps, rtol=1e-4
    )
    site.close()


def test_held_out_images_are_neither_distilled_nor_damaged(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor, held_out=0.4).prepare(images)
    assert set(site.amplifier.pool._sources.tolist()) == set(site._own.tolist())
    assert not set(site.paths) & set(site.unseen)
    site.close()


def test_defects_too_small_for_a_level_are_reported(
    extractor: FeatureExtractor, images: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    drawing = SynthesisConfig(area=(0.001, 0.001), min_pixels=2)
    detector = make(extractor, synthesis=drawing).fit(images)
    assert "level 1" in caplog.text
    assert np.isfinite(detector.score(images.paths).image).all()


def test_all_options_survive_a_file(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    detector = make(
        extractor,
        amplify=AmplifyConfig(items=3, hidden=9, residual="additive", margin="mul", pairs=5),
        stage1=replace(SHORT, steps=3),
        synthesis=SynthesisConfig(kinds={"stain": 1.0}, area=(0.02, 0.1), foreground="otsu"),
        textures=tmp_path,
        width=0.5,
        hard=4,
        layers=(1,),
    )
    (tmp_path / "t.png").write_bytes(images[0].path.read_bytes())
    detector.fit(images).save(tmp_path / "d.safetensors")
    loaded = AAND.load(tmp_path / "d.safetensors", extractor=extractor)
    for name in ("amplify", "stage1", "synthesis", "textures", "amplified_", "log_"):
        assert getattr(loaded, name) == getattr(detector, name), name
    assert loaded.state()[1] == detector.state()[1]
    json.dumps(detector.state()[1])
    found, expected = loaded.score(images.paths), detector.score(images.paths)
    np.testing.assert_array_equal(found.maps, expected.maps)


@pytest.mark.parametrize("damage", ["missing", "nan", "shape"])
def test_a_file_with_damaged_blocks_is_refused(damage: str, fitted: AAND, tmp_path: Path) -> None:
    from fedvad.detectors.artefact import read_arrays, write_arrays

    file = tmp_path / "d.safetensors"
    fitted.save(file)
    arrays, values = read_arrays(file)
    name = next(n for n in arrays if n.startswith("amplifier/"))
    if damage == "missing":
        del arrays[name]
    else:
        arrays[name] = arrays[name] * np.float32("nan") if damage == "nan" else arrays[name][1:]
    write_arrays(file, arrays, {k: v for k, v in values.items() if k not in ("schema", "version")})
    with pytest.raises(ArtefactError, match="damaged"):
        AAND.load(file, extractor=fitted.extractor)


def test_both_engines_give_the_same_maps(tiny: Path, fitted: AAND, images: ImageSet) -> None:
    compiled = FeatureExtractor(FeatureConfig(**support.options(tiny, engine="openvino")))
    other = AAND.from_state(*fitted.state(), extractor=compiled)
    found, expected = other.score(images.paths[:2]), fitted.score(images.paths[:2])
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-4)


def test_other_sizes_of_images_and_one_level(tiny: Path, images: ImageSet) -> None:
    extractor = FeatureExtractor(FeatureConfig(**support.options(tiny, image_size=72)))
    detector = make(extractor, layers=(2,)).fit(images)
    assert detector.score(images.paths).maps.shape == (len(images), 9, 9)


def test_costs_count_teacher_blocks_and_student(extractor: FeatureExtractor) -> None:
    aand, rd = make(extractor), RD(extractor=extractor)
    blocks = sum(p.numel() for p in aand.starts()["amplifier"].parameters())
    assert aand.memory().parameters == rd.memory().parameters + 4 * blocks
    assert aand.macs() > rd.macs()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"synthesis": SynthesisConfig(foreground=lambda image: image[..., 0] > 9)}, "otsu"),
        ({"synthesis": SynthesisConfig(source="textures")}, "folder"),
        ({"loss": "focal"}, "unknown loss"),
        ({"layers": (7,)}, "layers"),
    ],
)
def test_impossible_options_are_reported_before_any_image_is_read(
    wrong: dict[str, Any], match: str, extractor: FeatureExtractor, images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=match):
        make(extractor, **wrong).fit(images)


def test_replay_is_refused(extractor: FeatureExtractor, images: ImageSet) -> None:
    site = make(extractor).prepare(images)
    with pytest.raises(ConfigError, match="replay"):
        site.empty_like(3)
    site.close()


def _averaged(trainers: dict[str, Any], start: Any, algorithm: Any) -> dict[str, Any]:
    """Weights after two rounds of an exchange between the trainers."""
    server = WeightExchange(
        features="f", initial=start, config=WeightConfig(algorithm), sites=len(trainers)
    )
    members = {n: WeightSite(n, t, n_images=4, n_patches=64) for n, t in trainers.items()}
    incoming = None
    for round_ in (1, 2):
        for member in members.values():
            server.accept(server.site_step(member, incoming, round_))
        incoming = server.merge(round_)
    assert incoming is not None
    return under("weight/", incoming.arrays)


@pytest.mark.parametrize(
    ("algorithm", "shared"), [("fedavg", False), ("fedavg", True), ("moon", True)]
)
def test_sites_average_their_students_and_if_wanted_their_blocks(
    algorithm: Any, shared: bool, extractor: FeatureExtractor, plants: Path
) -> None:
    train = replace(SHORT, steps=2)
    detector = make(extractor, train=train, stage1=train)
    sites = {n: detector.prepare(read_set(plants / n).train) for n in ("alder", "birch")}
    if shared:
        start = parameters_of(detector.starts()["amplifier"])
        stage1 = {n: s.amplifier for n, s in sites.items()}
        blocks = _averaged(stage1, start, algorithm)
        assert any((blocks[n] != start[n]).any() for n in start)
        for site in sites.values():
            load_parameters(site.amplifier.student, blocks)
            site.advance()
    start = parameters_of(detector.starts()["student"])
    students = _averaged(dict(sites), start, algorithm)
    assert students.keys() == start.keys()
    own = {n: parameters_of(s.amplifier.student) for n, s in sites.items()}
    same = all((own["alder"][n] == own["birch"][n]).all() for n in own["alder"])
    assert same == shared
    site = sites["birch"]
    load_parameters(site.student, students)
    site.recalibrate_batch_norm()
    scores = detector.with_net(site.net, site.unseen).score(site.unseen)
    assert np.median(scores.image) == pytest.approx(1, rel=1e-5)
    for each in sites.values():
        each.close()
