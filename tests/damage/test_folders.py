"""Run folders that lost a file, or got one of another run: said by name, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.sealed import read_sealed, write_sealed
from fedvad.errors import ArtefactError, ConfigError
from fedvad.federation.signed import generate_keys
from fedvad.runs import receipt, renewal
from fedvad.runs.run_folder import keep_region, read_config, write_config, write_ledger
from tests.helpers import OPTIONS, run_main

Trained = tuple[Path, dict[str, Any]]
Damage = Callable[[Path], object]
COMPARED = {"compare": "local,pooled,identity"}


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the trained run that may be changed."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def gone(path: Path) -> None:
    path.unlink()


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [gone, halved, emptied, folder])
@pytest.mark.parametrize("name", ["detector.safetensors", "config.json"])
def test_each_verb_names_the_file_and_changes_nothing(
    name: str, damage: Damage, run: Path, plants: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage(run / name)
    before = contents(run)
    images = plants / "alder/test/good"
    for words in (
        ("predict", run, images), ("evaluate", run, plants), ("serve", run), ("export", run),
        ("watch", run, images, "--out", run.with_name("w"), "--once"),
        ("update", run, images, "--site", "alder"), ("calibrate", run, images, "--site", "alder"),
        ("feedback", run, images / "000.png", "--site", "alder", "--normal"),
        ("forget", run, "--site", "alder", "--no-receipt"),
    ):  # fmt: skip
        assert run_main(monkeypatch, *words) == 3
        said = capsys.readouterr().err
        assert name in said
        assert "Traceback" not in said
        if damage is not folder:
            assert "restore" in said
    assert contents(run) == before


@pytest.mark.parametrize("damage", [gone, halved])
def test_what_is_taken_back_is_checked_first(
    damage: Damage, run: Path, plants: Path, shared_cache: Path
) -> None:
    fedvad.update(run, plants / "birch/test/good", site="birch", cache=shared_cache)
    (kept,) = run.glob("before-*.safetensors")
    good, updated = kept.read_bytes(), (run / "detector.safetensors").read_bytes()
    halved(kept)
    with pytest.raises(ArtefactError, match=r"before-.*restore it from a copy"):
        fedvad.undo_update(run)
    assert (run / "detector.safetensors").read_bytes() == updated
    kept.write_bytes(good)
    damage(run / "detector.safetensors")
    with pytest.raises(ArtefactError, match=r"detector\.safetensors"):
        fedvad.undo_update(run)
    assert kept.read_bytes() == good


class TestAFinishedRunThatIsResumed:
    @pytest.fixture
    def resume(self, run: Path, plants: Path, shared_cache: Path) -> Callable[..., fedvad.Results]:
        def call(**options: Any) -> fedvad.Results:
            given = {**OPTIONS, **COMPARED, "cache": shared_cache, **options}
            return fedvad.train(plants, run, resume=True, **given)

        return call

    @pytest.mark.parametrize("damage", [gone, halved])
    def test_is_not_called_complete_without_a_detector(
        self, damage: Damage, run: Path, resume: Callable[..., fedvad.Results]
    ) -> None:
        assert resume()["method"] == "feddymem"
        damage(run / "detector.safetensors")
        with pytest.raises(ArtefactError, match=r"detector\.safetensors.*restore it from a copy"):
            resume()

    def test_keeps_what_came_after_the_training(
        self, plants: Path, tmp_path: Path, shared_cache: Path
    ) -> None:
        """To compare more it would be trained again."""
        run, images = tmp_path / "run", plants / "birch/test/good"
        options = {**OPTIONS, "cache": shared_cache, "rounds": 1}
        fedvad.train(plants, run, **options)

        def refused() -> None:
            before = (run / "detector.safetensors").read_bytes()
            with pytest.raises(ConfigError, match="changed after its training"):
                fedvad.train(plants, run, resume=True, compare="local", **options)
            assert (run / "detector.safetensors").read_bytes() == before
            assert fedvad.train(plants, run, resume=True, **options)["method"] == "feddymem"

        fedvad.update(run, images, site="birch", cache=shared_cache)
        refused()
        fedvad.undo_update(run)
        fedvad.calibrate(run, images, site="birch", cache=shared_cache, force=True)
        refused()
        fedvad.calibrate(run, undo=True, site="birch")
        fedvad.feedback(run, images / "000.png", "normal", site="birch", cache=shared_cache)
        refused()

    def test_takes_nobody_back_who_was_forgotten(
        self, run: Path, plants: Path, shared_cache: Path, resume: Callable[..., fedvad.Results]
    ) -> None:
        fedvad.forget(run, site="cedar", no_receipt=True)
        left = (run / "detector.safetensors").read_bytes()
        with pytest.raises(ConfigError, match=r"without results\.json.*fedvad evaluate"):
            resume()
        fedvad.evaluate(run, plants, cache=shared_cache)
        with pytest.raises(ConfigError, match=r"other training images.*cedar"):
            resume(compare="local,pooled")
        assert (run / "detector.safetensors").read_bytes() == left


class TestForget:
    def test_removes_nothing_where_the_ledger_is_damaged(self, run: Path) -> None:
        halved(run / "ledger.json")
        before = contents(run)
        with pytest.raises(ArtefactError, match=r"ledger\.json is damaged.*restore it.*remove it"):
            fedvad.forget(run, site="cedar", no_receipt=True)
        assert contents(run) == before

    def test_a_receipt_of_another_forgetting_is_handed_out(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, public, _ = generate_keys(tmp_path, "server")
        with monkeypatch.context() as patch:  # killed when the site had left
            patch.setattr(receipt, "hand_out", _killed)
            patch.setattr("fedvad.verbs.forget.hand_out", _killed)
            with pytest.raises(KeyboardInterrupt):
                fedvad.forget(run, site="cedar", key=public.with_suffix(".key"))
        assert set(fedvad.load(run).sites) == {"alder", "birch"}
        fedvad.forget(run, site="birch", no_receipt=True)
        assert set(fedvad.load(run).sites) == {"alder"}
        assert fedvad.inspect(run / "forgot-cedar.fedvad", trust=public)["site"] == "cedar"

    @pytest.mark.parametrize("damage", [halved, emptied])
    def test_a_damaged_receipt_is_named(
        self, damage: Damage, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, public, _ = generate_keys(tmp_path, "server")
        with monkeypatch.context() as patch:
            patch.setattr("fedvad.verbs.forget.hand_out", _killed)
            with pytest.raises(KeyboardInterrupt):
                fedvad.forget(run, site="cedar", key=public.with_suffix(".key"))
        damage(run / "forgetting.fedvad")
        with pytest.raises(ArtefactError, match=r"forgetting\.fedvad.*emove it"):
            fedvad.forget(run, site="cedar", no_receipt=True)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_mask_of_another_region_is_noticed(run: Path, plants: Path, tmp_path: Path) -> None:
    """The features of a region are those of the whole image: no hash of them would tell."""
    masks = {name: np.zeros((64, 64), np.uint8) for name in ("left", "right")}
    masks["left"][:, :32] = masks["right"][:, 32:] = 255
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    wanted = read_config(run).model_copy(update={"region": str(tmp_path / "left.png")})
    write_config(run, keep_region(run, wanted))
    assert Path(str(read_config(run).region)).name == "region.png"
    assert len(list(fedvad.predict(run, plants / "alder/test/good", site="alder"))) == 3
    shutil.copy(tmp_path / "right.png", run / "region.png")
    for damage in (lambda path: None, gone):
        damage(run / "region.png")
        with pytest.raises(ArtefactError, match=r"region\.png.*restore it from a copy"):
            list(fedvad.predict(run, plants / "alder/test/good", site="alder"))


def test_thresholds_of_another_memory_are_not_put_back(
    run: Path, plants: Path, shared_cache: Path
) -> None:
    normals = plants / "alder/train/good"
    fedvad.calibrate(run, normals, site="alder", cache=shared_cache)
    fedvad.update(run, plants / "birch/test/good", site="birch", cache=shared_cache)
    limit = fedvad.load(run).limit("alder")
    with pytest.raises(ConfigError, match=r"earlier-thresholds\.json are of another memory"):
        fedvad.calibrate(run, undo=True, site="alder")
    assert fedvad.load(run).limit("alder") == limit
    entries = json.loads((run / "earlier-thresholds.json").read_text())["calibrations"]
    for entry in entries:
        del entry["shared"]
    write_sealed(run / "earlier-thresholds.json", {"calibrations": entries})
    assert fedvad.calibrate(run, undo=True, site="alder")["site"] == "alder"  # of an earlier fedvad


def test_a_report_in_the_way_is_named_with_what_to_do(run: Path) -> None:
    emptied(run / "report.html")
    with pytest.raises(ConfigError, match=r"the default --out .*report\.html.*remove it"):
        fedvad.write_report(run)
    gone(run / "report.html")
    assert fedvad.write_report(run)["path"] == str(run / "report.html")


@pytest.mark.parametrize("name", ["scores.json", "gallery.json"])
@pytest.mark.parametrize("change", ["site", "threshold"])
def test_a_page_does_without_what_is_of_another_run(name: str, change: str, run: Path) -> None:
    """Each file is sound by itself."""
    assert b"of another run" not in Path(fedvad.write_report(run)["path"]).read_bytes()
    values = read_sealed(run / name)
    if name == "scores.json":
        site = values["sites"].pop("alder")
        values["sites"]["alder" if change == "threshold" else "oak"] = site
    else:
        site = values["pictures"][0]
        site["site"] = site["site"] if change == "threshold" else "oak"
    if change == "threshold":
        site["threshold"] *= 1.001
    write_sealed(run / name, values)
    shown = fedvad.write_report(run)
    assert (shown["pictures"] == 0) == (name == "gallery.json")
    assert f"{name} is of another run".encode() in Path(shown["path"]).read_bytes()


def test_an_audit_sheet_does_without_pictures_that_are_cut_off(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for picture in run.glob("gallery/*-heat.webp"):
        halved(picture)
    fedvad.write_report(run, pdf=True)
    assert (run / "audit.pdf").read_bytes().startswith(b"%PDF")
    assert "heat.webp is damaged and left out" in caplog.text


def test_a_kill_between_two_files_leaves_the_updated_run_and_the_one_before(
    run: Path, plants: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "detector.safetensors").read_bytes()
    images = plants / "birch/test/good"
    with monkeypatch.context() as patch:
        patch.setattr(renewal, "write_atomically", _killed)
        with pytest.raises(KeyboardInterrupt):
            fedvad.update(run, images, site="birch", cache=shared_cache)
    assert (run / "detector.safetensors").read_bytes() == before
    fedvad.update(run, images, site="birch", cache=shared_cache)
    fedvad.undo_update(run)
    assert (run / "detector.safetensors").read_bytes() == before


def test_a_kill_while_an_evaluation_is_kept_spoils_nothing(
    run: Path, plants: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger vouches for the results of the evaluation before."""
    gone(run / "results.json")
    fedvad.evaluate(run, plants, cache=shared_cache)
    writes: list[object] = []

    def write(*arguments: Any, **options: Any) -> None:
        writes.append(options)
        if len(writes) == 2:  # the results are there already
            raise KeyboardInterrupt
        write_ledger(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("fedvad.verbs.outputs.write_ledger", write)
        with pytest.raises(KeyboardInterrupt):
            fedvad.evaluate(run, plants / "alder", cache=shared_cache)
    assert fedvad.write_report(run)["pictures"] == 0  # those are of the results before
    assert len(fedvad.evaluate(run, plants, cache=shared_cache).sites) == 3
    assert fedvad.write_report(run)["pictures"] > 0
