"""A whole federation by messages, without Flower: the numbers of `train`, whatever happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import fedvad
from fedvad.deploy import site as site_module
from fedvad.deploy import status as status_module
from fedvad.deploy.init import init
from fedvad.deploy.server import begin, federate, read_status, site_keys
from fedvad.deploy.settings import (
    ServerSettings,
    SiteSettings,
    read_server,
    read_site,
    to_toml,
)
from fedvad.deploy.site import answer, run_folder, state_folder
from fedvad.deploy.status import overview
from fedvad.errors import ConfigError, FederationError
from fedvad.federation.mailboxes.flower import rounds as rounds_module
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run_folder import read_ledger
from tests.deploy.support import FakeLinks
from tests.helpers import OPTIONS, alone, run_main

SITES = ("alder", "birch", "cedar")
Run = tuple[Path, dict[str, Any]]


class Deployment:
    """The folders of a deployment, and links that call its sites in this process."""

    def __init__(self, root: Path, plants: Path, cache: Path) -> None:
        self.root, self.plants, self.cache = root, plants, cache
        init(root, ["localhost"], SITES)
        self.configure(**OPTIONS)
        self.links = FakeLinks({name: self.caller(name) for name in SITES})

    def configure(self, **options: Any) -> None:
        (self.root / "server" / "federation.toml").write_text(to_toml(options))

    def server(self, **changes: Any) -> ServerSettings:
        return read_server(self.root).model_copy(update={"deadline": 20.0} | changes)

    def site(self, name: str, **changes: Any) -> SiteSettings:
        given = {"data": self.plants / name, "cache": self.cache, "engine": "torch"}
        return read_site(self.root / "sites" / name, **(given | changes))

    def caller(self, name: str, **changes: Any) -> Callable[[Instruction], Reply]:
        return lambda instruction: answer(self.site(name, **changes), instruction)

    def federate(self, name: str = "run", **changes: Any) -> Path:
        return federate(self.server(**changes), name, self.links, clock=self.links.clock)

    def run_of(self, name: str, run: str = "run") -> Path:
        record = json.loads((self.server().run(run) / "federation.json").read_text())
        return run_folder(self.site(name), record["federation"])


@pytest.fixture
def deployment(tmp_path: Path, plants: Path, shared_cache: Path) -> Deployment:
    return Deployment(tmp_path / "dep", plants, shared_cache)


def same_memory(one: TrainedRun, other: TrainedRun) -> bool:
    names = ("vectors", "weights", "spread")
    return all(
        np.array_equal(getattr(one.memory, n), getattr(other.memory, n)) for n in names
    )  # fmt: skip


class TestAFederation:
    def test_gives_the_numbers_of_train(
        self, deployment: Deployment, trained: Run, plants: Path
    ) -> None:
        result = deployment.federate()
        reference = TrainedRun.load(trained[0])
        assert same_memory(TrainedRun.load(result), reference)
        for name in SITES:
            own = TrainedRun.load(deployment.run_of(name))
            assert same_memory(own, reference)
            assert list(own.sites) == [name]
            assert own.sites[name].thresholds == reference.sites[name].thresholds
            assert own.threshold(name).method.startswith("federated")  # type: ignore[union-attr]
            assert np.array_equal(
                own.sites[name].bank.vectors, reference.sites[name].bank.vectors
            )  # fmt: skip

    def test_leaves_run_folders_that_every_verb_takes(
        self, deployment: Deployment, trained: Run, plants: Path, shared_cache: Path
    ) -> None:
        result = deployment.federate()
        own = deployment.run_of("birch")
        reported = fedvad.evaluate(own, plants / "birch", cache=shared_cache)
        expected = trained[1]["image_auroc"]["sites"]["birch"]
        assert reported["image_auroc"]["mean"] == pytest.approx(expected)
        images = list(fedvad.predict(own, plants / "birch" / "test", site="birch"))
        assert len(images) == 7
        assert {row["anomalous"] for row in images} <= {True, False}
        elsewhere = list(fedvad.predict(result, plants / "birch" / "test"))
        assert [row["score"] for row in elsewhere] == pytest.approx([r["score"] for r in images])
        entry = read_ledger(own).rounds[1]
        assert entry.bytes_up["birch"] > 0 < entry.bytes_down["birch"]
        results = json.loads((result / "results.json").read_text())
        assert results["reported"]["alder"]["images"] == 6
        assert set(results["finished"]) == set(SITES)
        assert results["missing"] == {}

    def test_second_launch_does_nothing_again(self, deployment: Deployment) -> None:
        deployment.federate()
        asked = len(deployment.links.asked)
        deployment.federate()
        assert len(deployment.links.asked) == asked

    @pytest.mark.parametrize("when", ["before the state", "after it"])
    def test_a_server_killed_in_the_only_round_goes_on(
        self, deployment: Deployment, when: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deployment.configure(**OPTIONS, rounds=1)
        save = rounds_module.save_state

        def killed(*arguments: Any) -> None:
            if when == "after it":
                save(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(rounds_module, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            deployment.federate()
        monkeypatch.setattr(rounds_module, "save_state", save)
        reported = json.loads((deployment.federate() / "results.json").read_text())["reported"]
        assert {name: values["images"] for name, values in reported.items()} == dict.fromkeys(
            SITES, 6
        )

    def test_an_upload_longer_than_agreed_is_refused_unread(self, deployment: Deployment) -> None:
        deployment.configure(**OPTIONS, upload_bytes=50_000)
        honest = deployment.links.answers["cedar"]
        deployment.links.answers["cedar"] = lambda i: replace(
            honest(i), payloads=(bytes(50_000 + (64 << 10) + 1),) if i.kind == "round" else ()
        )
        result = deployment.federate()
        rejected = read_ledger(result).rounds[0].rejected
        assert list(rejected) == ["cedar"]
        assert "exceeds the limit" in rejected["cedar"]

    def test_site_that_missed_the_end_gets_it_later(self, deployment: Deployment) -> None:
        present = deployment.links.answers["cedar"]
        deployment.links.answers["cedar"] = lambda i: None if i.kind == "finish" else present(i)
        result = deployment.federate()
        assert json.loads((result / "results.json").read_text())["missing"] == {
            "cedar": "no answer in time"
        }
        assert not deployment.run_of("cedar").exists()
        deployment.links.answers["cedar"] = present
        deployment.federate()
        assert (deployment.run_of("cedar") / "detector.safetensors").is_file()

    def test_site_that_never_trained_scores_with_the_global_memory(
        self, deployment: Deployment, plants: Path
    ) -> None:
        present = deployment.links.answers["cedar"]
        deployment.links.answers["cedar"] = lambda i: None if i.kind == "round" else present(i)
        deployment.federate()
        own = TrainedRun.load(deployment.run_of("cedar"))
        assert own.sites["cedar"].n_images == 0
        assert own.threshold("cedar") is not None
        assert len(list(fedvad.predict(deployment.run_of("cedar"), plants / "cedar/test"))) == 7

    def test_failure_is_reported_with_its_reason(self, deployment: Deployment) -> None:
        deployment.links.answers = {"alder": deployment.caller("alder")}
        with pytest.raises(FederationError, match="birch: not connected"):
            deployment.federate()
        status = read_status(deployment.server().run("run"))
        assert status["state"] == "failed"
        assert "quorum is 2" in status["error"]

    def test_options_must_not_change_on_the_way(self, deployment: Deployment) -> None:
        begin(deployment.server(), "run")
        deployment.configure(**OPTIONS, seed=4)
        with pytest.raises(ConfigError, match="begun with another config"):
            deployment.federate()
        deployment.federate("other")

    def test_two_at_a_time_are_one_too_many(self, deployment: Deployment) -> None:
        def nested(instruction: Instruction) -> Reply:
            with pytest.raises(FederationError, match="already under way"):
                deployment.federate()
            raise KeyboardInterrupt

        deployment.links.answers["alder"] = nested
        with pytest.raises(KeyboardInterrupt):
            deployment.federate()


@pytest.fixture
def asked(deployment: Deployment) -> dict[str, Instruction]:
    """What alder was asked in each round of a federation that is over."""
    deployment.federate()
    return {f"{i.kind} {i.round}": i for site, i in deployment.links.asked if site == "alder"}


class TestASite:
    def test_same_question_same_answer(
        self, deployment: Deployment, asked: dict[str, Instruction]
    ) -> None:
        first = deployment.caller("alder")(asked["round 2"])
        again = deployment.caller("alder")(asked["round 2"])
        assert first.payloads == again.payloads
        assert len(first.payloads) == 1
        assert first.facts["repeated"] is True
        assert deployment.caller("alder")(asked["finish 2"]).facts["repeated"] is True

    def test_lost_upload_comes_along(
        self, deployment: Deployment, asked: dict[str, Instruction]
    ) -> None:
        both = deployment.caller("alder")(replace(asked["round 2"], held=0))
        assert len(both.payloads) == 2

    @pytest.mark.parametrize("notes", [b"", b"\0\xff", b"[1]", b"null"])
    def test_damaged_notes_and_copies_of_files_are_no_hindrance(
        self, notes: bytes, deployment: Deployment, asked: dict[str, Instruction]
    ) -> None:
        question = replace(asked["round 2"], held=0)
        whole = deployment.caller("alder")(question)
        folder = site_module.state_folder(deployment.site("alder"), question.federation)
        (folder / "told.json").write_bytes(notes)
        (folder / "sent/round-0001 (copy).fedvad").write_bytes(b"x")
        (folder / "sent/round-0002.fedvad.bak").write_bytes(b"x")
        (deployment.run_of("alder") / "memory.sha256").write_bytes(notes)
        again = deployment.caller("alder")(question)
        assert (again.refusal, again.payloads) == ("", whole.payloads)
        assert again.facts["repeated"] is True
        finished = deployment.caller("alder")(asked["finish 2"])  # made again, as nobody vouches
        assert (finished.refusal, finished.facts["repeated"]) == ("", False)

    @pytest.mark.parametrize("kill", ["save_sent", "save_site"])
    def test_kill_between_computing_and_keeping(
        self,
        kill: str,
        deployment: Deployment,
        asked: dict[str, Instruction],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        whole = deployment.caller("alder")(replace(asked["round 2"], held=0)).payloads
        fresh = deployment.caller("alder", state=deployment.root / "fresh")
        fresh(asked["round 1"])
        with monkeypatch.context() as patch:
            patch.setattr(site_module, kill, killed)
            with pytest.raises(KeyboardInterrupt):
                fresh(asked["round 2"])
        assert fresh(replace(asked["round 2"], held=0)).payloads == whole

    @pytest.mark.parametrize(
        ("changes", "settings", "reason"),
        [
            ({"config": '{"nonsense": 1}'}, {}, "does not suit fedvad"),
            ({"config": '{"seed": 9}'}, {}, "changed .*seed"),
            ({"config": '{"backbone": "hf-hub:someone/x"}'}, {}, "a backbone named"),
            ({"config": '{"upload_bytes": 2000000}'}, {}, "at most 1000000"),
            ({}, {"max_upload_bytes": 5000}, "this site sends at most 5000"),
            ({"sites": ("birch", "cedar")}, {}, "is not among"),
            ({"sites": ("aachen", *SITES)}, {}, "changed sites"),
            ({"federation": "../../etc"}, {}, "small letters"),
            ({"payload": b"junk" * 9}, {}, "header claims"),
            ({"round": 1, "payload": b""}, {}, "lost its state"),
            ({"round": 1}, {}, "came with round 1"),
            ({"round": 3}, {"data": Path("nowhere")}, "DataError: see the site's log"),
            ({"config": '{"backbone": "resnet18"}'}, {}, "a site downloads nothing"),
        ],
    )
    def test_refuses_with_the_reason(
        self,
        changes: dict[str, Any],
        settings: dict[str, Any],
        reason: str,
        deployment: Deployment,
        asked: dict[str, Instruction],
    ) -> None:
        instruction = replace(asked["round 2"], **changes)
        reply = deployment.caller("alder", **settings)(instruction)
        assert reply.site == "alder"
        assert reply.payloads == ()
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(reply.refusal)

    def test_no_refusal_names_a_file(
        self, deployment: Deployment, plants: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def asked(**options: Any) -> Instruction:
            config = json.dumps(OPTIONS | options)
            return Instruction("round", "run-1", round=1, config=config, sites=SITES)

        weights = {"weights": Path("/srv/meier/resnet.safetensors")}
        reply = deployment.caller("alder", **weights)(asked(backbone="resnet18"))
        assert "weights file ... does not exist" in reply.refusal

        data = deployment.root / "hospital"
        shutil.copytree(plants / "alder", data)
        for number, path in enumerate(sorted((data / "train/good").iterdir())):
            path.write_bytes(b"no image")
            path.rename(path.with_name(f"MEIER {number}.png"))
        reply = deployment.caller("alder", data=data)(asked())
        assert reply.refusal == "DataError: see the site's log"
        assert "MEIER" in caplog.text

    def test_other_images_features_than_before(
        self, deployment: Deployment, asked: dict[str, Instruction]
    ) -> None:
        config = json.loads(asked["round 2"].config) | {"image_size": 96}
        instruction = replace(asked["round 2"], config=json.dumps(config), federation="other-1")
        assert "another feature configuration" in deployment.caller("alder")(instruction).refusal

    def test_says_who_it_is(self, deployment: Deployment) -> None:
        assert deployment.caller("alder")(Instruction("hello")) == Reply("alder")

    def test_keeps_its_own_ways(
        self, deployment: Deployment, asked: dict[str, Instruction]
    ) -> None:
        config = json.loads(asked["round 1"].config)
        assert not {"weights", "device", "jobs", "leave_out"} & set(config)
        folder = state_folder(deployment.site("alder"), asked["round 1"].federation)
        assert sorted(p.name for p in (folder / "sent").iterdir()) == [
            "round-0001.fedvad", "round-0002.fedvad",
        ]  # fmt: skip


class TestStatus:
    def test_before_during_and_after_a_run(
        self,
        deployment: Deployment,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def shown() -> str:
            assert run_main(monkeypatch, "status", deployment.root) == 0
            return capsys.readouterr().out

        assert shown() == "server: stopped\n"
        monkeypatch.setattr(status_module, "healthy", lambda settings: True)
        keys = {name: key for key, name in site_keys(deployment.server()).items()}
        monkeypatch.setattr(status_module, "online_keys", lambda path: {keys["birch"]})
        seen: list[str] = []
        present = deployment.links.answers["alder"]

        def looking(instruction: Instruction) -> Reply:
            seen.append(shown())
            return present(instruction)

        deployment.links.answers["alder"] = looking
        deployment.links.answers["cedar"] = lambda i: replace(Reply("cedar", i.round), refusal="no")
        deployment.federate()
        assert seen[1].splitlines() == [
            "server: running",
            "connected: birch   not connected: alder, cedar",
            "run run: round 1 of 2: waiting for alder, birch, cedar",
            "  round 1 without cedar: refused by the site: no",
        ]
        assert "run run: done, without cedar\n" in shown()
        reported = overview(deployment.server())["runs"]["run"]
        assert (reported["round"], reported["rounds"]) == (2, 2)
        assert reported["refused"][2] == {"cedar": "refused by the site: no"}


class TestThresholdsTogether:
    def test_a_site_may_keep_its_scores(self, deployment: Deployment, trained: Run) -> None:
        deployment.links.answers["cedar"] = deployment.caller("cedar", share_scores=False)
        result = deployment.federate()
        assert json.loads((result / "results.json").read_text())["thresholds_together"] == {
            "sites": ["alder", "birch"], "without": []
        }  # fmt: skip
        expected = TrainedRun.load(trained[0]).sites["cedar"].thresholds
        own = TrainedRun.load(deployment.run_of("cedar")).sites["cedar"].thresholds
        # where another processor adds in another order, the last digit differs
        assert own == {
            name: replace(one, value=pytest.approx(one.value, rel=1e-12))
            for name, one in alone(expected).items()
        }
        finishes = [i for s, i in deployment.links.asked if (s, i.kind) == ("cedar", "threshold")]
        assert finishes == []

    def test_under_rule_own_no_score_leaves(self, deployment: Deployment, trained: Run) -> None:
        deployment.configure(**OPTIONS, threshold_rule="own")
        replies: list[Reply] = []
        for name in SITES:
            present = deployment.links.answers[name]

            def kept(instruction: Instruction, present: Any = present) -> Reply:
                replies.append(present(instruction))
                return replies[-1]

            deployment.links.answers[name] = kept
        deployment.federate()
        assert not any("scores" in reply.facts for reply in replies)
        own = TrainedRun.load(deployment.run_of("alder")).sites["alder"].thresholds
        assert own == alone(TrainedRun.load(trained[0]).sites["alder"].thresholds)

    def test_a_late_site_changes_them_for_all(self, deployment: Deployment, trained: Run) -> None:
        present = deployment.links.answers["cedar"]
        deployment.links.answers["cedar"] = lambda i: None if i.kind == "finish" else present(i)
        deployment.federate()
        expected = TrainedRun.load(trained[0]).sites["alder"].thresholds
        before = TrainedRun.load(deployment.run_of("alder")).sites["alder"].thresholds
        assert before["global"].value != expected["global"].value
        deployment.links.answers["cedar"] = present
        deployment.federate()
        assert TrainedRun.load(deployment.run_of("alder")).sites["alder"].thresholds == expected
        asked = len(deployment.links.asked)
        deployment.federate()
        assert len(deployment.links.asked) == asked

    @pytest.mark.parametrize(
        "scores",
        [[0.5] * 7, ["0.5"] * 3, [float("nan")] * 3, 3],
        ids=["more than images", "text", "no number", "no list"],
    )
    def test_scores_that_cannot_be_are_left_out(
        self, scores: Any, deployment: Deployment, caplog: pytest.LogCaptureFixture
    ) -> None:
        present = deployment.links.answers["cedar"]

        def lying(instruction: Instruction) -> Reply:
            reply = present(instruction)
            if instruction.kind == "finish":
                reply.facts["scores"] = {"global": scores}
            return reply

        deployment.links.answers["cedar"] = lying
        result = deployment.federate()
        reported = json.loads((result / "results.json").read_text())
        assert reported["thresholds_together"]["sites"] == ["alder", "birch"]
        assert "cedar has no part in the shared threshold" in caplog.text
        assert "scores" not in reported["finished"]["alder"]

    def test_damaged_thresholds_change_nothing_at_a_site(self, deployment: Deployment) -> None:
        deployment.federate()
        asked = [i for site, i in deployment.links.asked if site == "alder"][-1]
        assert asked.kind == "threshold"
        assert set(asked.facts["thresholds"]) == {"global"}
        before = (deployment.run_of("alder") / "detector.safetensors").read_bytes()
        for reported in (
            {"thresholds": 3},
            {"thresholds": {"global": {"value": "1", "method": "x"}}},
            {"thresholds": {"local": {"value": 1.0, "method": "x"}}},
        ):
            reply = deployment.caller("alder")(replace(asked, facts=reported))
            assert "cannot be read" in reply.refusal
        assert (deployment.run_of("alder") / "detector.safetensors").read_bytes() == before


class TestOneThresholdForAll:
    SHARED: ClassVar[dict[str, Any]] = {"shared_threshold": True, "target_fpr": 0.1}

    def test_is_that_of_train(
        self, deployment: Deployment, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        deployment.configure(**OPTIONS, **self.SHARED)
        result = deployment.federate()
        whole = tmp_path / "whole"
        fedvad.train(plants, whole, cache=shared_cache, **OPTIONS, **self.SHARED)
        expected = TrainedRun.load(whole).sites
        for name in SITES:
            found = TrainedRun.load(deployment.run_of(name)).sites[name].thresholds
            assert found == expected[name].thresholds
            assert found["global"].method == "conformal, summed counts"
            assert found["global"].scores == expected[name].thresholds["global"].scores
        reported = json.loads((result / "results.json").read_text())
        shared = reported["shared_threshold"]["global"]
        assert shared["value"] == expected["alder"].thresholds["global"].value
        assert reported["shared_threshold"]["without"] == []
        assert "score_counts" not in reported["finished"]["alder"]
        asked = len(deployment.links.asked)
        deployment.federate()
        assert len(deployment.links.asked) == asked

    def test_a_late_site_changes_it_for_all(self, deployment: Deployment) -> None:
        deployment.configure(**OPTIONS, **self.SHARED)
        present = deployment.links.answers["cedar"]
        deployment.links.answers["cedar"] = lambda i: None if i.kind == "finish" else present(i)
        deployment.federate()
        before = TrainedRun.load(deployment.run_of("alder")).sites["alder"].thresholds["global"]
        deployment.links.answers["cedar"] = present
        result = deployment.federate()
        after = TrainedRun.load(deployment.run_of("alder")).sites["alder"].thresholds["global"]
        assert after.n > before.n
        reported = json.loads((result / "results.json").read_text())
        assert reported["shared_threshold"]["global"]["n"] == after.n

    def test_more_counts_than_images_have_no_part(
        self, deployment: Deployment, caplog: pytest.LogCaptureFixture
    ) -> None:
        deployment.configure(**OPTIONS, **self.SHARED)
        present = deployment.links.answers["cedar"]

        def boasting(instruction: Instruction) -> Reply:
            reply = present(instruction)
            if instruction.kind == "finish":
                reply.facts["score_counts"]["global"] = [[999, 10_000]]
            return reply

        deployment.links.answers["cedar"] = boasting
        result = deployment.federate()
        assert "cedar has no part in the shared threshold" in caplog.text
        reported = json.loads((result / "results.json").read_text())["shared_threshold"]["global"]
        assert reported["n"] == 12
        own = TrainedRun.load(deployment.run_of("cedar")).sites["cedar"].thresholds["global"]
        assert own.value == reported["value"]

    def test_damaged_counts_change_nothing_at_a_site(self, deployment: Deployment) -> None:
        deployment.configure(**OPTIONS, **self.SHARED)
        deployment.federate()
        asked = [i for site, i in deployment.links.asked if site == "alder"][-1]
        assert asked.kind == "threshold"
        before = (deployment.run_of("alder") / "detector.safetensors").read_bytes()
        for reported in ({}, {"score_counts": {"global": [[1000, 1]]}}, {"score_counts": 3}):
            reply = deployment.caller("alder")(replace(asked, facts=reported))
            assert "counts of scores cannot be read" in reply.refusal
        assert (deployment.run_of("alder") / "detector.safetensors").read_bytes() == before
