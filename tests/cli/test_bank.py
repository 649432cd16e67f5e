"""`fedvad bank` by its commands: the whole walk, exit codes, one JSON document, an audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import FLAGS, run_main

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
SITES = ("alder", "birch", "cedar")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: Patch, shared_cache: Path) -> None:
    monkeypatch.setenv("FEDVAD_CACHE", str(shared_cache))
    monkeypatch.setenv("COLUMNS", "200")


class Commands:
    """Runs commands in a folder and gives back exit code, output and errors."""

    def __init__(self, monkeypatch: Patch, capsys: Capture, plants: Path, root: Path) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.plants, self.root = plants, root
        monkeypatch.chdir(root)

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        code = run_main(self._monkeypatch, *arguments)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def ok(self, *arguments: object) -> dict[str, Any]:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return dict(json.loads(out))

    def keys(self) -> None:
        for name in (*SITES, "server"):
            self.ok("bank", "keygen", "--out", name, "--name", name)
        Path("trust").mkdir()
        for site in SITES:
            shutil.copy(f"{site}/{site}.pub", "trust")

    def export(self, site: str, *more: object) -> dict[str, Any]:
        return self.ok(
            "bank", "export", self.plants / site, "--state", f"{site}/state",
            "--key", f"{site}/{site}.key", "--out", f"{site}.fedvad", *more,
        )  # fmt: skip

    def first(self, site: str) -> dict[str, Any]:
        return self.export(site, "--site-index", SITES.index(site), *FLAGS)

    @property
    def server(self) -> tuple[object, ...]:
        return (
            "--trust", "trust", "--key", "server/server.key", "--state", "server/state",
            "--out", "global.fedvad",
        )  # fmt: skip

    def take(self, site: str) -> tuple[object, ...]:
        return (
            "bank", "import", "global.fedvad", "--state", f"{site}/state",
            "--trust", "server/server.pub",
        )  # fmt: skip


@pytest.fixture
def fedvad(monkeypatch: Patch, capsys: Capture, plants: Path, tmp_path: Path) -> Commands:
    return Commands(monkeypatch, capsys, plants, tmp_path)


def test_the_whole_walk(fedvad: Commands) -> None:
    fedvad.keys()
    for site in SITES:
        reported = fedvad.first(site)
        assert reported["round"] == 1
        assert reported["bytes"] == Path(f"{site}.fedvad").stat().st_size
    files = [f"{site}.fedvad" for site in SITES]
    assert fedvad.ok("bank", "merge", *files, *fedvad.server)["accepted"].keys() == set(SITES)
    for site in SITES:
        assert fedvad.ok(*fedvad.take(site))["run"] is None
    for site in ("alder", "cedar"):  # birch skips; options are remembered
        assert fedvad.export(site)["round"] == 2
    reported = fedvad.ok("bank", "merge", "alder.fedvad", "cedar.fedvad", *fedvad.server)
    assert reported["round"] == 2
    assert reported["kept"] == ["birch"]
    reported = fedvad.ok(*fedvad.take("birch"), "--out", "run")
    assert reported["threshold"] > 0
    results = fedvad.ok("evaluate", "run", fedvad.plants / "birch")
    assert results["threshold"]["sites"]["birch"]["threshold"] == reported["threshold"]
    image = next((fedvad.plants / "birch/test").rglob("*.png"))
    assert fedvad.ok("predict", "run", image)["site"] == "birch"
    assert fedvad.ok("inspect", "run")["sites"][0]["name"] == "birch"


def test_what_people_read(fedvad: Commands) -> None:
    code, out, _ = fedvad("bank", "keygen", "--out", "k", "--name", "alder")
    assert code == 0
    assert "keep it secret" in out
    fedvad.ok("bank", "keygen", "--out", "server", "--name", "server")
    arguments = ("bank", "export", fedvad.plants / "alder", "--state", "s", "--key", "k/alder.key")
    code, out, err = fedvad(*arguments, "--out", "a.fedvad", "--site-index", 0, *FLAGS, "--quiet")
    assert (code, err) == (0, "")
    assert "round 1 of site alder" in out
    assert "of 6 images" in out
    server = ("--key", "server/server.key", "--state", "t", "--out", "global.fedvad")
    code, out, err = fedvad("bank", "merge", "a.fedvad", "none", "--trust", "k", *server)
    assert code == 0
    assert "round 1: alder; refused: 1 files" in out
    assert "continues without none: no such file" in err
    code, out, _ = fedvad("bank", "merge", *server)
    assert code == 0
    assert "written again" in out
    take = ("bank", "import", "global.fedvad", "--state", "s", "--trust", "server/server.pub")
    code, out, _ = fedvad(*take, "--out", "run")
    assert code == 0
    assert "threshold of alder" in out


def test_exit_codes(fedvad: Commands) -> None:
    fedvad.keys()
    assert fedvad("bank", "keygen", "--out", "alder", "--name", "alder")[0] == 2
    export = ("bank", "export", fedvad.plants / "alder", "--state", "s", "--out", "o")
    assert fedvad(*export, "--key", "none", "--site-index", 0, *FLAGS)[0] == 2
    code, _, err = fedvad(*export, "--key", "alder/alder.key", *FLAGS)
    assert code == 2
    assert "--site-index" in err
    fedvad.first("alder")
    data = bytearray(Path("alder.fedvad").read_bytes())
    data[200] ^= 1
    Path("bad.fedvad").write_bytes(data)
    code, out, err = fedvad("bank", "merge", "bad.fedvad", *fedvad.server, "--json")
    assert code == 4
    assert out == ""
    assert "bad.fedvad: the signature of alder does not fit" in err
    assert not Path("global.fedvad").exists()
    code, _, err = fedvad("bank", "merge", "alder.fedvad", *fedvad.server, "--quorum", 2)
    assert code == 4
    assert "the quorum is 2" in err
    shutil.copy("alder.fedvad", "global.fedvad")
    code, _, err = fedvad(*fedvad.take("birch"))
    assert code == 4
    assert "global.fedvad: signed by an unknown key" in err
    Path("global.fedvad").unlink()
    assert fedvad(*fedvad.take("birch"))[0] == 4


class TestAudit:
    def test_an_upload(self, fedvad: Commands) -> None:
        fedvad.keys()
        made = fedvad.first("alder")
        reported = fedvad.ok("inspect", "alder.fedvad", "--trust", "trust")
        assert reported["kind"] == "signed message"
        shared = ("site", "round", "rows", "values_per_row", "dtype", "features")
        for key in (*shared, "n_images", "n_patches"):
            assert reported["contents"][key] == made[key]
        assert reported["contents"]["nothing_else"] is True
        assert reported["signature"]["fingerprint"] == made["fingerprint"]
        assert reported["signature"]["verifies"] is True
        assert reported["signature"]["signer"] == "alder"
        code, out, _ = fedvad("inspect", "alder.fedvad")
        assert code == 0
        for words in (
            "upload of a site: what site 'alder' sends up, round 1",
            f"{made['rows']} rows of {made['values_per_row']} numbers (float16)",
            f"{made['n_patches']} patches of 6 normal images",
            "one real image patch, or an average",
            made["features"],
            "No image, no file name and no model weight is inside",
            "Its signature verifies with the key with fingerprint " + made["fingerprint"],
        ):
            assert words in out

    def test_a_global_memory(self, fedvad: Commands) -> None:
        fedvad.keys()
        fedvad.first("alder")
        fedvad.ok("bank", "merge", "alder.fedvad", *fedvad.server)
        code, out, _ = fedvad("inspect", "global.fedvad", "--trust", "trust", "--json")
        reported = json.loads(out)
        assert code == 4
        assert reported["trusted"] is False
        assert reported["contents"]["what"] == "global memory of a server"
        assert reported["contents"]["site"] is None
        assert reported["signature"]["signer"] is None
        assert "NOT among the trusted keys" in reported["says"][0]
        assert fedvad.ok("inspect", "global.fedvad")["signature"]["verifies"] is True

    def test_what_was_tampered_with(self, fedvad: Commands) -> None:
        fedvad.keys()
        fedvad.first("alder")
        data = bytearray(Path("alder.fedvad").read_bytes())
        data[-1] ^= 1
        Path("alder.fedvad").write_bytes(data)
        code, out, _ = fedvad("inspect", "alder.fedvad", "--trust", "trust")
        assert code == 4
        assert out.startswith("• CAUTION: its signature by the key")
        reported = fedvad.ok("inspect", "alder.fedvad")
        assert reported["signature"]["verifies"] is False
        assert "does NOT verify" in reported["says"][-1]
        Path("cut.fedvad").write_bytes(data[:400])
        code, _, err = fedvad("inspect", "cut.fedvad")
        assert code == 3
        assert "does not verify either" in err
        Path("short.fedvad").write_bytes(data[:40])
        code, _, err = fedvad("inspect", "short.fedvad")
        assert code == 3
        assert "truncated" in err

    def test_a_message_that_hides_something(self, fedvad: Commands) -> None:
        from safetensors.numpy import load, save

        from tests.helpers import upload

        plain = upload("alder").to_bytes()
        Path("plain").write_bytes(plain)
        reported = fedvad.ok("inspect", "plain")
        assert reported["contents"]["nothing_else"] is True
        assert "not signed" in reported["says"][-1]
        fedvad.keys()
        code, out, _ = fedvad("inspect", "plain", "--trust", "trust")
        assert code == 4
        assert out.startswith("• CAUTION: it is not signed")
        length = int.from_bytes(plain[:8], "little")
        metadata = json.loads(plain[8 : 8 + length])["__metadata__"]
        Path("beside").write_bytes(save(load(plain), metadata | {"note": "train/0001.png"}))
        Path("more").write_bytes(save(load(plain) | {"pixels": load(plain)["vectors"]}, metadata))
        for name in ("beside", "more"):
            reported = fedvad.ok("inspect", name)
            assert reported["contents"]["nothing_else"] is False
            assert any("CAUTION: the file holds more" in sentence for sentence in reported["says"])


def test_an_audit_says_what_a_file_gives_away(fedvad: Commands, monkeypatch: Patch) -> None:
    fedvad.keys()
    fedvad.first("alder")
    site = fedvad.plants / "alder"
    foreign = ("--outsiders", fedvad.plants / "birch/train/good")
    same = ("--backbone", "filterbank", "--image-size", 64, *foreign)
    reported = fedvad.ok(
        "bank", "audit", "alder.fedvad", "--data", site, *same, "--out", "p/shown.png"
    )
    assert reported["rows"] > 10
    assert reported["retrieval"]["copies"] == 1.0  # rows are patches of the members by default
    assert reported["retrieval"]["found"] == 1.0
    assert reported["membership"]["auc"] > 0.9
    assert Path("p/shown.png").stat().st_size > 100
    code, out, _ = fedvad("bank", "audit", "alder.fedvad", "--data", site, *same)
    assert code == 0
    assert "100% of the rows are a patch of an image here" in out
    code, _, err = fedvad(
        "bank", "audit", "alder.fedvad", "--data", site, *same[:2], "--image-size", 96
    )
    assert code == 2
    assert "give the backbone, weights and image size" in err
    Path("damaged").write_bytes(Path("alder.fedvad").read_bytes()[:-9])
    assert fedvad("bank", "audit", "damaged", "--data", site, *same)[0] == 4
    shutil.copytree(site / "train", "bare/alder/train")
    code, _, err = fedvad("bank", "audit", "alder.fedvad", "--data", "bare/alder", *same[:4])
    assert code == 3
    assert "--outsiders" in err
