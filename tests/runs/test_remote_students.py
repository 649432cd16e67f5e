"""Students of sites on machines of their own: by file and over Flower they are those of `train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.deploy.init import init
from fedvad.deploy.server import federate
from fedvad.deploy.settings import ServerSettings, SiteSettings, read_server, read_site
from fedvad.deploy.site import answer, run_folder
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.federation.payload import Payload
from fedvad.federation.signed import SignedMessage, generate_keys, read_private_key
from fedvad.runs.run_folder import read_ledger
from fedvad.runs.student_run import StudentRun
from fedvad.verbs.bank import export_upload
from fedvad.verbs.bank_import import import_global
from fedvad.verbs.bank_server import merge_uploads
from fedvad.verbs.bank_thresholds import apply_thresholds, export_scores, merge_scores
from fedvad.verbs.inspect import inspect
from tests.deploy.support import FakeLinks
from tests.detectors.student import support
from tests.helpers import alone, run_main

SITES = ("alder", "birch", "cedar")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return {
        "method": "paste",
        "student": {"steps": 3, "warmup": 0, "algorithm": "moon"},
        "rounds": 2,
        "holdout": 0.5,
        **support.options(tiny),
    }


@pytest.fixture(scope="module")
def trained(
    plants: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> StudentRun:
    """The run in one process: what all others are compared with."""
    out = tmp_path_factory.mktemp("students") / "run"
    fedvad.train(plants, out, **options)
    run = fedvad.load(out)
    assert isinstance(run, StudentRun)
    return run


def same(own: Any, trained: StudentRun, name: str, *, together: bool) -> None:
    """A site's run is that site's part of the whole one; together: its thresholds, too."""
    assert isinstance(own, StudentRun)
    assert own.shared.keys() == trained.shared.keys()
    for key, array in trained.shared.items():
        np.testing.assert_array_equal(own.shared[key], array)
    expected = trained.sites[name]
    assert list(own.sites) == [name]
    for key, array in expected.buffers.items():
        np.testing.assert_array_equal(own.sites[name].buffers[key], array)
    assert own.sites[name].own == expected.own
    assert own.sites[name].n_images == expected.n_images
    wanted = expected.thresholds if together else alone(expected.thresholds)
    assert own.sites[name].thresholds == wanted


class Files:
    """Sites and a server in folders of their own."""

    def __init__(self, root: Path, plants: Path, options: dict[str, Any]) -> None:
        self.root, self.plants, self.options = root, plants, options
        (root / "trust").mkdir()
        for name in (*SITES, "server"):
            generate_keys(root / name, name)
            if name != "server":
                shutil.copy(root / name / f"{name}.pub", root / "trust")

    def export(self, name: str, **changes: Any) -> Path:
        out = self.root / f"{name}.fedvad"
        given: dict[str, Any] = {"options": self.options, "allow_weights": True}
        self.reported = export_upload(
            self.plants / name, self.root / name / "state", self.root / name / f"{name}.key", out,
            index=SITES.index(name), **(given | changes),
        )  # fmt: skip
        return out

    def merge(self, files: list[Path], **changes: Any) -> Path:
        out = self.root / "global.fedvad"
        self.reported = merge_uploads(
            files, self.root / "trust", self.root / "server" / "server.key",
            self.root / "server" / "state", out, **({"allow_weights": True} | changes),
        )  # fmt: skip
        return out

    def take(self, name: str, file: Path, **changes: Any) -> dict[str, Any]:
        trust = self.root / "server" / "server.pub"
        return import_global(file, self.root / name / "state", trust, **changes)


@pytest.fixture(scope="module")
def files(plants: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A federation by file after its first round; the global file is taken by all."""
    made = Files(tmp_path_factory.mktemp("files"), plants, options)
    out = made.merge([made.export(name) for name in SITES])
    for name in SITES:
        made.take(name, out)
    return made


@pytest.fixture
def fresh(files: Files, tmp_path: Path) -> Files:
    """A copy of it, to go on with."""
    shutil.copytree(files.root, tmp_path / "copy")
    made = Files.__new__(Files)
    made.root, made.plants, made.options = tmp_path / "copy", files.plants, files.options
    return made


class TestByFile:
    def test_the_run_is_that_of_train(self, fresh: Files, trained: StudentRun) -> None:
        out = fresh.merge([fresh.export(name, options=None) for name in SITES])
        assert sorted(fresh.reported["accepted"]) == sorted(SITES)
        sent = []
        for name in SITES:
            reported = fresh.take(name, out, out=fresh.root / f"run-{name}")
            own = fedvad.load(fresh.root / f"run-{name}")
            same(own, trained, name, together=False)
            assert reported["threshold"] == own.threshold(name).value
            sent.append(fresh.root / f"scores-{name}")
            key = fresh.root / name / f"{name}.key"
            export_scores(fresh.root / f"run-{name}", key, sent[-1])
        server = fresh.root / "server"
        merge_scores(sent, fresh.root / "trust", server / "server.key", fresh.root / "found")
        (fresh.root / "run-birch").rename(fresh.root / "run")
        apply_thresholds(fresh.root / "found", fresh.root / "run", server / "server.pub")
        same(fedvad.load(fresh.root / "run"), trained, "birch", together=True)
        assert [e.round for e in read_ledger(fresh.root / "run").rounds] == [1, 2]
        results = fedvad.evaluate(fresh.root / "run", fresh.plants / "birch")
        assert 0 <= results["image_auroc"]["sites"]["birch"] <= 1

    def test_a_file_made_twice_is_the_same(self, fresh: Files) -> None:
        first = fresh.export("alder", options=None).read_bytes()
        assert fresh.export("alder", options=None).read_bytes() == first

    def test_nothing_leaves_and_nothing_is_merged_unless_allowed(self, fresh: Files) -> None:
        with pytest.raises(ConfigError, match=r"sends its weights.*\n.*--allow-weights"):
            fresh.export("alder", options=None, allow_weights=False)
        sent = fresh.export("alder", options=None)
        with pytest.raises(FederationError, match=r"cannot continue from round 1.*--allow-weights"):
            fresh.merge([sent], allow_weights=False)
        shutil.rmtree(fresh.root / "server" / "state")
        with pytest.raises(FederationError, match="merge with --allow-weights"):
            fresh.merge([fresh.root / "alder/state/sent/round-0001.fedvad"], allow_weights=False)
        assert sent.is_file()

    def test_a_student_larger_than_the_limit_stays(
        self, fresh: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedvad.runs.method.MAX_WEIGHT_BYTES", 5000)
        with pytest.raises(ConfigError, match="a message may hold 5000"):
            fresh.export("alder", options=None)

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda a: a | {"weight/more": np.zeros(2, np.float32)}, "another model"),
            (lambda a: {n: np.full_like(v, np.inf) for n, v in a.items()}, "no numbers"),
            (lambda a: {n: v[..., :1] for n, v in a.items()}, "of another shape or type"),
        ],
    )
    def test_other_weights_are_refused(
        self, fresh: Files, spoil: Callable[[Any], Any], reason: str
    ) -> None:
        payload = Payload.from_bytes(
            SignedMessage.parse(fresh.export("alder", options=None).read_bytes()).message
        )
        key = read_private_key(fresh.root / "alder" / "alder.key")
        bad = fresh.root / "bad.fedvad"
        bad.write_bytes(key.sign(Payload(payload.manifest, spoil(payload.arrays)).to_bytes()))
        fresh.merge([bad, fresh.export("birch", options=None)])
        assert list(fresh.reported["accepted"]) == ["birch"]
        assert reason in fresh.reported["refused"][str(bad)]

    def test_a_global_message_of_another_student_is_refused(self, fresh: Files) -> None:
        data = SignedMessage.parse((fresh.root / "global.fedvad").read_bytes()).message
        payload = Payload.from_bytes(data)
        key = read_private_key(fresh.root / "server" / "server.key")
        for arrays, reason in (
            ({n: v[:1] for n, v in payload.arrays.items()}, "other shapes"),
            ({n: np.full_like(v, np.nan) for n, v in payload.arrays.items()}, "no numbers"),
            ({"vectors": np.zeros((2, 2), np.float32)}, "must hold weights"),
        ):
            bad = fresh.root / "bad"
            bad.write_bytes(key.sign(Payload(payload.manifest, arrays).to_bytes()))
            with pytest.raises(PayloadError, match=reason):
                fresh.take("alder", bad)

    def test_inspect_says_that_weights_are_inside(self, files: Files) -> None:
        reported = inspect(files.root / "alder.fedvad")
        says = " ".join(reported["says"])
        assert "weights of a student" in says
        assert "can hold" in says
        assert "no model weight" not in says
        assert "CAUTION" not in says
        assert "of site 'alder'" in says or "site 'alder' sends" in says

    def test_from_the_command_line(
        self, fresh: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*arguments: str) -> tuple[int, str]:
            code = run_main(monkeypatch, *arguments)
            return code, capsys.readouterr().out

        state, key = fresh.root / "cedar/state", fresh.root / "cedar/cedar.key"
        export = [
            "bank", "export", str(fresh.plants / "cedar"), "--state", str(state), "--key",
            str(key), "--out", str(fresh.root / "up.fedvad"),
        ]  # fmt: skip
        assert run(*export)[0] == 2
        code, out = run(*export, "--allow-weights")
        assert code == 0
        assert "weights of a student, trained on 6 images" in out
        merge = [
            "bank", "merge", str(fresh.root / "up.fedvad"), "--trust", str(fresh.root / "trust"),
            "--state", str(fresh.root / "server/state"), "--key",
            str(fresh.root / "server/server.key"), "--out", str(fresh.root / "down.fedvad"),
        ]  # fmt: skip
        code, out = run(*merge, "--allow-weights")
        assert code == 0
        assert "mean weights of students trained on" in out


class TestOverFlower:
    @pytest.fixture
    def answers(
        self, tmp_path: Path, plants: Path, options: dict[str, Any]
    ) -> Callable[..., tuple[ServerSettings, FakeLinks, Callable[[str], SiteSettings]]]:
        def deploy(
            server: dict[str, Any], site: dict[str, Any]
        ) -> tuple[ServerSettings, FakeLinks, Callable[[str], SiteSettings]]:
            init(tmp_path / "dep", ["localhost"], SITES)
            student = ", ".join(f"{k} = {json.dumps(v)}" for k, v in options["student"].items())
            (tmp_path / "dep/server/federation.toml").write_text(
                f'method = "paste"\nrounds = 2\nholdout = 0.5\nimage_size = 64\nlayers = [1, 2]\n'
                f'backbone = "{options["backbone"]}"\nengine = "torch"\n'
                f"student = {{{student}}}\n"
                f"weights = {json.dumps(str(options['weights']))}\n"
            )

            def settings(name: str) -> SiteSettings:
                return read_site(
                    tmp_path / "dep/sites" / name, data=plants / name, engine="torch",
                    weights=options["weights"], **site,
                )  # fmt: skip

            links = FakeLinks({n: lambda i, n=n: answer(settings(n), i) for n in SITES})
            wanted = {"deadline": 20.0} | server
            return read_server(tmp_path / "dep").model_copy(update=wanted), links, settings

        return deploy

    def test_every_site_has_the_run_of_train(
        self, answers: Callable[..., Any], trained: StudentRun
    ) -> None:
        server, links, settings = answers({"allow_weights": True}, {"allow_weights": True})
        result = federate(server, "run", links, clock=links.clock)
        reported = json.loads((result / "results.json").read_text())
        assert reported["missing"] == {}
        for name in SITES:
            own = fedvad.load(run_folder(settings(name), reported["federation"]))
            same(own, trained, name, together=True)
        final = Payload.from_bytes((result / "global.safetensors").read_bytes())
        for key, array in final.arrays.items():
            name = key.removeprefix("weight/")
            np.testing.assert_array_equal(array, trained.shared[f"student/{name}"])
        # what scores needs statistics of images, and the server has none
        assert not (result / "detector.safetensors").exists()
        # an upload of weights replaces the one before: the last is enough
        held = next(i for site, i in links.asked if (site, i.round) == ("alder", 2))
        again = answer(settings("alder"), replace(held, held=0))
        assert len(again.payloads) == 1

    @pytest.mark.parametrize(
        ("site", "reason"),
        [
            ({}, "allow_weights = true in site.toml"),
            ({"allow_weights": True, "max_weight_bytes": 5000}, "may hold 5000"),
        ],
    )
    def test_a_site_that_does_not_allow_it_sends_nothing(
        self, answers: Callable[..., Any], site: dict[str, Any], reason: str
    ) -> None:
        server, links, _ = answers({"allow_weights": True}, site)
        replies: list[Reply] = []

        def kept(answering: Callable[[Instruction], Reply]) -> Callable[[Instruction], Reply]:
            def answered(instruction: Instruction) -> Reply:
                replies.append(answering(instruction))
                return replies[-1]

            return answered

        links.answers = {name: kept(own) for name, own in links.answers.items()}
        with pytest.raises(FederationError, match=reason):
            federate(server, "run", links, clock=links.clock)
        assert {reply.payloads for reply in replies} == {()}

    def test_the_server_must_allow_it_too(self, answers: Callable[..., Any]) -> None:
        server, links, _ = answers({}, {"allow_weights": True})
        with pytest.raises(ConfigError, match=r"allow_weights = true in server\.toml"):
            federate(server, "run", links, clock=links.clock)
        assert links.asked == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "aand"}, "averages more than its student"),
        ({"student": {"algorithm": "scaffold"}}, "scaffold and wsa need a server"),
        ({"student": {"wsa": 0.1}}, "scaffold and wsa need a server"),
    ],
)
def test_what_does_not_travel_says_so(
    changes: dict[str, Any], reason: str, files: Files, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        export_upload(
            files.plants / "alder", tmp_path / "state", files.root / "alder/alder.key",
            tmp_path / "up", index=0, options=files.options | changes, allow_weights=True,
        )  # fmt: skip


def test_a_liar_is_bounded_by_file_as_in_one_process(fresh: Files) -> None:
    sent = {name: fresh.export(name, options=None) for name in SITES}
    payload = Payload.from_bytes(SignedMessage.parse(sent["cedar"].read_bytes()).message)
    far = {name: array + np.float32(100) for name, array in payload.arrays.items()}
    key = read_private_key(fresh.root / "cedar/cedar.key")
    sent["cedar"].write_bytes(key.sign(Payload(payload.manifest, far).to_bytes()))
    shutil.rmtree(fresh.root / "server/state")
    firsts = [fresh.root / name / "state/sent/round-0001.fedvad" for name in SITES]
    fresh.merge(firsts, options={"defence": "robust"})
    out = fresh.merge(list(sent.values()))
    assert list(fresh.reported["distrusted"]) == ["cedar"]
    merged = Payload.from_bytes(SignedMessage.parse(out.read_bytes()).message)
    assert max(float(np.abs(array).max()) for array in merged.arrays.values()) < 30
