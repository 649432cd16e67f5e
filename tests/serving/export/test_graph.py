"""The torch modules behind every export give what the scoring of the library gives."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MapMode, MemoryScorer, ScoringConfig
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.neighbours import NeighbourIndex
from fedvad.serving.export import search
from fedvad.serving.export.graph import MemoryHead
from fedvad.serving.export.search import CellSearch, ExactSearch, make_search

GRID = (5, 4)


def _clustered(n: int, dim: int, seed: int) -> FloatArray:
    """Points in clumps, as real patches lie: (n, dim), exact in float16."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(30, dim))
    points = centres[rng.integers(0, 30, n)] + rng.normal(scale=0.3, size=(n, dim))
    return points.astype(np.float16).astype(np.float32)


def _bank(rows: int, dim: int) -> MemoryBank:
    rng = np.random.default_rng(1)
    spread = rng.uniform(0, 1, rows).astype(np.float32)
    return MemoryBank(_clustered(rows, dim, 2), rng.uniform(1, 40, rows), spread)


def _generator(dim: int) -> Generator:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(scale=0.02, size=(dim, dim)), rng.normal(scale=0.1, size=dim)
    return Generator(weight.astype(np.float32), bias.astype(np.float32))


def _compare(
    bank: MemoryBank, generator: Generator, config: ScoringConfig, n: int = 3, weighs: bool = True
) -> None:
    dim = bank.dim
    columns = np.linspace(0.1, 1, dim, dtype=np.float32) if weighs else None
    # not exact in float16: the head has to round as the pipeline does
    exact = torch.from_numpy(_clustered(n * 20, dim, 4) * np.float32(1.0001))
    descriptors = exact.reshape(n, *GRID, dim)
    head = MemoryHead(bank, generator, config, grid=GRID, threshold=1.0, columns=columns)
    with torch.inference_mode():
        score, map_, anomalous = head(descriptors)
    scorer = MemoryScorer(bank, config, columns=columns)
    for i in range(n):
        halves = descriptors[i].half().numpy()
        wanted, wanted_map = scorer.score(generator(to_float(halves)))
        assert score[i].item() == pytest.approx(wanted, rel=1e-5)
        np.testing.assert_allclose(map_[i].numpy(), wanted_map, rtol=1e-5)
        assert anomalous[i].item() == (wanted > 1.0)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("mode", get_args(MapMode))
def test_every_map_with_and_without_a_generator(mode: MapMode, trained: bool) -> None:
    bank = _bank(50, 6)
    generator = _generator(6) if trained else Generator.identity(6)
    _compare(bank, generator, ScoringConfig(map=mode, smooth=3, top=0.1), weighs=not trained)


@pytest.mark.parametrize("mode", get_args(MapMode))
def test_the_fast_search_finds_what_the_predictor_finds(mode: MapMode) -> None:
    bank = _bank(1100, 200)
    config = ScoringConfig(map=mode, search="fast")
    head = MemoryHead(bank, Generator.identity(200), config, grid=GRID)
    assert isinstance(head.search, CellSearch)
    _compare(bank, Generator.identity(200), config)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 12),
    mode=st.sampled_from(get_args(MapMode)),
    smooth=st.sampled_from([1, 3, 5, 9]),
    top=st.sampled_from([0.0, 0.04, 0.5, 1.0]),
)
def test_small_memories_and_every_smoothing(
    rows: int, mode: MapMode, smooth: int, top: float
) -> None:
    config = ScoringConfig(map=mode, smooth=smooth, top=top)
    _compare(_bank(rows, 5), Generator.identity(5), config, n=2)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_memory_in_chunks_is_searched_as_a_whole(k: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(search, "_CHUNK", 7)
    vectors, patches = _clustered(23, 6, 5), _clustered(11, 6, 6)
    patches[0] = vectors[20]
    found = ExactSearch(vectors, k)(torch.from_numpy(patches))
    distances, indices = NeighbourIndex(vectors).query(patches, k)
    assert found[0][0, 0] == 0  # no cancellation
    np.testing.assert_allclose(found[0].numpy(), distances, rtol=1e-6)
    np.testing.assert_array_equal(found[1].numpy(), indices)


def test_the_search_is_the_one_that_the_memory_asks_for() -> None:
    large = _clustered(1000, 200, 7)
    assert isinstance(make_search(large, 1, "fast"), CellSearch)
    assert isinstance(make_search(large, 1, "exact"), ExactSearch)
    assert isinstance(make_search(large, 7, "fast"), ExactSearch)
    assert isinstance(make_search(large[:999], 1, "fast"), ExactSearch)


def test_vectors_are_stored_in_half_only_where_that_loses_nothing() -> None:
    exact = _clustered(9, 6, 8)
    assert ExactSearch(exact, 1).get_buffer("vectors0").dtype == torch.float16
    averaged = exact * np.float32(1.0001)
    stored = ExactSearch(averaged, 1).get_buffer("vectors0")
    assert stored.dtype == torch.float32
    assert torch.equal(stored, torch.from_numpy(averaged))


def test_the_decision_is_that_of_the_full_threshold() -> None:
    """Thresholds are float64, scores float32: rounding up would pass a score in between."""
    bank, config = MemoryBank(np.zeros((1, 1)), np.ones(1), np.zeros(1)), ScoringConfig(top=1)
    score = 1.5
    for threshold, wanted in (
        (score, False),
        (np.nextafter(score, 9), False),
        (np.nextafter(score, 0), True),
    ):
        head = MemoryHead(
            bank, Generator.identity(1), config, grid=(2, 2), threshold=float(threshold)
        )
        assert head(torch.full((1, 2, 2, 1), score))[2].item() is wanted


def test_what_cannot_be_scored_does_not_pass_as_normal() -> None:
    bank, config = MemoryBank(np.zeros((1, 1)), np.ones(1), np.zeros(1)), ScoringConfig(top=0)
    head = MemoryHead(bank, Generator.identity(1), config, grid=(2, 2), threshold=1.0)
    assert head(torch.full((1, 2, 2, 1), float("nan")))[2].item() is True


def test_without_a_threshold_there_is_no_decision() -> None:
    head = MemoryHead(_bank(4, 5), Generator.identity(5), ScoringConfig(), grid=GRID)
    assert len(head(torch.zeros(2, *GRID, 5))) == 2
