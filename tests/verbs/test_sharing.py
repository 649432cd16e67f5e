"""Answered false alarms in the next round: in process, by files and over a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.deploy.changes import more_rounds
from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.federation.signed import generate_keys
from fedvad.runs.memory_run import TrainedRun
from fedvad.verbs.bank import export_upload
from fedvad.verbs.bank_import import import_global
from fedvad.verbs.bank_server import merge_uploads
from tests.deploy.test_site import Deployment
from tests.helpers import OPTIONS, run_main

Run = tuple[Path, dict[str, Any]]
FEW = {**OPTIONS, "rounds": 1, "upload_rows": 40}


@pytest.fixture
def odd(plants: Path) -> Path:
    """An image of birch that looks like nothing the sites have seen."""
    return sorted((plants / "birch/test").glob("[!g]*/*.png"))[0]


def score(run: Path, image: Path, site: str) -> float:
    [row] = fedvad.predict(run, [image], site=site)
    return float(row["score"])


def rows_of(run: TrainedRun, site: str, round_: int) -> np.ndarray:
    assert run.memory.origin is not None
    wanted = [(s.site, s.round) == (site, round_) for s in run.memory.origin.sources]
    return run.memory.vectors[np.array(wanted)[run.memory.origin.source]]


def test_in_process_all_sites_know_it_until_it_is_undone(
    trained: Run, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    before = TrainedRun.load(run)
    with pytest.raises(ConfigError, match="no false alarm was answered"):
        fedvad.share_feedback(run)
    alone = score(run, odd, "alder")
    reported = fedvad.feedback(run, odd, "normal", site="birch")
    assert score(run, odd, "alder") == alone
    assert run_main(monkeypatch, "feedback", run, "--share") == 0
    assert f"{reported['rows']} of birch" in capsys.readouterr().out
    assert score(run, odd, "alder") < 0.9 * alone
    after = TrainedRun.load(run)
    assert len(rows_of(after, "birch", 3)) == reported["rows"]
    assert after.threshold("alder") == before.threshold("alder")
    with pytest.raises(ConfigError, match="no false alarm was answered"):  # they have it
        fedvad.share_feedback(run)
    fedvad.undo_feedback(run, reported["number"])
    np.testing.assert_array_equal(TrainedRun.load(run).memory.vectors, before.memory.vectors)
    assert score(run, odd, "alder") == pytest.approx(alone, rel=1e-5)


def test_what_a_site_calls_normal_passes_the_defence_of_merges(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    images = sorted((plants / "alder/train/good").iterdir())
    for number, name in enumerate("abcd"):  # alike, as lines of one product are
        folder = tmp_path / "data" / name / "train/good"
        folder.mkdir(parents=True)
        for image in images[number % 3 :: 2]:
            shutil.copy(image, folder)
    run = tmp_path / "run"
    fedvad.train(
        tmp_path / "data", run, defence="robust", cache=shared_cache, upload_rows=64, **OPTIONS
    )
    before = TrainedRun.load(run)
    rng = np.random.default_rng(0)
    for number in range(4):  # a liar calls normal what no other site has ever seen
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        noise.save(tmp_path / f"{number}.png")
        fedvad.feedback(run, tmp_path / f"{number}.png", "normal", site="d")
    fedvad.share_feedback(run)
    after = TrainedRun.load(run)
    assert len(rows_of(before, "d", 1)) > 0
    assert len(after.sites["d"].bank) > len(before.sites["d"].bank)
    assert [len(rows_of(after, "d", round_)) for round_ in (1, 2, 3)] == [0, 0, 0]
    assert len(rows_of(after, "a", 1)) == len(rows_of(before, "a", 1)) > 0


def test_by_files_they_come_with_the_next_round(
    plants: Path, odd: Path, shared_cache: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    for index, name in enumerate(("alder", "birch")):
        generate_keys(keys, name)
        (tmp_path / "trust").mkdir(exist_ok=True)
        shutil.copy(keys / f"{name}.pub", tmp_path / "trust")
        _export(plants, tmp_path, name, index, shared_cache)
    generate_keys(keys, "server")
    _merge(tmp_path)
    for name in ("alder", "birch"):
        _import(tmp_path, name, "first", shared_cache)
    fedvad.feedback(tmp_path / "birch/first", odd, "normal")
    reported = TrainedRun.load(tmp_path / "birch/first").sites["birch"].answers[0]
    alone = score(tmp_path / "alder/first", odd, "alder")
    _export(plants, tmp_path, "alder", 0, shared_cache)
    _export(plants, tmp_path, "birch", 1, shared_cache, answers=tmp_path / "birch/first")
    _merge(tmp_path)
    for name in ("alder", "birch"):
        _import(tmp_path, name, "second", shared_cache, answers=tmp_path / name / "first")
    run = TrainedRun.load(tmp_path / "alder/second")
    sent = {row.tobytes() for row in rows_of(run, "birch", 2)}
    assert {row.tobytes() for row in reported.vectors} <= sent
    assert len(sent) <= 40
    assert score(tmp_path / "alder/second", odd, "alder") < alone
    assert len(fedvad.list_feedback(tmp_path / "birch/second")) == 1


def _export(plants: Path, root: Path, name: str, index: int, cache: Any, **options: Any) -> None:
    export_upload(
        plants / name, root / name / "state", root / f"keys/{name}.key", root / f"{name}.fedvad",
        index=index, options=FEW, cache=DescriptorCache(cache), **options,
    )  # fmt: skip


def _merge(root: Path) -> None:
    files = [root / "alder.fedvad", root / "birch.fedvad"]
    merge_uploads(
        files, root / "trust", root / "keys/server.key", root / "server", root / "global.fedvad"
    )


def _import(root: Path, name: str, out: str, cache: Any, **options: Any) -> None:
    import_global(
        root / "global.fedvad", root / name / "state", root / "keys/server.pub",
        out=root / name / out, cache=DescriptorCache(cache), **options,
    )  # fmt: skip


@pytest.mark.parametrize("share", [True, False])
def test_over_a_network_they_go_where_the_site_allows_it(
    share: bool, plants: Path, odd: Path, shared_cache: Path, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path / "dep", plants, shared_cache)
    deployment.configure(**FEW)
    deployment.links.answers["birch"] = deployment.caller("birch", share_answers=share)
    deployment.federate()
    fedvad.feedback(deployment.run_of("birch"), odd, "normal")
    reported = TrainedRun.load(deployment.run_of("birch")).sites["birch"].answers[0]
    more_rounds(deployment.server(), "run", 1)
    result = TrainedRun.load(deployment.federate())
    sent = {row.tobytes() for row in rows_of(result, "birch", 2)}
    assert ({row.tobytes() for row in reported.vectors} <= sent) is share
    assert len(fedvad.list_feedback(deployment.run_of("birch"))) == 1
