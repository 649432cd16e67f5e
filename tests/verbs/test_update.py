"""update(): new normals join a run, bounded and undoable, and old images are not needed."""

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
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError, StorageError
from fedvad.features.cache import content_key
from fedvad.runs import renewal
from fedvad.runs.config import resolve_config
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.renewal import merge_again
from fedvad.runs.run_folder import read_config
from tests import golden
from tests.helpers import OPTIONS, run_main

Run = tuple[Path, dict[str, Any]]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    """A copy of the trained run that may be changed."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def update(run: Path, shared_cache: Path) -> Callable[..., dict[str, Any]]:
    def call(*arguments: Any, **options: Any) -> dict[str, Any]:
        return fedvad.update(run, *arguments, cache=shared_cache, **options)

    return call


def bytes_of(run: Path) -> bytes:
    return (run / "detector.safetensors").read_bytes()


def test_merged_again_a_run_is_what_it_was(trained: Run) -> None:
    run = TrainedRun.load(trained[0])
    again = merge_again(run, read_config(trained[0]))
    np.testing.assert_array_equal(again.memory.vectors, run.memory.vectors)
    np.testing.assert_array_equal(again.memory.weights, run.memory.weights)
    np.testing.assert_array_equal(again.scale, run.scale)


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"merge": "kmeans", "memory_rows": 9}])
def test_so_it_is_with_other_codecs_and_merges(
    options: dict[str, Any], plants: Path, tmp_path: Path, shared_cache: Path
) -> None:
    given = {**OPTIONS, "rounds": 1, "upload_rows": 20, "calibration": "none", **options}
    fedvad.train(plants, tmp_path / "run", cache=shared_cache, **given)
    run = TrainedRun.load(tmp_path / "run")
    again = merge_again(run, resolve_config(**given))
    np.testing.assert_array_equal(again.memory.vectors, run.memory.vectors)


def test_new_images_join_their_site(
    update: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    before = TrainedRun.load(run)
    folder = plants / "birch/test/good"
    reported = update(folder, site="birch")
    after = TrainedRun.load(run)
    digests = {content_key(path.read_bytes())[:16] for path in folder.iterdir()}
    bank = after.sites["birch"].bank
    assert bank.origin is not None
    assert digests & {source.image for source in bank.origin.sources if source.round in (3, 4)}
    assert reported["sites"]["birch"]["rows"]["now"] == len(bank) > len(before.sites["birch"].bank)
    assert after.sites["birch"].n_images == 9
    # by whole images: a memory's weights are patches
    assert bank.total_weight == pytest.approx(9 / 6 * before.sites["birch"].bank.total_weight)
    for name, threshold in before.sites["birch"].thresholds.items():
        now = after.sites["birch"].thresholds[name]
        assert now.n == threshold.n + 3
        assert set(threshold.scores) < set(now.scores)
    assert after.sites["alder"].n_images == 6
    assert after.memory.origin is not None
    assert after.memory.origin.by_site(np.ones(len(after.memory))).keys() == after.sites.keys()
    # they are normal now
    scores = [row["score"] for row in fedvad.predict(run, [folder], site="birch")]
    assert max(scores) < reported["sites"]["birch"]["threshold"]["now"]


def test_a_memory_stays_as_large_as_a_training_allows(
    plants: Path, tmp_path: Path, shared_cache: Path
) -> None:
    run = tmp_path / "run"
    options = {**OPTIONS, "upload_rows": 30}
    fedvad.train(plants / "alder/train", run, cache=shared_cache, **options)
    for part in ("birch", "cedar"):
        fedvad.update(run, plants / part / "train/good", site="train", cache=shared_cache)
    bank = TrainedRun.load(run).sites["train"].bank
    assert len(bank) == 60
    assert bank.origin is not None
    assert {source.round for source in bank.origin.sources} == {1, 2, 3, 4, 5, 6}


def test_a_folder_of_sites_updates_each_and_lets_a_new_one_join(
    update: Callable[..., dict[str, Any]], run: Path, plants: Path, tmp_path: Path
) -> None:
    for site, source in (("alder", "alder"), ("elm", "birch")):
        shutil.copytree(plants / source / "test/good", tmp_path / f"new/{site}/train/good")
    reported = update(tmp_path / "new")
    assert list(reported["sites"]) == ["alder", "elm"]
    assert reported["sites"]["elm"]["threshold"]["before"] is None
    after = fedvad.load(run)
    assert after.threshold("elm").n == 3
    row = next(fedvad.predict(run, [plants / "birch/test/good/000.png"], site="elm"))
    assert row["anomalous"] is False


def test_a_dry_run_changes_nothing_and_says_what_would(
    update: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    before = sorted(run.rglob("*")), bytes_of(run)
    dry = update(plants / "birch/test/good", site="birch", dry_run=True)
    assert (sorted(run.rglob("*")), bytes_of(run)) == before
    real = update(plants / "birch/test/good", site="birch")
    assert real["sites"] == dry["sites"]


def test_it_is_taken_back_to_the_bit_unless_something_came_after(
    update: Callable[..., dict[str, Any]], run: Path, plants: Path, shared_cache: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing to take back"):
        fedvad.undo_update(run)
    before = bytes_of(run)
    (run / ".next-killed").mkdir()
    update(plants / "birch/test/good", site="birch")
    assert bytes_of(run) != before
    assert not (run / ".next-killed").exists()
    fedvad.undo_update(run)
    assert bytes_of(run) == before
    update(plants / "birch/test/good", site="birch")
    fedvad.calibrate(run, plants / "birch/test/good", site="birch", cache=shared_cache)
    with pytest.raises(ConfigError, match="changed since"):
        fedvad.undo_update(run)


def test_images_that_trained_the_run_do_not_count_twice(
    update: Callable[..., dict[str, Any]], plants: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no new normal image"):
        update(plants / "birch/train/good", site="birch")
    shutil.copytree(plants / "birch/train/good", tmp_path / "both")
    for path in (plants / "birch/test/good").iterdir():
        shutil.copy(path, tmp_path / "both" / f"new-{path.name}")
    reported = update(tmp_path / "both", site="birch", dry_run=True)["sites"]["birch"]
    assert (reported["images"], reported["known_images"]) == (3, 6)


def test_what_cannot_be_updated_is_refused(
    update: Callable[..., dict[str, Any]], plants: Path, tmp_path: Path, run: Path
) -> None:
    with pytest.raises(ConfigError, match="name the site"):
        update(plants / "birch/test/good")
    with pytest.raises(ConfigError, match="holds 3 sites"):
        update(plants, site="birch")
    shutil.copytree(golden.FOLDER / "run-of-memories", tmp_path / "old")
    with pytest.raises(ConfigError, match="do not record their sites"):
        fedvad.update(tmp_path / "old", plants / "birch/test/good", site="alder")


@pytest.mark.parametrize("writes", [0, 1])
def test_a_kill_at_any_write_leaves_a_whole_run(
    update: Callable[..., dict[str, Any]],
    run: Path,
    plants: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    before, done = bytes_of(run), []

    def write(path: Path, data: bytes) -> None:
        if len(done) == writes:
            raise StorageError("killed")
        done.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(renewal, "write_atomically", write)
    with pytest.raises(StorageError):
        update(plants / "birch/test/good", site="birch")
    assert bytes_of(run) == before
    with pytest.raises(ConfigError):
        fedvad.undo_update(run)


def test_the_command(
    run: Path, plants: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = plants / "birch/test/good"
    assert run_main(monkeypatch, "update", run, good, "--site", "birch", "--dry-run", "--json") == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["dry_run"] is True
    assert run_main(monkeypatch, "update", run, good, "--site", "birch") == 0
    out = capsys.readouterr().out
    assert "birch: 3 new images" in out
    assert "--undo" in out
    assert run_main(monkeypatch, "update", run, "--undo") == 0
    assert run_main(monkeypatch, "update", run, good, "--undo") == 2


def test_near_copies_of_images_that_trained_promise_nothing(
    tmp_path: Path, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_demo(tmp_path / "plants", plants=1, train=12, test_normal=3, test_defect=1, size=64)
    (site,) = (tmp_path / "plants").iterdir()
    run, again, new = tmp_path / "run", tmp_path / "again", site / "test/good"
    options = {"cache": shared_cache, "rounds": 1}
    fedvad.train(site, run, **OPTIONS, **options)
    again.mkdir()
    for path in sorted((site / "train/good").glob("*.png"))[:6]:
        Image.open(path).convert("RGB").save(again / f"{path.stem}.jpg", quality=95)
    (before,) = fedvad.load(run).sites.values()
    reported = fedvad.update(run, again, cache=shared_cache)["sites"][site.name]
    assert (reported["images"], reported["scored"]) == (6, 0)
    assert "6 of the new images are near copies" in caplog.text
    (after,) = fedvad.load(run).sites.values()
    assert after.n_images == 18
    assert after.thresholds["global"].scores == before.thresholds["global"].scores
    assert after.thresholds["global"].promised == before.thresholds["global"].promised
    assert fedvad.update(run, new, cache=shared_cache)["sites"][site.name]["scored"] == 3
    assert caplog.text.count("near copies") == 1
