"""No site moves the mean of weights much further than the others do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvad.errors import ConfigError
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.weights import bound_weights
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange
from fedvad.federation.payload import Payload
from tests.federation.test_weights import exchange, sites

NAMES = ["a", "b", "c", "d", "e"]


def _weights() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": rng.normal(size=3).astype("f4")}
        for _ in NAMES
    ]


def test_honest_weights_are_not_changed_to_the_bit() -> None:
    sent, shares = _weights(), np.array([5.0, 6, 7, 8, 9])
    bound = bound_weights(NAMES, sent, shares, RobustConfig())
    assert bound.reasons == {}
    np.testing.assert_array_equal(bound.shares, shares)
    for ours, theirs in zip(bound.weights, sent, strict=True):
        assert all(ours[name] is theirs[name] for name in theirs)


def test_weights_far_out_are_drawn_back_to_the_limit() -> None:
    sent = _weights()
    sent[2] = {name: array + np.float32(1000) for name, array in sent[2].items()}
    bound = bound_weights(NAMES, sent, np.ones(5), RobustConfig(norm=2.0))
    assert list(bound.reasons) == ["c"]
    assert "drawn back" in bound.reasons["c"]

    def distance(weights: dict[str, Any]) -> float:
        centre = {n: np.median([w[n] for w in sent], axis=0) for n in weights}
        return float(np.sqrt(sum(np.square(weights[n] - centre[n]).sum() for n in weights)))

    honest = np.median([distance(w) for w in sent])
    assert distance(bound.weights[2]) == pytest.approx(2 * honest, rel=1e-4)
    assert (bound.weights[2]["w"] > 0).all()  # towards where it was sent


def test_a_share_is_bounded_by_the_median_sites() -> None:
    bound = bound_weights(
        NAMES, _weights(), np.array([4.0, 4, 4, 1e12, 5]), RobustConfig(weight=10.0)
    )
    np.testing.assert_array_equal(bound.shares, [4, 4, 4, 40, 5])
    assert "the limit is 40" in bound.reasons["d"]


def test_two_sites_cannot_judge_each_other() -> None:
    sent = _weights()[:2]
    bound = bound_weights(NAMES[:2], sent, np.array([1.0, 1e9]), RobustConfig())
    assert bound.weights == sent
    assert bound.shares.tolist() == [1.0, 1e9]
    assert all("at least 3" in reason for reason in bound.reasons.values())


def test_the_exchange_names_whom_it_bounded_and_forgets_it_in_the_next_round() -> None:
    start = exchange()
    initial = {name[7:]: array for name, array in start.server_state()[""].arrays.items()}
    server = WeightExchange(
        features="f", initial=initial, config=WeightConfig(), sites=3, defence=RobustConfig()
    )
    members = sites()
    honest = {name: server.site_step(site, None, 1) for name, site in members.items()}
    far = {n: array + np.float32(500) for n, array in honest["b"].arrays.items()}
    for name, payload in honest.items():
        server.accept(Payload(payload.manifest, far) if name == "b" else payload)
    merged = server.merge(1)
    assert list(server.distrusted) == ["b"]
    assert max(float(np.abs(array).max()) for array in merged.arrays.values()) < 10
    server.merge(2)  # in which nobody answered
    assert server.distrusted == {}
    for site in members.values():
        server.accept(server.site_step(site, merged, 3))
    server.merge(3)
    assert server.distrusted == {}


def test_without_an_attack_the_mean_is_the_undefended_one_to_the_bit() -> None:
    plain = exchange()
    initial = {name[7:]: array for name, array in plain.server_state()[""].arrays.items()}
    loose = RobustConfig(norm=1e6, weight=1e6)
    defended = WeightExchange(
        features="f", initial=initial, config=WeightConfig(), sites=3, defence=loose
    )
    for payload in [plain.site_step(site, None, 1) for site in sites().values()]:
        plain.accept(payload)
        defended.accept(payload)
    assert plain.merge(1).to_bytes() == defended.merge(1).to_bytes()


def test_control_variates_are_not_covered() -> None:
    with pytest.raises(ConfigError, match="scaffold"):
        WeightExchange(
            features="f", initial={"w": np.zeros(2, np.float32)},
            config=WeightConfig("scaffold"), sites=3, defence=RobustConfig(),
        )  # fmt: skip
