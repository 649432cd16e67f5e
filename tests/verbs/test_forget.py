"""forget(): what left is in no memory, the rest is as if it had never been there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.data.sealed import sha256_of
from fedvad.errors import ConfigError, StorageError
from fedvad.features.cache import content_key
from fedvad.federation.signed import generate_keys
from fedvad.runs import renewal
from fedvad.runs.memory_run import TrainedRun
from tests.helpers import OPTIONS, run_main

Run = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    generate_keys(folder, "server")
    return folder


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def without(plants: Path, target: Path, site: str = "cedar") -> Path:
    """The plants without one that leaves."""
    shutil.copytree(plants, target, ignore=shutil.ignore_patterns(site))
    return target


def same(one: TrainedRun, other: TrainedRun) -> None:
    for mine, theirs in (
        (one.memory, other.memory),
        *((one.sites[name].bank, other.sites[name].bank) for name in one.sites),
    ):
        np.testing.assert_array_equal(mine.vectors, theirs.vectors)
        np.testing.assert_array_equal(mine.weights, theirs.weights)
        np.testing.assert_array_equal(mine.spread, theirs.spread)
        assert mine.origin is not None
        assert theirs.origin is not None
        assert mine.origin.sources == theirs.origin.sources
    np.testing.assert_array_equal(one.scale, other.scale)


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "int8"}, {"merge": "kmeans", "memory_rows": 9}, {"memory_rows": 15}],
)
def test_after_one_round_it_is_the_federation_that_never_had_the_site(
    options: dict[str, Any], plants: Path, tmp_path: Path, shared_cache: Path
) -> None:
    given = {**OPTIONS, "rounds": 1, "upload_rows": 12, "cache": shared_cache, **options}
    few = without(plants, tmp_path / "few")
    fedvad.train(plants, tmp_path / "run", **given)
    fedvad.train(few, tmp_path / "never", **given)
    fedvad.forget(tmp_path / "run", site="cedar", data=few, cache=shared_cache, no_receipt=True)
    left, never = (TrainedRun.load(tmp_path / name) for name in ("run", "never"))
    assert left.sites.keys() == never.sites.keys() == {"alder", "birch"}
    same(left, never)
    for name, site in never.sites.items():
        assert left.sites[name].thresholds == site.thresholds
        for reference, threshold in site.thresholds.items():
            assert left.sites[name].thresholds[reference].scores == threshold.scores


def test_after_more_rounds_the_later_ones_are_done_again(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    given = {**OPTIONS, "rounds": 3, "upload_rows": 12, "cache": shared_cache}
    few = without(plants, tmp_path / "few")
    fedvad.train(plants, tmp_path / "run", **given)
    fedvad.train(few, tmp_path / "never", **given)
    reported = fedvad.forget(
        tmp_path / "run", site="cedar", data=few, cache=shared_cache, no_receipt=True
    )
    left, never = (TrainedRun.load(tmp_path / name) for name in ("run", "never"))
    assert reported["repaired"] is True
    np.testing.assert_array_equal(left.memory.vectors, never.memory.vectors)
    np.testing.assert_allclose(left.memory.weights, never.memory.weights, rtol=1e-6)
    for name, site in never.sites.items():
        np.testing.assert_array_equal(left.sites[name].bank.vectors, site.bank.vectors)
        assert left.sites[name].thresholds == site.thresholds


def test_what_joined_later_stays_when_others_fill_in(
    run: Path, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    fedvad.update(run, plants / "birch/test/good", site="birch", cache=shared_cache)
    few = without(plants, tmp_path / "few")
    reported = fedvad.forget(run, site="cedar", data=few, cache=shared_cache, no_receipt=True)
    left = TrainedRun.load(run)
    assert reported["repaired"] is True
    assert reported["thresholds"] == "found again"
    assert left.memory.origin is not None
    assert {source.site for source in left.memory.origin.sources} == {"alder", "birch"}
    assert {source.round for source in left.memory.origin.sources} >= {1, 2, 3, 5}
    assert b"cedar" not in (run / "detector.safetensors").read_bytes()
    assert b"cedar" not in (run / "ledger.json").read_bytes()
    assert fedvad.evaluate(run, few, cache=shared_cache).image_auroc.mean > 0.8


def test_without_images_the_rest_of_the_memory_stays(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = TrainedRun.load(run)
    reported = fedvad.forget(run, site="birch", no_receipt=True)
    left = TrainedRun.load(run)
    assert "false alarms may rise" in caplog.text
    assert reported["thresholds"] == "of the memory before"
    assert before.memory.origin is not None
    kept = before.memory.take(before.memory.origin.share_of("birch") == 0)
    np.testing.assert_array_equal(left.memory.vectors, kept.vectors)
    assert reported["rows_removed"]["global"] == len(before.memory) - len(left.memory)
    assert left.threshold("alder") is not None


def test_pictures_and_earlier_states_go_too(run: Path, plants: Path, shared_cache: Path) -> None:
    fedvad.update(run, plants / "birch/test/good", site="birch", cache=shared_cache)
    reported = fedvad.forget(run, site="birch", no_receipt=True)
    assert {"gallery", "report.html", "heatmaps.png", "results.json"} <= set(reported["removed"])
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(".")) == [
        "config.json", "detector.safetensors", "ledger.json",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="nothing to take back"):
        fedvad.undo_update(run)


@pytest.mark.parametrize("image", [None, "002.png"])
def test_every_page_and_picture_of_the_run_goes_and_nothing_else(
    run: Path, plants: Path, shared_cache: Path, image: str | None
) -> None:
    fedvad.write_report(run, pdf=True)
    fedvad.write_report(run, pdf=True, out=run / "board.pdf")
    fedvad.write_report(run, out=run / "page.html")
    shutil.copy(run / "heatmaps.png", run / "more.png")
    fedvad.calibrate(
        run, [plants / "birch/test/good"], site="birch", force=True, cache=shared_cache
    )
    ours = {"audit.pdf", "board.pdf", "page.html", "more.png", "earlier-thresholds.json"}
    assert ours <= {path.name for path in run.iterdir()}
    (run / "minutes.pdf").write_bytes(b"%PDF-1.4 of the board")
    file = None if image is None else plants / "birch/train/good" / image
    reported = fedvad.forget(run, site="birch", image=file, cache=shared_cache, no_receipt=True)
    assert ours <= set(reported["removed"])
    left = {path.name for path in run.iterdir()}
    assert not ours & left
    assert "minutes.pdf" in left


def test_an_image_leaves_its_site(
    run: Path, plants: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = TrainedRun.load(run)
    file = plants / "birch/train/good/002.png"
    digest = content_key(file.read_bytes())[:16]
    reported = fedvad.forget(run, site="birch", image=file, cache=shared_cache, no_receipt=True)
    left = TrainedRun.load(run)
    bank = left.sites["birch"].bank
    assert reported["image"] == digest
    assert bank.origin is not None
    assert digest not in {source.image for source in bank.origin.sources}
    assert reported["rows_removed"] == {
        "birch": len(before.sites["birch"].bank) - len(bank),
        "global": len(before.memory) - len(left.memory),
    }
    assert left.sites["birch"].n_images == 5
    with pytest.raises(ConfigError, match="nothing has to be forgotten"):
        fedvad.forget(run, site="birch", image=digest, cache=shared_cache, no_receipt=True)
    words = ("forget", run, "--site", "birch", "--image", file.with_name("000.png"))
    assert run_main(monkeypatch, *words, "--no-receipt", "--cache", shared_cache) == 0
    out = capsys.readouterr().out
    assert "thresholds unchanged: of the memory before" in out
    assert "threshold of" not in out


def test_the_image_stays_out_when_the_others_fill_in(
    run: Path, plants: Path, shared_cache: Path
) -> None:
    file = plants / "birch/train/good/002.png"
    reported = fedvad.forget(
        run, site="birch", image=file, data=plants, cache=shared_cache, no_receipt=True
    )
    assert reported["repaired"] is True
    bank = TrainedRun.load(run).sites["birch"].bank
    assert bank.origin is not None
    images = {source.image for source in bank.origin.sources}
    assert len(images) == 5
    assert reported["image"] not in images


def test_a_second_machine_verifies_the_receipt(run: Path, keys: Path, tmp_path: Path) -> None:
    reported = fedvad.forget(run, site="cedar", key=keys / "server.key")
    receipt = Path(reported["receipt"])
    before = (run / "detector.safetensors").read_bytes()
    for users in (keys / "server.key", tmp_path / "mine.png"):
        users.touch()
        held = users.read_bytes()
        with pytest.raises(ConfigError, match=r"--receipt .*(is read|fedvad did not write it)"):
            fedvad.forget(run, site="birch", key=keys / "server.key", receipt=users)
        assert users.read_bytes() == held
    assert (run / "detector.safetensors").read_bytes() == before
    assert receipt == run / "forgot-cedar.fedvad"
    found = fedvad.inspect(receipt)
    assert found["signature"]["verifies"] is True
    assert found["site"] == "cedar"
    assert found["after"] == sha256_of((run / "detector.safetensors").read_bytes())
    damaged = tmp_path / "damaged"
    damaged.write_bytes(receipt.read_bytes().replace(b'"cedar"', b'"alder"'))
    assert fedvad.inspect(damaged)["signature"]["verifies"] is False
    assert "does NOT verify" in " ".join(fedvad.inspect(damaged)["says"])


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_kill_leaves_a_whole_run_and_the_same_command_ends_it(
    run: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    done: list[Path] = []
    real = renewal.write_atomically

    def write(path: Path, data: bytes) -> None:
        if len(done) == writes:
            raise StorageError("killed")
        done.append(path)
        real(path, data)

    with monkeypatch.context() as patch:
        for module in ("renewal", "receipt"):
            patch.setattr(f"fedvad.runs.{module}.write_atomically", write)
        patch.setattr("fedvad.verbs.forget.write_atomically", write)
        with pytest.raises(StorageError):
            fedvad.forget(run, site="cedar", key=keys / "server.key")
    assert len(TrainedRun.load(run).sites) == (2 if writes == 2 else 3)
    reported = fedvad.forget(run, site="cedar", key=keys / "server.key")
    assert fedvad.inspect(reported["receipt"])["site"] == "cedar"
    assert list(TrainedRun.load(run).sites) == ["alder", "birch"]
    assert not (run / "forgetting.fedvad").exists()


def test_what_cannot_be_forgotten_is_said(
    run: Path, plants: Path, tmp_path: Path, shared_cache: Path
) -> None:
    with pytest.raises(ConfigError, match=r"one of .*alder.* not 'oak'"):
        fedvad.forget(run, site="oak", no_receipt=True)
    few = without(plants, tmp_path / "few", "birch")
    with pytest.raises(ConfigError, match=r"lacks the images of birch:"):
        fedvad.forget(run, site="cedar", data=few, cache=shared_cache, no_receipt=True)
    assert list(fedvad.load(run).sites) == ["alder", "birch", "cedar"]
    fedvad.train(plants / "alder", tmp_path / "one", cache=shared_cache, **OPTIONS)
    with pytest.raises(ConfigError, match="only site"):
        fedvad.forget(tmp_path / "one", site="alder", no_receipt=True)


def test_the_command(
    run: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = run.parent / "receipt.fedvad"
    common = ("forget", run, "--site", "cedar", "--receipt", receipt)
    assert run_main(monkeypatch, *common) == 2
    assert run_main(monkeypatch, *common, "--no-receipt") == 2
    assert run_main(monkeypatch, *common, "--key", keys / "server.key", "--json") == 0
    assert json.loads(capsys.readouterr().out)["receipt"] == str(receipt)
    assert run_main(monkeypatch, "inspect", receipt, "--trust", keys / "server.pub") == 0
    out = capsys.readouterr().out
    assert "'server' made it" in out
    assert "image None" not in out
    assert run_main(monkeypatch, "forget", run, "--site", "birch") == 2
    assert "--no-receipt" in capsys.readouterr().err
    assert set(TrainedRun.load(run).sites) == {"alder", "birch"}
    assert run_main(monkeypatch, "forget", run, "--site", "birch", "--no-receipt") == 0
    assert "no receipt" in capsys.readouterr().out


def test_thresholds_that_changed_are_shown(
    run: Path,
    plants: Path,
    tmp_path: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = TrainedRun.load(run)
    shutil.copytree(run, tmp_path / "other")
    few = without(plants, tmp_path / "few")
    reported = fedvad.forget(
        tmp_path / "other", site="cedar", data=few, cache=shared_cache, no_receipt=True
    )
    left = TrainedRun.load(tmp_path / "other")
    assert list(reported["site_thresholds"]) == ["alder", "birch"]
    for name, limit in reported["site_thresholds"].items():
        assert limit == {
            "before": before.threshold(name).value,
            "now": left.threshold(name).value,
        }
    command = (
        "forget",
        run,
        "--site",
        "cedar",
        "--data",
        few,
        "--no-receipt",
        "--cache",
        shared_cache,
    )
    assert run_main(monkeypatch, *command) == 0
    out = capsys.readouterr().out
    limits = reported["site_thresholds"]["birch"]
    assert f"threshold of birch: {limits['before']:.4g} to {limits['now']:.4g}" in out
    assert "Evaluate again: other thresholds catch other defects." in out


def test_a_site_of_a_federation_forgets_another_of_which_it_has_the_shared_rows(
    run: Path, plants: Path, shared_cache: Path
) -> None:
    before = TrainedRun.load(run)
    replace(before, sites={"alder": before.sites["alder"]}).save(run)  # as `bank import` makes one
    reported = fedvad.update(run, plants / "alder/test/good", cache=shared_cache)
    assert reported["sites"]["alder"]["rows"]["now"] > reported["sites"]["alder"]["rows"]["before"]
    updated = TrainedRun.load(run)
    assert before.memory.origin is not None
    assert updated.memory.origin is not None
    for name in ("birch", "cedar"):
        mine, theirs = (
            m.take(m.origin.share_of(name) > 0) for m in (updated.memory, before.memory)
        )
        np.testing.assert_array_equal(mine.vectors, theirs.vectors)
    fedvad.forget(run, site="birch", no_receipt=True)
    left = TrainedRun.load(run).memory
    assert left.origin is not None
    assert {source.site for source in left.origin.sources} == {"alder", "cedar"}
    rows = updated.memory.take(updated.memory.origin.share_of("birch") == 0)
    np.testing.assert_array_equal(left.vectors, rows.vectors)
