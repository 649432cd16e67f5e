"""States that add up: what batches, sites and regional servers know, merged into what all know.

One rule for counts, histograms, moments, sums of descriptors and bytes of a ledger: the state of
the whole is the sum of the states of its parts, in whatever groups they are added.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import reduce
from operator import add
from typing import Protocol, Self, TypeVar


class Mergeable(Protocol):
    """A state whose `+` is associative and commutative: of two parts, that of both together.

    Numbers and arrays are such states, `Moments` and `Counts` declare it. Source: the idea of
    torchmetrics that a state says how it is reduced.
    """

    def __add__(self, other: Self, /) -> Self: ...


_State = TypeVar("_State", bound=Mergeable)
_Name = TypeVar("_Name", bound=Hashable)


def merge_states(states: Iterable[_State]) -> _State:
    """The sum of one state or more of one kind; raises TypeError for none.

    >>> merge_states([3, 4, 5])
    12
    """
    return reduce(add, states)


def merge_by_name(parts: Iterable[Mapping[_Name, _State]]) -> dict[_Name, _State]:
    """States by name, each the sum of those that the parts have under it.

    >>> merge_by_name([{"alder": 3}, {"birch": 1, "alder": 4}])
    {'alder': 7, 'birch': 1}
    """
    merged: dict[_Name, _State] = {}
    for part in parts:
        for name, state in part.items():
            merged[name] = merged[name] + state if name in merged else state
    return merged
