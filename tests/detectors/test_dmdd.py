"""DMDD beyond the common contract: pairs, branches and head, sources of scores, files, sites."""

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
from fedvad.data.synthesis import SynthesisConfig
from fedvad.detectors.student.dmdd.detector import DMDD
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.site import DMDDSite
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.metrics import pixel_auroc
from fedvad.evaluation.outline import outline_recall
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from tests.detectors.student import support

SHORT = replace(support.QUICK_ADAM, steps=4, batch=4)
DUAL = replace(support.DUAL, head_start_step=1)


def make(extractor: FeatureExtractor, **changes: Any) -> DMDD:
    plain = {"smooth": 1, "top": 0.0}
    options: dict[str, Any] = {"train": SHORT, "dual": DUAL, "seed": 3, **plain} | changes
    return DMDD(extractor=extractor, **options)


@pytest.fixture(scope="module")
def fitted(extractor: FeatureExtractor, images: ImageSet) -> DMDD:
    return make(extractor).fit(images)


def _moved(site: DMDDSite, start: dict[str, Any]) -> set[str]:
    now = parameters_of(site.student)
    return {n.split(".")[0] for n, a in now.items() if (a != start[n]).any()}


def test_training_moves_the_whole_student_and_nothing_of_the_teacher(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor).prepare(images)
    teacher = {n: t.clone() for n, t in site.net.teacher.state_dict().items()}
    start = parameters_of(site.student)
    log = site.train()
    assert log.steps == site.steps == 4
    assert _moved(site, start) == {"base", "decouplers", "head"}
    assert all(torch.equal(t, teacher[n]) for n, t in site.net.teacher.state_dict().items())
    assert all(p.grad is None for p in site.net.teacher.parameters())
    site.close()


def test_the_head_waits_for_its_step_over_all_trainings_of_a_site(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor, dual=replace(DUAL, head_start_step=6)).prepare(images)
    start = parameters_of(site.student)
    site.train()
    assert _moved(site, start) == {"base", "decouplers"}
    site.train()
    assert _moved(site, start) == {"base", "decouplers", "head"}
    site.close()


def test_the_head_waits_for_a_fifth_of_the_training_that_is_asked_for(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor, dual=replace(DUAL, head_start_step=None)).prepare(images)
    start = parameters_of(site.student)
    moved: list[set[str]] = []
    site.train(
        config=replace(SHORT, steps=10),
        on_step=lambda *_: moved.append(_moved(site, start)),
    )
    assert ["head" in parts for parts in moved] == [False] * 2 + [True] * 8
    site.close()


def test_the_head_has_a_rate_of_its_own(extractor: FeatureExtractor, images: ImageSet) -> None:
    site = make(extractor).prepare(images)
    optimiser = site.optimiser(SHORT)
    seen = []
    site.train(
        optimiser=optimiser,
        on_step=lambda *_: seen.append([g["lr"] for g in optimiser.param_groups]),
    )
    for step, rates in enumerate(seen, 1):
        np.testing.assert_allclose(rates, [SHORT.rate(step), SHORT.rate(step) / 5])
    site.dual = replace(DUAL, head_rate=None)
    assert len(site.optimiser(SHORT).param_groups) == 1
    site.close()


def test_held_out_images_are_neither_imitated_nor_damaged(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor, held_out=0.4).prepare(images)
    assert set(site.pool._sources.tolist()) == set(site._own.tolist())
    assert not set(site.paths) & set(site.unseen)
    site.close()


def test_fewer_pairs_than_images_leave_none_out(
    extractor: FeatureExtractor, images: ImageSet
) -> None:
    site = make(extractor, dual=replace(DUAL, pairs=1)).prepare(images)
    assert sorted(site.pool._sources.tolist()) == sorted(site._own.tolist())
    site.close()


def test_defects_too_small_for_a_level_are_reported(
    extractor: FeatureExtractor, images: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    drawing = SynthesisConfig(kinds={"scratch": 1.0}, area=(0.001, 0.001), min_pixels=2)
    few, images = replace(DUAL, pairs=2), images[:3]
    site = make(extractor, synthesis=drawing, dual=few).prepare(images)
    assert site.pool.masked()[1] == 0
    assert "level 1" in caplog.text
    site.close()
    kept = make(extractor, synthesis=drawing, dual=replace(few, mask="max")).prepare(images)
    assert all(kept.pool.masked())
    kept.close()


@pytest.mark.parametrize(("patience", "best"), [(None, 3), (5, 0)])
def test_a_patience_lets_held_out_normals_choose(
    patience: int | None,
    best: int,
    extractor: FeatureExtractor,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rising = iter(range(4))
    monkeypatch.setattr(DMDDSite, "validate", lambda site: float(next(rising)))
    train = replace(SHORT, patience=patience, validate_every=1)
    log = make(extractor, train=train).fit(images).log_
    assert log is not None
    assert (log.best, log.validation) == (best, [0, 1, 2, 3])


def test_sources_of_scores_share_one_trained_net(fitted: DMDD, images: ImageSet) -> None:
    found = {s: fitted.scoring_by(s) for s in ("seg", "maps", "mix")}  # type: ignore[arg-type]
    apart = fitted.maps(images.paths)
    assert fitted.parts_ is not None
    assert fitted.scales_ is not None
    raw = {
        "seg": apart.head,
        "maps": apart.normality + apart.abnormality,
        "mix": (apart.head / fitted.parts_["seg"] + apart.summed / fitted.parts_["maps"]) / 2,
    }
    for source, detector in found.items():
        assert detector.net_ is fitted.net_
        scores = detector.score(images.paths)
        np.testing.assert_allclose(
            scores.maps, raw[source] / fitted.scales_[source], rtol=1e-4, atol=1e-6
        )
    assert fitted.source == "seg"
    np.testing.assert_array_equal(
        found["seg"].score(images.paths).image, fitted.score(images.paths).image
    )


def test_smoothing_is_of_the_distances_alone(fitted: DMDD, images: ImageSet) -> None:
    paths = images.paths[:1]
    wide = {}
    for source in ("seg", "maps"):
        detector = fitted.scoring_by(source)  # type: ignore[arg-type]
        plain = detector.score(paths).maps
        detector.smooth = 5
        wide[source] = np.array_equal(detector.score(paths).maps, plain)
    assert wide == {"seg": True, "maps": False}


def test_all_maps_of_readable_images(fitted: DMDD, images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    found = fitted.maps([images.paths[0], tmp_path / "x.png", images.paths[1]])
    assert found.kept.tolist() == [0, 2]
    assert "x.png" in found.bad[0]
    for maps in (found.normality, found.abnormality, found.summed, found.head):
        assert maps.shape == (2, 16, 16)
        assert (maps >= 0).all()
    assert (found.head <= 1).all()
    assert fitted.maps([]).head.shape == (0, 16, 16)


def test_all_options_survive_a_file(
    extractor: FeatureExtractor, images: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / "t.png").write_bytes(images[0].path.read_bytes())
    detector = make(
        extractor,
        dual=DualConfig(
            student="encoder", layers=1, factor=0.5, aim="margin", margin=0.5, mask="max",
            aim_reference="paired", head_input="product", head_channels=4, joint=True,
            head_start_step=0, head_rate=None, pairs=5, anomaly_prob=0.7, self_weight=0.0,
        ),
        source="mix",
        synthesis=SynthesisConfig(kinds={"stain": 1.0}, area=(0.02, 0.1), foreground="otsu"),
        textures=tmp_path,
        layers=(1,),
        smooth=3,
    )  # fmt: skip
    detector.fit(images).save(tmp_path / "d.safetensors")
    loaded = DMDD.load(tmp_path / "d.safetensors", extractor=extractor)
    for name in ("dual", "source", "synthesis", "textures", "scales_", "parts_", "log_"):
        assert getattr(loaded, name) == getattr(detector, name), name
    assert loaded.state()[1] == detector.state()[1]
    json.dumps(detector.state()[1])
    found, expected = loaded.score(images.paths), detector.score(images.paths)
    np.testing.assert_array_equal(found.maps, expected.maps)
    np.testing.assert_array_equal(found.image, expected.image)


def test_a_file_without_all_scales_is_refused(fitted: DMDD, tmp_path: Path) -> None:
    from fedvad.detectors.artefact import read_arrays, write_arrays

    file = tmp_path / "d.safetensors"
    fitted.save(file)
    arrays, values = read_arrays(file)
    del values["values"]["scales"]["mix"]
    write_arrays(file, arrays, {k: v for k, v in values.items() if k not in ("schema", "version")})
    with pytest.raises(ArtefactError, match="damaged"):
        DMDD.load(file, extractor=fitted.extractor)


def test_both_engines_give_the_same_maps(tiny: Path, fitted: DMDD, images: ImageSet) -> None:
    compiled = FeatureExtractor(FeatureConfig(**support.options(tiny, engine="openvino")))
    other = DMDD.from_state(*fitted.state(), extractor=compiled)
    found, expected = other.maps(images.paths[:2]), fitted.maps(images.paths[:2])
    for name in ("normality", "abnormality", "head"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=2e-3, atol=1e-4
        )


def test_costs_count_both_branches_and_the_head(extractor: FeatureExtractor) -> None:
    one, wider = make(extractor), make(extractor, dual=replace(DUAL, head_channels=32))
    assert wider.macs() > one.macs() > 0
    assert wider.memory().parameters > one.memory().parameters


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"synthesis": SynthesisConfig(foreground=lambda image: image[..., 0] > 9)}, "otsu"),
        ({"synthesis": SynthesisConfig(source="textures")}, "folder"),
        ({"source": "head"}, "unknown source"),
        ({"layers": (7,)}, "layers"),
    ],
)
def test_impossible_options_are_reported_before_any_image_is_read(
    wrong: dict[str, Any], match: str, extractor: FeatureExtractor, images: ImageSet
) -> None:
    with pytest.raises(ConfigError, match=match):
        make(extractor, **wrong).fit(images)


def test_what_cannot_be_is_refused(extractor: FeatureExtractor, images: ImageSet) -> None:
    detector = make(extractor)
    for ask in (lambda: detector.maps(images.paths), lambda: detector.scoring_by("maps")):
        with pytest.raises(ConfigError, match="fit"):
            ask()
    site = detector.prepare(images)
    with pytest.raises(ConfigError, match="replay"):
        site.empty_like(3)
    site.close()


@pytest.mark.parametrize("algorithm", ["fedavg", "moon"])
def test_sites_average_their_students(
    algorithm: Any, extractor: FeatureExtractor, plants: Path
) -> None:
    detector = make(extractor, train=replace(SHORT, steps=2))
    sites = {n: detector.prepare(read_set(plants / n).train) for n in ("alder", "birch")}
    start = parameters_of(detector.starts()["student"])
    server = WeightExchange(
        features="f", initial=start, config=WeightConfig(algorithm), sites=len(sites)
    )
    members = {n: WeightSite(n, s, n_images=4, n_patches=64) for n, s in sites.items()}
    incoming = None
    for round_ in (1, 2):
        for member in members.values():
            server.accept(server.site_step(member, incoming, round_))
        incoming = server.merge(round_)
    assert incoming is not None
    weights = under("weight/", incoming.arrays)
    assert weights.keys() == start.keys()
    site = sites["birch"]
    load_parameters(site.student, weights)
    before = {n: b.clone() for n, b in site.student.named_buffers()}
    site.recalibrate_batch_norm()
    parts = {n.split(".")[0] for n, b in site.student.named_buffers() if (b != before[n]).any()}
    assert parts == {"base", "decouplers", "head"}  # all statistics are this site's
    scores = detector.with_net(site.net, site.unseen).score(site.unseen)
    assert np.median(scores.image) == pytest.approx(1, rel=1e-5)
    for each in sites.values():
        each.close()


def _toy(folder: Path) -> tuple[ImageSet, list[Path], Any]:
    """Normal images of soft stripes, tests with a square of another texture, and their masks."""
    rng = np.random.default_rng(0)
    x = np.arange(64)

    def drawn() -> Any:
        wave = 110 + 40 * np.sin(x / 6 + rng.uniform(0, 6))
        return wave[None] + rng.normal(0, 4, (64, 64))

    def write(name: str, pixels: Any) -> Path:
        rgb = np.repeat(pixels[..., None], 3, 2).clip(0, 255).astype(np.uint8)
        Image.fromarray(rgb).save(folder / name)
        return folder / name

    normal = [write(f"n{i}.png", drawn()) for i in range(8)]
    tests, masks = [], np.zeros((6, 64, 64), np.bool_)
    for i in range(6):
        wave = drawn()
        if i < 4:
            top, left = rng.integers(4, 36, 2)
            masks[i, top : top + 24, left : left + 24] = True
            wave[masks[i]] = 60 + rng.normal(0, 25, int(masks[i].sum()))
        tests.append(write(f"t{i}.png", wave))
    return ImageSet(tuple(ImageItem(p, 0, "good", None) for p in normal)), tests, masks


@pytest.mark.slow
def test_the_fusion_is_no_worse_than_the_better_map_on_squares(
    extractor: FeatureExtractor, tmp_path: Path
) -> None:
    from fedvad.detectors.scoring import upsample

    normal, tests, masks = _toy(tmp_path)
    train = replace(support.QUICK_ADAM, steps=40, batch=4)
    detector = make(extractor, train=train, dual=replace(DUAL, pairs=16, head_start_step=8))
    found = detector.fit(normal).maps(tests)
    area, recalls = {}, {}
    for name in ("normality", "abnormality", "head"):
        maps = upsample(getattr(found, name), (64, 64))
        area[name] = pixel_auroc(maps, masks)
        recalls[name] = outline_recall(maps, masks, width=4)
    assert area["head"] >= max(area["normality"], area["abnormality"]) - 0.02, area  # type: ignore[type-var, operator]
    for name, recall in recalls.items():
        assert recall is not None
        assert recall.centre is not None, name
        assert recall.ring is not None, name
        assert recall.centre >= 0.8, name
        assert 0.5 <= recall.ring <= 1, name
