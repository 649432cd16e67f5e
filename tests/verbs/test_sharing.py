"""Answered false alarms in the next round: in process, by files and over a network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.deploy.changes import more_rounds
from fedvad.detectors.calibration import RowLookup
from fedvad.detectors.scoring import distance_scale
from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.federation.payload import Payload, negatives_from
from fedvad.federation.signed import SignedMessage, generate_keys
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run_folder import read_config, write_config
from fedvad.verbs.bank import export_upload
from fedvad.verbs.bank_forget import forget_site
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


def sensitive(folder: Path, site: str) -> None:
    """Lower a site's thresholds so far that what others call defective counts there."""
    run = TrainedRun.load(folder)
    limits = run.sites[site].thresholds
    limits.update({name: replace(limit, value=0.5) for name, limit in limits.items()})
    run.save(folder)


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
    forgot = Path(shutil.copytree(run, tmp_path / "forgot"))
    fedvad.forget(forgot, site="birch", image=odd, no_receipt=True)
    left = TrainedRun.load(forgot)
    assert left.sites["birch"].n_images == before.sites["birch"].n_images  # it trained nothing
    np.testing.assert_array_equal(left.memory.vectors, before.memory.vectors)
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
        tmp_path / "data", run, defence="robust", cache=shared_cache, upload_rows=72, **OPTIONS
    )
    before = TrainedRun.load(run)
    rng = np.random.default_rng(0)
    fedvad.feedback(run, images[0], "defect", site="d")  # normal at all others
    for number in range(4):  # a liar calls normal what no other site has ever seen
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        noise.save(tmp_path / f"{number}.png")
        fedvad.feedback(run, tmp_path / f"{number}.png", "normal", site="d")
    with pytest.raises(ConfigError, match=r"nothing was shared.* d: only .* are backed"):
        fedvad.share_feedback(run, with_defects=True)
    assert not any(row["shared"] for row in fedvad.list_feedback(run))
    # others are heard
    result = fedvad.feedback(run, plants / "alder/test/good/000.png", "normal", site="a")
    done = fedvad.share_feedback(run, with_defects=True)
    assert (done["rows"], list(done["refused"])) == ({"a": result["rows"]}, ["d"])
    after = TrainedRun.load(run)
    assert after.negatives is None
    for site, rounds in (("a", (1, 2)), ("d", (1, 2, 3))):
        for round_ in rounds:
            np.testing.assert_array_equal(
                rows_of(after, site, round_), rows_of(before, site, round_)
            )
    assert len(rows_of(after, "a", 3)) == result["rows"]
    assert [row["shared"] > 0 for row in fedvad.list_feedback(run)] == [False] * 5 + [True]


def test_defects_raise_scores_at_all_sites_until_they_are_undone_or_forgotten(
    trained: Run, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    sensitive(run, "alder")
    before = TrainedRun.load(run)
    alone = score(run, odd, "alder")
    result = fedvad.feedback(run, odd, "defect", site="birch")
    with pytest.raises(ConfigError, match="no false alarm was answered"):
        fedvad.share_feedback(run)  # a defect leaves a site only where it says so
    assert run_main(monkeypatch, "feedback", run, "--share", "--with-defects") == 0
    assert f"defective patches that count at all sites now: {result['rows']} of birch" in (
        capsys.readouterr().out
    )
    after = TrainedRun.load(run)
    assert after.schema == 3
    assert score(run, odd, "alder") > 1.5 * alone
    np.testing.assert_array_equal(after.memory.vectors, before.memory.vectors)
    assert after.threshold("alder") == before.threshold("alder")
    forgot = Path(shutil.copytree(run, tmp_path / "forgot"))
    fedvad.forget(forgot, site="birch", no_receipt=True)
    assert TrainedRun.load(forgot).negatives is None
    image = Path(shutil.copytree(run, tmp_path / "image"))
    fedvad.forget(image, site="birch", image=odd, no_receipt=True)
    assert TrainedRun.load(image).negatives is None
    fedvad.undo_feedback(run, result["number"])
    undone = TrainedRun.load(run)
    assert undone.negatives is None
    assert score(run, odd, "alder") == pytest.approx(alone, rel=1e-5)


def test_no_single_patch_leaves_where_every_row_is_an_average_over_images(
    trained: Run, odd: Path, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    changes = {"min_count": 2, "reduce": "cluster"}
    write_config(run, read_config(run).model_copy(update=changes))
    fedvad.feedback(run, odd, "normal", site="birch")
    with pytest.raises(ConfigError, match="average over 2 images"):
        fedvad.share_feedback(run, with_defects=True)
    generate_keys(tmp_path / "keys", "birch")
    with pytest.raises(ConfigError, match="average over 2 images"):
        _export(plants, tmp_path, "birch", 1, shared_cache, answers=run, with_defects=True,
                options={**FEW, **changes})  # fmt: skip


def test_what_is_normal_at_a_site_stays_so_whatever_others_call_defective(
    trained: Run, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    normals = sorted((plants / "alder/test/good").iterdir())
    before = [score(run, image, "alder") for image in normals]
    memory = TrainedRun.load(run).memory.vectors
    for image in sorted((plants / "alder/train/good").iterdir()):  # a liar's view of them
        fedvad.feedback(run, image, "defect", site="birch", cache=shared_cache)
    fedvad.share_feedback(run, with_defects=True)
    after = TrainedRun.load(run)
    assert after.negatives is not None
    assert len(after.defects_at("alder")) < 0.1 * len(after.negatives)
    now = [score(run, image, "alder") for image in normals]
    assert now == pytest.approx(before, rel=0.05)
    np.testing.assert_array_equal(after.memory.vectors, memory)
    # what a site answered to be normal counts more than what others say of it
    fedvad.feedback(run, normals[0], "defect", site="birch", cache=shared_cache)
    fedvad.feedback(run, normals[0], "normal", site="alder", cache=shared_cache)


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
    given = TrainedRun.load(tmp_path / "birch/first").sites["birch"].answers[0]
    defect = sorted((plants / "birch/test").glob("[!g]*/*.png"))[-1]
    fedvad.feedback(tmp_path / "birch/first", defect, "defect")
    alone = [score(tmp_path / "alder/first", image, "alder") for image in (odd, defect)]
    with pytest.raises(ConfigError, match="needs --answers"):
        _export(plants, tmp_path, "alder", 0, shared_cache, with_defects=True)
    _export(plants, tmp_path, "alder", 0, shared_cache)
    answers = tmp_path / "birch/first"
    _export(plants, tmp_path, "birch", 1, shared_cache, answers=answers, with_defects=True)
    _merge(tmp_path)
    for name in ("alder", "birch"):
        _import(tmp_path, name, "second", shared_cache, answers=tmp_path / name / "first")
    run = TrainedRun.load(tmp_path / "alder/second")
    sent = {row.tobytes() for row in rows_of(run, "birch", 2)}
    assert {row.tobytes() for row in given.vectors} <= sent
    assert len(sent) <= 40
    assert score(tmp_path / "alder/second", odd, "alder") < alone[0]
    sensitive(tmp_path / "alder/second", "alder")
    assert score(tmp_path / "alder/second", defect, "alder") > 1.2 * alone[1]
    assert [row["shared"] for row in fedvad.list_feedback(tmp_path / "birch/second")] == [2, 2]
    # the server's memory holds none of them as normal, and forgets them with their site
    [answer] = [
        a for a in TrainedRun.load(tmp_path / "birch/first").sites["birch"].answers
        if a.values.verdict == "defect"
    ]  # fmt: skip
    assert not len(RowLookup(run.memory.vectors).rows_of(answer.vectors))
    forget_site("birch", tmp_path / "server", tmp_path / "keys/server.key", tmp_path / "less")
    left = SignedMessage.parse((tmp_path / "less").read_bytes())
    assert negatives_from(Payload.from_bytes(left.message)) is None


def _export(plants: Path, root: Path, name: str, index: int, cache: Any, **options: Any) -> None:
    export_upload(
        plants / name, root / name / "state", root / f"keys/{name}.key", root / f"{name}.fedvad",
        index=index, cache=DescriptorCache(cache), **{"options": FEW, **options},
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
    deployment.links.answers["birch"] = deployment.caller(
        "birch", share_answers=share, share_defects=share
    )
    deployment.federate()
    fedvad.feedback(deployment.run_of("birch"), odd, "normal")
    defect = sorted((plants / "birch/test").glob("[!g]*/*.png"))[-1]
    fedvad.feedback(deployment.run_of("birch"), defect, "defect")
    given = TrainedRun.load(deployment.run_of("birch")).sites["birch"].answers[0]
    more_rounds(deployment.server(), "run", 1)
    result = TrainedRun.load(deployment.federate())
    sent = {row.tobytes() for row in rows_of(result, "birch", 2)}
    assert ({row.tobytes() for row in given.vectors} <= sent) is share
    at_birch = deployment.run_of("birch")
    assert [row["shared"] for row in fedvad.list_feedback(at_birch)] == [2 * share] * 2
    assert (TrainedRun.load(deployment.run_of("alder")).negatives is not None) is share
    fedvad.undo_feedback(at_birch, 1)  # what was shared of it leaves the site's own memories
    for bank in (TrainedRun.load(at_birch).memory, TrainedRun.load(at_birch).sites["birch"].bank):
        assert not {row.tobytes() for row in given.vectors} & {r.tobytes() for r in bank.vectors}


def test_defects_of_a_site_without_a_row_left_stay_until_it_is_forgotten(
    trained: Run, odd: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    fedvad.feedback(run, odd, "defect", site="birch")
    fedvad.share_feedback(run, with_defects=True)
    whole = TrainedRun.load(run)
    assert whole.memory.origin is not None
    # a run of alder alone, whose shared memory kept no row of birch
    rows = whole.memory.take(whole.memory.origin.share_of("birch") == 0)
    alone = {"alder": whole.sites["alder"]}
    replace(whole, memory=rows, scale=distance_scale(rows, whole.scoring), sites=alone).save(run)
    answered = fedvad.feedback(run, odd, "normal", site="alder")
    fedvad.share_feedback(run)
    for number in (answered["number"], None):  # shared, then undone: merged twice
        left = TrainedRun.load(run)
        assert left.negatives is not None
        assert whole.negatives is not None
        np.testing.assert_array_equal(left.negatives.vectors, whole.negatives.vectors)
        if number is not None:
            fedvad.undo_feedback(run, number)
    fedvad.forget(run, site="birch", no_receipt=True)
    assert TrainedRun.load(run).negatives is None
