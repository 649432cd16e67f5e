"""Every mergeable state: the sum of the parts is the state of the whole, however it is grouped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.evaluation.histograms import count
from fedvad.evaluation.results import Counts
from fedvad.federation.masks import to_fixed
from fedvad.mergeable import merge_by_name, merge_states
from fedvad.spectral.moments import Moments


def _counts(values: np.ndarray[Any, Any]) -> Counts:
    good = values[:, 0] < 0.5
    high = values[:, 1] > 0.5
    return Counts(
        good=int(good.sum()),
        stopped=int((good & high).sum()),
        defects=int((~good).sum()),
        caught=int((~good & high).sum()),
    )


def _moments(values: np.ndarray[Any, Any]) -> Moments:
    return Moments.of(values[:, None]) if len(values) else Moments.zero(2)


# from (n, 2) values of n images or pixels to their state, and from a state to its numbers
STATES: dict[str, tuple[Callable[..., Any], Callable[[Any], list[Any]]]] = {
    "counts": (_counts, lambda s: list(s.to_dict().values())),
    "histogram": (lambda values: count(values[:, 0]), lambda s: [s]),
    "moments": (_moments, lambda s: [s.count, s.mean, s.scatter]),
    "masked sum": (lambda values: to_fixed(values.sum(0)), lambda s: [s.view(np.int64) / 2**32]),
}


@pytest.mark.parametrize("kind", STATES)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=4),
    order=st.permutations(range(5)),
    seed=st.integers(0, 99),
)
def test_parts_merge_to_the_whole(kind: str, cuts: list[int], order: list[int], seed: int) -> None:
    state_of, numbers = STATES[kind]
    values = np.random.default_rng(seed).random((30, 2))
    parts = [state_of(part) for part in np.split(values, sorted(cuts))]
    parts = [parts[i] for i in order if i < len(parts)]
    one_by_one, half = merge_states(parts), len(parts) // 2
    regions = [merge_states(group) for group in (parts[:half], parts[half:]) if group]
    for merged in (one_by_one, merge_states(regions)):
        for found, whole in zip(numbers(merged), numbers(state_of(values)), strict=True):
            np.testing.assert_allclose(found, whole, atol=1e-6)


def test_names_keep_their_order_and_no_part_changes() -> None:
    first, second = {"b": np.array([1, 2])}, {"a": np.array([5, 5]), "b": np.array([3, 4])}
    merged = merge_by_name([first, second])
    assert list(merged) == ["b", "a"]
    np.testing.assert_array_equal(merged["b"], [4, 6])
    np.testing.assert_array_equal(first["b"], [1, 2])


def test_nothing_has_no_sum() -> None:
    with pytest.raises(TypeError):
        merge_states([])
