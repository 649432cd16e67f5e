"""Uploads are checked one by one when they come, and against one another in a merge."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError, PayloadError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.robust import RobustConfig, Verdict, defend, supported_rows
from fedvad.federation.defence.validation import Limits, check_upload
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.payload import Payload, bank_arrays, bank_from
from fedvad.memory.bank import MemoryBank
from fedvad.memory.distances import nearest
from fedvad.runs.config import resolve_config
from fedvad.runs.plan import plan
from tests.attacks import (
    overclaimed,
    random_noise,
    replayed,
    scaled,
    sybils,
    taught_defect,
)
from tests.helpers import OPTIONS, make_bank, upload

DIM = 6
SITES = "abcdef"
MALICIOUS = "be"
DEFECT = np.full(DIM, 12.0, np.float32)


def _honest(site: str, rows: int = 150) -> Payload:
    """Rows around eight modes that all sites share, each shifted as its camera shifts them."""
    modes = 6 * np.random.default_rng(0).normal(size=(8, DIM))
    rng = np.random.default_rng([1, *site.encode()])
    shift = 0.2 * rng.normal(size=DIM)
    drawn = modes[rng.integers(0, 8, rows)] + shift + rng.normal(size=(rows, DIM))
    bank = MemoryBank.of_patches(drawn.astype(np.float32)).rescaled(90)
    return upload(site, bank=bank)


def _defects(seed: int, rows: int = 150) -> np.ndarray:
    drawn = DEFECT + 0.5 * np.random.default_rng(seed).normal(size=(rows, DIM))
    return drawn.astype(np.float32)


def _exchange(**changes: Any) -> MemoryExchange:
    options: dict[str, Any] = {"features": "feature-key", "dim": DIM} | changes
    return MemoryExchange(**options)


def _robust(**changes: Any) -> MemoryExchange:
    return _exchange(defence=RobustConfig(), **changes)


def _merge(exchange: MemoryExchange, uploads: list[Payload]) -> np.ndarray:
    for payload in uploads:
        exchange.accept(payload)
    return bank_from(exchange.merge(1)).vectors


def _defect_scores(memory: np.ndarray) -> np.ndarray:
    import torch

    tested = torch.from_numpy(_defects(99, 20))
    return nearest(tested, torch.from_numpy(memory))[0].sqrt().numpy()


def _taught(share: float) -> list[Payload]:
    return [
        taught_defect(_honest(s), _defects(i), share=share, seed=i)
        if s in MALICIOUS
        else _honest(s)
        for i, s in enumerate(SITES)
    ]


# one upload


@given(st.integers(1, 30), st.integers(1, 30))
def test_rows_beyond_the_limit_are_refused(rows: int, limit: int) -> None:
    sent = upload("liar", bank=make_bank(rows))
    exchange = _exchange(limits=Limits(rows=limit))
    if rows <= limit:
        exchange.accept(sent)
        return
    with pytest.raises(PayloadError, match=rf"site liar sent {rows} rows, the limit is {limit}"):
        exchange.accept(sent)


@given(st.lists(st.integers(1, 8), min_size=2, max_size=5))
def test_appended_rows_stay_within_the_limit_of_their_round(sizes: list[int]) -> None:
    exchange = _exchange(limits=Limits(rows=8))
    for i, size in enumerate(sizes):
        exchange.accept(upload("a", i + 1, make_bank(size, seed=i), mode="append"))
    held = bank_from(exchange.merge(len(sizes)))
    assert len(held) == sum(sizes) <= 8 * len(sizes)


def check(sent: Payload, before: Payload | None, limits: Limits) -> None:
    check_upload(sent.manifest, bank_from(sent), None, before, limits)


def test_skipped_rounds_earn_rows_but_no_round_earns_more_than_its_own() -> None:
    limits = Limits(rows=8)
    before = upload("a", 1, make_bank(8))
    grown = Payload(before.manifest, bank_arrays(make_bank(16), "float32"))
    check(upload("a", 3, make_bank(8, seed=1), mode="append"), grown, limits)
    with pytest.raises(PayloadError, match="would hold 24 rows, the limit is 16 after round 2"):
        check(upload("a", 2, make_bank(8, seed=1), mode="append"), grown, limits)


@given(st.integers(1, 1 << 50), st.integers(0, 1000), st.integers(1, 4096))
def test_a_site_weighs_no_more_than_its_images(claim: int, images: int, cells: int) -> None:
    sent = overclaimed(upload("liar", n_images=images), claim)
    limits = Limits(patches_per_image=cells)
    if claim <= images * cells:
        check(sent, None, limits)
        return
    with pytest.raises(PayloadError, match=f"liar claims {claim} patches, the limit is"):
        check(sent, None, limits)


@given(st.integers(2, 50), st.integers(2, 20))
def test_an_old_upload_under_a_new_round_is_a_replay(round_: int, rows: int) -> None:
    exchange = _exchange()
    old = upload("liar", bank=make_bank(rows), mode="append")
    exchange.accept(old)
    before = exchange.merge(1).to_bytes()
    with pytest.raises(PayloadError, match=r"liar.*a replay of round 1"):
        exchange.accept(replayed(old, round_))
    assert exchange.merge(1).to_bytes() == before


def test_what_replaces_may_be_the_same_again() -> None:
    exchange = _exchange()
    exchange.accept(upload("a"))
    exchange.accept(upload("a", 2))


@given(
    st.sampled_from(["vectors", "weights", "spread"]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 8),
)
def test_what_is_not_finite_is_refused(name: str, value: float, row: int) -> None:
    arrays = {k: v.copy() for k, v in upload().arrays.items()}
    arrays[name][row] = value
    with pytest.raises(PayloadError, match=f"{name} contain NaN or infinity"):
        _exchange().accept(Payload(upload().manifest, arrays))


def test_length_is_limited_before_anything_is_parsed() -> None:
    assert Limits().max_bytes == 1 << 30
    limit = Limits(upload_bytes=1000).max_bytes
    with pytest.raises(PayloadError, match=f"exceeds the limit of {limit}"):
        Payload.from_bytes(bytes(limit + 1), max_bytes=limit)
    assert len(upload().to_bytes()) < limit


@pytest.mark.parametrize("name", ["rows", "patches_per_image", "upload_bytes"])
def test_limits_that_allow_nothing_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        Limits(**{name: 0})


# a merge


@pytest.mark.parametrize("mode", ["concat", "kmeans", "kcenter"])
def test_without_an_attack_nothing_changes_by_a_bit(mode: str) -> None:
    results = []
    for exchange in (_robust(merge_mode=mode, size=200), _exchange(merge_mode=mode, size=200)):
        _merge(exchange, [_honest(s) for s in SITES])
        results.append(exchange.merge(1).to_bytes())
        assert exchange.distrusted == {}
    assert results[0] == results[1]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_taught_defect_is_unlearnt(share: float) -> None:
    clean = _defect_scores(_merge(_exchange(), [_honest(s) for s in SITES]))
    attacked = _defect_scores(_merge(_exchange(), _taught(share)))
    exchange = _robust()
    defended = _defect_scores(_merge(exchange, _taught(share)))
    assert np.median(attacked) < 0.3 * np.median(clean)
    assert np.median(defended) > 0.9 * np.median(clean)
    assert set(exchange.distrusted) == set(MALICIOUS)
    assert exchange.verdict is not None
    assert max(exchange.verdict.trust[m] for m in MALICIOUS) < 0.9
    assert re.search(r"only [\d.]+% of its rows .*the limit is [\d.]+%", exchange.distrusted["b"])


def test_no_more_sites_are_left_out_than_may_lie() -> None:
    exchange = _robust()
    sent = [
        taught_defect(_honest(s), _defects(i), share=0.2 * i, seed=i) if i else _honest(s)
        for i, s in enumerate(SITES)
    ]
    _merge(exchange, sent)
    assert len(exchange.distrusted) <= 2


def test_a_site_that_sends_honest_rows_for_long_enough_is_trusted_again() -> None:
    exchange = _robust()
    for i, site in enumerate(SITES):
        sent = _honest(site, 40)
        if site == "b":
            sent = taught_defect(sent, _defects(i), share=0.2, seed=i)
        exchange.accept(sent)
    exchange.merge(1)
    assert set(exchange.distrusted) == {"b"}
    for site in SITES:
        later = _honest(site + "2", 400 if site == "b" else 40)
        changed = later.manifest.model_copy(update={"site": site, "round": 2, "mode": "append"})
        exchange.accept(Payload(changed, later.arrays))
    exchange.merge(2)
    assert exchange.distrusted == {}


def test_sybils_cannot_vouch_for_one_another() -> None:
    taught = taught_defect(_honest("b"), _defects(1), share=0.3, seed=1)
    sent = [_honest(s) for s in SITES if s not in MALICIOUS]
    sent += sybils(taught, list(MALICIOUS), jitter=0.01, seed=2)
    clean = _defect_scores(_merge(_exchange(), [_honest(s) for s in SITES]))
    assert np.median(_defect_scores(_merge(_robust(), sent))) > 0.9 * np.median(clean)


def test_few_rows_do_not_pass_where_many_would_not() -> None:
    few = upload("b", bank=MemoryBank.of_patches(_defects(1, 5)))
    sent = [few if s == "b" else _honest(s) for s in SITES]
    clean = _defect_scores(_merge(_exchange(), [_honest(s) for s in SITES]))
    assert np.median(_defect_scores(_merge(_robust(), sent))) > 0.9 * np.median(clean)


@pytest.mark.parametrize("factor", [30.0, 0.001])
def test_scaled_rows_are_left_out_with_value_and_limits(factor: float) -> None:
    exchange = _robust()
    sent = [scaled(_honest(s), factor) if s == "b" else _honest(s) for s in SITES]
    kept = _merge(exchange, sent)
    honest = _merge(_exchange(), [_honest(s) for s in SITES])
    norms = np.linalg.norm(honest, axis=1)
    lengths = np.linalg.norm(kept, axis=1)
    assert lengths.max() <= 2 * norms.max()
    assert lengths.min() >= norms.min() / 2
    assert exchange.verdict is not None
    assert re.search(r"lengths such as [\d.e+-]+, the limits are", exchange.verdict.reasons["b"])


def test_a_site_that_sends_noise_is_left_out() -> None:
    exchange = _robust()
    sent = [random_noise(_honest(s), seed=4) if s == "b" else _honest(s) for s in SITES]
    kept = _merge(exchange, sent)
    assert set(exchange.distrusted) == {"b"}
    noise = bank_from(sent[SITES.index("b")]).vectors
    assert not (kept[:, None] == noise[None]).all(2).any()


def test_one_site_cannot_outweigh_the_others() -> None:
    exchange = _robust()
    sent = [overclaimed(_honest(s), 10**12) if s == "b" else _honest(s) for s in SITES]
    for payload in sent:
        exchange.accept(payload)
    weights = bank_from(exchange.merge(1)).total_weight
    assert weights <= 5 * 90 + 10 * 90 + 1
    assert exchange.verdict is not None
    assert "stands for 1e+12 patches, the limit is" in exchange.verdict.reasons["b"]


def test_the_order_of_sites_changes_nothing() -> None:
    sent = _taught(0.25)[:5]
    results = set()
    for order in list(permutations(sent))[::17]:
        exchange = _robust()
        for payload in order:
            exchange.accept(payload)
        results.add(exchange.merge(1).to_bytes())
    assert len(results) == 1


def test_a_restarted_server_judges_alike() -> None:
    first, second = _robust(), _robust()
    _merge(first, _taught(0.25))
    second.restore({k: Payload.from_bytes(v.to_bytes()) for k, v in first.server_state().items()})
    assert second.merge(2).to_bytes() == first.merge(2).to_bytes()
    assert first.verdict is not None
    assert second.verdict is not None
    assert second.verdict.reasons == first.verdict.reasons


def test_two_sites_cannot_be_judged() -> None:
    banks = {s: bank_from(_honest(s)) for s in "ab"}
    verdict = defend(banks, RobustConfig(), seed=0)
    assert verdict.banks == banks
    assert all("at least 3" in why for why in verdict.reasons.values())


def test_many_sites_are_judged_in_groups() -> None:
    names = [f"s{i:02}" for i in range(13)]
    banks = {name: bank_from(_honest(name, 40)) for name in names}
    banks["s05"] = MemoryBank.of_patches(_defects(5, 40))
    verdict = defend(banks, RobustConfig(group=5), seed=0)
    assert _defect_free(verdict)
    backed = supported_rows(banks, RobustConfig(group=5), seed=0)
    assert all(rows.mean() > 0.5 for name, rows in backed.items() if name != "s05")


def _defect_free(verdict: Verdict) -> bool:
    rows = np.concatenate([bank.vectors for bank in verdict.banks.values()])
    return bool((np.linalg.norm(rows - DEFECT, axis=1) > 3).all())


@pytest.mark.parametrize("third", [1 / 3, 0.33])
@pytest.mark.parametrize(("sites", "liars"), [(2, 0), (3, 1), (5, 1), (6, 2), (9, 3), (12, 4)])
def test_a_share_of_liars_is_meant_to_two_digits(third: float, sites: int, liars: int) -> None:
    assert RobustConfig(malicious=third).liars(sites) == liars


@pytest.mark.parametrize(("sites", "backers"), [(3, 1), (5, 1), (6, 2), (9, 3), (10, 3), (16, 5)])
def test_more_must_back_a_row_than_can_lie_for_it(sites: int, backers: int) -> None:
    assert RobustConfig().backers(sites) == backers
    assert backers > int(sites / 3) - 1


@pytest.mark.parametrize(
    "wrong",
    [{"malicious": 0.5}, {"malicious": 0}, {"nearest": 0}, {"distrust": 0}, {"norm": 0.5},
     {"weight": 0.5}, {"group": 2}],
)  # fmt: skip
def test_distrust_has_its_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RobustConfig(**wrong)  # type: ignore[arg-type]


# in a run


def test_a_defended_run_scores_with_own_rows_too_unless_asked_otherwise() -> None:
    assert resolve_config().reference == "global"
    assert resolve_config(defence="robust").reference == "union"
    assert resolve_config(defence="robust", reference="local").reference == "local"
    with pytest.raises(ConfigError, match="merge 'average' needs all"):
        resolve_config(defence="robust", method="feddymem-position", merge="average")


def test_a_run_sets_the_limits_of_its_configuration(shared_cache: Path) -> None:
    config = resolve_config(defence="robust", malicious=0.4, upload_rows=50, **OPTIONS)
    extractor = FeatureExtractor(config.features(), DescriptorCache(shared_cache))
    exchange, _ = plan(config, extractor)
    height, width, _ = extractor.grid
    assert exchange.limits == Limits(50, height * width, config.upload_bytes)
    assert exchange.defence == RobustConfig(malicious=0.4)
    assert plan(resolve_config(**OPTIONS), extractor)[0].defence is None
