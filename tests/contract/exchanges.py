"""Every exchange that fedvad has, one line each: what its contract and its mailboxes are run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.averages import weights_for
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.exchange.memory import MemoryExchange, kind_of
from fedvad.federation.exchange.scope import WSAConfig
from fedvad.federation.exchange.sums import sums_for
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.payload import Payload
from tests.federation.test_sums import sums_exchange, sums_sites
from tests.federation.test_weights import exchange as weight_exchange
from tests.federation.test_weights import sites as weight_sites
from tests.helpers import fake_site

NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Case:
    """An exchange with sites a, b and c, and how a server makes one from an upload.

    exchange_for: None for an exchange whose server must know the common start. telling: first round
    after which what is merged differs with the sites' images.
    """

    exchange: Callable[[], Exchange[Any]]
    members: Callable[[], dict[str, Any]]
    exchange_for: Callable[[Payload], Exchange[Any]] | None
    telling: int = 1


def memory(site: FedDyMemConfig | None = None, **options: Any) -> Case:
    """Memories of six values a row."""
    config = site or FedDyMemConfig(rows=6, candidates=1.0, projection=None)
    made = partial(MemoryExchange, limits=Limits(upload_bytes=20_000), **options)

    def of(upload: Payload) -> MemoryExchange:
        features, dim, _ = kind_of(upload)
        return made(features=features, dim=dim)

    return Case(
        lambda: made(features="feature-key", dim=6),
        lambda: {name: fake_site(name, config) for name in NAMES},
        of,
    )


def weights(config: WeightConfig, *, remote: bool = True) -> Case:
    """Weights of a linear layer."""
    return Case(
        lambda: weight_exchange(config),
        weight_sites,
        partial(weights_for, algorithm=config.algorithm) if remote else None,
    )


POSITIONS = FedDyMemConfig(rows=20, candidates=1.0, reduce="position", update="ema")

EXCHANGES = {
    "memory": memory(),
    "memory-int8": memory(precision="int8"),
    "memory-kmeans": memory(merge_mode="kmeans", size=9, seed=3),
    "memory-kcenter": memory(merge_mode="kcenter", size=9, seed=3),
    "memory-average": memory(POSITIONS, merge_mode="average"),
    "memory-robust": memory(defence=RobustConfig()),
    "fedavg": weights(WeightConfig()),
    "fedprox": weights(WeightConfig("fedprox", prox=0.5)),
    "moon": weights(WeightConfig("moon")),
    "scaffold": weights(WeightConfig("scaffold"), remote=False),
    "wsa": weights(WeightConfig(wsa=WSAConfig(0.1, min_numel=1)), remote=False),
    # under masks a round without a site is refused, see tests/federation/test_sums.py
    "sums": Case(partial(sums_exchange, secure=False), sums_sites, sums_for, telling=2),
}
