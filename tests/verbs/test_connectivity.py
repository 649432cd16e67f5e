"""`connectivity`: the ends are the runs' own, and what lies between is mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedvad
from fedvad.cli.main import app
from fedvad.errors import ConfigError, DataError
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites
from fedvad.runs.opening import open_run
from fedvad.runs.student_run import StudentRun
from fedvad.runs.students import prepare_sites
from fedvad.verbs.connectivity import _curve, _students, mixed
from tests.detectors.student import support

pytestmark = pytest.mark.slow  # trains two students


@pytest.fixture(scope="module")
def runs(
    plants: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Runs of two seeds, in the folders a and b."""
    root = tmp_path_factory.mktemp("connectivity")
    weights = support.write_weights(root / "tiny.safetensors")

    given = {"method": "stfpm", "student": {"steps": 4, "warmup": 0}, "rounds": 1}
    given |= support.options(weights) | {"cache": shared_cache}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedvad.verbs.outputs._write_report", lambda *a, **k: None)
        for seed, name in enumerate("ab"):
            fedvad.train(plants, root / name, seed=seed, **given)
    return root / "a", root / "b"


def test_the_ends_are_the_runs_own_figures(
    runs: tuple[Path, Path], plants: Path, tmp_path: Path
) -> None:
    (curve,) = fedvad.connectivity(*runs, plants, points=3, out=tmp_path / "curve.html")
    assert curve.at == [0, 0.5, 1]
    for run, auroc in zip(runs, (curve.auroc[0], curve.auroc[-1]), strict=True):
        sites = fedvad.evaluate(run, plants)["image_auroc"]["sites"]
        assert auroc == pytest.approx(np.mean(list(sites.values())), abs=1e-12)
    assert curve.barrier == pytest.approx(
        max(0.0, curve.loss[1] - (curve.loss[0] + curve.loss[2]) / 2)
    )
    page = (tmp_path / "curve.html").read_text("utf-8")
    assert "a to b, without WSA" in page
    assert f"{curve.barrier:.4f}" in page


def test_statistics_estimated_again_are_those_of_the_training(
    runs: tuple[Path, Path], plants: Path
) -> None:
    run, config, extractor = open_run(runs[0])
    assert isinstance(run, StudentRun)
    images = {s.name: s.train for s in load_sites(plants, None, 0, config.label_names())}
    for name, member in prepare_sites(images, config, extractor).items():
        member.net.student.load_state_dict(
            run.detector(name, extractor).net_.student.state_dict()  # type: ignore[attr-defined]
        )
        member.recalibrate_batch_norm()
        state = member.net.student.state_dict()
        for buffer, array in run.sites[name].buffers.items():
            np.testing.assert_allclose(state[buffer].numpy(), array, rtol=1e-5, atol=1e-6)
        member.close()


def test_weights_are_mixed_array_by_array() -> None:
    first, other = {"w": np.float32([0, 4])}, {"w": np.float32([2, -4])}
    assert mixed(first, other, 0.25)["w"].tolist() == [0.5, 2]
    assert mixed(first, other, 1)["w"].tolist() == [2, -4]


def test_a_set_is_divided_as_for_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_config(method="stfpm", split="style:2", seed=5, max_pixels=9000)
    asked: dict[str, Any] = {}

    def sites(data: Path, split: str, seed: int, names: Any, **given: Any) -> list[Any]:
        asked.update(given, split=split, seed=seed)
        return []

    monkeypatch.setattr("fedvad.verbs.connectivity.load_sites", sites)
    nobody: Any = SimpleNamespace(sites={})
    with pytest.raises(DataError, match="has none of the sites"):
        _curve("", nobody, nobody, Path("data"), config, nobody, 2, nobody)
    # images over the limit cannot be looked at, and are dealt in turn
    assert (asked["split"], asked["seed"], asked["max_pixels"]) == ("style:2", 5, 9000)


def test_a_run_is_connected_to_itself_and_the_command_says_so(
    runs: tuple[Path, Path], plants: Path
) -> None:
    a, _ = map(str, runs)
    words = ["connectivity", a, a, str(plants), "--beside", a, a, "--points", "2", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)
    assert first == second
    assert first["barrier"] == 0
    assert first["loss"][0] == first["loss"][1] > 0


def test_runs_that_cannot_be_mixed_are_named(
    runs: tuple[Path, Path], trained: tuple[Path, Any], plants: Path
) -> None:
    a = StudentRun.load(runs[0])
    name, array = next(iter(a.shared.items()))
    other = replace(a, shared=a.shared | {name: array[1:]})
    with pytest.raises(ConfigError, match="different shapes"):
        _students(a, other, *runs)
    with pytest.raises(ConfigError, match="no student"):
        fedvad.connectivity(trained[0], trained[0], plants)
    with pytest.raises(ConfigError, match="2 points"):
        fedvad.connectivity(*runs, plants, points=1)
