"""A deployed run that changes: a site leaves, more rounds bring new images and other rows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedvad
from fedvad.data.locks import only_one
from fedvad.deploy import changes
from fedvad.deploy.changes import forget_site, more_rounds
from fedvad.errors import ConfigError
from fedvad.federation.signed import generate_keys
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.receipt import read_receipt
from tests.deploy.test_site import SITES, Deployment
from tests.helpers import OPTIONS, run_main

FEW = {**OPTIONS, "rounds": 1, "upload_rows": 12}


@pytest.fixture
def deployment(tmp_path: Path, plants: Path, shared_cache: Path) -> Deployment:
    made = Deployment(tmp_path / "dep", plants, shared_cache)
    made.configure(**FEW)
    generate_keys(tmp_path, "server")
    return made


def test_after_one_round_a_site_that_left_was_never_there(
    deployment: Deployment, plants: Path, shared_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    few = shutil.copytree(plants, tmp_path / "few", ignore=shutil.ignore_patterns("cedar"))
    fedvad.train(few, tmp_path / "never", cache=shared_cache, **FEW)
    deployment.federate()
    receipt = tmp_path / "receipt.fedvad"
    call = (deployment.server(), "run", "cedar", tmp_path / "server.key", receipt)
    # killed before the state without the site is kept: nobody goes on, and the same call ends it
    with monkeypatch.context() as killing:
        killing.setattr(changes, "save_state", _kill)
        with pytest.raises(KeyboardInterrupt):
            forget_site(*call)
    with pytest.raises(ConfigError, match="deploy forget cedar"):
        deployment.federate()
    forget_site(*call)

    asked = len(deployment.links.asked)
    result = deployment.federate()
    assert {site for site, _ in deployment.links.asked[asked:]} == {"alder", "birch"}
    left, never = TrainedRun.load(result), TrainedRun.load(tmp_path / "never")
    for name in ("vectors", "weights", "spread"):
        np.testing.assert_array_equal(getattr(left.memory, name), getattr(never.memory, name))
    for name in ("alder", "birch"):
        own = TrainedRun.load(deployment.run_of(name))
        np.testing.assert_array_equal(own.memory.vectors, never.memory.vectors)
        assert own.sites[name].thresholds == never.sites[name].thresholds
    reported = read_receipt(receipt.read_bytes())
    assert reported is not None
    assert (reported.site, reported.rows_removed) == ("cedar", {"cedar": 12, "global": 12})
    memory = (result / "global.safetensors").read_bytes()
    assert reported.after == hashlib.sha256(memory).hexdigest()
    assert b"cedar" not in memory
    with pytest.raises(ConfigError, match="holds nothing of 'cedar'"):
        forget_site(*call[:-1], tmp_path / "again.fedvad")


def _kill(*_: object) -> None:
    raise KeyboardInterrupt


def test_more_rounds_bring_new_images_and_keep_answers(
    deployment: Deployment, plants: Path, tmp_path: Path
) -> None:
    deployment.federate()
    odd = sorted((plants / "birch/test").glob("[!g]*/*.png"))[0]
    fedvad.feedback(deployment.run_of("birch"), odd, "normal", region=(0, 0, 8, 8))
    more = shutil.copytree(plants / "birch", tmp_path / "birch")
    for new in sorted((plants / "birch/test/good").glob("*.png")):
        shutil.copy(new, more / "train/good" / f"new-{new.name}")
    deployment.links.answers["birch"] = deployment.caller("birch", data=more)
    before = TrainedRun.load(deployment.run_of("birch")).sites["birch"]
    more_rounds(deployment.server(), "run", 1)
    with pytest.raises(ConfigError, match="1 of its 2 rounds"):
        more_rounds(deployment.server(), "run", 1)
    result = TrainedRun.load(deployment.federate())
    own = TrainedRun.load(deployment.run_of("birch")).sites["birch"]
    assert own.n_images == before.n_images + 3
    assert result.memory.origin is not None
    assert {(s.site, s.round) for s in result.memory.origin.sources} == {
        (site, round_) for site in SITES for round_ in (1, 2)
    }
    assert [answer.values.name for answer in own.answers] == [str(odd)]
    np.testing.assert_array_equal(own.bank.vectors[:12], before.bank.vectors)


def test_a_kill_while_the_run_folder_is_replaced_loses_no_answer(
    deployment: Deployment, plants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.federate()
    odd = sorted((plants / "birch/test").glob("[!g]*/*.png"))[0]
    fedvad.feedback(deployment.run_of("birch"), odd, "normal", region=(0, 0, 8, 8))
    more_rounds(deployment.server(), "run", 1)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".new") and path.is_relative_to(deployment.run_of("birch").parent):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as killing:
        killing.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            deployment.federate()
    deployment.federate()
    run = deployment.run_of("birch")
    assert [a.values.name for a in TrainedRun.load(run).sites["birch"].answers] == [str(odd)]
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_run_folder_in_use_is_replaced_at_the_next_launch(deployment: Deployment) -> None:
    deployment.federate()
    run = deployment.run_of("birch")
    before = TrainedRun.load(run).memory
    with only_one(run):  # somebody gives an answer
        more_rounds(deployment.server(), "run", 1)
        deployment.federate()
        assert len(TrainedRun.load(run).memory) == len(before)
    deployment.federate()
    assert len(TrainedRun.load(run).memory) == 2 * len(before)


def test_the_command(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    deployment.federate("federation")
    call = ("deploy", "forget", "cedar", deployment.root / "server", "--key",
            tmp_path / "server.key", "--receipt", tmp_path / "receipt")  # fmt: skip
    assert run_main(monkeypatch, *call, "--name", "other") == 2
    assert "no run other" in capsys.readouterr().err
    assert run_main(monkeypatch, *call) == 0
    assert "cedar left run federation" in capsys.readouterr().out
