"""What every registered detector promises."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from fedvad.data.folders import ImageItem, ImageSet, read_set
from fedvad.data.images import read_rgb, resize_rgb
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.base import Detector
from fedvad.detectors.memory.feddymem import FedDyMem, PatchCore
from fedvad.detectors.registry import create, detector_class, list_detectors
from fedvad.detectors.student.training import TrainConfig
from fedvad.errors import ArtefactError, ConfigError, DataError, MismatchError, StorageError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.serving.export.check import compare as compare_export
from fedvad.serving.export.check import opened
from fedvad.serving.export.graph import export_net
from fedvad.serving.predictor import Predictor
from tests.detectors.student import support
from tests.helpers import OPTIONS, SIZE

ALL = list_detectors()
# students need a backbone with layers of its own, and shall not train for long here
STUDENTS: dict[str, dict[str, Any]] = {
    **{name: {"train": support.QUICK} for name in list_detectors(family="student")},
    "amsl": {"train": support.QUICK_ADAM, "memories": support.MEMORIES},
    "daad": {"train": support.QUICK_ADAM, "blocks": support.BLOCKS},
    "rd": {"train": support.QUICK_ADAM},
    "aand": {
        "train": support.QUICK_ADAM,
        "stage1": replace(support.QUICK_ADAM, steps=8),
        "amplify": support.AMPLIFY,
    },
    "dmdd": {"train": support.QUICK_ADAM, "dual": support.DUAL},
}


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options of the feature configuration that each detector is tested with."""
    weights = support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return {n: support.options(weights) if n in STUDENTS else OPTIONS for n in ALL}


@pytest.fixture(scope="session")
def extractors(
    features: dict[str, dict[str, Any]], shared_cache: Path
) -> dict[str, FeatureExtractor]:
    cache = DescriptorCache(shared_cache)
    memory = FeatureExtractor(FeatureConfig(**OPTIONS), cache)
    student = FeatureExtractor(FeatureConfig(**features["stfpm"]), cache)
    return {n: student if n in STUDENTS else memory for n in ALL}


@pytest.fixture
def extractor(
    request: pytest.FixtureRequest, extractors: dict[str, FeatureExtractor]
) -> FeatureExtractor:
    """The extractor of the detector under test."""
    found = getattr(request.node, "callspec", None)
    return extractors[found.params["name"] if found else "patchcore"]


def make(name: str, **options: Any) -> Detector:
    return create(name, **STUDENTS.get(name, {}) | options)


def brief(name: str, **options: Any) -> Detector:
    """One that trains for a few steps: enough where no score matters."""
    short = {
        option: replace(value, epochs=6, steps=None) if isinstance(value, TrainConfig) else value
        for option, value in STUDENTS.get(name, {}).items()
    }
    return create(name, **short | options)


@pytest.fixture(scope="session")
def images(plants: Path) -> ImageSet:
    return read_set(plants / "alder").train


@pytest.fixture(scope="session")
def tests(plants: Path) -> ImageSet:
    return read_set(plants / "alder").test


class Fitted(dict[str, Detector]):
    """Each detector, fitted when it is first asked for."""

    def __init__(self, fit: Callable[[str], Detector]) -> None:
        self.fit = fit

    def __missing__(self, name: str) -> Detector:
        self[name] = self.fit(name)
        return self[name]


@pytest.fixture(scope="session")
def fitted(extractors: dict[str, FeatureExtractor], images: ImageSet) -> Fitted:
    return Fitted(lambda name: make(name, extractor=extractors[name], seed=3).fit(images))


@pytest.fixture(scope="session")
def briefly(extractors: dict[str, FeatureExtractor], images: ImageSet) -> Fitted:
    return Fitted(lambda name: brief(name, extractor=extractors[name], seed=3).fit(images))


def _broken(images: ImageSet, folder: Path) -> ImageSet:
    """The images with a damaged one in second place."""
    path = folder / "broken.png"
    path.write_bytes(images[0].path.read_bytes()[:200])
    return images[:1] + ImageSet((ImageItem(path, 0, "good", None),)) + images[1:]


def test_the_registry_knows_the_methods_and_refuses_others(extractor: FeatureExtractor) -> None:
    assert set(ALL) >= {"feddymem", "patchcore", "stfpm", "paste", "dcam", "rd", "aand", "dmdd"}
    assert list_detectors("fed*") == ["feddymem"]
    with pytest.raises(ConfigError, match="patchcore"):
        create("patchkern", extractor=extractor)


@pytest.mark.parametrize("name", ALL)
class TestEveryDetector:
    def test_scores_have_one_value_and_one_map_per_image(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet
    ) -> None:
        seen: list[int] = []
        scores = fitted[name].score(tests.paths, lambda: seen.append(1))
        height, width, _ = fitted[name].extractor.grid
        assert scores.image.shape == (len(tests),)
        assert scores.image.dtype == np.float64
        assert scores.maps.shape == (len(tests), height, width)
        assert scores.maps.dtype == np.float32
        assert np.isfinite(scores.image).all()
        assert np.isfinite(scores.maps).all()
        assert (scores.maps >= 0).all()
        assert scores.kept.tolist() == list(range(len(tests)))
        assert scores.bad == ()
        assert len(seen) == len(tests)

    def test_an_image_scores_alike_alone_and_among_others(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet
    ) -> None:
        together = fitted[name].score(tests.paths)
        alone = fitted[name].score(tests.paths[2:3])
        assert alone.image[0] == together.image[2]
        np.testing.assert_array_equal(alone.maps[0], together.maps[2])

    def test_an_obvious_defect_scores_higher_and_is_found(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet, tmp_path: Path
    ) -> None:
        normal = tests.paths[0]
        pixels = np.array(Image.open(normal).convert("RGB"))
        pixels[8:24, 32:48] = (255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "scarred.png")
        scores = fitted[name].score([normal, tmp_path / "scarred.png"])
        assert scores.image[1] > 1.5 * scores.image[0]
        row, column = np.unravel_index(scores.maps[1].argmax(), scores.maps[1].shape)
        cells = SIZE // scores.maps.shape[1]
        assert 8 <= (row + 0.5) * cells <= 24
        assert 32 <= (column + 0.5) * cells <= 48

    def test_training_images_score_lower_than_unseen_normals(
        self, name: str, fitted: dict[str, Detector], images: ImageSet, tests: ImageSet
    ) -> None:
        if name in STUDENTS:  # a student that generalises scores both alike
            return
        own = fitted[name].score(images.paths).image
        unseen = fitted[name].score([i.path for i in tests if i.label == 0]).image
        assert own.mean() < unseen.mean()

    def test_save_and_load_give_exactly_the_same_scores(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet, tmp_path: Path
    ) -> None:
        file = tmp_path / "deep" / "detector.safetensors"
        fitted[name].save(file)
        loaded = detector_class(name).load(file, extractor=fitted[name].extractor)
        assert type(loaded) is detector_class(name)
        assert loaded.seed == fitted[name].seed
        before, after = fitted[name].score(tests.paths), loaded.score(tests.paths)
        np.testing.assert_array_equal(before.image, after.image)
        np.testing.assert_array_equal(before.maps, after.maps)

    def test_pixels_score_as_their_file_does(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet
    ) -> None:
        paths = tests.paths[:2]
        pixels = np.stack([resize_rgb(read_rgb(path), SIZE) for path in paths])
        reported = fitted[name].score(paths)
        found = list(fitted[name].score_pixels(pixels))
        assert [score for score, _ in found] == reported.image.tolist()
        np.testing.assert_array_equal(np.stack([map_ for _, map_ in found]), reported.maps)

    def test_it_can_be_served(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet
    ) -> None:
        wanted = fitted[name].score(tests.paths[:3])
        limit = Threshold(float(np.median(wanted.image)), 9, "given", 0.1)
        with Predictor(fitted[name], limit) as predictor:
            found = predictor.predict(tests.paths[:3])
        assert [item.score for item in found] == wanted.image.tolist()
        assert [item.anomalous for item in found] == (wanted.image > limit.value).tolist()
        assert found[0].map is not None
        np.testing.assert_array_equal(found[0].map, wanted.maps[0])

    @pytest.mark.parametrize("format", ["onnx", "openvino"])
    def test_it_can_be_exported(
        self, name: str, format: str, fitted: dict[str, Detector], tests: ImageSet
    ) -> None:
        if format == "onnx":
            pytest.importorskip("onnx")
            pytest.importorskip("onnxruntime")
        backend = import_module(f"fedvad.serving.export.{format}")
        detector, paths = fitted[name], tests.paths[:3]
        wanted = detector.score(paths)
        limit = float(np.median(wanted.image))
        pixels = np.stack([resize_rgb(read_rgb(path), SIZE) for path in paths])
        model = backend.build(export_net(detector, limit), (SIZE, SIZE))
        file = next(f"model{suffix}" for suffix in backend.files(model) if suffix != ".bin")
        contents = {f"model{suffix}": data for suffix, data in backend.files(model).items()}
        with opened(backend.load, contents, file) as run:
            scores, maps, anomalous = run(pixels)
            found = compare_export(run, detector, limit, [pixels])
        np.testing.assert_allclose(scores, wanted.image, rtol=1e-3)
        assert np.abs(maps - wanted.maps).max() < 1e-3 * wanted.maps.max()
        assert (
            anomalous[np.abs(wanted.image / limit - 1) > 1e-3].tolist()
            == (wanted.image > limit)[np.abs(wanted.image / limit - 1) > 1e-3].tolist()
        )
        assert found.score < 1e-3
        assert detector.facts()["scoring"]

    def test_a_seed_determines_everything(
        self, name: str, extractor: FeatureExtractor, briefly: Fitted, images: ImageSet
    ) -> None:
        arrays, values = briefly[name].state()
        again, same = brief(name, extractor=extractor, seed=3).fit(images).state()
        other, _ = brief(name, extractor=extractor, seed=4).fit(images).state()
        assert values == same
        assert arrays.keys() == again.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, again[key])
        differs = any(not np.array_equal(other[key], array) for key, array in arrays.items())
        assert differs == detector_class(name).random

    def test_before_fit_nothing_can_be_scored_or_saved(
        self, name: str, extractor: FeatureExtractor, tests: ImageSet, tmp_path: Path
    ) -> None:
        detector = make(name, extractor=extractor)
        with pytest.raises(ConfigError, match="fit"):
            detector.score(tests.paths)
        with pytest.raises(ConfigError, match="fit"):
            Predictor(detector, None)
        with pytest.raises(ConfigError, match="fit"):
            detector.save(tmp_path / "nothing.safetensors")
        assert list(tmp_path.iterdir()) == []

    def test_the_constructor_only_stores(self, name: str) -> None:
        nobody = cast(FeatureExtractor, object())  # would fail at the first touch
        cls = detector_class(name)
        detector = create(name, extractor=nobody, seed=7)
        assert detector.extractor is nobody
        assert detector.seed == 7
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            assert parameter.kind is parameter.KEYWORD_ONLY
            stored = getattr(detector, parameter.name)
            if parameter.name not in ("extractor", "seed") and parameter.default is not None:
                assert stored == parameter.default
        learned = [k for k in vars(detector) if k.endswith("_")]
        assert learned
        assert all(getattr(detector, k) is None for k in learned)

    def test_unreadable_images_are_skipped_up_to_a_limit(
        self,
        name: str,
        extractor: FeatureExtractor,
        briefly: Fitted,
        images: ImageSet,
        tmp_path: Path,
    ) -> None:
        mixed = _broken(images, tmp_path)
        with pytest.raises(DataError, match=r"broken\.png"):
            make(name, extractor=extractor).fit(mixed)
        tolerant = brief(name, extractor=extractor, seed=3, max_bad=0.2)
        arrays, _ = tolerant.fit(mixed).state()
        for key, array in briefly[name].state()[0].items():
            np.testing.assert_array_equal(array, arrays[key])

    def test_unreadable_images_get_no_score(
        self, name: str, fitted: dict[str, Detector], tests: ImageSet, tmp_path: Path
    ) -> None:
        mixed = _broken(tests, tmp_path)
        scores = fitted[name].score(mixed.paths)
        assert scores.kept.tolist() == [0, *range(2, len(mixed))]
        assert len(scores.bad) == 1
        assert "broken.png" in scores.bad[0]
        np.testing.assert_array_equal(scores.image, fitted[name].score(tests.paths).image)
        nothing = fitted[name].score(mixed.paths[1:2])
        assert nothing.image.shape == nothing.kept.shape == (0,)
        assert nothing.maps.shape == (0, *fitted[name].extractor.grid[:2])

    def test_no_normal_image_is_an_error(
        self, name: str, extractor: FeatureExtractor, tests: ImageSet
    ) -> None:
        with pytest.raises(DataError, match="normal"):
            make(name, extractor=extractor).fit(ImageSet(()))
        anomalies = ImageSet(tuple(item for item in tests if item.label))
        with pytest.raises(DataError, match="normal"):
            make(name, extractor=extractor).fit(anomalies)

    def test_anomalous_images_are_not_learned(
        self,
        name: str,
        extractor: FeatureExtractor,
        briefly: Fitted,
        images: ImageSet,
        tests: ImageSet,
    ) -> None:
        anomalies = ImageSet(tuple(item for item in tests if item.label))
        arrays, _ = brief(name, extractor=extractor, seed=3).fit(images + anomalies).state()
        for key, array in briefly[name].state()[0].items():
            np.testing.assert_array_equal(array, arrays[key])

    def test_one_image_is_enough(
        self, name: str, extractor: FeatureExtractor, images: ImageSet, tests: ImageSet
    ) -> None:
        scores = brief(name, extractor=extractor).fit(images[:1]).score(tests.paths)
        assert np.isfinite(scores.image).all()

    @pytest.mark.parametrize("change", [{"image_size": 96}, {"pool": 1}, {"layers": (0, 1)}])
    def test_other_features_are_refused_by_name(
        self,
        name: str,
        change: dict[str, Any],
        features: dict[str, dict[str, Any]],
        fitted: dict[str, Detector],
        tmp_path: Path,
    ) -> None:
        fitted[name].save(tmp_path / "d.safetensors")
        options = features[name] | change
        other = FeatureExtractor(FeatureConfig(**options))
        with pytest.raises(MismatchError, match=next(iter(change))):
            detector_class(name).load(tmp_path / "d.safetensors", extractor=other)

    def test_a_file_that_is_not_sound_is_refused(
        self, name: str, fitted: dict[str, Detector], tmp_path: Path
    ) -> None:
        good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
        fitted[name].save(good)
        data = good.read_bytes()
        arrays, values = read_arrays(good)

        def load() -> Detector:
            return detector_class(name).load(bad, extractor=fitted[name].extractor)

        with pytest.raises(ArtefactError, match="does not exist"):
            load()
        for damaged in (b"", data[:7], data[: len(data) // 2], data[:-1], b"\xff" * 64, b"PK" * 99):
            bad.write_bytes(damaged)
            with pytest.raises(ArtefactError, match=r"bad\.safetensors"):
                load()
        for foreign in (
            values | {"schema": 99},
            values | {"kind": "run"},
            {k: v for k, v in values.items() if k != "features"},
            {k: v for k, v in values.items() if k != "values"},
        ):
            write_arrays(bad, arrays, {k: v for k, v in foreign.items() if k != "version"})
            with pytest.raises(ArtefactError, match=r"bad\.safetensors"):
                load()
        first = "bank/vectors" if "bank/vectors" in arrays else next(iter(arrays))
        damage = [
            {k: v for k, v in arrays.items() if k != first},
            arrays | {first: arrays[first][1:]},
            arrays | {first: arrays[first] * np.float32("nan")},
        ]
        if "bank/weights" in arrays:
            damage.append(arrays | {"bank/weights": -arrays["bank/weights"]})
        for broken in damage:
            write_arrays(bad, broken, values)
            with pytest.raises(ArtefactError, match=r"bad\.safetensors"):
                load()

    def test_a_foreign_safetensors_file_is_refused(
        self, name: str, fitted: dict[str, Detector], tmp_path: Path
    ) -> None:
        from safetensors.numpy import save_file

        save_file({"x": np.ones(3)}, tmp_path / "x.safetensors")
        with pytest.raises(ArtefactError, match="not one of fedvad's"):
            detector_class(name).load(tmp_path / "x.safetensors", extractor=fitted[name].extractor)

    def test_a_disk_that_refuses_is_a_storage_error_and_keeps_the_old_file(
        self,
        name: str,
        fitted: dict[str, Detector],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        file = tmp_path / "d.safetensors"
        fitted[name].save(file)
        before = file.read_bytes()

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            fitted[name].save(file)
        assert file.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_loading_as_another_kind_is_refused(fitted: dict[str, Detector], tmp_path: Path) -> None:
    fitted["patchcore"].save(tmp_path / "p.safetensors")
    extractor = fitted["patchcore"].extractor
    with pytest.raises(ConfigError, match="patchcore"):
        FedDyMem.load(tmp_path / "p.safetensors", extractor=extractor)
    assert isinstance(Detector.load(tmp_path / "p.safetensors", extractor=extractor), PatchCore)


def test_images_that_vanish_between_passes_are_reported(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    from fedvad.detectors.base import NormalFeatures

    shutil.copytree(plants / "alder" / "train", tmp_path / "train")
    config = FeatureConfig(**OPTIONS)
    extractor = FeatureExtractor(config, DescriptorCache(shared_cache))
    paths = sorted((tmp_path / "train").rglob("*.png"))
    features = NormalFeatures(extractor, paths, max_bad=0, where="alder")
    features.warm_up()
    assert len(list(features)) == len(features) == len(paths)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"vanished.*002\.png"):
        list(features)
