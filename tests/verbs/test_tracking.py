"""Trackers get what the run folder holds, and nothing is lost where they fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedvad.errors import ConfigError, StorageError
from fedvad.verbs.tracking import check_tracker, track
from tests.helpers import FLAGS, run_main


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    copied = tmp_path / "run"
    copied.mkdir()
    for name in ("config.json", "results.json", "ledger.json"):
        shutil.copy(trained[0] / name, copied)
    return copied


def test_tensorboard_reads_back_rounds_and_results(run: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(track(run, "tensorboard"))
    events.Reload()
    results = json.loads((run / "results.json").read_text())
    (mean,) = events.Scalars("image_auroc/mean")
    assert mean.value == pytest.approx(results["image_auroc"]["mean"], rel=1e-6)
    ledger = json.loads((run / "ledger.json").read_text())
    rows = [(e.step, e.value) for e in events.Scalars("round/memory_rows")]
    assert rows == [(r["round"], r["memory_rows"]) for r in ledger["rounds"]]


def test_mlflow_reads_back_parameters_and_results(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(track(run, "mlflow"))
    (reported,) = client.search_runs([client.get_experiment_by_name("fedvad").experiment_id])
    results = json.loads((run / "results.json").read_text())
    assert reported.data.params["backbone"] == "filterbank"
    assert reported.data.metrics["image_auroc/mean"] == pytest.approx(
        results["image_auroc"]["mean"]
    )
    assert reported.info.status == "FINISHED"


def test_a_tracker_that_fails_says_that_the_run_is_complete(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    (run / "tensorboard").write_text("in the way")
    with pytest.raises(StorageError, match="is complete, but tensorboard"):
        track(run, "tensorboard")


def test_unknown_and_missing_trackers_are_reported_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    plants: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="choose from"):
        check_tracker("wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedvad\[track\]"):
        check_tracker("mlflow")
    out = tmp_path / "run"
    code = run_main(monkeypatch, "train", plants, "--out", out, *FLAGS, "--track", "tensorboard")
    assert code == 2
    assert "fedvad[track]" in capsys.readouterr().err
    assert not out.exists()
