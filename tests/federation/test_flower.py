"""The server's rounds with sites that are slow, gone, late, doubled or wrong; and the messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.flower.messages import (
    PROTOCOL,
    Instruction,
    Reply,
    from_records,
    to_records,
)
from fedvad.federation.mailboxes.flower.rounds import RemoteRounds, WaitPolicy
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.payload import Payload
from tests.deploy.support import FakeLinks
from tests.helpers import fake_site, make_bank, upload

NAMES = ["a", "b", "c"]
CONFIG = FedDyMemConfig(rows=6, candidates=1.0, projection=None)
KEY = "feature-key"


def exchange(features: str = KEY, dim: int = 6) -> MemoryExchange:
    return MemoryExchange(features=features, dim=dim)


def exchange_for(upload: Payload) -> MemoryExchange:
    features, dim, patches = kind_of(upload)
    assert patches in (20, 23)
    return exchange(features, dim)


class Remote:
    """A site as it answers over a wire: remembers what it sent, sends again what is not held."""

    def __init__(self, name: str, features: str = KEY) -> None:
        self.site = fake_site(name, CONFIG)
        self.name, self.features = name, features
        self.sent: dict[int, bytes] = {}
        self.made = 0

    def __call__(self, instruction: Instruction) -> Reply:
        round_ = instruction.round
        if round_ not in self.sent:
            self.made += 1
            known = Payload.from_bytes(instruction.payload) if instruction.payload else None
            step = exchange(self.features).site_step(self.site, known, round_)
            self.sent[round_] = step.to_bytes()
        wanted = sorted(r for r in self.sent if instruction.held < r <= round_)
        return Reply(self.name, round_, tuple(self.sent[r] for r in wanted), {"made": self.made})


def rounds(links: FakeLinks, folder: Path, **changes: Any) -> RemoteRounds:
    arguments: dict[str, Any] = {
        "sites": NAMES, "schedule": Schedule(2), "patience": WaitPolicy(60, 1, 20),
        "exchange_for": exchange_for, "federation": "f-1", "config": "{}", "state_dir": folder,
        "clock": links.clock,
    }  # fmt: skip
    return RemoteRounds(links, **(arguments | changes))


def in_process(count: int = 2, names: list[str] = NAMES) -> bytes:
    sites: dict[str, MemorySite] = {name: fake_site(name, CONFIG) for name in names}
    return run_rounds(exchange(), sites, Schedule(count), ledger=Ledger()).to_bytes()


class TestRounds:
    def test_same_bytes_as_in_process(self, tmp_path: Path) -> None:
        links = FakeLinks({name: Remote(name) for name in NAMES})
        made = rounds(links, tmp_path)
        assert made.run().to_bytes() == in_process()
        entry = made.ledger.rounds[1]
        assert entry.rejected == {}
        assert set(entry.bytes_up) == set(entry.bytes_down) == set(NAMES)
        assert len(links.asked) == 6

    def test_killed_server_goes_on_behind_its_last_round(self, tmp_path: Path) -> None:
        remotes = {name: Remote(name) for name in NAMES}

        def killed(instruction: Instruction) -> Reply:
            if instruction.round == 2:
                remotes["b"](instruction)  # the site made its round, the server died before
                raise KeyboardInterrupt
            return remotes["b"](instruction)

        with pytest.raises(KeyboardInterrupt):
            rounds(FakeLinks(remotes | {"b": killed}), tmp_path).run()
        links = FakeLinks(dict(remotes))
        again = rounds(links, tmp_path)
        assert again.run().to_bytes() == in_process()
        assert [i.round for _, i in links.asked] == [2, 2, 2]
        assert [r.made for r in remotes.values()] == [2, 2, 2]
        assert [e.round for e in again.ledger.rounds] == [1, 2]

    def test_crashed_site_is_asked_again(self, tmp_path: Path) -> None:
        remote, crashes = Remote("b"), iter(["no answer: crash", None])

        def crashing(instruction: Instruction) -> Reply | str | None:
            if instruction.round == 1:
                for crash in crashes:  # first an error, then silence, then an answer
                    return crash
            return remote(instruction)

        links = FakeLinks({"a": Remote("a"), "b": crashing, "c": Remote("c")})
        assert rounds(links, tmp_path).run().to_bytes() == in_process()
        assert [s for s, i in links.asked if i.round == 1].count("b") == 3

    def test_late_connection_within_the_deadline_is_waited_for(self, tmp_path: Path) -> None:
        links = FakeLinks({name: Remote(name) for name in NAMES}, away={"c": 50.0})
        assert rounds(links, tmp_path).run().to_bytes() == in_process()

    def test_missing_site_is_in_the_ledger_and_comes_back_with_all_it_made(
        self, tmp_path: Path
    ) -> None:
        remote = Remote("c")

        def slow(instruction: Instruction) -> Reply | None:
            answer = remote(instruction)
            return answer if instruction.round == 2 else None

        links = FakeLinks({"a": Remote("a"), "b": Remote("b"), "c": slow})
        made = rounds(links, tmp_path, patience=WaitPolicy(10, 2, 100))
        made.run()
        first, second = made.ledger.rounds
        assert "deadline of 10 s" in first.rejected["c"]
        assert second.rejected == {}
        assert second.rows_up["c"] == 12  # the upload of round one came with that of round two
        assert second.memory_rows == 36

    def test_too_few_answers_stop_the_run_and_keep_what_was_made(self, tmp_path: Path) -> None:
        remotes: dict[str, Any] = {name: Remote(name) for name in NAMES}
        links = FakeLinks(remotes | {"b": lambda i: None}, away={"c": 1e9})
        with pytest.raises(FederationError, match=r"1 site, the quorum is 2.*b: no answer.*c: not"):
            rounds(links, tmp_path, patience=WaitPolicy(10, 2, 100)).run()
        assert rounds(FakeLinks(remotes), tmp_path).run().to_bytes() == in_process()

    def test_last_memory_of_a_missing_site_is_kept_or_dropped(self, tmp_path: Path) -> None:
        rows = {}
        for missing in ("keep", "drop"):
            remote = Remote("c")
            links = FakeLinks(
                {
                    "a": Remote("a"),
                    "b": Remote("b"),
                    "c": lambda i, r=remote: r(i) if i.round != 2 else None,
                }
            )
            made = rounds(
                links, tmp_path / missing, patience=WaitPolicy(5, 1, 100, missing),
                schedule=Schedule(3),
            )  # fmt: skip
            made.run()
            rows[missing] = [entry.memory_rows for entry in made.ledger.rounds]
        assert rows == {"keep": [18, 30, 48], "drop": [18, 24, 48]}

    def test_doubled_and_late_answers_change_nothing(self, tmp_path: Path) -> None:
        remotes = {name: Remote(name) for name in NAMES}
        links = FakeLinks(dict(remotes))

        def doubled(instruction: Instruction) -> Reply:
            answer = remotes["a"](instruction)
            links.say("a", answer)
            if instruction.round == 2:
                links.say("a", Reply("a", 1, (remotes["a"].sent[1],)))
            return answer

        links.answers["a"] = doubled
        assert rounds(links, tmp_path).run().to_bytes() == in_process()

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            (lambda r: replace(r, site="a"), "claims to be 'a'"),
            (lambda r: replace(r, refusal="the disk is full"), "refused by the site: the disk"),
            (lambda r: replace(r, payloads=()), "no upload"),
            (lambda r: replace(r, payloads=(b"junk" * 9,)), "header claims"),
            (lambda r: replace(r, payloads=(upload("a").to_bytes(),)), "claims to be of"),
            (lambda r: replace(r, payloads=(upload("b", 2).to_bytes(),)), "claims to be of"),
            (lambda r: replace(r, payloads=r.payloads * 2), "already answered"),
            (
                lambda r: replace(r, payloads=(upload("b", features="other").to_bytes(),)),
                "has features other",
            ),
            (
                lambda r: replace(r, payloads=(upload("b", bank=make_bank(dim=5)).to_bytes(),)),
                "generator",
            ),
        ],
    )  # fmt: skip
    def test_wrong_answer_is_refused_with_its_reason(
        self, wrong: Callable[[Reply], Reply], reason: str, tmp_path: Path
    ) -> None:
        remote = Remote("b")
        links = FakeLinks({"a": Remote("a"), "b": lambda i: wrong(remote(i)), "c": Remote("c")})
        made = rounds(links, tmp_path, schedule=Schedule(1))
        assert made.run().to_bytes() == in_process(1, ["a", "c"])
        assert reason in made.ledger.rounds[0].rejected["b"]

    def test_features_of_most_sites_or_those_demanded_count(self, tmp_path: Path) -> None:
        def links() -> FakeLinks:
            return FakeLinks({"a": Remote("a", "x"), "b": Remote("b", "y"), "c": Remote("c", "y")})

        made = rounds(links(), tmp_path / "most", schedule=Schedule(1))
        assert made.run().manifest.features == "y"
        assert "has features x" in made.ledger.rounds[0].rejected["a"]
        made = rounds(links(), tmp_path / "demanded", schedule=Schedule(1), features="x")
        assert made.run().manifest.features == "x"
        two = FakeLinks({"a": Remote("a", "x"), "b": Remote("b", "y")})
        with pytest.raises(FederationError, match="different features, as many"):
            rounds(two, tmp_path / "tie", patience=WaitPolicy(3, 1, 9)).run()

    def test_final_memory_reaches_those_who_are_there(self, tmp_path: Path) -> None:
        links = FakeLinks({name: Remote(name) for name in NAMES})
        made = rounds(links, tmp_path)
        final = made.run()

        def take(instruction: Instruction) -> Reply:
            assert instruction.kind == "finish"
            assert instruction.payload == final.to_bytes()
            return Reply("x", instruction.round)

        links.answers = {
            "a": take, "b": lambda i: Reply("b", i.round, refusal="no"), "c": lambda i: None
        }  # fmt: skip
        replies, missing = made.hand_out(final, NAMES)
        assert (set(replies), missing) == ({"a", "b"}, {"b", "c"})

    def test_answers_to_earlier_questions_are_forgotten(self, tmp_path: Path) -> None:
        links = FakeLinks({name: Remote(name) for name in NAMES})
        made = rounds(links, tmp_path)
        final = made.run()
        links.answers = {name: lambda i: None for name in NAMES}
        links.say("a", Reply("a", final.manifest.round))  # the last round's, asked for twice
        links.say("b", "no answer: crash")
        replies, missing = made.hand_out(final, NAMES)
        assert (replies, missing) == ({}, set(NAMES))

    def test_a_quorum_counts_those_who_take_part(self, tmp_path: Path) -> None:
        def made(share: float, folder: str, missing: Any = "keep") -> RemoteRounds:
            links = FakeLinks({name: Remote(name) for name in "abcd"})
            found = rounds(
                links, tmp_path / folder, sites=list("abcd"), patience=WaitPolicy(9, 3, 5, missing),
                schedule=Schedule(3, share),
            )  # fmt: skip
            found.run()
            return found

        halves = made(0.5, "half")
        assert [len(e.bytes_up) for e in halves.ledger.rounds] == [2, 2, 2]
        # who was not drawn is not missing
        dropped = made(0.5, "drop", "drop")
        assert [e.memory_rows for e in dropped.ledger.rounds] == [
            e.memory_rows for e in halves.ledger.rounds
        ]

    def test_impossible_quorum(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="quorum of 4 of 3"):
            rounds(FakeLinks({}), tmp_path, patience=WaitPolicy(1, 4))


class TestMessages:
    @pytest.fixture(autouse=True)
    def _flower(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")

    @pytest.mark.parametrize(
        "message",
        [
            Instruction("hello"),
            Instruction("round", "f-1", 3, ("a", "ß"), '{"x": 1}', 2, b"\x00\x01" * 9),
            Reply("a"),
            Reply("a", 3, (b"one", b"", b"three"), {"seconds": 1.5}, "no"),
        ],
    )
    def test_round_trip(self, message: Instruction | Reply) -> None:
        assert from_records(to_records(message), type(message)) == message

    def test_through_flowers_own_bytes(self) -> None:
        from flwr.app import RecordDict
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        payload = np.random.default_rng(0).bytes(12 << 20)  # three chunks of 5 MB
        records = to_records(Reply("a", 1, (payload,)))
        contents = {i: o.deflate() for i, o in get_all_nested_objects(records).items()}
        back = inflate_object_from_contents(records.object_id, contents)
        assert isinstance(back, RecordDict)
        assert from_records(back, Reply).payloads == (payload,)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"protocol": PROTOCOL + 1}, f"speaks protocol {PROTOCOL + 1}"),
            ({"site": 3}, "site is not of type str"),
            ({"told": "[]"}, "facts are not an object"),
            ({"told": "{"}, "not a message of fedvad"),
            ({"told": '{"a":' * 700 + "1" + "}" * 700}, "nested too deeply"),
            ({"told": '"' * (2 << 20)}, "told is too long"),
            ({"surplus": 1}, "its fields are"),
        ],
    )
    def test_anything_else_is_refused(self, changes: dict[str, Any], reason: str) -> None:
        records = to_records(Reply("a", 1, (b"x",)))
        for key, value in changes.items():
            records.config_records["fedvad"][key] = value
        with pytest.raises(PayloadError, match=reason):
            from_records(records, Reply)

    def test_foreign_arrays_and_sizes_are_refused(self) -> None:
        from flwr.app import Array, ArrayRecord, RecordDict

        records = to_records(Reply("a", 1, (b"x" * 100,)))
        with pytest.raises(PayloadError, match="100 bytes exceeds the limit of 99"):
            from_records(records, Reply, max_bytes=99)
        records["payloads"] = ArrayRecord({"0000": Array(np.zeros(3))})
        with pytest.raises(PayloadError, match="foreign format"):
            from_records(records, Reply)
        with pytest.raises(PayloadError, match="not a message"):
            from_records(RecordDict({}), Reply)


class TestLinks:
    """Flower's grid as far as `FlowerLinks` knows it."""

    def test_a_broken_answer_takes_no_other_along(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")
        from fedvad.federation.mailboxes.flower.links import FlowerLinks

        class Grid:
            def get_nodes(self) -> list[Any]:
                return [SimpleNamespace(node_id=i, public_key=name) for i, name in enumerate(keys)]

            def pull_messages(self, ids: list[str]) -> list[Any]:
                if "message-0" in ids:
                    raise UnicodeError("no protobuf")
                content = to_records(Reply("b", 1))
                return [SimpleNamespace(has_content=lambda: True, content=content)]

        keys = {b"a": "a", b"b": "b"}
        links = FlowerLinks(Grid(), keys)
        links._push = lambda node, _: f"message-{node}"  # type: ignore[method-assign]
        assert links.connected() == {"a", "b"}
        for name in "ab":
            links.ask(name, Instruction("round", round=1))
        answers = dict(links.collect())
        assert isinstance(answers["a"], str)
        assert "cannot be read" in answers["a"]
        assert answers["b"] == Reply("b", 1)
        assert list(links.collect()) == []
