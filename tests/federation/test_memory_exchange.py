"""What exchanges of memories promise besides: weight, rows kept, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.errors import FederationError, PayloadError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import Payload, bank_arrays, bank_from
from fedvad.memory.bank import MemoryBank
from fedvad.memory.origin import Origin, Source, origin_arrays
from tests.helpers import fake_site, make_bank, upload

Make = Callable[[], MemoryExchange]


def _memory(merge_mode: str, precision: str) -> Make:
    return lambda: MemoryExchange(
        features="feature-key",
        dim=6,
        merge_mode=merge_mode,  # type: ignore[arg-type]
        size=None if merge_mode == "concat" else 12,
        precision=precision,  # type: ignore[arg-type]
        seed=5,
    )


EXCHANGES = {
    f"{mode}-{precision}": _memory(mode, precision)
    for mode in ("concat", "kmeans", "kcenter")
    for precision in ("float16", "float32")
}


@pytest.fixture(params=list(EXCHANGES))
def make(request: pytest.FixtureRequest) -> Make:
    return EXCHANGES[request.param]


def _uploads() -> list[Payload]:
    return [upload(site, bank=make_bank(7 + i, seed=i)) for i, site in enumerate("abc")]


def test_total_weight_is_the_number_of_patches(make: Make) -> None:
    exchange = make()
    for payload in _uploads():
        exchange.accept(payload)
    merged = exchange.merge(1)
    assert merged.manifest.n_patches == 3 * 90
    assert merged.manifest.n_images == 3 * 4
    assert bank_from(merged).total_weight == pytest.approx(270, rel=1e-5)


def test_a_site_weighs_what_it_has_whatever_weights_it_sends(make: Make) -> None:
    exchange = make()
    bank = make_bank(5)
    loud = MemoryBank(bank.vectors + 9, bank.weights * 1000, bank.spread)
    exchange.accept(upload("loud", bank=loud, n_patches=10))
    exchange.accept(upload("quiet", bank=bank, n_patches=30))
    merged = bank_from(exchange.merge(1))
    far = merged.vectors.mean(1) > 4
    assert merged.weights[far].sum() == pytest.approx(10, rel=1e-5)
    assert merged.weights[~far].sum() == pytest.approx(30, rel=1e-5)


def test_sites_steps_and_merges_go_round(make: Make) -> None:
    exchange = make()
    config = FedDyMemConfig(rows=8, update="ema", candidates=1.0)
    sites = {name: fake_site(name, config) for name in "xyz"}
    incoming = None
    for round_ in (1, 2, 3):
        for name, site in sites.items():
            sent = exchange.site_step(site, incoming, round_)
            assert sent.manifest.kind == "upload"
            assert (sent.manifest.site, sent.manifest.round) == (name, round_)
            assert sent.manifest.n_patches == 7 * 20
            exchange.accept(Payload.from_bytes(sent.to_bytes()))
        incoming = Payload.from_bytes(exchange.merge(round_).to_bytes())
        assert incoming.manifest.kind == "global"
        assert bank_from(incoming).total_weight == pytest.approx(3 * 140, rel=1e-4)


def test_appended_rows_join_those_sent_before(make: Make) -> None:
    exchange = make()
    first, second = make_bank(3, seed=1), make_bank(2, seed=2)
    exchange.accept(upload("a", 1, first, mode="append"))
    exchange.accept(upload("a", 2, second, mode="append"))
    merged = bank_from(exchange.merge(2))
    np.testing.assert_array_equal(merged.vectors, np.concatenate([first.vectors, second.vectors]))
    assert merged.total_weight == pytest.approx(90, rel=1e-5)
    exchange.accept(upload("a", 3, second, mode="replace"))
    assert len(bank_from(exchange.merge(3))) == 2


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_server_keeps_rows_in_the_precision_in_which_they_came(mode: str) -> None:
    exchange = EXCHANGES["concat-float16"]()
    first, second = make_bank(3, seed=1), make_bank(2, seed=2)
    exchange.accept(upload("a", 1, first, mode=mode))
    exchange.accept(upload("a", 2, second, mode=mode))
    kept = exchange.server_state()["a"].arrays
    assert {kept[name].dtype for name in ("vectors", "spread")} == {np.dtype(np.float16)}
    exact = bank_arrays(make_bank(2, seed=3), "float32")
    exchange.accept(Payload(upload("a", 3, mode=mode).manifest, exact))
    spread = exchange.server_state()["a"].arrays["spread"]
    assert (spread[-2:] == exact["spread"]).all()  # nothing is lost beside rows of float16


def test_a_site_that_is_missing_keeps_its_last_memory(make: Make) -> None:
    exchange = make()
    exchange.accept(upload("a", bank=make_bank(3, seed=1)))
    exchange.accept(upload("b", bank=make_bank(4, seed=2)))
    exchange.accept(upload("a", 2, make_bank(2, seed=3)))
    assert len(bank_from(exchange.merge(2))) == 2 + 4


BAD: dict[str, Payload] = {
    "other length": upload(bank=make_bank(dim=5)),
    "no rows": upload(bank=MemoryBank.empty(6)),
    "beyond float16": Payload(
        upload().manifest,
        bank_arrays(MemoryBank.of_patches(np.full((2, 6), 1e9, np.float32)), "float32"),
    ),
    "weights too far apart": Payload(
        upload().manifest,
        upload().arrays | {"weights": np.array([1e-300] * 8 + [1e300])},
    ),
    "weights that overflow": Payload(
        upload().manifest, upload().arrays | {"weights": np.full(9, 1e308)}
    ),
    "negative weights": Payload(
        upload().manifest, upload().arrays | {"weights": np.full(9, -1, np.float32)}
    ),
    "NaN": Payload(upload().manifest, upload().arrays | {"spread": np.full(9, np.nan, np.float16)}),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("what", BAD)
def test_bad_uploads_are_refused_and_leave_no_trace(make: Make, what: str) -> None:
    exchange = make()
    with pytest.raises(PayloadError):
        exchange.accept(BAD[what])
    with pytest.raises(FederationError, match="no site"):
        exchange.merge(1)
    exchange.accept(upload("good"))
    before = exchange.merge(1).to_bytes()
    with pytest.raises(PayloadError):
        exchange.accept(BAD[what])
    assert exchange.merge(1).to_bytes() == before


def test_a_site_does_not_say_whose_its_rows_are() -> None:
    good = upload("a", bank=make_bank(5))
    claimed = origin_arrays(Origin.of([Source("b", 1)], [0] * 5))
    with pytest.raises(PayloadError, match="they are its own"):
        EXCHANGES["concat-float16"]().accept(Payload(good.manifest, good.arrays | claimed))
