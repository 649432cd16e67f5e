"""The ledger: sums, means, what survives storage and a resume."""

from __future__ import annotations

import math
import time

import pytest

from fedvad.federation.ledger import Ledger, RoundEntry, peak_rss_mb


def _entry(round_: int, up: dict[str, int], down: dict[str, int]) -> RoundEntry:
    return RoundEntry(
        round=round_, sites=sorted(up), bytes_up=up, bytes_down=down,
        rows_up=dict.fromkeys(up, 5), memory_rows=10 * round_, coverage=1.5,
    )  # fmt: skip


def test_an_empty_ledger_has_a_whole_summary() -> None:
    summary = Ledger().summary()
    assert summary["rounds"] == summary["bytes_up_per_site_round"] == summary["memory_rows"] == 0
    assert summary["coverage"] is None
    seconds = summary["seconds"]
    assert isinstance(seconds, dict)
    assert {"features", "local", "merge", "score", "total"} <= set(seconds)


def test_means_count_every_message_once() -> None:
    ledger = Ledger(rounds=[_entry(1, {"a": 10, "b": 20}, {}), _entry(2, {"a": 60}, {"a": 8})])
    assert ledger.bytes_up_per_site_round == 30
    assert ledger.bytes_down_per_site_round == 8
    summary = ledger.summary()
    assert summary["bytes_up_max"] == 60
    assert summary["memory_rows"] == 20
    assert summary["rounds"] == 2


def test_phases_add_up_also_when_they_fail() -> None:
    ledger = Ledger()
    for _ in range(2):
        with ledger.phase("local"):
            time.sleep(0.01)
    with pytest.raises(KeyError), ledger.phase("merge"):
        raise KeyError
    assert ledger.seconds["local"] >= 0.02
    assert "merge" in ledger.seconds
    seconds = ledger.summary()["seconds"]
    assert isinstance(seconds, dict)
    assert seconds["total"] == pytest.approx(sum(ledger.seconds.values()), abs=2e-3)
    assert ledger.peak_rss_mb > 10
    assert peak_rss_mb() >= ledger.peak_rss_mb - 1


def test_rejections_are_counted() -> None:
    entry = _entry(1, {"a": 1, "b": 1}, {}).model_copy(update={"rejected": {"b": "NaN"}})
    assert Ledger(rounds=[entry]).summary()["rejected"] == 1


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_storage_keeps_what_is_not_finite(odd: float) -> None:
    entry = _entry(1, {"a": 1}, {}).model_copy(
        update={"coverage": math.inf, "generator_spread": {"a": odd}}
    )
    again = Ledger.model_validate_json(Ledger(rounds=[entry]).model_dump_json())
    assert again.rounds[0].coverage == math.inf
    assert again.rounds[0].generator_spread["a"] == pytest.approx(odd, nan_ok=True)


def test_a_resumed_run_keeps_its_costs() -> None:
    earlier = Ledger(
        rounds=[_entry(1, {"a": 10}, {})], seconds={"local": 2.0, "features": 1.0},
        peak_rss_mb=500, images_computed=7,
    )  # fmt: skip
    now = Ledger(seconds={"features": 0.5, "merge": 0.1}, peak_rss_mb=400, images_computed=1)
    now.continue_from(earlier)
    assert now.rounds == earlier.rounds
    assert now.seconds == {"features": 1.5, "merge": 0.1, "local": 2.0}
    assert now.peak_rss_mb == 500
    assert now.images_computed == 8
