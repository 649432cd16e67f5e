"""The server under any mailbox: what it takes, what it refuses, and what a round leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvad.errors import FederationError
from fedvad.federation.exchange.averages import weights_for
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.payload import Manifest, Payload
from fedvad.federation.server import Server
from fedvad.federation.vote import choose_exchange
from tests.helpers import make_bank, upload


def exchange_for(payload: Payload) -> Any:
    if any(name.startswith("weight/") for name in payload.arrays):
        return weights_for(payload)
    features, dim, _ = kind_of(payload)
    return MemoryExchange(features=features, dim=dim)


def server(**options: Any) -> Server:
    made = Server(exchange_for=exchange_for, **options)
    made.open(1)
    return made


def sent(site: str, round_: int = 1, rows: int = 4, **changes: Any) -> bytes:
    seed = 10 * round_ + ord(site)
    return upload(site, round_, make_bank(rows, seed=seed), mode="append", **changes).to_bytes()


def weights(site: str, value: float, **changes: Any) -> Payload:
    manifest: dict[str, Any] = {
        "kind": "upload", "site": site, "round": 1, "features": "feature-key",
        "generator": "a" * 16, "n_images": 4, "n_patches": 8,
    }  # fmt: skip
    return Payload(
        Manifest(**(manifest | changes)), {"weight/w": np.full((2, 3), value, np.float32)}
    )


def test_either_an_exchange_or_a_way_to_one() -> None:
    with pytest.raises(TypeError, match="either"):
        Server()
    with pytest.raises(TypeError, match="either"):
        Server(MemoryExchange(features="x", dim=6), exchange_for=exchange_for)


class TestReceive:
    def test_a_fault_of_the_exchange_refuses_one_site_and_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accept = MemoryExchange.accept

        def failing(exchange: MemoryExchange, payload: Payload) -> None:
            accept(exchange, payload)
            if payload.manifest.site == "a":
                raise ValueError("shapes (4,) and (5,)")

        monkeypatch.setattr(MemoryExchange, "accept", failing)
        made = server()
        bad = made.receive("a", [sent("a")])
        good = made.receive("b", [sent("b")])
        made.close(["a", "b"])
        assert bad.refused.endswith("the exchange failed on it: ValueError: shapes (4,) and (5,)")
        assert good.accepted
        assert list(made.state().server) == ["b"]

    def test_all_of_an_answer_or_nothing(self) -> None:
        made = server()
        made.open(2)
        bad = sent("a", 2, features="other")
        receipt = made.receive("a", [sent("a", 1), bad])
        made.receive("b", [sent("b", 1), sent("b", 2)])
        made.close(["a", "b"])
        assert "features other" in receipt.refused
        assert not receipt.accepted
        assert set(made.held()) == {"b"}
        assert made.ledger.rounds[0].rows_up == {"b": 8}
        assert made.merged is not None
        assert made.merged.rows == 8

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            (sent("b"), "claims to be of site 'b', and is of a"),
            (sent("a", 2), "claims to be of round 2, but round 1 is merged next"),
            (upload("a", kind="global").to_bytes(), "it is a global memory"),
            (b"junk" * 9, "header claims"),
        ],
    )
    def test_claims_are_held_against_who_sent_it_and_when(
        self, message: bytes, reason: str
    ) -> None:
        made = server()
        receipt = made.receive("a", [sent("a"), message])
        assert reason in receipt.refused
        made.receive("c", [sent("c")])
        made.close()
        assert set(made.held()) == {"c"}

    def test_an_answer_without_an_upload(self) -> None:
        made = server()
        assert "no upload" in made.receive("a", []).refused

    def test_the_first_good_one_of_a_round_counts(self) -> None:
        made = server()
        poor = upload("a", bank=make_bank(3))
        poor.arrays["vectors"][0, 0] = np.nan
        first = made.receive("a", [poor.to_bytes()], label="1")
        second = made.receive("a", [sent("a")], label="2")
        third = made.receive("a", [sent("a")], label="3")
        made.receive("b", [sent("b")])
        made.close()
        assert [r.accepted for r in (first, second, third)] == [False, True, False]
        assert third.refused == "site a: duplicate: 2 is of the same site and round"
        assert made.ledger.rounds[0].rejected == {"1": first.refused, "3": third.refused}

    def test_rounds_are_taken_in_their_order_however_they_come(self) -> None:
        made = server()
        made.open(2)
        later = made.receive("a", [sent("a", 2, rows=3)], label="later")
        earlier = made.receive("a", [sent("a", 1, rows=5)], label="earlier")
        made.close()
        assert later.accepted
        assert earlier.accepted
        assert made.merged is not None
        assert made.merged.rows == 8

    def test_two_refused_under_one_name_are_both_in_the_ledger(self) -> None:
        made = server()
        for _ in range(3):
            made.receive("b", [b"junk" * 9])
        made.refuse("c", "not connected")
        made.receive("a", [sent("a")])
        made.close()
        assert list(made.ledger.rounds[0].rejected) == ["b", "b (2)", "b (3)", "c"]

    def test_a_round_begun_again_forgets_what_came_before(self) -> None:
        made = server()
        made.receive("a", [sent("a")])
        made.refuse("c", "not connected")
        made.open(1)
        made.receive("b", [sent("b")])
        made.close()
        (entry,) = made.ledger.rounds
        assert (entry.sites, entry.rejected) == (["b"], {})

    def test_no_longer_message_than_the_exchange_or_the_mailbox_allows(self) -> None:
        made = server(max_bytes=100)
        assert "limit of 100" in made.receive("a", [sent("a")]).refused
        made = server()
        made.receive("a", [weights("a", 1.0).to_bytes()])
        made.close()
        # what the weights need, and a header
        assert made.max_bytes == 24 + (1 << 16) + 8
        made.open(2)
        assert "exceeds the limit" in made.receive("a", [bytes(made.max_bytes + 1)]).refused


class TestBytes:
    def test_of_all_who_were_to_answer_or_of_those_accepted(self) -> None:
        for sites in (None, ["a", "b"]):
            made = server()
            made.receive("a", [sent("a")], size=1000)
            made.receive("b", [b"junk" * 9], size=77)
            made.close(sites, bytes_down={"a": 5})
            (entry,) = made.ledger.rounds
            assert entry.bytes_up == {"a": 1000} | ({} if sites is None else {"b": 77})
            assert entry.bytes_down == {"a": 5}
            assert entry.sites == (sites or ["a"])

    def test_the_last_hand_out_counts_into_the_last_round(self) -> None:
        made = server()
        made.handed_out({"a": 1})
        made.receive("a", [sent("a")])
        merged = made.close(bytes_down={"a": 5})
        made.handed_out({"a": 2, "b": 0, "c": 1})
        size = len(merged.to_bytes())
        assert made.ledger.rounds[0].bytes_down == {"a": 5 + 2 * size, "b": 0, "c": size}

    def test_the_next_round_starts_from_what_was_merged(self) -> None:
        made = server()
        made.receive("a", [sent("a")])
        merged = made.close().to_bytes()
        assert made.open(2) == merged
        made.receive("a", [sent("a", 2)])
        made.close()
        assert made.ledger.rounds[0].drift is None
        assert made.ledger.rounds[1].drift is not None


class TestQuorum:
    def test_too_few_leave_everything_as_it_was(self) -> None:
        made = server(quorum=2)
        made.receive("a", [sent("a")])
        made.refuse("b", "not connected")
        with pytest.raises(FederationError, match=r"of 1 site, the quorum is 2.*b: not connected"):
            made.close(["a", "b"])
        assert made.exchange is None
        assert made.ledger.rounds == []
        assert made.held() == {}
        with pytest.raises(FederationError, match="no round"):
            made.state()
        made.open(1)
        made.receive("a", [sent("a")])
        made.receive("b", [sent("b")])
        before = made.close(["a", "b"])
        made.open(2)
        made.receive("a", [sent("a", 2)])
        with pytest.raises(FederationError, match="quorum is 2"):
            made.close(["a", "b"])
        assert made.merged is before
        assert made.held()["a"].manifest.round == 1

    def test_it_counts_sites_and_no_more_than_take_part(self) -> None:
        made = server(quorum=2)
        made.open(2)
        made.receive("a", [sent("a", 1)], label="1")
        made.receive("a", [sent("a", 2)], label="2")
        with pytest.raises(FederationError, match="of 1 site, the quorum is 2"):
            made.close()
        made.open(2)
        made.receive("a", [sent("a", 1)])
        made.close(["a"])

    @pytest.mark.parametrize(("missing", "rows"), [("keep", 11), ("drop", 7)])
    def test_what_a_missing_site_sent_before(self, missing: Any, rows: int) -> None:
        made = server(missing=missing)
        made.receive("a", [sent("a")])
        made.receive("b", [sent("b")])
        made.close(["a", "b"])
        made.open(2)
        made.receive("a", [sent("a", 2, rows=3)])
        assert made.close(["a", "b"]).rows == rows
        made.open(3)
        made.receive("b", [sent("b", 3, rows=2)])
        assert made.close(["b"]).rows == 13  # who was not asked is not missing


class TestResume:
    def test_goes_on_from_a_state(self) -> None:
        made, whole = server(), server()
        for one in (made, whole):
            one.receive("a", [sent("a")])
            one.receive("b", [sent("b")])
            one.close()
        again = server()
        again.restore(made.state({"a": {"x": np.ones(2)}}))
        assert again.round == 1
        assert again.open(2) == whole.open(2)
        late = again.receive("b", [sent("b")])
        for one in (again, whole):
            one.receive("a", [sent("a", 2)])
        merged = again.close()
        assert "already answered round 1" in late.refused
        assert merged.to_bytes() == whole.close().to_bytes()
        assert [e.round for e in again.ledger.rounds] == [1, 2]
        assert made.state({"a": {"x": np.ones(2)}}).sites["a"]["x"].tolist() == [1, 1]

    def test_a_state_of_other_features_is_not_continued(self) -> None:
        made = server()
        made.receive("a", [sent("a", features="x")])
        made.close()
        with pytest.raises(FederationError, match="cannot continue from round 1: its features"):
            server(features="y").restore(made.state())

    def test_weights_go_on_from_the_mean_and_not_from_what_sites_sent(self) -> None:
        made = server()
        for site, value in (("a", 1.0), ("b", 3.0)):
            made.receive(site, [weights(site, value).to_bytes()])
        mean = made.close()
        again = server()
        again.restore(made.state())
        assert again.open(2) == mean.to_bytes()
        assert set(again.held()) == {"a", "b"}
        again.receive("a", [weights("a", 7.0, round=2).to_bytes()])
        assert again.close(["a", "b"]).arrays["weight/w"][0, 0] == 7.0


class TestVote:
    def test_most_sites_decide_each_of_them_once(self) -> None:
        made = server()
        made.open(2)
        mine = made.receive("a", [sent("a", 1, features="x"), sent("a", 2, features="x")])
        for name in "bc":
            made.receive(name, [sent(name, features="y")])
        assert made.close().manifest.features == "y"
        assert "features x" in mine.refused

    def test_a_site_votes_with_what_it_sent_first(self) -> None:
        made = server()
        made.open(2)
        made.receive("a", [sent("a", 2, features="y")], label="2")
        made.receive("a", [sent("a", 1, features="x")], label="1")
        made.receive("b", [sent("b", features="x")])
        assert made.close().manifest.features == "x"

    def test_features_that_are_demanded_alone_count(self) -> None:
        made = server(features="x")
        made.receive("a", [sent("a", features="x")])
        for name in "bc":
            made.receive(name, [sent(name, features="y")])
        assert made.close().manifest.features == "x"
        nobody = server(features="z")
        nobody.receive("a", [sent("a", features="x")])
        with pytest.raises(FederationError, match="features are x, the server asks for z"):
            nobody.close()

    def test_a_tie_is_left_to_the_operator(self) -> None:
        made = server()
        made.receive("a", [sent("a", features="x")])
        made.receive("b", [sent("b", features="y")])
        with pytest.raises(FederationError, match=r"different features.*x .*y .*--features"):
            made.close()

    @pytest.mark.parametrize(
        "other",
        [
            weights("a", 1.0, generator="b" * 16),
            weights("a", 1.0, features="other"),
            Payload(weights("a", 1.0).manifest, {"weight/w": np.zeros((3, 2), np.float32)}),
            Payload(weights("a", 1.0).manifest, {"weight/v": np.zeros((2, 3), np.float32)}),
            upload("a"),
        ],
    )
    def test_weights_of_another_start_or_shape_are_another_federation(self, other: Payload) -> None:
        two = [weights(name, 2.0) for name in "bc"]
        settled = choose_exchange([other, *two], exchange_for, None)
        assert settled is not None
        assert settled.kind == exchange_for(two[0]).kind
        assert exchange_for(other).kind != settled.kind

    def test_what_is_no_upload_has_no_vote(self) -> None:
        odd = Payload(upload("a").manifest, {"nothing": np.zeros(1, np.float32)})
        assert choose_exchange([odd], exchange_for, None) is None
        made = server()
        made.receive("a", [odd.to_bytes()])
        with pytest.raises(FederationError, match="must hold vectors"):
            made.close()
