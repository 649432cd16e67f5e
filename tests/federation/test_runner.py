"""Rounds in process: the same result whatever the order, the threads and the interruptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.detectors.memory.site import FedDyMemConfig, MemorySite
from fedvad.errors import ConfigError, FederationError
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.federation.payload import Payload, bank_arrays, bank_from
from fedvad.memory.bank import MemoryBank
from tests.helpers import fake_site

CONFIGS = {
    "grow": FedDyMemConfig(rows=15, candidates=0.6),
    "ema": FedDyMemConfig(rows=15, candidates=0.6, update="ema"),
    "cluster": FedDyMemConfig(rows=15, candidates=0.6, update="ema", reduce="cluster"),
    "position": FedDyMemConfig(rows=15, update="ema", reduce="position"),
    "trained": FedDyMemConfig(rows=15, candidates=0.6, update="ema", train=True),
}
NAMES = ("north", "south", "east", "west")


class Spy(MemoryExchange):
    """Keeps every message's bytes; `spoil` may change what a site sends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(features="feature-key", dim=6, **options)
        self.sent: dict[tuple[int, str], bytes] = {}
        self.received: dict[tuple[int, str], bytes] = {}
        self.spoil: Callable[[int, str, Payload], Payload] = lambda round_, site, payload: payload

    def site_step(self, state: MemorySite, incoming: Payload | None, round_: int) -> Payload:
        name = state.features.where
        if incoming is not None:
            self.received[round_, name] = incoming.to_bytes()
        payload = self.spoil(round_, name, super().site_step(state, incoming, round_))
        self.sent[round_, name] = payload.to_bytes()
        return payload


def _sites(config: FedDyMemConfig, names: tuple[str, ...] = NAMES) -> dict[str, MemorySite]:
    return {name: fake_site(name, config, n=5 + i) for i, name in enumerate(sorted(names))}


def _in_order(sites: Mapping[str, MemorySite], names: tuple[str, ...]) -> dict[str, MemorySite]:
    return {name: sites[name] for name in names}


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("merge", ["concat", "kmeans"])
def test_a_seed_gives_the_same_bytes_for_any_order_and_jobs(method: str, merge: Any) -> None:
    results = []
    for order, jobs in ((NAMES, 1), (NAMES[::-1], 1), (("east", "north", "west", "south"), 4)):
        exchange = MemoryExchange(features="k", dim=6, merge_mode=merge, size=20, seed=3)
        ledger = Ledger()
        sites = _sites(CONFIGS[method])
        merged = run_rounds(
            exchange, _in_order(sites, order), Schedule(rounds=3, seed=3), ledger=ledger, jobs=jobs
        )
        results.append((merged.to_bytes(), [e.model_dump() for e in ledger.rounds]))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("method", CONFIGS)
def test_every_logged_byte_is_the_length_of_a_message(method: str) -> None:
    exchange, ledger = Spy(), Ledger()
    merged = run_rounds(exchange, _sites(CONFIGS[method]), Schedule(rounds=3), ledger=ledger)
    assert [entry.round for entry in ledger.rounds] == [1, 2, 3]
    final = len(merged.to_bytes())
    for entry in ledger.rounds:
        for name in NAMES:
            assert entry.bytes_up[name] == len(exchange.sent[entry.round, name])
            down = len(exchange.received.get((entry.round, name), b""))
            assert entry.bytes_down[name] == down + (final if entry.round == 3 else 0)
            rows = len(Payload.from_bytes(exchange.sent[entry.round, name]).arrays["vectors"])
            assert entry.rows_up[name] == rows
    assert ledger.rounds[0].drift is None
    assert all(e.drift is not None and math.isfinite(e.drift) for e in ledger.rounds[1:])
    assert set(ledger.seconds) == {"local", "merge"}


def test_even_a_single_round_counts_the_download_of_its_result() -> None:
    ledger = Ledger()
    merged = run_rounds(Spy(), _sites(CONFIGS["grow"]), Schedule(rounds=1), ledger=ledger)
    assert ledger.rounds[0].bytes_down == dict.fromkeys(NAMES, len(merged.to_bytes()))


@pytest.mark.parametrize("method", CONFIGS)
def test_no_row_per_image_and_no_path_travels(method: str) -> None:
    # 11 to 14 images: a number that nothing else has
    sites = {
        name: fake_site(name, CONFIGS[method], n=11 + i) for i, name in enumerate(sorted(NAMES))
    }
    exchange = Spy()
    run_rounds(exchange, sites, Schedule(rounds=2), ledger=Ledger())
    for data in (*exchange.sent.values(), *exchange.received.values()):
        for array in Payload.from_bytes(data).arrays.values():
            assert not set(array.shape) & {11, 12, 13, 14}
        for trace in (b".png", b".jpg", b"train", b"/"):
            assert trace not in data[: 8 + int.from_bytes(data[:8], "little")]


def test_ledger_tells_the_spread_of_trained_generators() -> None:
    ledger = Ledger()
    run_rounds(Spy(), _sites(CONFIGS["trained"]), Schedule(rounds=1), ledger=ledger)
    assert set(ledger.rounds[0].generator_spread) == set(NAMES)
    assert all(0.3 < spread < 2 for spread in ledger.rounds[0].generator_spread.values())


def test_a_site_with_nothing_new_says_so_and_loses_no_round() -> None:
    # every patch of five images is sent in the first round
    config = FedDyMemConfig(rows=100, candidates=1.0)
    exchange, ledger = Spy(), Ledger()
    sites = _sites(config, ("north", "south"))
    merged = run_rounds(exchange, sites, Schedule(rounds=3, joins={"south": 2}), ledger=ledger)
    assert not any(entry.rejected for entry in ledger.rounds)
    assert [bank_from(Payload.from_bytes(exchange.sent[r, "north"])).weights.tolist()
            for r in (2, 3)] == [[1.0], [1.0]]  # fmt: skip
    own = sites["north"].bank
    assert (len(own), own.weights.max()) == (100, pytest.approx(1.0))
    weights = bank_from(merged).weights
    assert weights.max() / weights.sum() < 0.05


def test_a_newcomer_whose_patches_are_known_sends_one_mean_of_enough_images() -> None:
    config = FedDyMemConfig(rows=100, candidates=1.0, pull=1.0, min_count=5)
    site = fake_site("north", config, n=5)
    rows = np.concatenate([image.reshape(-1, 6) for image in site.features]).astype(np.float32)
    sent = site.update(1, MemoryBank.of_patches(rows))
    assert len(sent) == 1
    np.testing.assert_allclose(sent.vectors[0], rows.mean(0), atol=1e-5)
    one = fake_site("south", config, n=1)
    rows = np.concatenate([image.reshape(-1, 6) for image in one.features]).astype(np.float32)
    with pytest.raises(ConfigError, match="min_count = 5"):
        one.update(1, MemoryBank.of_patches(rows))


class TestParticipation:
    def test_a_share_of_the_sites_is_drawn_anew_each_round(self) -> None:
        schedule = Schedule(rounds=9, participation=0.5, seed=1)
        drawn = [tuple(schedule.participants(r, list(NAMES))) for r in range(1, 10)]
        assert all(len(names) == 2 for names in drawn)
        assert len(set(drawn)) > 2
        assert drawn == [tuple(schedule.participants(r, list(NAMES[::-1]))) for r in range(1, 10)]
        assert len(Schedule(participation=0.01).participants(1, list(NAMES))) == 1

    def test_those_who_pause_keep_their_last_memory_in_the_merge(self) -> None:
        exchange, ledger = Spy(), Ledger()
        config = CONFIGS["ema"]
        schedule = Schedule(rounds=4, participation=0.5, seed=1)
        merged = run_rounds(exchange, _sites(config), schedule, ledger=ledger)
        answered = {name for entry in ledger.rounds for name in entry.sites}
        assert len(bank_from(merged)) == 15 * len(answered)
        for entry in ledger.rounds[:-1]:
            assert set(entry.bytes_up) == set(entry.bytes_down) == set(entry.sites)
        assert set(ledger.rounds[-1].bytes_down) == set(NAMES)

    def test_a_late_joiner_starts_from_the_global_memory(self) -> None:
        exchange, ledger = Spy(), Ledger()
        sites = _sites(CONFIGS["grow"])
        schedule = Schedule(rounds=3, joins={"east": 3})
        merged = run_rounds(exchange, sites, schedule, ledger=ledger)
        assert [("east" in entry.sites) for entry in ledger.rounds] == [False, False, True]
        assert (3, "east") in exchange.received
        assert len(sites["east"].bank) == 15
        # all rows it sent are in, though it took part once only
        vectors = {row.tobytes() for row in bank_from(merged).vectors}
        assert {row.tobytes() for row in sites["east"].bank.vectors} <= vectors

    def test_impossible_schedules_are_refused(self) -> None:
        for wrong in ({"rounds": 0}, {"participation": 0.0}, {"participation": 1.1}):
            with pytest.raises(ConfigError):
                Schedule(**wrong)  # type: ignore[arg-type]
        schedule = Schedule(joins={"nowhere": 2})
        with pytest.raises(ConfigError, match="nowhere"):
            run_rounds(Spy(), _sites(CONFIGS["grow"]), schedule, ledger=Ledger())

    def test_a_round_without_any_site_is_a_federation_error(self) -> None:
        schedule = Schedule(joins=dict.fromkeys(NAMES, 2))
        with pytest.raises(FederationError, match="no site"):
            run_rounds(Spy(), _sites(CONFIGS["grow"]), schedule, ledger=Ledger())


def _with_nan(payload: Payload) -> Payload:
    vectors = payload.arrays["vectors"].copy()
    vectors[0, 0] = np.nan
    return Payload(payload.manifest, payload.arrays | {"vectors": vectors})


SPOILED: dict[str, Callable[[Payload], Payload]] = {
    "NaN": _with_nan,
    "of another site": lambda p: Payload(p.manifest.model_copy(update={"site": "north"}), p.arrays),
    "of another round": lambda p: Payload(p.manifest.model_copy(update={"round": 9}), p.arrays),
    "other features": lambda p: Payload(
        p.manifest.model_copy(update={"features": "else"}), p.arrays
    ),
    "empty": lambda p: Payload(p.manifest, bank_arrays(MemoryBank.empty(6), "float16")),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_refused_upload_is_logged_and_the_round_goes_on(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange, ledger = Spy(), Ledger()
    exchange.spoil = lambda round_, site, payload: (
        SPOILED[how](payload) if (round_, site) == (1, "south") else payload
    )
    run_rounds(exchange, _sites(CONFIGS["ema"]), Schedule(rounds=2), ledger=ledger)
    assert list(ledger.rounds[0].rejected) == ["south"]
    assert ledger.rounds[0].rejected["south"]
    assert "south" not in ledger.rounds[0].rows_up
    assert ledger.rounds[0].bytes_up["south"] == len(exchange.sent[1, "south"])
    assert ledger.rounds[0].memory_rows == 45
    assert ledger.rounds[1].rejected == {}
    assert ledger.rounds[1].memory_rows == 60
    assert ledger.summary()["rejected"] == 1
    assert "continues without south" in caplog.text


def test_when_all_are_refused_the_last_memory_stays_or_the_run_ends() -> None:
    exchange, ledger = Spy(), Ledger()
    exchange.spoil = lambda round_, site, payload: _with_nan(payload) if round_ == 2 else payload
    run_rounds(exchange, _sites(CONFIGS["grow"]), Schedule(rounds=2), ledger=ledger)
    assert len(ledger.rounds[1].rejected) == 4
    assert ledger.rounds[1].memory_rows == ledger.rounds[0].memory_rows
    exchange = Spy()
    exchange.spoil = lambda round_, site, payload: _with_nan(payload)
    with pytest.raises(FederationError, match="no site"):
        run_rounds(exchange, _sites(CONFIGS["grow"]), Schedule(rounds=2), ledger=Ledger())


def test_poor_coverage_warns(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Spy(merge_mode="kmeans", size=1)
    # drawn sites overlap too much for the real limit
    monkeypatch.setattr("fedvad.federation.ledger.COVERAGE_WARNING", 1.0)
    run_rounds(exchange, _sites(CONFIGS["grow"]), Schedule(rounds=1), ledger=Ledger())
    assert "coverage" in caplog.text
    assert "--memory-rows" in caplog.text


class Power(Exception):
    """Goes off."""


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("grow", (1, "west")),
        ("grow", (2, "north")),
        ("ema", (4, "south")),
        ("cluster", (3, "east")),
        ("position", (2, "north")),
        ("trained", (3, "south")),
    ],
)
def test_resuming_gives_what_an_uninterrupted_run_gives(
    method: str, when: tuple[int, str], tmp_path: Path
) -> None:
    schedule = Schedule(rounds=4, participation=0.9, joins={"east": 2}, seed=2)

    def fail(round_: int, site: str) -> None:
        if (round_, site) == when:
            raise Power

    whole, ledger = Spy(merge_mode="kmeans", size=30), Ledger()
    sites = _sites(CONFIGS[method])
    expected = run_rounds(whole, sites, schedule, ledger=ledger).to_bytes()
    with pytest.raises(Power):
        run_rounds(
            Spy(merge_mode="kmeans", size=30), _sites(CONFIGS[method]), schedule,
            ledger=Ledger(), state_dir=tmp_path, on_step=fail,
        )  # fmt: skip
    again, resumed = _sites(CONFIGS[method]), Ledger()
    steps: list[tuple[int, str]] = []
    merged = run_rounds(
        Spy(merge_mode="kmeans", size=30), again, schedule, ledger=resumed, state_dir=tmp_path,
        resume=True, on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    assert merged.to_bytes() == expected
    assert min(round_ for round_, _ in steps) == when[0]
    assert [e.model_dump() for e in resumed.rounds] == [e.model_dump() for e in ledger.rounds]
    for name, site in sites.items():
        np.testing.assert_array_equal(site.bank.vectors, again[name].bank.vectors)
        np.testing.assert_array_equal(site.bank.weights, again[name].bank.weights)
        np.testing.assert_array_equal(site.generator.weight, again[name].generator.weight)


def test_resuming_a_complete_run_runs_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    first, second = Ledger(), Ledger()
    sites = _sites(CONFIGS["grow"])
    merged = run_rounds(Spy(), sites, Schedule(), ledger=first, state_dir=tmp_path)

    def never(round_: int, site: str) -> None:
        raise AssertionError

    again = run_rounds(
        Spy(), _sites(CONFIGS["grow"]), Schedule(), ledger=second, state_dir=tmp_path,
        resume=True, on_step=never,
    )  # fmt: skip
    assert again.to_bytes() == merged.to_bytes()
    assert [e.model_dump() for e in second.rounds] == [e.model_dump() for e in first.rounds]


def test_resume_refuses_other_images_sites_and_features(tmp_path: Path) -> None:
    config = CONFIGS["grow"]
    run_rounds(Spy(), _sites(config), Schedule(), ledger=Ledger(), state_dir=tmp_path)

    def resume(exchange: MemoryExchange, sites: dict[str, MemorySite]) -> None:
        run_rounds(exchange, sites, Schedule(), ledger=Ledger(), state_dir=tmp_path, resume=True)

    more = _sites(config) | {"north": fake_site("north", config, n=99)}
    with pytest.raises(ConfigError, match="north"):
        resume(Spy(), more)
    with pytest.raises(ConfigError, match="east"):
        resume(Spy(), _sites(config, NAMES[:2]))
    with pytest.raises(ConfigError, match="center"):
        resume(Spy(), _sites(config, (*NAMES, "center")))
    with pytest.raises(ConfigError, match="features"):
        resume(MemoryExchange(features="other-weights", dim=6), _sites(config))


def test_resume_without_a_state_starts_at_the_beginning(tmp_path: Path) -> None:
    ledger = Ledger()
    run_rounds(
        Spy(), _sites(CONFIGS["grow"]), Schedule(), ledger=ledger, state_dir=tmp_path / "none",
        resume=True,
    )  # fmt: skip
    assert len(ledger.rounds) == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_sampling_ahead_changes_nothing_but_the_passes(lost: int) -> None:
    config = FedDyMemConfig(rows=15, candidates=0.6)
    plain, ahead = fake_site("a", config), fake_site("a", config)
    ahead.rounds = 3
    passes = []
    real = type(ahead.features).__iter__

    class Counted(type(ahead.features)):  # type: ignore[misc]
        def __iter__(self):  # type: ignore[no-untyped-def]
            passes.append(1)
            return real(self)

    take = ahead.sample_ahead()
    for descriptors in list(ahead.features)[lost:]:  # a lost one is an unreadable image
        take(descriptors)
    ahead.features.__class__ = Counted
    for round_ in (1, 2, 3):
        expected, found = plain.update(round_, None), ahead.update(round_, None)
        np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert len(passes) == lost


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_number_of_threads_is_as_before(jobs: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sites = {name: fake_site(name, CONFIGS["grow"]) for name in "ab"}
        exchange = MemoryExchange(features="feature-key", dim=6)
        run_rounds(exchange, sites, Schedule(rounds=1), ledger=Ledger(), jobs=jobs)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
