"""STFPM and PaSTe beyond the common contract: options, costs, sites, and the real backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedvad.data.folders import ImageItem, ImageSet, read_set
from fedvad.detectors.base import Detector
from fedvad.detectors.student.cost import memory
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.dmdd.detector import DMDD
from fedvad.detectors.student.jitter import jittered
from fedvad.detectors.student.loss import level_maps
from fedvad.detectors.student.parameters import buffers_of, load_buffers, parameters_of
from fedvad.detectors.student.stfpm import STFPM, PaSTe
from fedvad.detectors.student.targets import Batch
from fedvad.errors import ConfigError, DataError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.conftest import MakeImages
from tests.detectors.student import support

SHORT = replace(support.QUICK, epochs=3)


@pytest.fixture(scope="module")
def fitted(extractor: FeatureExtractor, images: ImageSet) -> StudentDetector:
    return PaSTe(extractor=extractor, train=SHORT, held_out=0.4, seed=3).fit(images)


def _scores(detector: Detector, images: ImageSet) -> Any:
    return detector.score(images.paths)


def test_paste_without_sharing_is_stfpm(extractor: FeatureExtractor, images: ImageSet) -> None:
    stfpm = STFPM(extractor=extractor, train=SHORT, seed=3).fit(images)
    paste = PaSTe(extractor=extractor, bootstrap=-1, train=SHORT, seed=3).fit(images)
    np.testing.assert_array_equal(_scores(stfpm, images).maps, _scores(paste, images).maps)


def test_an_image_score_of_one_is_a_typical_unseen_normal(
    fitted: StudentDetector, images: ImageSet
) -> None:
    site = PaSTe(extractor=fitted.extractor, train=SHORT, held_out=0.4, seed=3).prepare(images)
    assert len(site.unseen) == 2
    assert len(site) == len(images) - 2
    assert np.median(fitted.score(site.unseen).image) == pytest.approx(1, rel=1e-5)


def test_no_near_copy_of_what_is_trained_on_is_held_out(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    for path in images.paths:
        with Image.open(path) as image:
            for quality in (95, 80):
                image.convert("RGB").save(tmp_path / f"{path.stem}-{quality}.jpg", quality=quality)
    many = ImageSet(tuple(ImageItem(p, 0, "good") for p in sorted(tmp_path.iterdir())))
    site = PaSTe(extractor=extractor, train=SHORT, held_out=0.4, seed=3).prepare(many)
    assert site.copies == len(images)
    trained, unseen = ({path.stem.split("-")[0] for path in p} for p in (site.paths, site.unseen))
    assert len(unseen) == len(site.unseen) == round(0.4 * len(images))
    assert not trained & unseen
    assert len(trained | unseen) == len(images)
    site.close()


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_maps_and_scores_are_those_of_the_formula(
    combine: Any, extractor: FeatureExtractor, images: ImageSet
) -> None:
    plain: dict[str, Any] = {"smooth": 1, "top": 0.0, "train": SHORT, "seed": 3}
    detector = STFPM(extractor=extractor, combine=combine, **plain).fit(images)
    assert detector.net_ is not None
    from fedvad.data.images import read_rgb, resize_rgb

    pixels = torch.from_numpy(resize_rgb(read_rgb(images[0].path), 64))[None]
    network = extractor.network
    x = pixels.permute(0, 3, 1, 2) * network.get_buffer("scale") + network.get_buffer("shift")
    with torch.inference_mode():
        fine, coarse = level_maps(*detector.net_(x))
        coarse = torch.nn.functional.interpolate(coarse[None], (16, 16), mode="bilinear")[0]
        raw = (fine * coarse).sqrt() if combine == "product" else fine + coarse
    scores = detector.score(images.paths[:1])
    np.testing.assert_allclose(scores.maps[0], raw[0] / detector.scale_, rtol=1e-4)
    assert scores.image[0] == scores.maps[0].max()


def test_top_and_smooth_soften_the_maximum(
    extractor: FeatureExtractor, fitted: StudentDetector, images: ImageSet
) -> None:
    soft = PaSTe(extractor=extractor, train=SHORT, held_out=0.4, seed=3, smooth=3, top=0.1)
    soft.fit(images)
    sharp, scores = _scores(fitted, images), _scores(soft, images)
    assert not np.array_equal(sharp.maps, scores.maps)
    assert (scores.image < scores.maps.max((1, 2))).all()


def test_the_finest_layer_distilled_decides_the_grid(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    detector = PaSTe(extractor=extractor, layers=(2,), train=SHORT, seed=3).fit(images)
    assert _scores(detector, images).maps.shape[1:] == (8, 8)
    assert detector.score([]).maps.shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"bootstrap": 1}, r"bootstrap 1 must lie in -1\.\.0"),
        ({"layers": (7,)}, "layers"),
        ({"combine": "mean"}, "choose from product, sum"),
        ({"held_out": 1.0}, "held_out"),
        ({"smooth": 2}, "odd"),
    ],
)
def test_impossible_options_are_reported_before_any_image_is_read(
    wrong: dict[str, Any], match: str, extractor: FeatureExtractor, images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=match):
        PaSTe(extractor=extractor, train=SHORT, **wrong).fit(images)


def test_the_filter_bank_has_nothing_to_train(images: ImageSet) -> None:
    extractor = FeatureExtractor(FeatureConfig("filterbank", image_size=64, engine="torch"))
    with pytest.raises(ConfigError, match="Choose fedvad-tiny"):
        STFPM(extractor=extractor).fit(images)


def test_costs_are_known_before_and_after_training(
    extractor: FeatureExtractor, fitted: StudentDetector
) -> None:
    stfpm = STFPM(extractor=extractor)
    paste = PaSTe(extractor=extractor)
    assert memory(paste.network()) == paste.memory() == fitted.memory()
    assert paste.memory().parameters < stfpm.memory().parameters
    assert paste.macs() == fitted.macs() < stfpm.macs()


def test_options_and_log_survive_a_file(
    fitted: StudentDetector, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "d.safetensors")
    loaded = PaSTe.load(tmp_path / "d.safetensors", extractor=extractor)
    assert loaded.state()[1] == fitted.state()[1]
    assert (loaded.train, loaded.held_out, loaded.log_) == (SHORT, 0.4, fitted.log_)
    json.dumps(fitted.state()[1])
    students = sum(a.nbytes for a in fitted.state()[0].values())
    assert (tmp_path / "d.safetensors").stat().st_size < students + 10_000  # no teacher in it


def test_a_budget_of_nothing_changes_no_result(
    extractor: FeatureExtractor, fitted: StudentDetector, images: ImageSet
) -> None:
    again = PaSTe(extractor=extractor, train=SHORT, held_out=0.4, seed=3, cache_bytes=0).fit(images)
    for name, array in fitted.state()[0].items():
        np.testing.assert_array_equal(again.state()[0][name], array)


def test_sites_start_equal_and_can_train_round_by_round(
    extractor: FeatureExtractor, plants: Path
) -> None:
    detector = PaSTe(extractor=extractor, train=SHORT, seed=3)
    sites = [detector.prepare(read_set(plants / n).train) for n in ("alder", "birch")]
    first, second = (parameters_of(site.net.student) for site in sites)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    before = sites[0].validate()
    sites[0].choose = False
    logs = [sites[0].train(seed=round_) for round_ in range(3)]
    assert logs[0].validation == []
    assert sites[0].validate() < before
    adopted = detector.with_net(sites[0].net, sites[0].unseen)
    assert adopted.scale_ is not None
    arrays = adopted.state()[0]
    scores = adopted.score(sites[0].unseen).image
    sites[0].train(seed=9)  # a site that trains on leaves the detector as it was
    np.testing.assert_array_equal(adopted.score(sites[0].unseen).image, scores)
    for name, array in adopted.state()[0].items():
        np.testing.assert_array_equal(array, arrays[name])
    for site in sites:
        site.close()


def test_a_site_offers_what_weight_averaging_asks_for(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = PaSTe(extractor=extractor, train=SHORT, seed=3).prepare(images)
    assert site.student is site.net.student
    seen = []

    def penalty(student: torch.nn.Module, batch: Batch) -> torch.Tensor:
        seen.append(site.represent(student, batch).shape)
        return torch.zeros(())

    site.train(penalty=penalty)
    assert seen == [(5, 32)] * 3  # one batch per epoch, 32 channels in the last level


def test_jitter_adds_other_lights_of_what_is_trained_on_alone(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    plain = STFPM(extractor=extractor, train=SHORT, held_out=0.4, seed=3)
    site = replace(plain, jitter=0.3).prepare(images)
    assert site.unseen == plain.prepare(images).unseen
    shown = sum(len(batch) for batch in site.batches(np.random.default_rng(0)))
    assert shown == len(site) * 4
    pixels = np.full((4, 4, 3), 100, np.uint8)
    pixels[:2] = 60
    found = [jittered(pixels, 0.3, np.random.default_rng(s)).astype(float) for s in range(50)]
    means = [f.mean() / 80 for f in found]
    assert 0.69 < min(means) < 0.8
    assert 1.2 < max(means) < 1.31
    assert len({round(f.std() / f.mean(), 3) for f in found}) > 20  # contrast moves on its own
    with pytest.raises(ConfigError, match="jitter must lie"):
        replace(plain, jitter=1.0).prepare(images)
    with pytest.raises(ConfigError, match="set jitter to 0"):
        DMDD(extractor=extractor, jitter=0.1).prepare(images)
    site.close()


def test_foreign_weights_get_the_statistics_of_the_sites_own_images(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = PaSTe(extractor=extractor, train=replace(SHORT, epochs=30), seed=3).prepare(images)
    site.choose = False
    site.train()
    trained, loss = parameters_of(site.student), site.validate()
    foreign = {name: np.zeros_like(b) for name, b in buffers_of(site.student).items()}
    load_buffers(site.student, {n: b + n.endswith("var") for n, b in foreign.items()})
    assert site.validate() > 2 * loss
    site.recalibrate_batch_norm()
    assert not site.student.training
    assert site.validate() < 1.5 * loss
    first = buffers_of(site.student)
    site.recalibrate_batch_norm()  # nothing of before is left in them
    for name, buffer in buffers_of(site.student).items():
        np.testing.assert_array_equal(first[name], buffer)
    for name, parameter in parameters_of(site.student).items():
        np.testing.assert_array_equal(trained[name], parameter)


def test_training_learns_the_normal_images(fitted: StudentDetector) -> None:
    assert fitted.log_ is not None
    assert fitted.log_.loss[-1] < 0.95 * fitted.log_.loss[0]
    assert len(fitted.log_.validation) == 3


def test_all_images_unreadable_is_an_error_even_when_that_is_tolerated(
    extractor: FeatureExtractor, make_images: MakeImages
) -> None:
    from fedvad.data.folders import ImageItem

    paths = make_images(2)
    for path in paths:
        path.write_bytes(b"")
    broken = ImageSet(tuple(ImageItem(p, 0, "good", None) for p in paths))
    with pytest.raises(DataError, match="no readable normal image"):
        STFPM(extractor=extractor, max_bad=1.0).fit(broken)


@pytest.mark.real
def test_mcunet_costs_what_the_published_tables_say(mcunet_in3_weights: Path) -> None:
    """PaSTe's supplement: 1.76 against 1.68 (MiB of parameters), 224.3 M at 224 pixels."""

    def extractor(size: int) -> FeatureExtractor:
        return FeatureExtractor(
            FeatureConfig(
                backbone="mcunet_in3",
                weights=mcunet_in3_weights,
                layers=(6, 10, 14),
                image_size=size,
                engine="torch",
            )
        )

    stfpm, paste = STFPM(extractor=extractor(224)), PaSTe(extractor=extractor(224))
    assert stfpm.memory().parameters / 2**20 == pytest.approx(1.76, abs=0.005)
    assert paste.memory().parameters / 2**20 == pytest.approx(1.68, abs=0.005)
    assert stfpm.macs() / 1e6 == pytest.approx(224.3, abs=0.05)
    assert paste.macs() / 1e6 == pytest.approx(159.0, abs=0.05)  # published: 156.9
    # the thesis: 24 x 32 x 32 at 256 pixels after block 5, so that 100 take 9.83 MB
    net = PaSTe(extractor=extractor(256)).network()
    with torch.inference_mode():
        z = net.shared(torch.zeros(1, 3, 256, 256))
    assert z.shape == (1, 24, 32, 32)
    assert 100 * z.numel() * z.element_size() == 9_830_400
