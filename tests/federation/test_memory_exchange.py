"""What exchanges of memories promise besides: weight, rows kept, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedvad.detectors.memory.answered import AnsweredPatches
from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.errors import FederationError, PayloadError
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import (
    Payload,
    bank_arrays,
    bank_from,
    negatives_from,
    with_negatives,
)
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


def _with_defects(site: str, patches: np.ndarray) -> Payload:
    sent = upload(site, bank=make_bank(9, seed=ord(site)))
    return with_negatives(sent, MemoryBank.of_patches(patches), "float32")


def test_defects_of_a_first_round_are_read_as_a_site_codes_them() -> None:
    exchange = EXCHANGES["concat-float16"]()
    site = fake_site("a", FedDyMemConfig(rows=20, candidates=1.0))
    defects = np.float32(np.arange(12).reshape(2, 6) + 100)
    site.answered = AnsweredPatches(defects=defects, share_defects=True)
    exchange.accept(exchange.site_step(site, None, 1))
    merged = negatives_from(exchange.merge(1))
    assert merged is not None
    np.testing.assert_allclose(merged.vectors, defects, rtol=0.01)


def test_arrays_among_the_defects_that_are_no_part_of_them_are_refused() -> None:
    sent = _with_defects("a", np.ones((1, 6), np.float32))
    more = {"negatives/negatives/x": np.ones(9, np.float32)}
    with pytest.raises(PayloadError, match=r"it holds .*negatives/x"):
        EXCHANGES["concat-float16"]().accept(Payload(sent.manifest, sent.arrays | more))


def test_defects_name_their_sites_and_count_as_the_site_sent_them_last() -> None:
    exchange = EXCHANGES["kmeans-float16"]()
    defects = np.float32(np.arange(12).reshape(2, 6))
    exchange.accept(_with_defects("a", defects))
    exchange.accept(_with_defects("b", defects[:1] + 20))
    merged = negatives_from(exchange.merge(1))
    assert merged is not None
    assert merged.origin is not None
    assert merged.vectors[merged.origin.share_of("a") > 0].tolist() == defects.tolist()
    assert len(merged) == 3
    without = negatives_from(exchange.merge(1, ["a"]))
    assert without is not None
    assert len(without) == 1
    exchange.accept(upload("a", 2, make_bank(9, seed=1)))  # it takes them back
    left = negatives_from(exchange.merge(2))
    assert left is not None
    assert left.vectors.tolist() == (defects[:1] + 20).tolist()


@pytest.mark.parametrize(
    ("patches", "why"),
    [
        (np.ones((5, 6), np.float32), "5 patches of defects, the limit is 4"),
        (np.ones((2, 7), np.float32), "sent 2 rows of 7 values"),
        (np.full((2, 6), 1e6, np.float32), "beyond the range"),
    ],
)
def test_defects_are_refused_as_rows_are(patches: np.ndarray, why: str) -> None:
    exchange = MemoryExchange(features="feature-key", dim=6, limits=Limits(rows=9))
    with pytest.raises(PayloadError, match=why):
        exchange.accept(_with_defects("a", patches))


def test_a_site_that_is_left_out_has_no_say_in_what_is_defective() -> None:
    exchange = MemoryExchange(features="feature-key", dim=6, defence=RobustConfig())
    rng = np.random.default_rng(0)
    for site in "abcd":
        rows = rng.normal(0, 1, (40, 6)).astype(np.float32) + (50 if site == "d" else 0)
        sent = upload(site, bank=MemoryBank.of_patches(rows))
        exchange.accept(with_negatives(sent, MemoryBank.of_patches(rows[:3] * 0), "float32"))
    merged = negatives_from(exchange.merge(1))
    assert merged is not None
    assert merged.origin is not None
    assert {source.site for source in merged.origin.sources} == set("abc")


@pytest.mark.parametrize(("precision", "place"), [("float16", 1), ("int8", 1), ("pq", 8)])
def test_defects_take_the_place_of_rows_and_only_where_the_site_says_so(
    precision: str, place: int
) -> None:
    exchange = MemoryExchange(features="feature-key", dim=6, precision=precision)  # type: ignore[arg-type]
    config = FedDyMemConfig(rows=20, candidates=1.0)
    defects = np.float32(np.arange(18).reshape(3, 6) + 100)
    for share, sent in ((False, 0), (True, min(3, 10 // place))):
        site = fake_site("a", config)
        site.answered = AnsweredPatches(defects=defects, share_defects=share)
        payload = exchange.site_step(site, None, 1)
        found = negatives_from(payload)
        assert (0 if found is None else len(found)) == sent
        assert payload.rows == 20 - place * sent
    assert found is not None
    assert found.vectors[-1] == pytest.approx(defects[-1], rel=0.01)  # the newest


def test_a_site_sends_nothing_as_normal_that_is_more_like_a_defect() -> None:
    exchange = EXCHANGES["concat-float32"]()
    config = FedDyMemConfig(rows=30, candidates=1.0)
    site = fake_site("a", config)
    usual = bank_from(exchange.site_step(site, None, 1)).vectors
    again = fake_site("a", config)
    again.answered = AnsweredPatches({"0": usual[:5] + 0.01}, defects=usual[5:8])
    sent = bank_from(exchange.site_step(again, None, 1)).vectors
    assert not any((row == usual[5:8]).all(1).any() for row in sent)
