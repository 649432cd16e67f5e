"""Sums under masks: exact, silent about their terms, and as noisy as the guarantee needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.sums.gaussian import Gaussian
from fedvad.detectors.sums.site import SumsConfig, SumsSite
from fedvad.detectors.sums.statistics import Space
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.exchange.sums import SumsExchange, gaussian_from, start_of, sums_for
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.masks import from_fixed, mask, new_secret, public_key, to_fixed
from fedvad.federation.payload import Payload
from fedvad.federation.privacy import gaussian_delta, gaussian_mu
from fedvad.federation.server import Server
from fedvad.mergeable import merge_states
from tests.helpers import FakeFeatures

NAMES = ("a", "b", "c")
SPACE = Space.of(6, 4)


def images_of(name: str, n: int = 7) -> np.ndarray:
    rng = np.random.default_rng([0, *name.encode()])
    return rng.normal(rng.normal(size=6), 1, (n, 4, 5, 6)).astype(np.float16)


def sums_sites(n: int = 7, names: tuple[str, ...] = NAMES) -> dict[str, SumsSite]:
    return {
        name: SumsSite(
            cast(NormalFeatures, FakeFeatures(name, images_of(name, n))), SPACE,
            rng=np.random.default_rng([5, *name.encode()]),
        )
        for name in names
    }  # fmt: skip


def sums_exchange(**options: Any) -> SumsExchange:
    config = SumsConfig(dimensions=4, **options)
    return SumsExchange(
        features="feature-key", config=config, size=4, dim=6, start=start_of(SPACE, config)
    )


def trained(sites: Mapping[str, SumsSite], **options: Any) -> Gaussian:
    merged = run_rounds(sums_exchange(**options), sites, Schedule(3), ledger=Ledger())
    return gaussian_from(merged, SPACE)


def steps(exchange: SumsExchange, sites: Mapping[str, SumsSite], round_: int, down: Any) -> Any:
    return {name: exchange.site_step(site, down, round_) for name, site in sites.items()}


@pytest.mark.parametrize("secure", [True, False])
def test_the_federation_equals_one_site_with_all_images(secure: bool) -> None:
    federated = trained(sums_sites(), secure=secure)
    everything = np.concatenate([images_of(name) for name in NAMES])
    whole = SumsSite(cast(NormalFeatures, FakeFeatures("all", everything)), SPACE)
    pooled = trained({"all": whole}, secure=False)
    assert federated.images == pooled.images == 21
    np.testing.assert_allclose(federated.mean, pooled.mean, atol=1e-9)
    np.testing.assert_allclose(federated.scatter, pooled.scatter, atol=1e-9)


def test_masks_change_nothing_to_the_bit() -> None:
    plain, secure = (trained(sums_sites(), secure=secure) for secure in (False, True))
    np.testing.assert_array_equal(plain.mean, secure.mean)
    np.testing.assert_array_equal(plain.scatter, secure.scatter)


def test_what_a_site_sends_says_nothing_without_the_others() -> None:
    exchange, sites = sums_exchange(), sums_sites(60)
    for payload in steps(exchange, sites, 1, None).values():
        exchange.accept(payload)
    sent = steps(exchange, sites, 2, exchange.merge(1))
    own = sums_sites(60)["a"].mean_sum(0.0)
    # fixed-point numbers of every size, not those of the sum
    assert np.abs(from_fixed(sent["a"].arrays["mean"])).min() > 1e3 * np.abs(own).max()
    total = from_fixed(merge_states([payload.arrays["mean"] for payload in sent.values()]))
    expected = sum(site.mean_sum(0.0) for site in sums_sites(60).values())
    np.testing.assert_allclose(total, expected, atol=1e-8)


def test_a_round_under_masks_needs_every_site_and_says_which_is_missing() -> None:
    exchange, sites = sums_exchange(), sums_sites()
    for payload in steps(exchange, sites, 1, None).values():
        exchange.accept(payload)
    sent = steps(exchange, sites, 2, exchange.merge(1))
    exchange.accept(sent["a"])
    exchange.accept(sent["c"])
    with pytest.raises(FederationError, match=r"b sent no valid sum, .* begin again without it"):
        exchange.merge(2)
    exchange.accept(sent["b"])
    assert "mean" in exchange.merge(2).arrays


def test_a_server_begins_a_round_again_in_which_a_site_was_missing() -> None:
    sites = sums_sites()
    server = Server(sums_exchange(), quorum=2)
    server.open(1)
    for name, payload in steps(sums_exchange(), sites, 1, None).items():
        server.receive(name, [payload.to_bytes()])
    sent = steps(sums_exchange(), sites, 2, server.close(NAMES))
    server.open(2)
    for name in ("a", "c"):
        server.receive(name, [sent[name].to_bytes()])
    with pytest.raises(FederationError, match="b sent no valid sum"):
        server.close(NAMES)
    server.open(2)
    for name in NAMES:
        server.receive(name, [sent[name].to_bytes()])
    assert "mean" in server.close(NAMES).arrays
    assert server.ledger.rounds[-1].rejected == {}


@pytest.mark.parametrize("bound", [0.0, -0.1])
def test_a_site_takes_no_bound_that_is_none(bound: float) -> None:
    exchange, sites = sums_exchange(epsilon=1.0), sums_sites()
    for round_ in (1, 2):
        down = None if round_ == 1 else exchange.merge(1)
        for payload in steps(exchange, sites, round_, down).values():
            exchange.accept(payload)
    down = exchange.merge(2)
    false = Payload(down.manifest, down.arrays | {"bound": np.array([bound])})
    with pytest.raises(FederationError, match="bound"):
        exchange.site_step(sites["a"], false, 3)


def test_a_sum_leaves_a_site_once() -> None:
    exchange, sites = sums_exchange(), sums_sites()
    for payload in steps(exchange, sites, 1, None).values():
        exchange.accept(payload)
    down = exchange.merge(1)
    kept = sites["a"].snapshot()
    exchange.site_step(sites["a"], down, 2)
    with pytest.raises(FederationError, match="sent its sum"):
        exchange.site_step(sites["a"], down, 2)
    again = sums_sites()["a"]
    again.restore(kept)  # as after a crash before the message was kept
    exchange.site_step(again, down, 2)
    resumed = sums_sites()["a"]
    resumed.restore(again.snapshot())
    with pytest.raises(FederationError, match="sent its sum"):
        exchange.site_step(resumed, down, 2)


def test_a_site_notices_that_its_key_was_exchanged() -> None:
    exchange, sites = sums_exchange(), sums_sites()
    for payload in steps(exchange, sites, 1, None).values():
        exchange.accept(payload)
    down = exchange.merge(1)
    wrong = np.roll(down.arrays["keys"], 1, axis=0)
    with pytest.raises(FederationError, match="not its own"):
        exchange.site_step(sites["a"], Payload(down.manifest, down.arrays | {"keys": wrong}), 2)


def test_a_single_site_sends_no_sum_that_masks_cannot_hide() -> None:
    with pytest.raises(FederationError, match="a is the only site"):
        trained(sums_sites(names=("a",)))


def test_keys_that_a_server_adds_take_no_noise_from_a_site_without_masks() -> None:
    exchange, sent = sums_exchange(secure=False, epsilon=1.0), []
    for payload in steps(exchange, sums_sites(), 1, None).values():
        exchange.accept(payload)
    down = exchange.merge(1)
    names = "\n".join([*NAMES, *"defgh"]).encode()
    more = {"names": np.frombuffer(names, np.uint8), "keys": np.zeros((8, 32), np.uint8)}
    for arrays in (down.arrays, down.arrays | more):
        sent_back = Payload(down.manifest, arrays)
        sent.append(exchange.site_step(sums_sites()["a"], sent_back, 2).arrays["mean"])
    np.testing.assert_array_equal(sent[0], sent[1])


def test_who_was_not_there_for_the_keys_is_refused() -> None:
    exchange, sites = sums_exchange(), sums_sites()
    for payload in list(steps(exchange, sites, 1, None).values())[:2]:
        exchange.accept(payload)
    down = exchange.merge(1)
    with pytest.raises(FederationError, match="not its own"):
        exchange.site_step(sites["c"], down, 2)


def test_a_message_without_sums_is_refused() -> None:
    payload = steps(sums_exchange(), sums_sites(), 1, None)["a"]
    bare = Payload(payload.manifest, {"key": payload.arrays["key"]})
    with pytest.raises(PayloadError, match="must hold sums"):
        sums_for(bare)
    with pytest.raises(PayloadError, match="rounds are missing"):
        gaussian_from(payload, SPACE)


@pytest.mark.parametrize("secure", [True, False])
def test_the_noise_is_that_of_the_guarantee(secure: bool) -> None:
    """The deviation over 30 trainings, with masks that of all sites but one."""
    exact = trained(sums_sites(8), secure=secure)
    drawn, said = [], 0.0
    for seed in range(30):
        sites = {
            name: SumsSite(site.features, SPACE, rng=np.random.default_rng([seed, i]))
            for i, (name, site) in enumerate(sums_sites(8).items())
        }
        noisy = trained(sites, secure=secure, epsilon=200.0, delta=1e-5)
        said = noisy.noise
        drawn.append(noisy.mean - exact.mean)
    mu = gaussian_mu(200.0, 1e-5)
    alone = 2 / (mu * np.sqrt(0.3)) / 24
    assert np.std(drawn) == pytest.approx(alone * np.sqrt(3 / 2 if secure else 3), rel=0.15)
    bound = 0.2  # at most: the trace of a covariance of vectors of length 1
    whole = 2**0.5 / (mu * np.sqrt(0.7)) / 24
    assert 0 < said <= 1.01 * bound * whole * np.sqrt(3 / 2 if secure else 3)


def test_masks_of_any_number_of_sites_cancel() -> None:
    rng = np.random.default_rng(0)
    secrets = {f"s{i}": new_secret() for i in range(9)}
    keys = {name: public_key(secret) for name, secret in secrets.items()}
    values = {name: rng.normal(scale=1e4, size=(3, 4)) for name in secrets}
    sent = [
        to_fixed(values[name]) + mask(name, secret, keys, round_=3, shape=(3, 4))
        for name, secret in secrets.items()
    ]
    np.testing.assert_allclose(from_fixed(merge_states(sent)), sum(values.values()), atol=1e-8)
    again = mask("s0", secrets["s0"], keys, round_=4, shape=(3, 4))
    assert (again != mask("s0", secrets["s0"], keys, round_=3, shape=(3, 4))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**31])
def test_what_no_fixed_point_number_holds_is_refused(value: float) -> None:
    with pytest.raises(FederationError, match="beyond"):
        to_fixed(np.array([value]))


# computed with 50 digits from the theorem, by mpmath
KNOWN = [
    (0.1, 1e-6, 0.02754465), (1.0, 1e-5, 0.26805112), (4.0, 1e-5, 0.92493090),
    (8.0, 1e-5, 1.66603060),
]  # fmt: skip


@pytest.mark.parametrize(("epsilon", "delta", "mu"), KNOWN)
def test_the_accountant_knows_the_values_of_the_theorem(
    epsilon: float, delta: float, mu: float
) -> None:
    found = gaussian_mu(epsilon, delta)
    assert found == pytest.approx(mu, abs=1e-8)
    assert gaussian_delta(epsilon, found) <= delta
    assert gaussian_delta(epsilon, found * 1.0001) > delta


def test_less_noise_is_needed_than_by_the_textbook() -> None:
    """sqrt(2 ln(1.25 / delta)) / epsilon holds for epsilon < 1, and is looser."""
    assert 1 / gaussian_mu(0.9, 1e-5) < np.sqrt(2 * np.log(1.25e5)) / 0.9


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (-1, 0.1)])
def test_impossible_promises_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="needed"):
        gaussian_mu(epsilon, delta)
