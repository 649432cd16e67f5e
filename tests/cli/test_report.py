"""`fedvad report`: the page of a real run, with and without what the run should keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fedvad
from fedvad.errors import ArtefactError, ConfigError, StorageError
from fedvad.report.results_tables import sites_table
from fedvad.report.tables import without_empty
from tests.helpers import OPTIONS, run_main
from tests.report.html.support import Reader
from tests.verbs.test_train import SITES

Run = tuple[Path, dict[str, Any]]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

IMAGES = 3 * (3 + 4)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_training_leaves_a_page_with_its_results(trained: Run) -> None:
    out, results = trained
    html = (out / "report.html").read_bytes()
    assert len(html) < 4_000_000
    page = Reader(html)
    for row in without_empty(sites_table(results, name="federated")):
        assert page.row(row[0]) == row
    assert f"from {results['compare']['local']['image_auroc']['mean']:.3f}" in page.text
    ledger = json.loads((out / "ledger.json").read_text())
    rows = sum(sum(entry["rows_up"].values()) for entry in ledger["rounds"])
    assert page.row("all sites")[2] == f"{rows:,}"
    cards = page.all("li", **{"class": "card"})
    assert len(cards) == IMAGES
    assert {card["data-site"] for card in cards} == SITES
    assert {c["data-defect"] == "good" for c in cards if c["data-outcome"] == "missed"} <= {False}
    assert len(page.all("svg")) == 2 * len(SITES) + 2  # memory and drift
    config = json.loads((out / "config.json").read_text())
    assert page.row("upload_rows") == ["upload_rows", str(config["upload_rows"])]


def test_the_scores_that_are_kept_give_the_rates_of_the_results(trained: Run) -> None:
    out, results = trained
    sites = json.loads((out / "scores.json").read_text())["sites"]
    assert set(sites) == SITES
    for name, site in sites.items():
        assert set(site["compared"]) == {"local", "pooled", "identity"}
        reported = results["threshold"]["sites"][name]
        assert site["threshold"] == reported["threshold"]
        flagged = [
            s > site["threshold"]
            for s, label in zip(site["scores"], site["labels"], strict=True)
            if label
        ]
        assert sum(flagged) / len(flagged) == reported["recall"]


def test_it_is_made_again_byte_for_byte_without_the_data(
    run: Path, trained: Run, monkeypatch: Patch, capsys: Capture
) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert run_main(monkeypatch, "report", run, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "path": str(run / "report.html"), "bytes": len(before), "pictures": IMAGES,
        "pictures_left_out": 0,
    }  # fmt: skip
    assert (run / "report.html").read_bytes() == before
    assert run_main(monkeypatch, "report", run) == 0
    assert f"{IMAGES} pictures" in capsys.readouterr().out


def test_an_audit_sheet_as_pdf(
    run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    page = (run / "report.html").read_bytes()
    for _ in range(2):  # the second replaces the first
        assert run_main(monkeypatch, "report", run, "--pdf") == 0
    assert "audit.pdf" in capsys.readouterr().out
    assert (run / "audit.pdf").read_bytes().startswith(b"%PDF")
    assert (run / "report.html").read_bytes() == page
    (run / "mine.pdf").write_bytes(b"%PDF-1.4 of somebody")
    with pytest.raises(ConfigError, match="fedvad did not write it"):
        fedvad.write_report(run, run / "mine.pdf", pdf=True)
    for name, pdf in (("page.html", True), ("page.pdf", False)):
        with pytest.raises(ConfigError, match=rf"{name} would hold (PDF|HTML): end it in"):
            fedvad.write_report(run, tmp_path / name, pdf=pdf)
        assert not (tmp_path / name).exists()


def test_without_pictures_to_pass_on(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    assert run_main(monkeypatch, "report", run, "--no-pictures", "--out", out) == 0
    page = Reader(out.read_bytes())
    assert not page.all("img")
    assert "made without them" in page.text
    assert out.stat().st_size < 150_000


def test_the_python_verb_is_not_hidden_by_the_package_of_that_name(run: Path) -> None:
    import fedvad.report.html.page

    assert fedvad.write_report(run, pictures=False)["pictures"] == 0


def test_a_run_of_an_earlier_version_has_no_curves_or_pictures(run: Path) -> None:
    shutil.rmtree(run / "gallery")
    for name in ("gallery.json", "scores.json", "detector.safetensors", "ledger.json"):
        (run / name).unlink()
    assert fedvad.write_report(run)["pictures"] == 0
    page = Reader((run / "report.html").read_bytes())
    for part in ("keeps no scores", "keeps no pictures", "ledger of this run is missing"):
        assert part in page.text
    assert page.row("alder")


def test_damaged_records_are_reported_and_left_out(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "gallery.json").write_text("{")
    (run / "scores.json").write_text("[]")
    (run / "config.json").write_text("[]")
    (run / "detector.safetensors").write_bytes(b"no")
    assert fedvad.write_report(run)["pictures"] == 0
    page = Reader((run / "report.html").read_bytes())
    for part in ("gallery.json is damaged", "scores.json is damaged", "configuration of this run"):
        assert part in page.text
    assert "gallery.json is damaged" in caplog.text


def test_a_picture_that_is_something_else_is_not_embedded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret words")
    first, second = sorted((run / "gallery").glob("*-photo.webp"))[:2]
    first.unlink()
    first.symlink_to(tmp_path / "secret")
    second.write_bytes(b"RIFF0000WEBP" + bytes(400_000))
    written = fedvad.write_report(run)
    assert (written["pictures"], written["pictures_left_out"]) == (IMAGES - 2, 2)
    assert (run / "report.html").stat().st_size < 1_000_000


def test_what_is_no_finished_run(tmp_path: Path, run: Path, monkeypatch: Patch) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        fedvad.write_report(tmp_path / "none")
    (run / "results.json").write_text("[]")
    with pytest.raises(ArtefactError, match="damaged"):
        fedvad.write_report(run)
    (run / "results.json").unlink()
    with pytest.raises(ArtefactError, match="measure it first"):
        fedvad.write_report(run)
    (run / "state").mkdir()
    with pytest.raises(ArtefactError, match="--resume"):
        fedvad.write_report(run)
    assert run_main(monkeypatch, "report", run) == 3


def test_a_folder_as_the_page(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        fedvad.write_report(run, tmp_path)


@pytest.fixture
def hostile(plants: Path, tmp_path: Path) -> Path:
    """One plant with names that are markup, as far as a file system permits; no masks."""
    root = tmp_path / "plants"
    site = root / "<script>alert('1')<\"&"
    shutil.copytree(plants / "alder", site, ignore=shutil.ignore_patterns("ground_truth"))
    defects = [folder for folder in sorted((site / "test").iterdir()) if folder.name != "good"]
    defects[0].rename(defects[0].with_name("<img src=x onerror=alert(2)>"))
    image = next((site / "test" / "good").iterdir())
    image.rename(image.with_name('"><b>\u202e.png'))
    return root


def test_markup_in_the_names_of_a_real_run(
    hostile: Path, tmp_path: Path, shared_cache: Path, monkeypatch: Patch
) -> None:
    fedvad.train(hostile, tmp_path / "out", cache=shared_cache, **OPTIONS)
    page = Reader((tmp_path / "out" / "report.html").read_bytes())
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert not [found for _, found in page.elements if "onerror" in found]
    cards = page.all("li", **{"class": "card"})
    assert {c["data-site"] for c in cards} == {"<script>alert('1')<\"&"}
    assert "<img src=x onerror=alert(2)>" in {c["data-defect"] for c in cards}
    assert '"><b>\ufffd.png' in page.text
    assert "At its own threshold" in page.text
    assert "Image AUROC is" in page.text
    assert "outlined:" not in page.text


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("keep_record", StorageError("the disk is full")),
        ("write_report", ValueError("something nobody thought of")),
    ],
)
def test_a_failing_report_does_not_lose_the_training(
    place: str, error: Exception, plants: Path, tmp_path: Path, shared_cache: Path,
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(f"fedvad.verbs.outputs.{place}", fail)
    results = fedvad.train(plants, tmp_path / "run", cache=shared_cache, **OPTIONS)
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert not (tmp_path / "run" / "state").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    assert str(error) in caplog.text
    assert "fedvad report" in caplog.text
