"""A federation by files: the numbers of the in-process runner, and nothing foreign gets in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.data.files import write_atomically
from fedvad.data.sealed import sha256_of
from fedvad.detectors.memory.site import MemorySite
from fedvad.errors import ArtefactError, ConfigError, FederationError, PayloadError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.mailboxes.state import load_state
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.signed import SignedMessage, generate_keys, read_private_key
from fedvad.runs.bank_state import load_site
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites, warm_up
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.plan import memory_sites, plan, split_held_out
from fedvad.runs.progress import no_progress
from fedvad.runs.run_folder import read_config, read_ledger, write_config
from fedvad.verbs.bank import export_upload
from fedvad.verbs.bank_forget import forget_site
from fedvad.verbs.bank_import import import_global
from fedvad.verbs.bank_server import merge_uploads
from fedvad.verbs.bank_thresholds import apply_thresholds, export_scores, merge_scores
from tests.helpers import OPTIONS, alone, run_main, upload

SITES = ("alder", "birch", "cedar")
Run = tuple[Path, dict[str, Any]]


class Skipping(Schedule):
    """A schedule with given participants, by round."""

    present: Sequence[Sequence[str]]

    def participants(self, round_: int, sites: list[str]) -> list[str]:
        return sorted(self.present[round_ - 1])


def in_process(
    plants: Path, cache: Path, options: dict[str, Any], present: Sequence[Sequence[str]]
) -> tuple[bytes, dict[str, MemorySite]]:
    """The global memory and the sites after rounds in one process."""
    config = resolve_config(None, **options)  # as the sites have it: they count no rounds ahead
    extractor = FeatureExtractor(config.features(), DescriptorCache(cache))
    exchange, _ = plan(config, extractor)
    features = warm_up(load_sites(plants, None, config.seed), extractor, 0.05, no_progress)
    members = memory_sites(config, split_held_out(features, config)[0], extractor.grid[2])
    schedule = Skipping(rounds=len(present))
    object.__setattr__(schedule, "present", present)
    return run_rounds(exchange, members, schedule, ledger=Ledger()).to_bytes(), members


class Federation:
    """Sites and a server in folders of their own, that exchange files only."""

    def __init__(self, root: Path, plants: Path, cache: Path, **options: Any) -> None:
        self.root, self.plants = root, plants
        self.cache = DescriptorCache(cache)
        self.options = OPTIONS | options
        for name in (*SITES, "server"):
            generate_keys(root / name, name)
            if name != "server":
                (root / "trust").mkdir(exist_ok=True)
                shutil.copy(root / name / f"{name}.pub", root / "trust")

    def state(self, who: str) -> Path:
        return self.root / who / "state"

    def export(self, who: str, **changes: Any) -> Path:
        out = self.root / "stick" / f"{who}.fedvad"
        arguments: dict[str, Any] = {
            "index": SITES.index(who), "options": self.options, "cache": self.cache
        }  # fmt: skip
        self.reported = export_upload(
            self.plants / who, self.state(who), self.root / who / f"{who}.key", out,
            **(arguments | changes),
        )  # fmt: skip
        return out

    def merge(self, *files: Path, out: str = "global", **changes: Any) -> Path:
        target = self.root / "stick" / f"{out}.fedvad"
        server = ("merge", "merge_weights", "memory_rows", "seed", "method")
        arguments: dict[str, Any] = {"options": {k: self.options.get(k) for k in server}}
        self.reported = merge_uploads(
            files, self.root / "trust", self.root / "server" / "server.key",
            self.state("server"), target, **(arguments | changes),
        )  # fmt: skip
        return target

    def take(self, site: str, file: Path, **changes: Any) -> dict[str, Any]:
        trust = self.root / "server" / "server.pub"
        return import_global(file, self.state(site), trust, cache=self.cache, **changes)

    def round(self, *sites: str) -> Path:
        return self.merge(*[self.export(site) for site in sites])

    def sign(self, who: str, payload: Payload, name: str = "made.fedvad") -> Path:
        key = read_private_key(self.root / who / f"{who}.key")
        path = self.root / "stick" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(key.sign(payload.to_bytes()))
        return path


@pytest.fixture
def federation(tmp_path: Path, plants: Path, shared_cache: Path) -> Federation:
    return Federation(tmp_path, plants, shared_cache)


def message(file: Path) -> bytes:
    return SignedMessage.parse(file.read_bytes()).message


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestTheNumbersAreThoseOfOneProcess:
    @pytest.mark.parametrize(
        "options",
        [
            {"method": "feddymem"},
            {"method": "feddymem", "merge": "kcenter", "memory_rows": 60, "seed": 3},
            {"method": "feddymem-trained", "memory_rows": 50, "seed": 2},
            {"method": "feddymem-cluster", "memory_rows": 50, "merge_weights": 0.25},
        ],
        ids=["feddymem", "kcenter", "trained", "cluster"],
    )
    def test_to_the_bit_over_rounds_with_a_site_that_skips_one_and_one_that_joins_late(
        self, options: dict[str, Any], tmp_path: Path, plants: Path, shared_cache: Path
    ) -> None:
        options = {"upload_bytes": 20_000} | options
        federation = Federation(tmp_path, plants, shared_cache, **options)
        present = [("alder", "birch"), ("alder", "cedar"), SITES]  # birch skips, cedar joins
        for number in range(1, 4):
            file = federation.round(*present[number - 1])
            expected, members = in_process(
                plants, shared_cache, OPTIONS | options, present[:number]
            )
            assert message(file) == expected
            for site in SITES:
                federation.take(site, file)
                state = load_site(federation.state(site))
                if state is None:
                    assert site == "cedar"
                    continue
                kept = members[site].snapshot()
                assert set(state.kept) == set(kept)
                for name, array in kept.items():
                    np.testing.assert_array_equal(state.kept[name], array)

    def test_a_site_that_misses_a_global_memory_takes_the_next(
        self, federation: Federation, plants: Path, shared_cache: Path
    ) -> None:
        first = federation.round(*SITES)
        for site in ("alder", "cedar"):
            federation.take(site, first)
        second = federation.round("alder", "cedar")
        for site in SITES:
            federation.take(site, second)
        third = federation.round(*SITES)
        present = [SITES, ("alder", "cedar"), SITES]
        assert message(third) == in_process(plants, shared_cache, OPTIONS, present)[0]

    def test_the_order_of_files_changes_nothing(self, federation: Federation) -> None:
        files = [federation.export(site) for site in SITES]
        one = federation.merge(*files, out="one").read_bytes()
        shutil.rmtree(federation.state("server"))
        assert federation.merge(*files[::-1], out="two").read_bytes() == one

    def test_the_run_folder_is_that_of_train(self, federation: Federation, trained: Run) -> None:
        for _ in range(2):
            file = federation.round(*SITES)
            for site in SITES:
                federation.take(site, file)
        theirs = TrainedRun.load(trained[0])
        out = federation.root / "run"
        reported = federation.take("birch", file, out=out)
        ours = TrainedRun.load(out)
        np.testing.assert_array_equal(ours.memory.vectors, theirs.memory.vectors)
        np.testing.assert_array_equal(
            ours.sites["birch"].bank.vectors, theirs.sites["birch"].bank.vectors
        )
        assert ours.sites["birch"].thresholds == alone(theirs.sites["birch"].thresholds)
        assert ours.sites["birch"].n_images == theirs.sites["birch"].n_images
        assert reported["threshold"] == ours.threshold("birch").value  # type: ignore[union-attr]
        assert reported["own_normals"]["birch"] == trained[1]["own_normals"]["birch"]
        assert read_config(out).backbone == "filterbank"
        ledger = read_ledger(out)
        assert [entry.round for entry in ledger.rounds] == [1, 2]
        sent = federation.state("birch") / "sent"
        assert [entry.bytes_up["birch"] for entry in ledger.rounds] == [
            (sent / f"round-000{i}.fedvad").stat().st_size for i in (1, 2)
        ]
        assert ledger.rounds[1].bytes_down == {"birch": file.stat().st_size}
        results = fedvad.evaluate(out, federation.plants / "birch", cache=federation.cache.root)
        assert results["image_auroc"]["sites"]["birch"] == pytest.approx(
            trained[1]["image_auroc"]["sites"]["birch"], abs=1e-12
        )
        assert results["sites_never_trained_on"] == []
        assert results["ledger"]["rounds"] == 2
        image = next((federation.plants / "birch" / "test").rglob("*.png"))
        (row,) = fedvad.predict(out, image)
        assert row["site"] == "birch"
        assert row["anomalous"] is not None
        assert fedvad.inspect(out)["kind"] == "run"


class TestKills:
    """Whatever a kill leaves, the same step again ends where it would have ended."""

    def _stop_at(self, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
        """Let the nth write of a step raise before it touches the disk."""
        real, count = write_atomically, [0]

        def write(path: Path, data: bytes) -> None:
            count[0] += 1
            if count[0] == nth:
                raise KeyboardInterrupt
            real(path, data)

        for name in (
            "verbs.bank", "runs.bank_state", "verbs.bank_server",
            "detectors.artefact", "federation.mailboxes.state", "data.sealed",
        ):  # fmt: skip
            monkeypatch.setattr(f"fedvad.{name}.write_atomically", write)

    @pytest.mark.parametrize("nth", [1, 2, 3])
    def test_export(self, federation: Federation, nth: int) -> None:
        file = federation.round(*SITES)
        federation.take("alder", file)
        expected = federation.root / "expected"
        shutil.copytree(federation.state("alder"), expected)
        wanted = federation.export("alder").read_bytes()
        shutil.rmtree(federation.state("alder"))
        expected.rename(federation.state("alder"))
        with pytest.MonkeyPatch.context() as patch:
            self._stop_at(patch, nth)
            with pytest.raises(KeyboardInterrupt):
                federation.export("alder")
        assert federation.export("alder").read_bytes() == wanted
        assert (federation.state("alder") / "sent/round-0002.fedvad").read_bytes() == wanted

    @pytest.mark.parametrize("nth", range(1, 8))
    def test_merge(self, federation: Federation, nth: int) -> None:
        files = [federation.export(site) for site in SITES]
        wanted = federation.merge(*files).read_bytes()
        shutil.rmtree(federation.state("server"))
        (federation.root / "stick/global.fedvad").unlink()
        with pytest.MonkeyPatch.context() as patch:
            self._stop_at(patch, nth)
            with pytest.raises(KeyboardInterrupt):
                federation.merge(*files)
        if nth < 7:
            assert federation.merge(*files).read_bytes() == wanted
        else:  # the round counts already: only its file is missing
            with pytest.raises(FederationError, match="already"):
                federation.merge(*files)
            assert federation.merge().read_bytes() == wanted

    @pytest.mark.parametrize("nth", range(1, 6))
    def test_import(self, federation: Federation, nth: int) -> None:
        file, out = federation.round(*SITES), federation.root / "run"
        with pytest.MonkeyPatch.context() as patch:
            self._stop_at(patch, nth)
            with pytest.raises(KeyboardInterrupt):
                federation.take("alder", file, out=out)
        federation.take("alder", file, out=out)
        TrainedRun.load(out)
        assert len(read_ledger(out).rounds) == 1
        with pytest.raises(ConfigError, match="already holds"):
            federation.take("alder", file, out=out)

    def test_a_lost_file_is_written_again_unchanged(self, federation: Federation) -> None:
        file = federation.export("alder")
        first = file.read_bytes()
        file.unlink()
        assert federation.export("alder").read_bytes() == first
        assert federation.reported["round"] == 1


class TestRefused:
    """Each reason names the file; the others are merged all the same."""

    def _refused(self, federation: Federation, bad: Path, **changes: Any) -> str:
        good = federation.export("birch")
        federation.merge(bad, good, **changes)
        assert list(federation.reported["accepted"]) == ["birch"]
        ((name, reason),) = federation.reported["refused"].items()
        assert name == str(bad)
        state = load_state(federation.state("server"))
        assert state is not None
        (entry,) = state.ledger.rounds
        assert entry.rejected == {name: reason}
        return str(reason)

    def test_a_changed_byte(self, federation: Federation) -> None:
        file = federation.export("alder")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        reason = self._refused(federation, file)
        assert "alder" in reason
        assert "changed or damaged" in reason

    def test_cut_short(self, federation: Federation) -> None:
        file = federation.export("alder")
        file.write_bytes(file.read_bytes()[:-100])
        assert "changed or damaged" in self._refused(federation, file)

    @pytest.mark.parametrize("length", [0, 5, 100])
    def test_cut_very_short(self, federation: Federation, length: int) -> None:
        file = federation.export("alder")
        file.write_bytes(file.read_bytes()[:length])
        assert "truncated" in self._refused(federation, file)

    def test_not_signed(self, federation: Federation) -> None:
        file = federation.export("alder")
        file.write_bytes(message(file))
        assert "not signed" in self._refused(federation, file)

    def test_of_another_version(self, federation: Federation) -> None:
        file = federation.export("alder")
        data = file.read_bytes()
        file.write_bytes(data[:8] + b"\x09\x00" + data[10:])
        assert "version 9" in self._refused(federation, file)

    def test_no_file(self, federation: Federation) -> None:
        assert "no such file" in self._refused(federation, federation.root / "none")

    def test_an_unknown_key(self, federation: Federation) -> None:
        (federation.root / "trust/alder.pub").unlink()
        assert "unknown key" in self._refused(federation, federation.export("alder"))

    def test_a_site_that_speaks_for_another(self, federation: Federation) -> None:
        made = federation.sign("alder", upload("cedar"))
        assert "to be of site 'cedar', and is of alder" in self._refused(federation, made)

    def test_too_large(self, federation: Federation) -> None:
        file = federation.export("alder")
        size = file.stat().st_size
        file.write_bytes(file.read_bytes() + bytes(size))
        assert "exceed the limit" in self._refused(federation, file, max_bytes=size + 500)

    def test_of_another_federation(self, federation: Federation) -> None:
        made = federation.sign("alder", upload("alder"))
        reported = federation.export("birch") and federation.reported["features"]
        reason = self._refused(federation, made, features=reported)
        assert "feature-key" in reason
        assert "alder" in reason

    def test_a_signed_thing_that_is_no_message(self, federation: Federation) -> None:
        key = read_private_key(federation.root / "alder/alder.key")
        bad = federation.root / "odd"
        bad.write_bytes(key.sign(b"12345678 and more"))
        assert "site alder: message header" in self._refused(federation, bad)

    def test_a_site_that_plays_the_server(self, federation: Federation) -> None:
        made = federation.sign("alder", upload("alder", kind="global"))
        assert "global memory" in self._refused(federation, made)

    def test_a_round_that_is_not_yet(self, federation: Federation) -> None:
        made = federation.sign("alder", upload("alder", 2))
        assert "round 1 is merged next" in self._refused(federation, made)

    def test_values_that_no_memory_may_have(self, federation: Federation) -> None:
        payload = Payload.from_bytes(message(federation.export("alder")))
        payload.arrays["vectors"] = np.full_like(payload.arrays["vectors"], np.nan)
        assert "NaN" in self._refused(federation, federation.sign("alder", payload))

    def test_twice_the_same_site(self, federation: Federation) -> None:
        file = federation.export("alder")
        copy = federation.root / "copy"
        shutil.copy(file, copy)
        federation.merge(file, copy, file)
        assert federation.reported["accepted"] == {"alder": [str(file)]}
        reasons = federation.reported["refused"]
        assert set(reasons) == {str(copy), str(file)}
        assert all("site alder: duplicate" in reason for reason in reasons.values())

    def test_an_old_round_played_back(self, federation: Federation) -> None:
        first = {site: federation.export(site) for site in SITES}
        kept = federation.root / "kept"
        shutil.copy(first["alder"], kept)
        file = federation.merge(*first.values())
        federation.take("birch", file)
        federation.merge(kept, federation.export("birch"))
        assert federation.reported["kept"] == ["alder", "cedar"]
        assert "already answered round 1" in federation.reported["refused"][str(kept)]

    def test_a_quorum_that_is_not_met_changes_nothing(self, federation: Federation) -> None:
        files = [federation.export(site) for site in SITES[:2]]
        with pytest.raises(FederationError, match=r"of 1 site, the quorum is 2.*no such"):
            federation.merge(files[0], federation.root / "none", quorum=2)
        assert files_of(federation.state("server")) == {}
        federation.merge(*files, quorum=2)
        before = files_of(federation.state("server"))
        with pytest.raises(FederationError, match="already answered"):
            federation.merge(*files)
        assert files_of(federation.state("server")) == before

    def test_a_tie_of_two_federations_is_left_to_the_operator(self, federation: Federation) -> None:
        files = [federation.export("birch"), federation.sign("alder", upload("alder"))]
        with pytest.raises(FederationError, match="--features"):
            federation.merge(*files)
        federation.merge(*files, features="feature-key")
        assert list(federation.reported["accepted"]) == ["alder"]


class TestGlobalRefused:
    def _refuses(self, federation: Federation, file: Path, match: str, site: str = "alder") -> None:
        before = files_of(federation.state(site))
        with pytest.raises(PayloadError, match=match) as caught:
            federation.take(site, file)
        assert str(file) in str(caught.value)
        assert files_of(federation.state(site)) == before

    def test_what_the_server_did_not_sign(self, federation: Federation) -> None:
        file = federation.round(*SITES)
        data = bytearray(file.read_bytes())
        data[300] ^= 4
        file.write_bytes(data)
        self._refuses(federation, file, "changed or damaged")
        file.write_bytes(bytes(data[106:]))
        self._refuses(federation, file, "not signed")
        made = federation.sign("birch", Payload.from_bytes(message(federation.merge(out="again"))))
        self._refuses(federation, made, "unknown key")

    def test_an_upload(self, federation: Federation) -> None:
        self._refuses(federation, federation.sign("server", upload("alder")), "upload of site")

    def test_another_federation(self, federation: Federation) -> None:
        federation.export("alder")
        other = federation.sign("server", upload("", kind="global"))
        self._refuses(federation, other, "another federation")

    def test_old_or_altered_memories(self, federation: Federation) -> None:
        first = federation.round(*SITES)
        kept = federation.root / "kept"
        shutil.copy(first, kept)
        federation.take("alder", first)
        second = federation.round("alder")
        federation.take("alder", second)
        self._refuses(federation, kept, "it is an old file")
        shutil.rmtree(federation.state("server"))
        shutil.copy(federation.root / "alder/state/sent/round-0001.fedvad", federation.root / "a")
        federation.take("birch", kept)
        again = federation.merge(federation.root / "a")
        self._refuses(federation, again, "merged that round twice", "birch")

    def test_a_folder_of_keys_is_no_server(self, federation: Federation) -> None:
        file = federation.round(*SITES)
        with pytest.raises(ConfigError, match="one public key"):
            import_global(file, federation.state("alder"), federation.root / "trust")


class TestLate:
    def test_a_file_that_comes_late_still_counts(
        self, federation: Federation, caplog: pytest.LogCaptureFixture
    ) -> None:
        late = federation.export("cedar")
        first = federation.round("alder", "birch")
        reported = federation.take("cedar", first)
        assert reported["own_rows"] == 0
        assert "came too late" in caplog.text
        assert federation.take("alder", first)["own_rows"] > 0
        kept = federation.root / "kept"
        shutil.copy(late, kept)
        second = federation.merge(federation.export("cedar"), kept, federation.export("alder"))
        assert federation.reported["refused"] == {}
        assert len(federation.reported["accepted"]["cedar"]) == 2
        assert federation.reported["kept"] == ["birch"]
        cedar = load_site(federation.state("cedar"))
        assert cedar is not None
        assert federation.take("cedar", second)["own_rows"] == len(cedar.upload.arrays["vectors"])


class TestOptions:
    def test_the_first_export_needs_the_index(self, federation: Federation) -> None:
        with pytest.raises(ConfigError, match="--site-index"):
            federation.export("alder", index=None)
        federation.export("alder")
        federation.export("alder", index=None, options=None)
        with pytest.raises(ConfigError, match="index 0, not 2"):
            federation.export("alder", index=2)

    def test_a_site_keeps_its_configuration_and_name(self, federation: Federation) -> None:
        federation.export("alder", site="Werk 1")
        with pytest.raises(ConfigError, match=r"seed was 0, now 5"):
            federation.export("alder", options={"seed": 5})
        with pytest.raises(ConfigError, match="of site Werk 1, not alder"):
            federation.export("alder", site="alder")
        federation.export("alder", options={"jobs": 1})
        with pytest.raises(ConfigError, match="split"):
            federation.export("birch", options=OPTIONS | {"split": "iid:2"})

    def test_a_server_keeps_its_options(self, federation: Federation) -> None:
        file = federation.round(*SITES)
        federation.take("alder", file)
        following = federation.export("alder")
        with pytest.raises(ConfigError, match=r"seed was 0, now 5"):
            federation.merge(following, options={"seed": 5})
        with pytest.raises(ConfigError, match="features was"):
            federation.merge(following, features="other")
        federation.merge(following, options=None)

    def test_several_sites_are_not_one(self, federation: Federation) -> None:
        with pytest.raises(ConfigError, match="3 sites: give the folder of one"):
            export_upload(
                federation.plants, federation.state("x"), federation.root / "alder/alder.key",
                federation.root / "o", index=0, options=OPTIONS,
            )  # fmt: skip

    def test_a_run_needs_own_images(self, federation: Federation) -> None:
        file = federation.round("alder")
        with pytest.raises(ConfigError, match="export first"):
            federation.take("birch", file, out=federation.root / "run")

    def test_moved_images(self, federation: Federation) -> None:
        moved = federation.root / "moved"
        shutil.copytree(federation.plants / "alder", moved)
        out = export_upload(
            moved, federation.state("alder"), federation.root / "alder/alder.key",
            federation.root / "o", site="alder", index=0, options=OPTIONS, cache=federation.cache,
        )["path"]  # fmt: skip
        file = federation.merge(Path(out))
        shutil.rmtree(moved)
        reported = federation.take(
            "alder", file, out=federation.root / "run", data=federation.plants / "alder"
        )
        assert reported["site"] == "alder"

    def test_nothing_to_merge(self, federation: Federation) -> None:
        with pytest.raises(ConfigError, match="no file to merge"):
            federation.merge()

    def test_damaged_states_are_reported(self, federation: Federation) -> None:
        file = federation.round("alder")
        federation.take("alder", file)
        path = federation.state("alder") / "global.fedvad"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(ArtefactError, match="import again"):
            federation.export("alder")
        (federation.state("alder") / "site.safetensors").write_bytes(b"x" * 50)
        with pytest.raises(ArtefactError):
            federation.export("alder")
        (federation.state("server") / "federation.json").unlink()
        with pytest.raises(ArtefactError, match="server's state"):
            federation.merge(federation.export("birch"))


def test_the_servers_options_limit_uploads(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    federation = Federation(tmp_path, plants, shared_cache)
    files = [federation.export(site) for site in SITES]
    few = tmp_path / "few.toml"
    few.write_text("upload_rows = 3\n")
    with pytest.raises(FederationError, match=r"rows, the limit is 3 per round"):
        federation.merge(*files, config_file=few)
    small = tmp_path / "small.toml"
    small.write_text("upload_bytes = 4096\n")
    with pytest.raises(FederationError, match=r"the limit is 13 per round"):
        federation.merge(*files, config_file=small)
    federation.merge(*files)
    assert sorted(federation.reported["accepted"]) == sorted(SITES)


@pytest.fixture(scope="module")
def finished(
    plants: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Federation:
    """Two rounds, and at every site a run folder and the scores behind its thresholds."""
    made = Federation(tmp_path_factory.mktemp("finished"), plants, shared_cache)
    for _ in range(2):
        file = made.round(*SITES)
        for site in SITES:
            made.take(site, file)
    for site in SITES:
        made.take(site, file, out=made.root / f"run-{site}")
        scores_from(made, site)
    return made


def scores_from(made: Federation, site: str, run: str | None = None) -> Path:
    out = made.root / f"scores-{site}"
    export_scores(made.root / f"run-{run or site}", made.root / site / f"{site}.key", out)
    return out


class TestThresholds:
    def _found(self, made: Federation, *files: Path) -> Path:
        out, server = made.root / "thresholds", made.root / "server/server.key"
        self.reported = merge_scores(files, made.root / "trust", server, out)
        return out

    def test_are_those_of_train(self, finished: Federation, trained: Run, tmp_path: Path) -> None:
        theirs = TrainedRun.load(trained[0])
        out = self._found(finished, *(finished.root / f"scores-{site}" for site in SITES))
        for site in SITES:
            own = tmp_path / site
            shutil.copytree(finished.root / f"run-{site}", own)
            reported = apply_thresholds(out, own, finished.root / "server/server.pub")
            found = TrainedRun.load(own).sites[site].thresholds
            assert found == theirs.sites[site].thresholds
            assert found["global"].scores == theirs.sites[site].thresholds["global"].scores
            assert reported == {"site": site, "threshold": found["global"].value}

    def test_files_that_are_not_to_be_trusted(self, finished: Federation) -> None:
        good = [finished.root / f"scores-{site}" for site in SITES[:2]]
        forged = scores_from(finished, "cedar", run="alder")  # alder's run, cedar's key
        changed = finished.root / "changed"
        changed.write_bytes(good[0].read_bytes()[:-1] + b" ")
        other = finished.root / "stick/global.fedvad"
        self._found(finished, *good, good[0], forged, changed, other)
        assert self.reported["sites"] == ["alder", "birch"]
        reasons = list(self.reported["refused"].values())
        for reason, part in zip(
            reasons,
            ("duplicate", "claims to be of site 'alder'", "changed or damaged", "unknown key"),
            strict=True,
        ):
            assert part in reason
        with pytest.raises(FederationError, match=r"two sites, and 1 passed.*changed"):
            self._found(finished, good[0], changed)
        scores_from(finished, "cedar")

    def test_scores_of_another_memory_or_thresholds_of_one(
        self, finished: Federation, tmp_path: Path
    ) -> None:
        run = tmp_path / "run-alder"
        shutil.copytree(finished.root / "run-alder", run)
        changed = TrainedRun.load(run)
        changed.memory.vectors[0, 0] += 1
        changed.save(run)
        key, out = finished.root / "alder/alder.key", tmp_path / "scores"
        export_scores(run, key, out)
        with pytest.raises(FederationError, match="different memories or target rates"):
            self._found(finished, out, finished.root / "scores-birch")
        public = finished.root / "server/server.pub"
        two = self._found(finished, *(finished.root / f"scores-{site}" for site in SITES[1:]))
        with pytest.raises(PayloadError, match="of another memory"):
            apply_thresholds(two, run, public)
        with pytest.raises(PayloadError, match="no thresholds for site alder"):
            apply_thresholds(two, finished.root / "run-alder", public)
        with pytest.raises(PayloadError, match="unknown key"):
            apply_thresholds(two, finished.root / "run-birch", finished.root / "alder/alder.pub")

    def test_under_rule_own_there_is_nothing_to_send(
        self, finished: Federation, tmp_path: Path
    ) -> None:
        shutil.copytree(finished.root / "run-alder", tmp_path / "run")
        config = read_config(tmp_path / "run").model_copy(update={"threshold_rule": "own"})
        write_config(tmp_path / "run", config)
        with pytest.raises(ConfigError, match="it needs no other scores"):
            export_scores(tmp_path / "run", finished.root / "alder/alder.key", tmp_path / "out")

    def test_from_the_command_line(
        self,
        finished: Federation,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        root, files = finished.root, []
        for site in SITES[:2]:
            shutil.copytree(root / f"run-{site}", tmp_path / site)
            files.append(tmp_path / f"{site}.fedvad")
            key = root / site / f"{site}.key"
            command = ("bank", "scores", tmp_path / site, "--key", key, "--out", files[-1])
            assert not run_main(monkeypatch, *command)
        assert "scores of site alder: 6 (global)" in capsys.readouterr().out
        assert not run_main(
            monkeypatch, "bank", "thresholds", *files, "--trust", root / "trust", "--key",
            root / "server/server.key", "--out", tmp_path / "found",
        )  # fmt: skip
        assert "thresholds of alder, birch" in capsys.readouterr().out
        assert not run_main(
            monkeypatch, "bank", "apply", tmp_path / "found", tmp_path / "birch", "--trust",
            root / "server/server.pub",
        )  # fmt: skip
        assert "threshold of birch: " in capsys.readouterr().out
        found = TrainedRun.load(tmp_path / "birch").threshold("birch")
        assert found is not None
        assert found.method.startswith("federated")


def test_a_site_leaves_by_files_and_the_rest_is_as_if_it_had_never_sent(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    reported, memories = {}, {}
    for name, sites in (("all", SITES), ("never", SITES[:2])):
        (tmp_path / name).mkdir()
        federation = Federation(tmp_path / name, plants, shared_cache, upload_rows=12)
        file = federation.round(*sites)
        if name == "all":
            file, receipt = tmp_path / "without.fedvad", tmp_path / "receipt.fedvad"
            reported = forget_site(
                "cedar", federation.state("server"), federation.root / "server/server.key", file,
                receipt=receipt,
            )  # fmt: skip
            found = fedvad.inspect(receipt)
            assert found["signature"]["verifies"] is True
            assert found["after"] == sha256_of(file.read_bytes())
            state = load_state(federation.state("server"))
            assert state is not None
            assert set(state.server) == {"alder", "birch"}
            assert b"cedar" not in file.read_bytes()
            assert federation.take("alder", file)["round"] == 2
            # what the memory lacks now is what the sites send next
            assert federation.merge(federation.export("alder"), out="next").is_file()
            late = federation.root / "stick/cedar.fedvad"
            before = files_of(federation.state("server"))
            with pytest.raises(FederationError, match="--take-back cedar"):
                federation.merge(late, out="next")
            with pytest.raises(ConfigError, match="--take-back birch"):
                federation.merge(late, out="next", take_back=["birch"])
            assert files_of(federation.state("server")) == before
            federation.merge(late, out="next", take_back=["cedar"])
            assert "cedar" in federation.reported["accepted"]
        memories[name] = bank_from(
            Payload.from_bytes(SignedMessage.parse(file.read_bytes()).message)
        )
    assert reported["rows_removed"] == {"cedar": 12, "global": 12}
    for part in ("vectors", "weights", "spread"):
        np.testing.assert_array_equal(
            getattr(memories["all"], part), getattr(memories["never"], part)
        )
    with pytest.raises(ConfigError, match="holds nothing of 'oak'"):
        forget_site("oak", federation.state("server"), federation.root / "server/server.key", file)


def test_a_forgetting_that_was_killed_is_finished_before_anything_else(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.round(*SITES[:2])
    key, out = federation.root / "server/server.key", federation.root / "without.fedvad"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedvad.verbs.bank_forget.save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            forget_site("birch", federation.state("server"), key, out)
    before = files_of(federation.state("server"))
    with pytest.raises(ConfigError, match="finish it with fedvad bank forget birch"):
        federation.merge(federation.root / "stick/alder.fedvad", out="next")
    assert files_of(federation.state("server")) == before
    forget_site("birch", federation.state("server"), key, out)
    state = load_state(federation.state("server"))
    assert state is not None
    assert set(state.server) == {"alder"}
    assert federation.take("alder", out)["round"] == 2
    assert federation.merge(federation.export("alder"), out="next").is_file()


def test_no_output_takes_the_place_of_another_file(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {site: federation.export(site) for site in SITES[:2]}
    root, stick = federation.root, federation.root / "stick"
    (stick / "notes.txt").write_text("mine")
    (stick / "link.fedvad").symlink_to(files["birch"])
    os.link(files["birch"], stick / "hard.fedvad")
    monkeypatch.chdir(stick)
    before = files_of(root)
    others = ["birch.fedvad", "../stick/birch.fedvad", "link.fedvad", "hard.fedvad", "notes.txt",
              "../alder/alder.pub", "../alder/alder.key", "../trust/birch.pub"]  # fmt: skip
    for name in others:
        key = root / "alder" / "alder.key"
        with pytest.raises(ConfigError):
            export_upload(
                federation.plants / "alder", federation.state("alder"), key, Path(name), index=0,
                cache=federation.cache,
            )  # fmt: skip
        with pytest.raises(ConfigError):
            merge_uploads(
                [files["alder"]], root / "trust", root / "server/server.key",
                federation.state("server"), Path(name),
            )  # fmt: skip
    assert files_of(root) == before
    federation.export("alder")  # again, over its own
    merged = federation.merge(files["alder"])
    federation.merge(out="global")  # the last one again
    run = root / "run"
    run.mkdir()
    (run / "config.json").write_text('{"mine": true}')
    for out in (run, federation.plants / "alder", federation.plants / "alder/train/good"):
        with pytest.raises(ConfigError):
            federation.take("alder", merged, out=out)
    assert files_of(run) == {"config.json": b'{"mine": true}'}
