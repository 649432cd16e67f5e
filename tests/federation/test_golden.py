"""The bytes and ledgers of a fixed federation, as an earlier fedvad made them: in process, by file
and over Flower they must stay the same to the bit.

One upload of round one is refused and one site comes late, so that refusals are part of it. The
files in `tests/golden/federation` are written by `python -m tests.federation.test_golden`, and
only where a change of the protocol is meant.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.federation.mailboxes.flower.rounds import RemoteRounds, WaitPolicy
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.mailboxes.state import load_state
from fedvad.federation.payload import SCHEMA, WITH_ORIGIN, Payload, bank_from
from fedvad.federation.signed import SignedMessage, SigningKey
from fedvad.memory.origin import ORIGIN_ARRAYS
from fedvad.runs.bank_state import SiteState, load_site, save_site
from fedvad.runs.config import resolve_config
from fedvad.runs.plan import memory_exchange
from fedvad.verbs.bank_server import merge_uploads
from tests.deploy.support import FakeLinks
from tests.helpers import fake_site, make_bank, upload

GOLDEN = Path(__file__).parents[1] / "golden" / "federation"
NAMES = ("a", "b", "c")
ROUNDS = (1, 2)
ORIGIN_BYTES = 250  # in a message of so few rows, most of them names in its header


def sent(site: str, round_: int) -> Payload:
    """What a site sends in a round: all that this federation is about."""
    number = NAMES.index(site)
    bank = make_bank(5 + 2 * number + round_, seed=10 * round_ + number)
    features = "other" if (site, round_) == ("c", 1) else "feature-key"
    return upload(site, round_, bank, mode="append", features=features, n_patches=61 + number)


def exchange() -> MemoryExchange:
    return memory_exchange(resolve_config(), "feature-key", 6, 16)


def signing_key(name: str) -> SigningKey:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"-"))
    public = private.public_key().public_bytes(s.Encoding.Raw, s.PublicFormat.Raw)
    return SigningKey(private, public)


def write_keys(folder: Path) -> None:
    """`server.key`, and the sites' public keys in `trust`."""
    from cryptography.hazmat.primitives import serialization as s

    (folder / "trust").mkdir(parents=True)
    private = signing_key("server")._private
    pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    (folder / "server.key").write_bytes(pem)
    (folder / "server.key").chmod(0o600)
    for name in NAMES:
        public = signing_key(name)._private.public_key()
        (folder / "trust" / f"{name}.pub").write_bytes(
            public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        )


class Canned(MemoryExchange):
    """Its sites send what was laid down."""

    def site_step(self, state: Any, incoming: Payload | None, round_: int) -> Payload:
        return sent(state.name, round_)


class Quiet:
    """A site that has nothing to remember."""

    spread = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_patches = 61 + NAMES.index(name)

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"none": np.zeros(1, np.float32)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        assert set(arrays) == {"none"}


Made = tuple[list[bytes], list[RoundEntry]]


def by_process(folder: Path) -> Made:
    made: list[bytes] = []
    ledger = Ledger()
    canned = Canned(features="feature-key", dim=6, size=32_768, limits=exchange().limits)
    run_rounds(
        canned, {name: Quiet(name) for name in NAMES}, Schedule(len(ROUNDS)), ledger=ledger,
        on_round=lambda _, merged: made.append(merged.to_bytes()),
    )  # fmt: skip
    return made, ledger.rounds


def by_file(folder: Path) -> Made:
    write_keys(folder)
    made = []
    for round_ in ROUNDS:
        files = []
        for name in NAMES:
            files.append(Path(f"{name}-{round_}.fedvad"))
            files[-1].write_bytes(signing_key(name).sign(sent(name, round_).to_bytes()))
        out = Path(f"global-{round_}.fedvad")
        merge_uploads(files, folder / "trust", folder / "server.key", folder / "state", out)
        made.append(out.read_bytes())
    state = load_state(folder / "state")
    assert state is not None
    return made, state.ledger.rounds


def over_flower(folder: Path) -> Made:
    def answering(name: str) -> Any:
        def answer(instruction: Instruction) -> Reply:
            first, last = instruction.held + 1, instruction.round
            # a site that was refused before sends the later round alone
            wanted = range(last if name == "c" else first, last + 1)
            return Reply(name, last, tuple(sent(name, r).to_bytes() for r in wanted))

        return answer

    made: list[bytes] = []
    links = FakeLinks({name: answering(name) for name in NAMES})
    rounds = RemoteRounds(
        links, NAMES, Schedule(len(ROUNDS)), WaitPolicy(60), lambda *kind: exchange(),
        federation="f-1", config="{}", state_dir=folder / "state", clock=links.clock,
    )  # fmt: skip
    rounds.run()
    made += [i.payload for site, i in links.asked if (site, i.round) == ("a", 2)]
    state = load_state(folder / "state")
    assert state is not None
    return [*made, state.merged.to_bytes()], rounds.ledger.rounds


MAILBOXES = {"process": by_process, "file": by_file, "flower": over_flower}


def site_state() -> SiteState:
    member = fake_site("a", FedDyMemConfig())
    member.bank = make_bank(6, seed=3)
    member.generator = Generator(np.eye(6, dtype=np.float32) * 2, np.ones(6, np.float32))
    config = resolve_config(seed=5)
    return SiteState("a", 0, config, Path("images"), member.snapshot(), sent("a", 1), 4)


def without_origin(data: bytes) -> bytes:
    """A message as before version 2, in which each row says which site sent it in which round."""
    payload = Payload.from_bytes(data)
    assert payload.manifest.schema_version == WITH_ORIGIN
    arrays = {n: a for n, a in payload.arrays.items() if n not in ORIGIN_ARRAYS}
    manifest = payload.manifest.model_copy(update={"schema_version": SCHEMA})
    return Payload(manifest, arrays).to_bytes()


def signed_without_origin(path: Path) -> bytes:
    signed = SignedMessage.parse(path.read_bytes())
    assert signed.check({signing_key("server").public: "server"}) == "server"
    return signing_key("server").sign(without_origin(signed.message))


def _entries(rounds: list[RoundEntry]) -> list[dict[str, Any]]:
    return [json.loads(entry.model_dump_json()) for entry in rounds]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the ledger of files names them as they were given
    return tmp_path / "federation"


@pytest.mark.parametrize("mailbox", MAILBOXES)
def test_messages_and_ledgers_stay_as_they_were(mailbox: str, folder: Path) -> None:
    made, rounds = MAILBOXES[mailbox](folder)
    if mailbox == "file":
        made = [SignedMessage.parse(data).message for data in made]
    signed = [(GOLDEN / f"global-{round_}.fedvad").read_bytes() for round_ in ROUNDS]
    assert [without_origin(data) for data in made] == [data[106:] for data in signed]
    ledger = json.loads((GOLDEN / f"ledger-{mailbox}.json").read_text())
    assert len(rounds) == len(ledger)
    for ours, theirs in zip(_entries(rounds), ledger, strict=True):
        # a distance is a matter of the processor's last bits
        drift, wanted = ours.pop("drift"), theirs.pop("drift")
        down, before = ours.pop("bytes_down"), theirs.pop("bytes_down")
        assert down.keys() == before.keys()
        assert all(before[site] <= down[site] <= before[site] + 2 * ORIGIN_BYTES for site in down)
        assert ours == theirs
        assert drift == (None if wanted is None else pytest.approx(wanted, rel=1e-5))


def test_a_site_sends_the_bytes_it_sent(folder: Path) -> None:
    assert signing_key("a").sign(sent("a", 1).to_bytes()) == (GOLDEN / "a-1.fedvad").read_bytes()


def test_a_server_goes_on_from_an_older_state(folder: Path) -> None:
    write_keys(folder)
    shutil.copytree(GOLDEN / "server", folder / "state")
    files = [Path(f"{name}-2.fedvad") for name in NAMES]
    for name, file in zip(NAMES, files, strict=True):
        file.write_bytes(signing_key(name).sign(sent(name, 2).to_bytes()))
    out = folder / "global"
    merge_uploads(files, folder / "trust", folder / "server.key", folder / "state", out)
    assert signed_without_origin(out) == (GOLDEN / "global-2.fedvad").read_bytes()
    origin = bank_from(Payload.from_bytes(SignedMessage.parse(out.read_bytes()).message)).origin
    assert origin is not None
    # what came before rows had an origin is unknown
    assert {s[:2] for s in origin.sources} == {("", 0), ("a", 2), ("b", 2), ("c", 2)}


def test_a_site_goes_on_from_an_older_state() -> None:
    found, expected = load_site(GOLDEN / "site"), site_state()
    assert found is not None
    assert found.config.seed == 5
    assert (found.site, found.index, found.data, found.n_images) == ("a", 0, Path("images"), 4)
    assert found.upload.to_bytes() == expected.upload.to_bytes()
    expected.kept.pop("generator/radius")  # which is from before it was carried on
    assert set(found.kept) == set(expected.kept)
    for name, array in expected.kept.items():
        np.testing.assert_array_equal(found.kept[name], array)


def _write(work: Path) -> None:
    """Write the golden files again, in a folder to work in."""
    import os

    GOLDEN.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    for name, mailbox in MAILBOXES.items():
        _, rounds = mailbox(work / name)
        text = json.dumps(_entries(rounds), indent=1)
        (GOLDEN / f"ledger-{name}.json").write_text(text + "\n")
    for name in ("a-1", "global-1", "global-2"):
        shutil.copy(work / f"{name}.fedvad", GOLDEN)
    write_keys(work / "first")
    files = [Path(f"{name}-1.fedvad") for name in NAMES]
    first = work / "first"
    merge_uploads(files, first / "trust", first / "server.key", first / "state", first / "out")
    shutil.copytree(
        first / "state", GOLDEN / "server", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*lock*"),
    )  # fmt: skip
    save_site(GOLDEN / "site", site_state())


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        _write(Path(work))
