"""Runs that nobody trained: every wrong number, name, width and reference is refused by name."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.memory.generator import Generator
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.memory.bank import MemoryBank
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_config, read_ledger, read_results
from fedvad.serving.predictor import Predictor
from tests.helpers import OPTIONS, run_main

Trained = tuple[Path, dict[str, Any]]
Values = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]
GOLDEN = Path(__file__).parents[1] / "golden"
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    target = tmp_path / "run"
    target.mkdir()
    for name in ("config.json", "detector.safetensors"):
        shutil.copy(trained[0] / name, target)
    return target


def _site(i: int, **changes: Any) -> Callable[[Values], None]:
    return lambda values: values["sites"][i].update(changes)


def _limit(**changes: Any) -> Callable[[Values], None]:
    return lambda values: values["sites"][0]["thresholds"]["global"].update(changes)


def _top(**changes: Any) -> Callable[[Values], None]:
    return lambda values: values.update(changes)


VALUES: dict[str, Callable[[Values], None]] = {
    "two sites of one name": _site(1, name="alder"),
    "no name": _site(0, name=""),
    "a name that is a number": _site(0, name=7),
    "negative images": _site(0, n_images=-1),
    "half an image": _site(0, n_images=1.5),
    "another generator": _site(0, generator=None),
    "thresholds as a list": _site(0, thresholds=[1.0]),
    "threshold of an unknown reference": _site(0, thresholds={"evil": {}}),
    "threshold NaN": _limit(value=NAN),
    "threshold infinite": _limit(value=INF),
    "threshold minus infinite": _limit(value=-INF),
    "threshold a list": _limit(value=[2.0]),
    "threshold text": _limit(value="2.0"),
    "threshold true": _limit(value=True),
    "threshold null": _limit(value=None),
    "threshold beyond floats": _limit(value=10**400),
    "scores NaN": _limit(scores=[NAN]),
    "scores text": _limit(scores="12"),
    "images of a threshold": _limit(n=-3),
    "rate of a threshold": _limit(target_fpr=7),
    "unknown field of a threshold": _limit(what=1),
    "reference evil": _top(reference="evil"),
    "reference Global": _top(reference="Global"),
    "unknown method": _top(method="evil"),
    "map evil": lambda values: values["scoring"].update(map="evil"),
    "top NaN": lambda values: values["scoring"].update(top=NAN),
    "top true": lambda values: values["scoring"].update(top=True),
    "smooth even": lambda values: values["scoring"].update(smooth=4),
    "scoring a list": _top(scoring=[]),
    "layers text": lambda values: values["features"].update(layers="12"),
    "image size text": lambda values: values["features"].update(image_size="64"),
    "image size negative": lambda values: values["features"].update(image_size=-64),
    "no sites": _top(sites=None),
    "sites a table": _top(sites={}),
    "unknown field": _top(what=1),
    "data a number": _top(data=1),
}


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_refused_in_one_line(change: Callable[[Values], None], run: Path) -> None:
    file = run / "detector.safetensors"
    arrays, values = read_arrays(file)
    change(values)
    write_arrays(file, arrays, values)
    with pytest.raises(ArtefactError, match=r"detector\.safetensors") as caught:
        TrainedRun.load(run)
    assert "\n" not in str(caught.value)


def _renamed(arrays: Arrays) -> None:
    arrays["site9/vectors"] = arrays.pop("site1/vectors")


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[Arrays], None]:
    def apply(arrays: Arrays) -> None:
        arrays[name] = change(arrays[name])

    return apply


def _diverged(arrays: Arrays) -> None:
    dim = arrays["global/vectors"].shape[1]
    arrays["site0/generator/weight"] = np.full((dim, dim), NAN, np.float32)
    arrays["site0/generator/bias"] = np.zeros(dim, np.float32)


def _another_generator(arrays: Arrays) -> None:
    dim = arrays["global/vectors"].shape[1]
    arrays["site0/generator/weight"] = np.eye(dim, dtype=np.float32)
    arrays["site0/generator/bias"] = np.zeros(dim, np.float32)


ARRAYS: dict[str, Callable[[Arrays], None]] = {
    "another width at a site": _set("site0/vectors", lambda a: a[:, :-1]),
    "another width of the global memory": _set("global/vectors", lambda a: a[:, :-1]),
    "infinite vectors": _set("global/vectors", lambda a: np.full_like(a, INF)),
    "NaN in a spread": _set("site1/spread", lambda a: a * np.float32(NAN)),
    "negative weights": _set("global/weights", lambda a: -a),
    "weights of zero": _set("global/weights", lambda a: 0 * a),
    "vectors of integers": _set("site0/vectors", lambda a: a.astype(np.int32)),
    "vectors of booleans": _set("site0/vectors", lambda a: a > 0),
    "one axis": _set("global/vectors", lambda a: a.reshape(-1)),
    "other rows": _set("site0/spread", lambda a: a[1:]),
    "an array of no site": _renamed,
    "a generator of NaN": _diverged,
    "a generator of another hash": _another_generator,
    "scales of zero": _set("global/scale", lambda a: 0 * a),
    "negative scales": _set("global/scale", lambda a: -a),
    "scales of other rows": _set("global/scale", lambda a: a[1:]),
}


@pytest.mark.parametrize("change", ARRAYS.values(), ids=ARRAYS.keys())
def test_a_wrong_array_is_refused_in_one_line(change: Callable[[Arrays], None], run: Path) -> None:
    file = run / "detector.safetensors"
    arrays, values = read_arrays(file)
    change(arrays)
    write_arrays(file, arrays, values)
    with pytest.raises(ArtefactError, match=r"detector\.safetensors") as caught:
        TrainedRun.load(run)
    assert "\n" not in str(caught.value)


def test_vectors_of_another_width_everywhere_are_refused(run: Path, plants: Path) -> None:
    file = run / "detector.safetensors"
    arrays, values = read_arrays(file)
    narrow = {n: a[:, :-1] if n.endswith("/vectors") else a for n, a in arrays.items()}
    write_arrays(file, narrow, values)
    with pytest.raises(ArtefactError, match="values a row"):
        next(fedvad.predict(run, plants / "alder/test/good"))


def _header(text: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text


DEEP = b"[" * 100_000 + b"]" * 100_000
HEADERS = {
    "nested deeply": _header(b'{"__metadata__": ' + DEEP + b"}"),
    "values nested deeply": _header(
        b'{"__metadata__": {"fedvad": "{\\"schema\\": 1, \\"a\\": ' + DEEP + b'}"}}'
    ),
    "a key twice": _header(b'{"__metadata__": {}, "__metadata__": {}}'),
    "claims to be huge": _header(b"{}", 1 << 60),
    "huge": _header(b" " * (1 << 20), (1 << 26) + 1),
    "an endless integer": _header(b'{"a": ' + b"9" * 5000 + b"}"),
    "no text": _header(b"\xff\xfe" * 20),
    "a list": _header(b"[]"),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS.keys())
def test_an_absurd_header_is_an_artefact_error(data: bytes, run: Path) -> None:
    (run / "detector.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"detector\.safetensors"):
        TrainedRun.load(run)


def test_the_command_says_it_in_one_line_with_exit_code_3(
    run: Path, plants: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "detector.safetensors"
    arrays, values = read_arrays(file)
    values["reference"] = "evil"
    write_arrays(file, arrays, values)
    assert run_main(monkeypatch, "predict", run, plants / "alder/test/good") == 3
    shown = capsys.readouterr().err
    assert "reference" in shown
    assert "Traceback" not in shown


@pytest.fixture
def loaded(trained: Trained) -> tuple[TrainedRun, FeatureExtractor]:
    return TrainedRun.load(trained[0]), FeatureExtractor(FeatureConfig(**OPTIONS))


class TestNoDecisionWithoutNumbers:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_of_a_threshold(
        self, value: float, loaded: tuple[TrainedRun, FeatureExtractor]
    ) -> None:
        run, extractor = loaded
        limit = Threshold(value, 9, "conformal", 0.01)
        with pytest.raises(ArtefactError, match="threshold"):
            Predictor(run.detector("alder", extractor), limit)

    def test_of_a_generator_that_overflows(
        self, loaded: tuple[TrainedRun, FeatureExtractor], plants: Path, run: Path
    ) -> None:
        trained, extractor = loaded
        dim = trained.memory.dim
        huge = Generator(np.full((dim, dim), 3e38, np.float32), np.zeros(dim, np.float32))
        spoilt = replace(trained.sites["alder"], generator=huge)
        broken = replace(trained, sites=trained.sites | {"alder": spoilt})
        defects = sorted((plants / "alder/test").glob("*/*.png"))[:2]
        with pytest.raises(ArtefactError, match="beyond float32"):
            broken.detector("alder", extractor).score(defects)
        broken.save(run)
        with Predictor.load(run, site="alder") as predictor, pytest.raises(ArtefactError):
            predictor.predict(defects)
        with pytest.raises(ArtefactError):
            list(fedvad.predict(run, plants / "alder/test", site="alder"))

    def test_of_a_score(
        self,
        loaded: tuple[TrainedRun, FeatureExtractor],
        plants: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run, extractor = loaded
        monkeypatch.setattr("fedvad.detectors.scoring.mean_of_highest", lambda map_, count: NAN)
        images = sorted((plants / "alder/test/good").glob("*.png"))[:1]
        detector = run.detector("alder", extractor)
        with pytest.raises(ArtefactError, match=rf"{images[0].name}.*nan"):
            detector.score(images)
        with Predictor(detector, run.threshold("alder")) as predictor:
            (reported,) = predictor.predict(images)
        assert reported.anomalous is reported.score is reported.map is None
        assert "no finite number" in str(reported.error)


def test_a_memory_beyond_float16_but_finite_still_loads(
    loaded: tuple[TrainedRun, FeatureExtractor], run: Path
) -> None:
    trained, _ = loaded
    bank = trained.memory
    large = MemoryBank(bank.vectors * 1e6, bank.weights, bank.spread)
    replace(trained, memory=large).save(run)
    assert float(TrainedRun.load(run).memory.vectors.max()) > 65520


class TestFilesOfEarlierVersions:
    """Written before files carried digests; see tests/golden."""

    FOLDER = GOLDEN / "run-without-digests"

    def test_a_run(self) -> None:
        run = TrainedRun.load(self.FOLDER)
        assert set(run.sites) == {"alder", "birch"}
        assert run.method == "feddymem-trained"
        assert len(run.memory) == 12
        assert float(run.memory.vectors.sum()) == pytest.approx(154.46289, rel=1e-6)
        alder = run.sites["alder"]
        assert not alder.generator.is_identity
        assert alder.thresholds["global"].value == pytest.approx(0.9422782191070993)
        assert alder.thresholds["global"].n == 4
        assert read_config(self.FOLDER).image_size == 64
        assert len(read_ledger(self.FOLDER).rounds) == 2
        assert read_results(self.FOLDER)["method"] == "feddymem-trained"

    def test_saved_again_it_is_the_same_with_a_digest(self, tmp_path: Path) -> None:
        TrainedRun.load(self.FOLDER).save(tmp_path)
        before, after = (read_arrays(f / "detector.safetensors") for f in (self.FOLDER, tmp_path))
        before[1]["scoring"] |= {  # what it scored without, by name
            "density": 0.0, "map_density": 1.0, "finer_map": False, "density_neighbours": 5,
            "top_cells": 1 << 30,
        }  # fmt: skip
        assert before[1] == after[1]
        for name, array in before[0].items():
            np.testing.assert_array_equal(array, after[0][name])
        assert b"digest" in (tmp_path / "detector.safetensors").read_bytes()[:64]

    def test_the_state_of_an_interrupted_run(self, tmp_path: Path) -> None:
        from fedvad.federation.mailboxes.state import load_state

        folder = tmp_path / "state"
        shutil.copytree(GOLDEN / "state-without-digests", folder)
        state = load_state(folder)
        assert state is not None
        assert state.round == 2
        assert set(state.sites) == set(state.server) == {"alder", "birch"}
        assert len(state.ledger.rounds) == 2
        (folder / "round-0002").rename(folder / "round-0001")
        with pytest.raises(ArtefactError, match="renamed"):
            load_state(folder)


def test_an_unknown_reference_is_no_union(loaded: tuple[TrainedRun, FeatureExtractor]) -> None:
    run, extractor = loaded
    for wanted in ("evil", "Global", ""):
        with pytest.raises(ConfigError, match="unknown reference"):
            run.detector("alder", extractor, wanted)  # type: ignore[arg-type]


class TestRunsOfStudents:
    """Made of arrays alone: what is checked needs no student that learned."""

    def _write(self, folder: Path, **changes: Any) -> Path:
        site = {"n_images": 4, "own": {"scale": 1.0}, "thresholds": {}}
        values = {
            "kind": "student run",
            "method": "stfpm",
            "data": "",
            "features": FeatureConfig(layers=(0,)).identity(),
            "student": {"seed": 0},
            "sites": [{"name": "a", **site}, {"name": "b", **site}],
        }
        arrays = {"student/w": np.ones(3, np.float32)}
        arrays |= {f"site{i}/buffers/m": np.ones(2, np.float32) for i in range(2)}
        write_arrays(
            folder / "detector.safetensors",
            arrays | changes.pop("arrays", {}),
            values | changes,
        )
        return folder

    def test_a_sound_one_loads(self, tmp_path: Path) -> None:
        run = Run.load(self._write(tmp_path))
        assert set(run.sites) == {"a", "b"}

    @pytest.mark.parametrize(
        "changes",
        [
            {"sites": []},
            {"sites": [{"name": "a", "n_images": 1, "own": {"scale": NAN}, "thresholds": {}}] * 2},
            {"sites": [{"name": "a", "n_images": 1, "own": {"scale": 1.0}, "thresholds": {}}] * 2},
            {"student": {"seed": INF}},
            {"student": None},
            {"method": "evil"},
            {"arrays": {"student/w": np.full(3, NAN, np.float32)}},
            {"arrays": {"site1/buffers/m": np.ones(3, np.float32)}},
            {"arrays": {"site7/buffers/m": np.ones(2, np.float32)}},
        ],
    )
    def test_a_wrong_one_is_refused(self, changes: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"detector\.safetensors"):
            Run.load(self._write(tmp_path, **changes))


def test_losses_and_generator_states_of_a_training_come_back(tmp_path: Path) -> None:
    values = {"best": INF, "state": 2**128 - 1, "losses": [NAN, -INF]}
    write_arrays(tmp_path / "x.safetensors", {"a": np.ones(2)}, values)
    found = read_arrays(tmp_path / "x.safetensors")[1]
    assert (found["best"], found["state"], found["losses"][1]) == (INF, 2**128 - 1, -INF)
    assert np.isnan(found["losses"][0])
