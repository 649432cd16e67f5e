from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.federated import Prior, federated_thresholds, residuals, spread_prior
from fedvad.evaluation.thresholds import conformal_threshold

Sites = dict[str, np.ndarray]


def drawn(rng: np.random.Generator, n: int, sites: int = 6, freedom: float = np.inf) -> Sites:
    """Log scores with a place and spread of each site's own, from Student's t."""
    draw = rng.standard_normal if np.isinf(freedom) else lambda k: rng.standard_t(freedom, k)
    return {
        f"s{i}": np.exp(0.3 * i + rng.uniform(0.05, 0.1) * draw(n))  # type: ignore[operator]
        for i in range(sites)
    }


def mean_rate(rule: str, n: int, target: float, freedom: float) -> float:
    rng, rates = np.random.default_rng(n), []
    for _ in range(60):
        known = drawn(rng, 2000 + n, freedom=freedom)
        held_out = {name: own[:n] for name, own in known.items()}
        if rule == "federated":
            limits = {k: t.value for k, t in federated_thresholds(held_out, target).items()}
        else:
            limits = {k: conformal_threshold(v, target).value for k, v in held_out.items()}
        rates += [np.mean(own[n:] > limits[name]) for name, own in known.items()]
    return float(np.mean(rates))


@pytest.mark.parametrize("freedom", [np.inf, 4.0])
@pytest.mark.parametrize(("n", "target"), [(10, 0.01), (24, 0.01), (24, 0.05)])
def test_the_mean_rate_stays_below_twice_the_wanted_one(
    n: int, target: float, freedom: float
) -> None:
    assert mean_rate("federated", n, target, freedom) <= 2 * target


def test_heavy_tails_that_break_a_site_s_own_bound_are_seen_by_all_together() -> None:
    assert mean_rate("own", 24, 0.01, 4.0) > 1.25 * mean_rate("federated", 24, 0.01, 4.0)


def test_a_site_that_saw_one_kind_only_expects_what_is_normal_elsewhere() -> None:
    rng = np.random.default_rng(0)
    sites = {f"s{i}": np.exp(rng.normal(0, 0.15, 24)) for i in range(3)}
    sites["narrow"] = np.exp(rng.normal(-0.1, 0.03, 24))
    own = conformal_threshold(sites["narrow"], 0.01).value
    everywhere = conformal_threshold(np.concatenate(list(sites.values())), 0.01).value
    found = federated_thresholds(sites, 0.01)["narrow"].value
    assert own < 1.05
    assert np.sqrt(own * everywhere) <= found <= everywhere


def test_two_sites_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 4.0, 4.5, 6.0])
    found = federated_thresholds({"a": -a, "b": -b}, 0.1)  # negative: on the scores as they are
    prior = spread_prior([a, b])
    assert prior == Prior(pytest.approx((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2), np.inf)
    largest = max(residuals(-a, prior).max(), residuals(-b, prior).max())
    further = stats.t.ppf(0.9, 5) / stats.t.ppf(8 / 9, 5)  # eight scores reach one in nine
    factor = max(largest * further, stats.norm.ppf(0.9))
    expected = -a.mean() + factor * np.sqrt(prior.variance * 1.25)
    together = conformal_threshold(np.concatenate([-a, -b]), 0.1).value
    assert found["a"].value == pytest.approx(max(expected, (expected + together) / 2))
    assert found["a"].method == "federated-tail"
    assert found["a"].scores == (-5.0, -3.0, -2.0, -1.0)


def test_residuals_leave_their_own_value_out() -> None:
    values = np.random.default_rng(1).normal(3, 2, 9)
    found = residuals(values, Prior(1.0, 0.0))
    for i, value in enumerate(values):
        rest = np.delete(values, i)
        assert found[i] == pytest.approx(
            (value - rest.mean()) / (rest.std(ddof=1) * np.sqrt(1 + 1 / 8))
        )


def test_the_prior_finds_the_strength_that_variances_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    variances = 2.0 * 8 / rng.chisquare(8, 4000)
    samples = [np.sqrt(v) * rng.standard_normal(12) for v in variances]
    prior = spread_prior(samples)
    assert prior.strength == pytest.approx(8, rel=0.1)
    assert prior.variance == pytest.approx(2.0, rel=0.05)


def test_units_do_not_matter() -> None:
    sites = drawn(np.random.default_rng(3), 30)
    once = federated_thresholds(sites, 0.01)
    scaled = federated_thresholds({k: 7 * v for k, v in sites.items()}, 0.01)
    for name, threshold in once.items():
        assert scaled[name].value == pytest.approx(7 * threshold.value)


def test_few_or_equal_scores() -> None:
    sites = {"a": np.full(5, 2.0), "b": np.full(5, 2.0), "few": np.array([1.0, 2.0])}
    found = federated_thresholds(sites, 0.01)
    assert sorted(found) == ["a", "b"]
    assert found["a"].value == pytest.approx(2.0, rel=1e-3)
    alone = federated_thresholds({"a": np.arange(1.0, 9.0)}, 0.01)
    assert alone["a"] == conformal_threshold(np.arange(1.0, 9.0), 0.01)
    assert federated_thresholds({}, 0.01) == {}


def test_what_cannot_be_a_score_or_a_rate_is_refused() -> None:
    with pytest.raises(DataError):
        federated_thresholds({"a": np.array([1.0, np.nan, 2.0]), "b": np.ones(4)}, 0.01)
    with pytest.raises(ConfigError, match="target_fpr"):
        federated_thresholds({"a": np.ones(4)}, 0.7)
