"""`evaluate` feeds `report`: at a site after a rollout, and beside a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fedvad
from fedvad.errors import ArtefactError, ConfigError
from tests.report.html.support import Reader

Run = tuple[Path, dict[str, Any]]
DEPLOYED = ("config.json", "detector.safetensors", "ledger.json")


@pytest.fixture(scope="module")
def rolled_out(
    trained: Run, plants: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """What a deployment leaves at a site, after `evaluate` there on the site's own images."""
    run = tmp_path_factory.mktemp("site") / "alder-run"
    run.mkdir()
    for name in DEPLOYED:
        shutil.copy(trained[0] / name, run / name)
    with pytest.raises(ArtefactError, match="measure it first, `fedvad evaluate"):
        fedvad.write_report(run)
    return run, fedvad.evaluate(run, plants / "alder", cache=shared_cache)


def test_a_site_has_its_own_report_and_gallery(rolled_out: tuple[Path, Any]) -> None:
    run, found = rolled_out
    assert json.loads((run / "results.json").read_text()) == found
    assert fedvad.write_report(run)["pictures"] == 7
    page = Reader((run / "report.html").read_bytes())
    assert "feddymem · filterbank" in page.text
    assert page.row("1")  # the rounds of the federation
    assert {c["data-site"] for c in page.all("li", **{"class": "card"})} == {"alder"}
    assert f"At its own threshold alder stops {found.threshold.sites['alder'].counts.stopped}" in (
        page.text
    )
    assert page.row("alder")
    assert "Methods" not in page.text  # nothing to compare


def test_a_later_evaluation_replaces_the_earlier(
    rolled_out: tuple[Path, Any], plants: Path, shared_cache: Path
) -> None:
    run, _ = rolled_out
    found = fedvad.evaluate(run, plants, cache=shared_cache)
    assert json.loads((run / "results.json").read_text()) == found
    assert fedvad.write_report(run)["pictures"] == 21


def test_results_of_a_training_stay_and_another_folder_takes_the_evaluation(
    trained: Run, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    before = (trained[0] / "results.json").read_bytes()
    with pytest.raises(ConfigError, match="choose another --out"):
        fedvad.evaluate(trained[0], plants / "birch", cache=shared_cache, out=trained[0])
    out = tmp_path / "november"
    found = fedvad.evaluate(trained[0], plants / "birch", cache=shared_cache, out=out)
    assert (trained[0] / "results.json").read_bytes() == before
    assert json.loads((out / "results.json").read_text()) == found
    assert not (out / "detector.safetensors").exists()
    page = Reader((out / "report.html").read_bytes())
    assert len(page.all("li", **{"class": "card"})) == 7
    assert "ledger of this run is missing" not in page.text
    assert fedvad.write_report(out)["pictures"] == 7


def test_a_page_that_fails_does_not_cost_the_figures(
    trained: Run, plants: Path, shared_cache: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    for name in DEPLOYED[:2]:
        shutil.copy(trained[0] / name, run / name)
    (run / "gallery").write_text("in the way")
    found = fedvad.evaluate(run, plants / "alder", cache=shared_cache)
    assert found.image_auroc.mean is not None
    assert "not kept for `fedvad report`" in caplog.text
