"""DCAM beyond the common contract: what trains, what is left at test, and what a site averages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedvad.data.folders import ImageSet, read_set
from fedvad.detectors.student.dcam.attention import AttendedNet, AttendedStudent
from fedvad.detectors.student.dcam.detector import DCAM, AttendedSite
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig
from fedvad.detectors.student.loss import level_maps
from fedvad.detectors.student.parameters import buffers_of, load_parameters, parameters_of
from fedvad.detectors.student.stfpm import STFPM
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.sites import evaluate_site, summarise
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from tests.detectors.student import support

SHORT = replace(support.QUICK, epochs=3)
KEPT = AttentionConfig("both", residual=True, on="both", keep_at_test=True)
WEIGHING = AttentionConfig("both", residual=True, att_as_weight=True)


def _site(detector: DCAM, images: ImageSet) -> AttendedSite:
    site = detector.prepare(images)
    assert isinstance(site, AttendedSite)
    return site


@pytest.mark.parametrize("dcam", ["channel", "spatial", "both", "none"])
def test_dropped_at_test_it_costs_what_stfpm_costs(
    dcam: Any, extractor: FeatureExtractor, images: ImageSet
) -> None:
    stfpm = STFPM(extractor=extractor)
    detector = DCAM(extractor=extractor, attention=AttentionConfig(dcam), train=SHORT)
    assert (detector.macs(), detector.memory()) == (stfpm.macs(), stfpm.memory())
    detector.fit(images)
    assert (detector.macs(), detector.memory()) == (stfpm.macs(), stfpm.memory())
    assert type(detector.net_) is type(stfpm.network())
    shapes = {n: a.shape for n, a in parameters_of(stfpm.network().student).items()}
    shapes |= {n: a.shape for n, a in buffers_of(stfpm.network().student).items()}
    saved = {n.partition("/")[2]: a.shape for n, a in detector.state()[0].items()}
    assert saved == shapes


def test_kept_at_test_it_costs_its_layers_and_no_more(extractor: FeatureExtractor) -> None:
    stfpm = STFPM(extractor=extractor)
    detector = DCAM(extractor=extractor, attention=AttentionConfig("channel", keep_at_test=True))
    student = detector.network().student
    assert isinstance(student, AttendedStudent)
    weights = sum(p.numel() for p in student.attention.parameters())
    assert detector.memory().parameters == stfpm.memory().parameters + 4 * weights
    assert detector.macs() == stfpm.macs() + 2 * weights  # the maximum and the mean go through


def test_without_attention_and_with_its_loss_it_is_stfpm(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    shared: dict[str, Any] = {"extractor": extractor, "train": SHORT, "seed": 3}
    stfpm = STFPM(**shared).fit(images)
    plain = ImitationConfig(cosine="per_location", kl_weight=0)
    dcam = DCAM(attention=AttentionConfig("none"), loss=plain, combine="product", **shared)
    dcam.fit(images)
    found = dcam.score(images.paths)
    np.testing.assert_allclose(found.maps, stfpm.score(images.paths).maps, rtol=1e-3)
    assert dcam.log_ is not None
    assert stfpm.log_ is not None
    np.testing.assert_allclose(dcam.log_.validation, stfpm.log_.validation, rtol=1e-5)


@pytest.mark.parametrize(
    "attention", [AttentionConfig(), KEPT, WEIGHING, AttentionConfig("spatial", on="both")], ids=str
)
def test_training_lowers_its_loss_and_stops_by_the_maps_that_score(
    attention: AttentionConfig, extractor: FeatureExtractor, images: ImageSet
) -> None:
    train = replace(SHORT, epochs=8)
    site = _site(DCAM(extractor=extractor, attention=attention, train=train, seed=3), images)
    log = site.train()
    assert log.loss[-1] < 0.95 * log.loss[0]
    with torch.inference_mode():
        (batch,) = site._set.batches(site._held_out, 8)
        teacher, student = batch.teacher, site.net.student(batch.inputs)
        if attention is KEPT:
            assert isinstance(site.net, AttendedNet)
            assert site.net.student is site.student
            teacher = site.net.student.target(teacher)
        expected = sum(float(m.mean()) for m in level_maps(teacher, student))
    assert site.validate() == pytest.approx(expected, rel=1e-5)
    assert min(log.validation) == pytest.approx(expected, rel=1e-5)
    site.close()


def test_the_attention_is_trained_with_the_student(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = _site(DCAM(extractor=extractor, train=SHORT, seed=3), images)
    before = parameters_of(site.student)
    site.choose = False
    site.train()
    after = parameters_of(site.student)
    assert any(name.startswith("attention.") for name in after)
    unmoved = [n for n, a in after.items() if (a == before[n]).all()]
    assert unmoved == []
    for name, array in parameters_of(site.net.student).items():
        np.testing.assert_array_equal(array, after[name])
    site.close()


def test_all_options_survive_a_file(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    loss = ImitationConfig(
        cosine="per_location", cosine_weight=2, kl_weight=0.5, tau=3, tau_squared=False,
        reduce="sum", standardise="own",
    )  # fmt: skip
    attention = replace(KEPT, reduction=2)
    detector = DCAM(
        extractor=extractor, attention=attention, loss=loss, layers=(1,), train=SHORT, seed=3
    ).fit(images)
    detector.save(tmp_path / "d.safetensors")
    loaded = DCAM.load(tmp_path / "d.safetensors", extractor=extractor)
    assert (loaded.attention, loaded.loss, loaded.train) == (attention, loss, SHORT)
    assert loaded.state()[1] == detector.state()[1]
    json.dumps(detector.state()[1])
    arrays = detector.state()[0]
    assert any(name.startswith("student/attention.") for name in arrays)
    for name, array in loaded.state()[0].items():
        np.testing.assert_array_equal(array, arrays[name])
    found, expected = loaded.score(images.paths), detector.score(images.paths)
    np.testing.assert_array_equal(found.maps, expected.maps)
    values = detector.state()[1]
    values["options"]["attention"]["keep_at_test"] = False  # then the weights are foreign
    with pytest.raises(TypeError, match="another student"):
        DCAM.from_state(arrays, values, extractor=extractor)


def test_a_file_with_options_nobody_knows_is_refused(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    from fedvad.detectors.artefact import read_arrays, write_arrays

    file = tmp_path / "d.safetensors"
    DCAM(extractor=extractor, train=SHORT).fit(images).save(file)
    arrays, values = read_arrays(file)
    values["values"]["options"]["loss"]["gamma"] = 1
    write_arrays(file, arrays, {k: v for k, v in values.items() if k not in ("schema", "version")})
    with pytest.raises(ArtefactError, match="gamma"):
        DCAM.load(file, extractor=extractor)


def test_both_engines_give_the_maps_of_a_kept_attention(
    tiny: Path, extractor: FeatureExtractor, images: ImageSet
) -> None:
    detector = DCAM(extractor=extractor, attention=KEPT, train=SHORT, seed=3).fit(images)
    compiled = FeatureExtractor(FeatureConfig(**support.options(tiny, engine="openvino")))
    arrays, values = detector.state()
    other = DCAM.from_state(arrays, values, extractor=compiled)
    found, expected = other.score(images.paths[:2]), detector.score(images.paths[:2])
    np.testing.assert_allclose(found.maps, expected.maps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"loss": ImitationConfig(standardise="own")}, "cannot see the channel attention"),
        ({"combine": "mean"}, "choose from product, sum"),
        ({"held_out": 1.0}, "held_out"),
        ({"layers": (7,)}, "layers"),
    ],
)
def test_impossible_options_are_reported_before_any_image_is_read(
    wrong: dict[str, Any], match: str, extractor: FeatureExtractor, images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=match):
        DCAM(extractor=extractor, train=SHORT, **wrong).fit(images)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "moon"])
def test_sites_average_student_and_attention(
    algorithm: Any, extractor: FeatureExtractor, plants: Path
) -> None:
    from fedvad.federation.exchange.terms import WeightConfig

    # SCAFFOLD's control variates are made for plain SGD
    train = replace(SHORT, momentum=0.0, weight_decay=0.0)
    detector = DCAM(extractor=extractor, train=train, seed=3)
    sets = {n: read_set(plants / n).train for n in ("alder", "birch")}
    sites = {n: _site(detector, images) for n, images in sets.items()}
    start = parameters_of(sites["alder"].student)
    server = WeightExchange(
        features="f", initial=start, config=WeightConfig(algorithm), sites=len(sites)
    )
    members = {
        n: WeightSite(n, s, n_images=len(s), n_patches=64 * len(s)) for n, s in sites.items()
    }
    incoming = None
    for round_ in (1, 2):
        for member in members.values():
            server.accept(server.site_step(member, incoming, round_))
        incoming = server.merge(round_)
    assert incoming is not None
    merged = {n[7:]: a for n, a in incoming.arrays.items() if n.startswith("weight/")}
    assert merged.keys() == start.keys()
    assert any((merged[n] != start[n]).any() for n in merged if n.startswith("attention."))
    site = sites["birch"]
    load_parameters(site.student, merged)
    site.recalibrate_batch_norm()
    scores = detector.with_net(site.net, site.unseen).score(site.unseen)
    assert np.isfinite(scores.image).all()
    assert np.median(scores.image) == pytest.approx(1, rel=1e-5)
    for each in sites.values():
        each.close()


def test_one_model_of_several_classes_is_reported_by_class_on_average_and_pooled(
    extractor: FeatureExtractor, plants: Path
) -> None:
    """The multi-class protocol needs nothing but what sites have."""
    classes = [read_set(plants / name) for name in ("alder", "birch")]
    detector = DCAM(extractor=extractor, train=SHORT, seed=3)
    detector.fit(classes[0].train + classes[1].train)
    results = [
        evaluate_site(c.name, c.test, detector.score(c.test.paths), None, image_size=64)
        for c in classes
    ]
    summary = summarise(results, target_fpr=0.1)["image_auroc"]
    assert set(summary["sites"]) == {"alder", "birch"}
    assert summary["mean"] == pytest.approx(np.mean(list(summary["sites"].values())))
    assert 0 <= summary["pooled"] <= 1
