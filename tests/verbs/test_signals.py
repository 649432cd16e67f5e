"""`signals`: odd windows are found by sites that learn together, and files are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

import fedvad
from fedvad.cli.main import app
from fedvad.data.signals import read_signal_sites
from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.amsl.signals import SignalMemories, SignalModel
from fedvad.detectors.student.parameters import parameters_of
from fedvad.detectors.student.training import TrainConfig
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.verbs.signals import SignalResult, score_signals, train_signals

SMALL = MemoriesConfig(items=10, channels=(8, 12))


def waves(count: int, rng: np.random.Generator, *, odd: bool = False) -> npt.NDArray[np.float32]:
    """Three channels of one wave; odd ones have a burst of noise."""
    time = np.linspace(0, 4 * np.pi, 30)
    phase = rng.uniform(0, 0.5, (count, 1, 1))
    found = np.sin(time + phase + np.arange(3)[:, None]) + rng.normal(0, 0.05, (count, 3, 30))
    if odd:
        found[:, :, 10:18] += rng.normal(0, 2, (count, 3, 8))
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("signals"), np.random.default_rng(0)
    for name in ("east", "west"):
        (root / name).mkdir()
        np.save(root / name / "train.npy", waves(24, rng))
        np.save(root / name / "test.npy", np.concatenate([waves(8, rng), waves(8, rng, odd=True)]))
        np.save(root / name / "labels.npy", np.repeat([0, 1], 8))
    return root


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SignalResult]]:
    out = tmp_path_factory.mktemp("out")
    return out, train_signals(data, out, rounds=2, steps=15, memories=SMALL)


def test_odd_windows_score_higher_at_every_site(found: tuple[Path, list[SignalResult]]) -> None:
    for result in found[1]:
        assert result.auroc is not None
        assert result.auroc > 0.95
        assert result.f1 is not None
        assert result.f1 > 0.8


def test_sites_end_with_one_net_and_scales_of_their_own(
    found: tuple[Path, list[SignalResult]],
) -> None:
    east, west = (result.model for result in found[1])
    for name, array in parameters_of(east.net).items():
        np.testing.assert_array_equal(array, parameters_of(west.net)[name])
    assert (east.mean != west.mean).all()


def test_a_score_is_the_sum_over_the_views_of_the_mean_squared_error(
    found: tuple[Path, list[SignalResult]], data: Path
) -> None:
    model = found[1][0].model
    windows = np.load(data / "east/test.npy")[:3]
    scaled = (windows - model.mean[:, None]) / model.spread[:, None]
    assert model.inputs(windows)[1, 0, 7, 2] == pytest.approx(scaled[1, 2, 7])
    answer = model.net.answer(model.inputs(windows))
    pairs = zip(answer.views, answer.rebuilt, strict=True)
    wanted = sum(((v - r).detach().numpy() ** 2).mean((1, 2, 3)) for v, r in pairs)
    np.testing.assert_allclose(model.score(windows), wanted, rtol=1e-5)


def test_a_model_of_a_file_scores_the_same(
    found: tuple[Path, list[SignalResult]], data: Path
) -> None:
    out, (east, _) = found
    loaded = SignalModel.load(out / "east.safetensors")
    np.testing.assert_array_equal(loaded.score(np.load(data / "east/test.npy")), east.scores)
    assert loaded.threshold == east.model.threshold
    assert json.loads((out / "signals.json").read_text())[1]["auroc"] == found[1][1].auroc
    (out / "bad.safetensors").write_bytes((out / "east.safetensors").read_bytes()[:-8])
    with pytest.raises(ArtefactError):
        SignalModel.load(out / "bad.safetensors")


def test_the_command_and_python_say_the_same(data: Path, tmp_path: Path) -> None:
    words = ["signals", str(data), "--rounds", "1", "--steps", "1", "--seed", "3", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    again = fedvad.train_signals(data, rounds=1, steps=1, seed=3)
    assert json.loads(done.stdout) == [result.to_dict() for result in again]
    done = CliRunner().invoke(app, [*words[:-1], "--out", str(tmp_path / "odd")])
    assert f"a model of each site: {tmp_path / 'odd'}" in done.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("train.npy", np.zeros((4, 30)), "channels, length"),
        ("train.npy", np.zeros((1, 3, 30)), "1 window"),
        ("train.npy", np.full((4, 3, 30), np.nan), "not finite"),
        ("train.npy", np.array([{}]), "cannot read"),
        ("test.npy", np.zeros((4, 3, 29)), "test windows"),
        ("labels.npy", np.zeros(3), "0 or 1"),
        ("labels.npy", np.full(4, 2), "0 or 1"),
    ],
)
def test_files_that_do_not_fit_are_named(
    name: str, array: npt.NDArray[np.generic], match: str, tmp_path: Path
) -> None:
    for file in ("train.npy", "test.npy"):
        np.save(tmp_path / file, np.zeros((4, 3, 30)))
    np.save(tmp_path / name, array)
    with pytest.raises(DataError, match=match):
        read_signal_sites(tmp_path)


def test_options_of_the_memories_are_reached_from_the_command(data: Path) -> None:
    words = ["signals", str(data), "--rounds", "1", "--steps", "1", "--json", "--option",
             "items=5", "--option", "channels=[4, 6]", "--option", 'read="cosine"']  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    memories = MemoriesConfig(items=5, channels=(4, 6), read="cosine")
    again = fedvad.train_signals(data, rounds=1, steps=1, memories=memories)
    assert json.loads(done.stdout) == [result.to_dict() for result in again]
    for option, match in (
        ("rows=3", "no option here"),
        ('items="5"', "give a whole number, such as 500"),
        ('channels=["a", "b"]', "give a list, such as"),
    ):
        with pytest.raises(ConfigError, match=match):
            CliRunner().invoke(app, [*words[:7], "--option", option], catch_exceptions=False)


def test_impossible_requests_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train\.npy"):
        read_signal_sites(tmp_path)
    with pytest.raises(ConfigError, match="quantile"):
        fedvad.train_signals(data, quantile=1.0)
    with pytest.raises(ConfigError):
        fedvad.train_signals(data, data / "east")


@pytest.mark.parametrize("value", [0.1, 0.3, 1234.56])
def test_a_channel_that_never_changes_is_left_as_it_is(value: float) -> None:
    windows = np.random.default_rng(0).normal(size=(100, 2, 128)).astype(np.float32)
    windows[:, 1] = value
    train = TrainConfig(steps=1)
    model = SignalMemories(windows, MemoriesConfig(items=4), train, start=0, seed=0).model
    assert model.spread[1] == 1
    assert model.mean[1] == np.float32(value)
    assert model.spread[0] == pytest.approx(1, abs=0.1)


# -- windows of later, with a saved model -----------------------------------------------------


def test_a_saved_model_scores_later_windows_as_in_training(
    found: tuple[Path, list[SignalResult]], data: Path, tmp_path: Path
) -> None:
    out, results = found
    file = out / "west.safetensors"
    later = score_signals(data / "west/test.npy", file, tmp_path / "later.json")
    assert results[1].scores is not None
    np.testing.assert_array_equal(later.scores, results[1].scores)
    assert later.threshold == results[1].model.threshold
    np.testing.assert_array_equal(later.anomalous, later.scores > later.threshold)
    assert later.anomalous[8:].mean() > 0.8
    assert json.loads((tmp_path / "later.json").read_text()) == later.to_dict()
    again = score_signals(np.load(data / "west/test.npy"), file, tmp_path / "later.json")
    np.testing.assert_array_equal(again.scores, later.scores)


def test_later_windows_are_scored_from_the_command(
    found: tuple[Path, list[SignalResult]], data: Path
) -> None:
    given = ["signals", str(data / "west/test.npy"), "--model", str(found[0] / "west.safetensors")]
    said = CliRunner().invoke(app, given).stdout.splitlines()
    assert len(said) == 17
    assert said[-1].endswith(" of 16 windows are anomalous")
    assert sum(line.startswith("ANOMALOUS") for line in said) == int(said[-1].split()[0])
    as_json = json.loads(CliRunner().invoke(app, [*given, "--json"]).stdout)
    assert sum(as_json["anomalous"]) == int(said[-1].split()[0])


def test_what_cannot_be_scored_is_refused_with_the_reason(
    found: tuple[Path, list[SignalResult]], data: Path, tmp_path: Path
) -> None:
    model, windows = found[0] / "west.safetensors", data / "west/test.npy"
    with pytest.raises(ConfigError, match=r"--out .* would be written over"):
        score_signals(windows, model, model)
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(ConfigError, match="fedvad did not write it"):
        score_signals(windows, model, tmp_path / "notes.json")
    with pytest.raises(DataError, match=r"\(1, 2, 30\), not \(n, 3, 30\)"):
        score_signals(np.zeros((1, 2, 30)), model)
    with pytest.raises(DataError, match="windows hold values that are not finite"):
        score_signals(np.full((1, 3, 30), 1e300), model)
    with pytest.raises(ArtefactError, match=r"west\.safetensors"):
        score_signals(windows, tmp_path / "west.safetensors")
    refused = CliRunner().invoke(
        app, ["signals", str(windows), "--model", str(model), "--seed", "1", "--option", "items=9"]
    )
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception) == "--model trains nothing: leave out --seed, --option"
