"""What every exchange does in every mailbox: the same rounds, to the bit, whatever goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.errors import FederationError
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.federation.mailboxes.files import receive_files
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply
from fedvad.federation.mailboxes.flower.rounds import RemoteRounds, WaitPolicy
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.mailboxes.state import load_state, save_state
from fedvad.federation.payload import Payload
from fedvad.federation.server import Server
from tests.contract.exchanges import EXCHANGES, NAMES, Case
from tests.deploy.support import FakeLinks
from tests.federation.test_golden import signing_key

# what a site sends instead of its message; None for nothing at all
Spoil = Callable[[str, int, bytes], bytes | None]
Made = tuple[list[bytes], list[RoundEntry]]


@dataclass(eq=False)
class Federation:
    """A federation to run: rounds `first` to `last`, its state in `folder`."""

    case: Case
    folder: Path
    spoil: Spoil = lambda site, round_, message: message
    quorum: int = 1
    members: dict[str, Any] | None = None

    def sites(self) -> dict[str, Any]:
        self.members = self.case.members() if self.members is None else self.members
        return self.members


class _Sent:
    """Stands for a payload whose bytes are laid down."""

    def __init__(self, message: bytes) -> None:
        self.message = message

    def to_bytes(self) -> bytes:
        return self.message


class _Spoiling:
    """An exchange whose sites' messages are spoilt on their way."""

    def __init__(self, exchange: Any, spoil: Spoil) -> None:
        self._exchange, self._spoil = exchange, spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def site_step(self, state: Any, incoming: Payload | None, round_: int) -> Any:
        sent = self._exchange.site_step(state, incoming, round_)
        message = self._spoil(sent.manifest.site, round_, sent.to_bytes())
        return _Sent(b"" if message is None else message)


def in_process(run: Federation, rounds: int, *, resume: bool = False) -> Made:
    made: list[bytes] = []
    ledger = Ledger()
    run_rounds(
        _Spoiling(run.case.exchange(), run.spoil), run.sites(), Schedule(rounds),
        ledger=ledger, state_dir=run.folder, resume=resume,
        on_round=lambda _, merged: made.append(merged.to_bytes()),
    )  # fmt: skip
    return made, ledger.rounds


def by_file(run: Federation, rounds: int, *, resume: bool = False) -> Made:
    """Each round in a process of its own, as on a server that only reads a stick."""
    keys = {signing_key(name).public: name for name in NAMES}
    made, exchange = [], run.case.exchange()
    run.folder.mkdir(exist_ok=True)
    while True:
        server = Server(exchange_for=run.case.exchange_for, quorum=run.quorum)
        if (state := load_state(run.folder)) is not None:
            server.restore(state)
        if server.round == rounds:
            return made, server.ledger.rounds
        files = []
        down = server.open(server.round + 1)
        incoming = Payload.from_bytes(down) if down else None
        for name, site in run.sites().items():
            sent = exchange.site_step(site, incoming, server.round).to_bytes()
            message = run.spoil(name, server.round, sent)
            if message is not None:
                files.append(run.folder / f"{name}-{server.round}.fedvad")
                files[-1].write_bytes(signing_key(name).sign(message))
        receive_files(server, files[::-1], keys)
        made.append(server.close().to_bytes())
        save_state(run.folder, server.state())


def over_flower(run: Federation, rounds: int, *, resume: bool = False) -> Made:
    sites, exchange = run.sites(), run.case.exchange()
    sent: dict[tuple[str, int], bytes] = {}

    def answering(name: str) -> Callable[[Instruction], Reply | None]:
        def answer(instruction: Instruction) -> Reply | None:
            round_ = instruction.round
            incoming = Payload.from_bytes(instruction.payload) if instruction.payload else None
            if (name, round_) not in sent:
                step = exchange.site_step(sites[name], incoming, round_)
                sent[name, round_] = step.to_bytes()
            message = run.spoil(name, round_, sent[name, round_])
            return None if message is None else Reply(name, round_, (message,))

        return answer

    links = FakeLinks({name: answering(name) for name in NAMES})
    made = RemoteRounds(
        links, NAMES, Schedule(rounds), WaitPolicy(5, run.quorum), run.case.exchange_for,
        federation="f-1", config="{}", state_dir=run.folder, clock=links.clock,
    )  # fmt: skip
    made.run()
    downs = {i.round: i.payload for _, i in links.asked if i.payload}
    state = load_state(run.folder)
    assert state is not None
    return [*(downs[r] for r in sorted(downs)), state.merged.to_bytes()], made.ledger.rounds


MAILBOXES = {"process": in_process, "files": by_file, "flower": over_flower}


# where the server must know the common start, sites are in the same process
PAIRS = [
    (exchange, mailbox)
    for exchange, case in EXCHANGES.items()
    for mailbox in (MAILBOXES if case.exchange_for else ("process",))
]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def case(pair: tuple[str, str]) -> Case:
    return EXCHANGES[pair[0]]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """What a process makes of an exchange, without the message of `site` in `round_`."""

    @cache
    def made(exchange: str, rounds: int, site: str = "", round_: int = 0) -> Made:
        def missing(name: str, now: int, message: bytes) -> bytes | None:
            return None if (name, now) == (site, round_) else message

        folder = tmp_path_factory.mktemp("reference")
        return in_process(Federation(EXCHANGES[exchange], folder, missing), rounds)

    return made


@pytest.fixture
def reference(pair: tuple[str, str], references: Callable[..., Made]) -> Callable[..., Made]:
    return partial(references, pair[0])


@pytest.fixture
def mailbox(pair: tuple[str, str]) -> Callable[..., Made]:
    return MAILBOXES[pair[1]]


def _values(payload: Payload, name: str, value: Any) -> Payload:
    return Payload(payload.manifest, payload.arrays | {name: value})


def _first(payload: Payload) -> str:
    return sorted(payload.arrays)[-1] if "vectors" not in payload.arrays else "vectors"


def _with_nan(payload: Payload) -> Payload:
    name = _first(payload)
    spoilt = payload.arrays[name].astype(payload.arrays[name].dtype)
    if spoilt.dtype.kind != "f":  # a codec of integers has its scales in floats
        name = next(n for n, a in payload.arrays.items() if a.dtype.kind == "f")
        spoilt = payload.arrays[name].copy()
    spoilt.reshape(-1)[0] = np.nan
    return _values(payload, name, spoilt)


def _claiming(**changes: Any) -> Callable[[Payload], Payload]:
    return lambda p: Payload(p.manifest.model_copy(update=changes), p.arrays)


# reasons by what a site does wrong; every one of them is refused in every mailbox
WRONG: dict[str, tuple[Callable[[Payload], Payload], str]] = {
    "another's name": (_claiming(site="a"), "claims to be of site 'a'"),
    "a round to come": (_claiming(round=7), "claims to be of round 7, but round 1"),
    "a global message": (_claiming(kind="global"), "global memory, not the upload"),
    "other features": (_claiming(features="other"), "features"),
    "another start": (_claiming(generator="0" * 16), "started from"),
    "no image": (_claiming(n_images=0, n_patches=0), "no image|patches"),
    # an exchange says in its own words what it cannot merge
    "no number": (_with_nan, "."),
    "another array": (lambda p: _values(p, "more", np.zeros(3, np.float32)), "."),
}


def test_every_mailbox_gives_the_same_bytes(
    case: Case, mailbox: Callable[..., Made], reference: Callable[..., Made], tmp_path: Path
) -> None:
    expected, ledger = reference(3)
    made, rounds = mailbox(Federation(case, tmp_path), 3)
    assert made == expected
    for ours, theirs in zip(rounds, ledger, strict=True):
        for part in ("round", "sites", "rows_up", "memory_rows", "coverage", "drift", "rejected"):
            assert getattr(ours, part) == getattr(theirs, part), part
        assert all(size > 0 for size in ours.bytes_up.values())


def test_a_resumed_federation_is_an_uninterrupted_one(
    case: Case, mailbox: Callable[..., Made], tmp_path: Path
) -> None:
    whole, ledger = mailbox(Federation(case, tmp_path / "whole"), 3)
    run = Federation(case, tmp_path / "state")
    first, _ = mailbox(run, 1)
    if mailbox is in_process:
        run = replace(run, members=None)  # sites start again, from their snapshots
    rest, rounds = mailbox(run, 3, resume=True)
    assert first == whole[:1]
    assert rest[-1] == whole[-1]
    # a first run ends with the hand-out of what was final then
    kept = {"bytes_down"}
    assert [e.model_dump(exclude=kept) for e in rounds] == [
        e.model_dump(exclude=kept) for e in ledger
    ]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_with_its_reason_and_the_others_go_on(
    case: Case,
    mailbox: Callable[..., Made],
    reference: Callable[..., Made],
    what: str,
    tmp_path: Path,
) -> None:
    change, reason = WRONG[what]

    def spoil(site: str, round_: int, message: bytes) -> bytes | None:
        if (site, round_) != ("c", 1):
            return message
        return change(Payload.from_bytes(message)).to_bytes()

    made, (entry,) = mailbox(Federation(case, tmp_path, spoil), 1)
    (refused,) = entry.rejected.values()
    assert re.search(reason, refused), refused
    assert "c" not in entry.rows_up
    assert made == reference(1, "c", 1)[0]


@pytest.mark.parametrize("cut", [0, 20, -4])
def test_what_is_cut_short_is_refused(
    case: Case, mailbox: Callable[..., Made], cut: int, tmp_path: Path
) -> None:
    def spoil(site: str, round_: int, message: bytes) -> bytes | None:
        return message[:cut] if site == "c" else message

    _, (entry,) = mailbox(Federation(case, tmp_path, spoil), 1)
    assert len(entry.rejected) == 1


def test_a_message_beyond_the_limit_is_refused_unparsed(
    case: Case, mailbox: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "max_bytes", property(lambda self: 50_000))
    parsed = []
    whole = Payload.from_bytes.__func__  # type: ignore[attr-defined]

    def spied(cls: type[Payload], data: bytes, *, max_bytes: int = 1 << 30) -> Payload:
        payload: Payload = whole(cls, data, max_bytes=max_bytes)
        parsed.append(len(data))
        return payload

    monkeypatch.setattr(Payload, "from_bytes", classmethod(spied))
    long = 90_000

    def spoil(site: str, round_: int, message: bytes) -> bytes | None:
        return message + bytes(long - len(message)) if site == "c" else message

    _, (entry,) = mailbox(Federation(case, tmp_path, spoil), 1)
    (reason,) = entry.rejected.values()
    assert "limit of 50000" in reason
    assert long not in parsed


def test_a_site_that_is_missing_is_not_in_the_round(
    case: Case, mailbox: Callable[..., Made], reference: Callable[..., Made], tmp_path: Path
) -> None:
    def spoil(site: str, round_: int, message: bytes) -> bytes | None:
        return None if (site, round_) == ("b", 2) else message

    made, rounds = mailbox(Federation(case, tmp_path, spoil), 3)
    assert made == reference(3, "b", 2)[0]
    assert [sorted(entry.rows_up) for entry in rounds] == [["a", "b", "c"], ["a", "c"], [*"abc"]]


@pytest.mark.parametrize("name", [name for name, case in EXCHANGES.items() if case.exchange_for])
def test_too_few_sites_change_nothing(name: str, tmp_path: Path) -> None:
    def spoil(site: str, round_: int, message: bytes) -> bytes | None:
        return None if (site, round_) == ("b", 2) else message

    for box in ("files", "flower"):
        run = Federation(EXCHANGES[name], tmp_path / box, spoil, quorum=3)
        MAILBOXES[box](replace(run, spoil=Federation.spoil), 1)
        before = {p: p.read_bytes() for p in run.folder.rglob("round-*/*")}
        with pytest.raises(FederationError, match="of 2 sites, the quorum is 3"):
            MAILBOXES[box](run, 2)
        assert {p: p.read_bytes() for p in run.folder.rglob("round-*/*")} == before
