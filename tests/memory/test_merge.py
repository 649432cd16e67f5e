from __future__ import annotations

from dataclasses import replace
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError, MemoryBankError
from fedvad.memory.bank import LazyBanks, MemoryBank, concatenate
from fedvad.memory.distances import nearest
from fedvad.memory.merge import COVERAGE_WARNING, coverage, merge_banks


def bank_of(rows: int, seed: int, *, dim: int = 3, digits: int | None = None) -> MemoryBank:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    if digits is not None:
        vectors = np.round(vectors, digits)
    return MemoryBank(vectors, rng.uniform(0.1, 50, rows), rng.uniform(0, 2, rows))


@given(
    mode=st.sampled_from(["concat", "kmeans", "kcenter"]),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    size=st.integers(1, 40),
    digits=st.sampled_from([None, 0]),  # 0: many equal vectors
    seed=st.integers(0, 1000),
)
def test_every_mode_conserves_weight_and_keeps_to_its_size(mode, sizes, size, digits, seed):
    banks = {str(i): bank_of(n, seed + i, digits=digits) for i, n in enumerate(sizes)}
    merged = merge_banks(banks, mode=mode, size=size, seed=seed)
    assert merged.total_weight == pytest.approx(sum(bank.total_weight for bank in banks.values()))
    assert len(merged) <= size
    if mode != "kmeans":
        uploads = {row.tobytes() for bank in banks.values() for row in bank.vectors}
        assert {row.tobytes() for row in merged.vectors} <= uploads


@pytest.mark.parametrize("mode", ["concat", "kmeans", "kcenter"])
def test_order_of_arrival_changes_nothing(mode):
    banks = {name: bank_of(40, i, digits=0) for i, name in enumerate("abcd")}
    merged = merge_banks(banks, mode=mode, size=20, seed=5)
    again = merge_banks(dict(reversed(banks.items())), mode=mode, size=20, seed=5)
    for field in ("vectors", "weights", "spread"):
        np.testing.assert_array_equal(getattr(merged, field), getattr(again, field))


@pytest.mark.parametrize("mode", ["kmeans", "kcenter"])
def test_names_of_sites_change_nothing_when_merging(mode):
    banks = {name: bank_of(40, i, digits=0) for i, name in enumerate("abcd")}
    merged = merge_banks(banks, mode=mode, size=20, seed=5)
    renamed = dict(zip("dcba", banks.values(), strict=True))
    again = merge_banks(renamed, mode=mode, size=20, seed=5)
    for field in ("vectors", "weights", "spread"):
        np.testing.assert_array_equal(getattr(merged, field), getattr(again, field))


@pytest.mark.parametrize("mode", ["kmeans", "kcenter"])
def test_enough_room_keeps_every_row(mode):
    banks = {"a": bank_of(5, 0), "b": bank_of(6, 1)}
    everything = concatenate(list(banks.values()))
    np.testing.assert_array_equal(
        merge_banks(banks, mode=mode, size=11, seed=0).vectors, everything.vectors
    )


def test_kcenter_gathers_weight_and_scatter_of_the_rows_it_stands_for():
    bank = MemoryBank(np.array([[0.0], [1], [10], [14]]), [1, 3, 2, 2], [1.0, 0, 2, 0])
    merged = merge_banks({"a": bank}, mode="kcenter", size=2, seed=0)
    near, far = np.argsort(merged.vectors[:, 0])
    assert merged.weights[[near, far]].tolist() == [4, 4]
    # centre 0: (1 * (1 + 0) + 3 * (0 + 1)) / 4; centre 1: (1 * (1 + 1) + 0) / 4
    assert merged.spread[near] ** 2 == pytest.approx(1 if merged.vectors[near, 0] == 0 else 0.5)
    # centre 10: (2 * 4 + 2 * 16) / 4; centre 14: (2 * (4 + 16) + 0) / 4
    assert merged.spread[far] ** 2 == pytest.approx(10, rel=1e-4)


def test_wrong_merges_are_refused():
    with pytest.raises(ConfigError, match="unknown merge mode"):
        merge_banks({"a": bank_of(3, 0)}, mode="mean", size=3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a memory size"):
        merge_banks({"a": bank_of(3, 0)}, mode="kmeans", size=None, seed=0)
    with pytest.raises(MemoryBankError, match="no site"):
        merge_banks({}, mode="concat", size=None, seed=0)
    with pytest.raises(MemoryBankError, match="one descriptor length"):
        merge_banks(
            {"a": bank_of(3, 0), "b": bank_of(3, 0, dim=4)}, mode="concat", size=None, seed=0
        )
    for mode in ("kmeans", "kcenter"):
        with pytest.raises(ConfigError):
            merge_banks({"a": bank_of(3, 0)}, mode=mode, size=0, seed=0)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_coverage_by_hand():
    # gaps to the nearest other upload: 1, 1, 2, 4; median (torch: the lower) 1
    uploads = column(0, 1, 3, 7)
    assert coverage(uploads, column(0, 1, 3)) == pytest.approx(4)
    assert coverage(uploads, column(0.5, 5)) == pytest.approx(2)
    assert coverage(uploads, uploads[::-1].copy()) == 0
    assert coverage(uploads * 1000, column(0, 1, 3) * 1000) == pytest.approx(4)


@pytest.mark.parametrize(("offset", "scale"), [(0, 1.0), (10, 0.01), (100, 0.01), (100, 0.001)])
def test_coverage_of_long_vectors_that_lie_close(offset, scale):
    drawn = np.random.default_rng(0).normal(size=(600, 64)) * scale + offset
    uploads = drawn.astype(np.float32)
    exact = uploads.astype(np.float64)
    squared = np.square(exact[:, None] - exact[None]).sum(-1)
    worst = np.sqrt(squared[:, :500].min(1).max())
    spacing = np.median(np.sqrt(np.where(np.eye(600), np.inf, squared).min(1)))
    assert coverage(uploads, uploads[:500]) == pytest.approx(worst / spacing, rel=0.01)


def test_coverage_of_degenerate_uploads():
    assert coverage(column(3), column(1)) == 0
    assert coverage(column(1, 2), np.zeros((0, 1), np.float32)) == float("inf")
    assert coverage(column(2, 2, 2), column(2)) == 0
    assert coverage(column(2, 2, 2), column(3)) == float("inf")


def test_concatenation_covers_to_the_last_digit_and_a_missing_mode_warns():
    rng = np.random.default_rng(0)
    modes = rng.normal(size=(40, 64)) * 4 + 9
    uploads = (np.repeat(modes, 20, 0) + 0.3 * rng.normal(size=(800, 64))).astype(np.float32)
    banks = {"a": MemoryBank.of_patches(uploads[:400]), "b": MemoryBank.of_patches(uploads[400:])}
    whole = merge_banks(banks, mode="concat", size=None, seed=0)
    assert coverage(uploads, whole.vectors) == 0
    good = merge_banks(banks, mode="kcenter", size=80, seed=0)
    assert coverage(uploads, good.vectors) < COVERAGE_WARNING
    poor = good.take(np.linalg.norm(good.vectors - modes[7], axis=1) > 5)
    assert 0 < len(poor) < len(good)
    assert coverage(uploads, poor.vectors) > COVERAGE_WARNING


def test_coverage_samples_many_uploads_with_the_same_result_each_time():
    uploads = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    memory = uploads[:50]
    sampled = coverage(uploads, memory, max_rows=1500)
    assert sampled == coverage(uploads, memory, max_rows=1500)
    assert sampled == pytest.approx(coverage(uploads, memory), rel=0.2)


@pytest.mark.parametrize("mode", ["kmeans", "kcenter", "average"])
def test_of_many_sites_few_memories_are_held_at_a_time(mode, monkeypatch):
    monkeypatch.setattr("fedvad.memory.merge._AT_ONCE", 20)
    rows = {f"{i:02}": bank_of(10, i, dim=70) for i in range(30)}
    alive, most = WeakSet(), 0

    def read(name: str) -> MemoryBank:
        nonlocal most
        bank = replace(rows[name])
        alive.add(bank)
        most = max(most, len(alive))
        return bank

    banks = LazyBanks(rows, read)
    assert "07" in banks
    assert "31" not in banks
    assert most == 0
    merged = merge_banks(banks, mode=mode, size=5, seed=0)
    assert most <= 4  # a group of k-means, two sites here, and those read before and after it
    held = merge_banks(rows, mode=mode, size=5, seed=0)
    np.testing.assert_array_equal(merged.vectors, held.vectors)
    np.testing.assert_array_equal(merged.weights, held.weights)


def test_average_is_the_row_wise_weighted_mean_with_all_of_its_spread() -> None:
    rng = np.random.default_rng(0)
    clouds = {name: rng.normal(i, 1, (3, n, 2)) for i, (name, n) in enumerate([("a", 4), ("b", 9)])}
    banks = {
        name: MemoryBank(
            cloud.mean(1).astype(np.float32),
            np.full(3, float(cloud.shape[1])),
            np.sqrt(cloud.var(1).sum(1)).astype(np.float32),
        )
        for name, cloud in clouds.items()
    }
    merged = merge_banks(banks, mode="average", size=None, seed=0)
    everything = np.concatenate([clouds["a"], clouds["b"]], axis=1)
    np.testing.assert_allclose(merged.vectors, everything.mean(1), rtol=1e-5)
    np.testing.assert_allclose(merged.spread, np.sqrt(everything.var(1).sum(1)), rtol=1e-5)
    np.testing.assert_array_equal(merged.weights, [13, 13, 13])
    with pytest.raises(MemoryBankError, match="as many rows"):
        merge_banks({"a": banks["a"], "b": concatenate([banks["a"]] * 2)}, mode="average",
                    size=None, seed=0)  # fmt: skip


def test_concat_keeps_every_row_until_there_are_too_many():
    banks = {"a": bank_of(30, 0), "b": bank_of(30, 1)}
    for size in (None, 60, 100):
        assert len(merge_banks(banks, mode="concat", size=size, seed=0)) == 60
    thinned = merge_banks(banks, mode="concat", size=59, seed=3)
    by_cover = merge_banks(banks, mode="kcenter", size=59, seed=3)
    np.testing.assert_array_equal(thinned.vectors, by_cover.vectors)


def test_a_tree_of_kmeans_merges_is_nearly_as_good_as_one(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 8)) * 4
    banks = {}
    for i in range(30):
        vectors = centres[rng.integers(0, 60, 100)] + rng.normal(size=(100, 8))
        banks[f"{i:02}"] = MemoryBank.of_patches(vectors.astype(np.float32))
    everything = torch.from_numpy(concatenate(list(banks.values())).vectors)

    def inertia(merged: MemoryBank) -> float:
        return float(nearest(everything, torch.from_numpy(merged.vectors))[0].mean())

    whole = merge_banks(banks, mode="kmeans", size=100, seed=0)
    monkeypatch.setattr("fedvad.memory.merge._AT_ONCE", 500)
    tree = merge_banks(banks, mode="kmeans", size=100, seed=0)
    again = merge_banks(dict(reversed(banks.items())), mode="kmeans", size=100, seed=0)
    assert inertia(tree) < 1.1 * inertia(whole)
    assert tree.total_weight == pytest.approx(whole.total_weight)
    assert len(tree) <= 100
    np.testing.assert_array_equal(tree.vectors, again.vectors)


def test_very_many_rows_are_counted_at_the_centre_nearest_in_the_projection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 10, (12, 96))
    vectors = (centres[rng.integers(12, size=600)] + rng.normal(0, 0.3, (600, 96))).astype("f4")
    bank = MemoryBank(vectors, rng.uniform(1, 3, 600), np.full(600, 0.1, np.float32))
    exact = merge_banks({"a": bank}, mode="kcenter", size=12, seed=0)
    monkeypatch.setattr("fedvad.memory.merge._ALL_PAIRS", 0)
    quick = merge_banks({"a": bank}, mode="kcenter", size=12, seed=0)
    np.testing.assert_array_equal(quick.vectors, exact.vectors)
    np.testing.assert_allclose(quick.weights, exact.weights)  # clear clusters: the same cells
    np.testing.assert_allclose(quick.spread, exact.spread, rtol=1e-3)
    assert quick.total_weight == pytest.approx(bank.total_weight)
