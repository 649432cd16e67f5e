"""Thresholds found again from normal images: as the training finds them, and kept in the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.data.folders import read_set
from fedvad.data.locks import only_one
from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.federated import federated_thresholds
from tests.helpers import OPTIONS, run_main

Run = tuple[Path, dict[str, Any]]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    """A copy of the trained run that may be changed."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def calibrate(run: Path, shared_cache: Path) -> Callable[..., dict[str, Any]]:
    def call(*arguments: Any, **options: Any) -> dict[str, Any]:
        return fedvad.calibrate(run, *arguments, cache=shared_cache, **options)

    return call


def test_the_training_images_give_the_thresholds_of_the_training(
    calibrate: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    before = fedvad.load(run)
    reported = calibrate(plants / "birch/train/good", site="birch")
    assert reported["images"] == 6
    assert set(reported["thresholds"]) == {"global", "local"}
    after = fedvad.load(run)
    for reference, found in reported["thresholds"].items():
        was = before.sites["birch"].thresholds[reference]
        assert found["before"] == was.value
        assert found["now"] == pytest.approx(was.value, rel=1e-6)
        assert after.sites["birch"].thresholds[reference].scores == pytest.approx(was.scores)
    assert after.sites["alder"].thresholds == before.sites["alder"].thresholds


def test_other_images_and_another_rate_change_what_predict_decides(
    calibrate: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    normals = plants / "birch/test/good"
    reported = calibrate([normals], site="birch", target_fpr=0.4)
    paths = [item.path for item in read_set(plants / "birch").test if item.label == 0]
    rows = list(fedvad.predict(run, paths, site="birch"))
    kept = fedvad.load(run).sites
    scores = {name: np.asarray(kept[name].thresholds["global"].scores) for name in kept}
    # the images are new to the memory: their scores are what predict gives
    np.testing.assert_allclose(scores["birch"], sorted(row["score"] for row in rows), rtol=1e-5)
    expected = federated_thresholds(scores, 0.4)["birch"].value
    assert reported["thresholds"]["global"]["now"] == pytest.approx(expected)
    assert {row["threshold"] for row in rows} == {kept["birch"].thresholds["global"].value}
    assert reported["target_fpr"] == kept["birch"].thresholds["global"].target_fpr == 0.4


def test_the_command_says_before_and_after(
    run: Path, plants: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (run, plants / "birch/test/good", "--site", "birch", "--target-fpr", "0.1")
    assert run_main(monkeypatch, "calibrate", *arguments) == 0
    said = capsys.readouterr().out
    assert "threshold of birch: " in said
    assert "from 3 good images, for 10 % false alarms" in said
    assert "3 normal images promise at most" in said
    assert "--site birch --undo" in said
    assert run_main(monkeypatch, "calibrate", *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)["thresholds"]["global"]
    assert found["before"] == pytest.approx(found["now"])


def test_defects_among_the_images_are_refused_unless_forced_and_can_be_undone(
    calibrate: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    file, mixed = run / "detector.safetensors", plants / "birch/test"
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"would rise from .* highest .*birch.* --force"):
        calibrate(mixed, site="birch")
    assert file.read_bytes() == before
    raised = calibrate(mixed, site="birch", force=True)
    found = raised["thresholds"]["global"]
    assert found["now"] > 1.5 * found["before"]
    assert raised["above_before"][0]["score"] > found["before"]
    again = calibrate(mixed, site="birch", force=True)  # two calibrations, two ways back
    assert again["thresholds"]["global"]["before"] == found["now"]
    calibrate(undo=True, site="birch")
    undone = calibrate(undo=True, site="birch")
    assert undone["thresholds"]["global"]["now"] == found["before"]
    assert file.read_bytes() == before
    with pytest.raises(ConfigError, match="nothing to undo"):
        calibrate(undo=True, site="birch")
    with pytest.raises(ConfigError, match="undo takes no images"):
        calibrate(mixed, undo=True, site="birch")


def test_what_cannot_be_calibrated_is_refused_and_changes_nothing(
    calibrate: Callable[..., dict[str, Any]], run: Path, plants: Path, tmp_path: Path
) -> None:
    file, normals = run / "detector.safetensors", plants / "birch/test/good"
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"name the site: .* one of alder, birch, cedar"):
        calibrate(normals)
    with pytest.raises(ConfigError, match="there is no site 'oak'"):
        calibrate(normals, site="oak")
    with pytest.raises(ConfigError, match="target_fpr"):
        calibrate(normals, site="birch", target_fpr=0.7)
    for i in range(3):
        shutil.copy(next(normals.iterdir()), tmp_path / f"copy{i}.png")
    with pytest.raises(DataError, match="at least 3 different normal images"):
        calibrate([tmp_path / f"copy{i}.png" for i in range(3)], site="birch")
    with only_one(run), pytest.raises(ConfigError, match="is in use"):
        calibrate(normals, site="birch")
    assert file.read_bytes() == before


def test_one_threshold_for_all_sites_is_no_site_s_to_change(
    plants: Path, tmp_path: Path, shared_cache: Path
) -> None:
    out = tmp_path / "shared"
    fedvad.train(plants, out, cache=shared_cache, shared_threshold=True, **OPTIONS)
    with pytest.raises(ConfigError, match="one threshold for all sites"):
        fedvad.calibrate(out, plants / "birch/test/good", site="birch", cache=shared_cache)
