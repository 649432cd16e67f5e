"""What every exchange promises, whatever it sends: one list of them, in `exchanges`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from fedvad.errors import FederationError, FedvadError, PayloadError
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.payload import Payload
from fedvad.federation.server import Server
from tests.contract.exchanges import EXCHANGES, NAMES, Case


@pytest.fixture(params=list(EXCHANGES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return EXCHANGES[name]


@cache
def sent(name: str, rounds: int = 1) -> list[dict[str, Payload]]:
    """What the sites send, by round."""
    exchange, members = EXCHANGES[name].exchange(), EXCHANGES[name].members()
    incoming, found = None, []
    for round_ in range(1, rounds + 1):
        found.append({s: exchange.site_step(m, incoming, round_) for s, m in members.items()})
        for payload in found[-1].values():
            exchange.accept(payload)
        incoming = exchange.merge(round_)
    return found


def taking(exchange: Exchange[Any], payloads: Any) -> Exchange[Any]:
    for payload in payloads:
        exchange.accept(payload)
    return exchange


def alone(case: Case, site: str) -> Payload:
    """What a federation of one site has merged, once that tells something of its images."""
    exchange, member, merged = case.exchange(), case.members()[site], None
    for round_ in range(1, case.telling + 1):
        exchange.accept(exchange.site_step(member, merged, round_))
        merged = exchange.merge(round_)
    assert merged is not None
    return merged


def held(exchange: Exchange[Any]) -> dict[str, bytes]:
    return {site: payload.to_bytes() for site, payload in exchange.server_state().items()}


def claiming(payload: Payload, **changes: Any) -> Payload:
    return Payload(payload.manifest.model_copy(update=changes), payload.arrays)


def spoilt_arrays(payload: Payload) -> Iterator[tuple[str, Payload]]:
    """The message with one thing wrong about its arrays."""

    def holding(arrays: dict[str, Any]) -> Payload:
        return Payload(payload.manifest, arrays)

    for key, array in payload.arrays.items():
        yield f"no {key}", holding({k: a for k, a in payload.arrays.items() if k != key})
        yield f"{key} cut short", holding(payload.arrays | {key: array[:-1]})
        yield f"{key} of one number", holding(payload.arrays | {key: array.reshape(-1)[0]})
        yield f"{key} of text", holding(payload.arrays | {key: array.astype("S8")})
        for value in (np.nan, np.inf):
            if array.dtype.kind == "f":
                bad = array.copy()
                bad.reshape(-1)[-1] = value
                yield f"{key} with {value}", holding(payload.arrays | {key: bad})
    yield "one more", holding(payload.arrays | {"more": np.zeros(3, np.float32)})
    yield "nothing", holding({})


def spoilt_claims(payload: Payload) -> Iterator[tuple[str, Payload]]:
    """The message with one thing wrong about what it says of itself."""
    for changes in (
        {"features": "another"}, {"generator": "0" * 16}, {"generator": ""}, {"site": ""},
        {"kind": "global"}, {"n_images": 0}, {"n_patches": 0}, {"n_images": 0, "n_patches": 0},
    ):  # fmt: skip
        if (bad := claiming(payload, **changes)).manifest != payload.manifest:
            yield str(changes), bad


def test_the_order_of_arrival_changes_nothing(name: str, case: Case) -> None:
    (payloads,) = sent(name)
    orders = permutations(payloads.values())
    assert len({taking(case.exchange(), order).merge(1).to_bytes() for order in orders}) == 1


def test_uploads_and_merged_messages_survive_the_wire(name: str, case: Case) -> None:
    for payloads in sent(name, 2):
        for site, payload in payloads.items():
            assert (payload.manifest.kind, payload.manifest.site) == ("upload", site)
            assert Payload.from_bytes(payload.to_bytes()).to_bytes() == payload.to_bytes()
    merged = taking(case.exchange(), sent(name)[0].values()).merge(1)
    assert (merged.manifest.kind, merged.manifest.round) == ("global", 1)
    read = Payload.from_bytes(merged.to_bytes())
    assert read.to_bytes() == merged.to_bytes()
    manifests = [payload.manifest for payload in sent(name)[0].values()]
    assert read.manifest.features == case.exchange().features
    assert read.manifest.n_images == sum(manifest.n_images for manifest in manifests)
    assert read.manifest.n_patches == sum(manifest.n_patches for manifest in manifests)
    assert all(np.isfinite(array).all() for array in read.arrays.values())


def test_what_is_wrong_is_refused_and_leaves_no_trace(name: str, case: Case) -> None:
    payloads = sent(name)[0]
    exchange = taking(case.exchange(), (payloads["a"], payloads["b"]))
    before = held(exchange)
    for make in (spoilt_arrays, spoilt_claims):
        for what, bad in make(payloads["c"]):
            try:
                exchange.accept(bad)
            except PayloadError:
                assert held(exchange) == before, what
            else:
                pytest.fail(f"took {what}")
    exchange.accept(payloads["c"])
    expected = taking(case.exchange(), payloads.values()).merge(1)
    assert exchange.merge(1).to_bytes() == expected.to_bytes()


def test_a_stale_round_and_a_second_answer_are_refused(name: str, case: Case) -> None:
    first, second = sent(name, 2)
    exchange = taking(case.exchange(), first.values())
    exchange.merge(1)
    taking(exchange, second.values())
    before = held(exchange)
    for payload in (first["a"], second["a"]):
        with pytest.raises(PayloadError, match="already answered"):
            exchange.accept(payload)
    assert held(exchange) == before


def test_a_round_to_come_is_refused(name: str, case: Case) -> None:
    first, second = sent(name, 2)
    server = Server(case.exchange(), quorum=1)
    server.open(1)
    early = server.receive("a", [second["a"].to_bytes()])
    server.receive("b", [first["b"].to_bytes()])
    merged = server.close()
    assert "claims to be of round 2, but round 1" in early.refused
    assert merged.to_bytes() == taking(case.exchange(), [first["b"]]).merge(1).to_bytes()


def test_sites_can_be_left_out_of_a_merge(name: str, case: Case) -> None:
    (payloads,) = sent(name)
    for left in NAMES:
        rest = [payload for site, payload in payloads.items() if site != left]
        exchange = taking(case.exchange(), payloads.values())
        expected = taking(case.exchange(), rest).merge(1)
        assert exchange.merge(1, {left}).to_bytes() == expected.to_bytes()
        assert set(exchange.server_state()) >= set(NAMES)  # left out once, not for good
    with pytest.raises(FederationError, match="nothing to merge"):
        exchange.merge(1, set(NAMES))


def test_a_round_without_any_answer(name: str, case: Case) -> None:
    with pytest.raises(FederationError, match="nothing to merge"):
        case.exchange().merge(1)
    exchange = taking(case.exchange(), sent(name)[0].values())
    first = exchange.merge(1)
    second = exchange.merge(2)
    assert second.manifest.round == 2
    assert second.manifest.n_patches == first.manifest.n_patches
    assert {k: a.shape[1:] for k, a in second.arrays.items()} == {
        k: a.shape[1:] for k, a in first.arrays.items()
    }


def test_no_message_beyond_the_limit_is_read(name: str, case: Case) -> None:
    exchange = case.exchange()
    messages = {site: payload.to_bytes() for site, payload in sent(name, 2)[0].items()}
    longest = max(map(len, messages.values()))
    assert longest <= exchange.max_bytes < longest + 100_000
    server = Server(exchange)
    server.open(1)
    long = messages["a"] + bytes(exchange.max_bytes + 1 - len(messages["a"]))
    assert f"limit of {exchange.max_bytes}" in server.receive("a", [long]).refused
    assert server.receive("b", [messages["b"]]).accepted


def test_the_servers_state_restores_it(name: str, case: Case) -> None:
    first, second = sent(name, 2)
    exchange, other = taking(case.exchange(), first.values()), case.exchange()
    exchange.merge(1)
    state = exchange.server_state()
    assert {site for site in state if site} == set(NAMES)
    other.restore({site: Payload.from_bytes(kept.to_bytes()) for site, kept in state.items()})
    with pytest.raises(PayloadError, match="already answered"):
        other.accept(first["a"])
    assert (
        taking(other, second.values()).merge(2).to_bytes()
        == taking(exchange, second.values()).merge(2).to_bytes()
    )


def test_a_site_refuses_a_message_that_is_not_its_federations(name: str, case: Case) -> None:
    exchange = taking(case.exchange(), sent(name)[0].values())
    good = exchange.merge(1)
    members = case.members()
    for site in members.values():
        exchange.site_step(site, None, 1)
    wrong = {
        "other features": claiming(good, features="another"),
        "an upload": claiming(good, kind="upload", site="b"),
        "a site's own": sent(name)[0]["b"],
        "nothing": Payload(good.manifest, {}),
    }
    key = max(sorted(good.arrays), key=lambda name: good.arrays[name].ndim)
    short = good.arrays | {key: good.arrays[key][..., :-1]}
    wrong["shorter rows"] = Payload(good.manifest, short)
    none = good.arrays | {key: good.arrays[key] * np.nan}
    wrong["no numbers"] = Payload(good.manifest, none)
    before = {k: a.copy() for k, a in members["a"].snapshot().items()}
    for what, bad in wrong.items():
        try:
            exchange.site_step(members["a"], bad, 2)
        except FedvadError:
            after = members["a"].snapshot()
            assert all(np.array_equal(after[k], a) for k, a in before.items()), what
        else:
            pytest.fail(f"took {what}")


def test_a_server_that_knows_no_exchange_merges_alike(name: str, case: Case) -> None:
    if case.exchange_for is None:
        pytest.skip("its server must know the common start")
    (payloads,) = sent(name)
    made = [case.exchange_for(payload) for payload in payloads.values()]
    assert {exchange.kind for exchange in made} == {case.exchange().kind}
    assert made[0].kind[0] == case.exchange().features
    expected = taking(case.exchange(), payloads.values()).merge(1)
    assert taking(made[0], payloads.values()).merge(1).to_bytes() == expected.to_bytes()


def test_drift_is_nothing_where_nothing_moved(name: str, case: Case) -> None:
    before, after = (alone(case, site) for site in "ab")
    assert case.exchange().drift(before, before) == pytest.approx(0, abs=1e-3)
    assert case.exchange().drift(before, after) > 1e-3


def test_rows_are_those_of_a_memory(name: str, case: Case) -> None:
    exchange = taking(case.exchange(), sent(name)[0].values())
    counts = [payload.rows for payload in (*sent(name)[0].values(), exchange.merge(1))]
    if name.startswith("memory"):
        expected = 20 if name == "memory-average" else 6
        assert counts[:3] == [expected] * 3
        assert counts[3] == {"memory-kmeans": 9, "memory-kcenter": 9, "memory-average": 20}.get(
            name, 18
        )
    else:
        assert counts == [0, 0, 0, 0]
