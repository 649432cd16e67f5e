"""The memory exchange's own numbers; tests/contract/test_exchanges.py has what all must do."""

from __future__ import annotations

import numpy as np
import pytest

from fedvad.detectors.memory.site import FedDyMemConfig
from fedvad.errors import PayloadError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import Payload, bank_from
from fedvad.memory.bank import MemoryBank
from fedvad.memory.merge import coverage
from fedvad.memory.origin import Origin, Source, origin_arrays
from tests.helpers import fake_site, make_bank, upload


def test_concat_keeps_every_row_in_the_order_of_names() -> None:
    exchange = MemoryExchange(features="feature-key", dim=6)
    banks = {site: make_bank(4, seed=i) for i, site in enumerate("cab")}
    for site, bank in banks.items():
        exchange.accept(upload(site, bank=bank))
    merged = exchange.merge(1)
    expected = np.concatenate([banks[site].vectors for site in "abc"])
    np.testing.assert_array_equal(bank_from(merged).vectors, expected)
    assert merged.manifest.coverage == 0.0


def test_coverage_is_measured_on_what_was_uploaded() -> None:
    exchange = MemoryExchange(features="feature-key", dim=6, merge_mode="kmeans", size=5)
    uploads = [make_bank(8, seed=i) for i in range(2)]
    for site, bank in zip("ab", uploads, strict=True):
        exchange.accept(upload(site, bank=bank))
    merged = exchange.merge(1)
    everything = np.concatenate([bank.vectors for bank in uploads])
    reported = merged.manifest.coverage
    assert reported is not None
    # the message holds float16 centres, the figure was taken before rounding
    assert reported == pytest.approx(coverage(everything, bank_from(merged).vectors), rel=1e-2)


def test_too_small_a_memory_shows_in_the_coverage() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(10 * np.eye(6), 6, axis=0)
    vectors = (centres + 0.01 * rng.normal(size=centres.shape)).astype(np.float32)
    reported = {}
    for size in (3, 6):
        exchange = MemoryExchange(features="feature-key", dim=6, merge_mode="kmeans", size=size)
        exchange.accept(upload(bank=MemoryBank.of_patches(vectors)))
        reported[size] = exchange.merge(1).manifest.coverage or 0.0
    assert reported[3] > 100
    assert reported[6] < 5


def test_what_a_site_adds_is_what_the_others_do_not_cover() -> None:
    config = FedDyMemConfig(rows=10, update="grow", candidates=1.0, projection=None)
    site = fake_site("a", config)
    exchange = MemoryExchange(features="feature-key", dim=6)
    exchange.accept(exchange.site_step(site, None, 1))
    second = exchange.site_step(site, exchange.merge(1), 2)
    assert second.manifest.mode == "append"
    sent = {row.tobytes() for row in bank_from(second).vectors}
    assert not sent & {row.tobytes() for row in bank_from(exchange.merge(1)).vectors}
    exchange.accept(second)
    assert len(bank_from(exchange.merge(2))) == 20 == len(site.bank)
    np.testing.assert_array_equal(bank_from(exchange.merge(2)).vectors, site.bank.vectors)


def test_generators_do_not_travel() -> None:
    config = FedDyMemConfig(rows=10, update="ema", train=True, candidates=1.0)
    site = fake_site("a", config)
    exchange = MemoryExchange(features="feature-key", dim=6)
    for round_ in (1, 2):
        sent = exchange.site_step(site, None, round_)
        assert set(Payload.from_bytes(sent.to_bytes()).arrays) == {"vectors", "weights", "spread"}
        exchange.accept(sent)
    assert not site.generator.is_identity
    assert sent.manifest.generator == upload().manifest.generator


def test_the_server_says_whose_rows_are_and_believes_nobody_else() -> None:
    exchange = MemoryExchange(features="feature-key", dim=6, precision="int8")
    for name, round_ in (("a", 1), ("b", 1), ("a", 2)):
        bank = make_bank(4, seed=ord(name) + round_)
        exchange.accept(upload(name, round_, bank, mode="append"))
    origin = bank_from(Payload.from_bytes(exchange.merge(2).to_bytes())).origin
    assert origin is not None
    assert origin.by_site(np.ones(12)) == {"a": 8.0, "b": 4.0}
    assert set(origin.sources) == {Source("a", 1), Source("a", 2), Source("b", 1)}
    own = upload("c", 2)
    claimed = origin_arrays(Origin.of([Source("a", 1)], np.zeros(own.rows, np.int64)))
    with pytest.raises(PayloadError, match="says whose its rows are"):
        exchange.accept(Payload(own.manifest, own.arrays | claimed))


def test_an_upload_names_no_image() -> None:
    site = fake_site("a", FedDyMemConfig(rows=5))
    exchange = MemoryExchange(features="feature-key", dim=6)
    sent = exchange.site_step(site, None, 1)
    assert site.bank.origin is not None
    assert all(source.image for source in site.bank.origin.sources)
    assert not any(name.startswith("origin") for name in sent.arrays)
