"""Options of adaptive memories; no torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedvad.detectors.student.kept import tupled
from fedvad.errors import ConfigError, check_choice, check_ranges, check_values, join_names

Read = Literal["dot", "cosine"]
Fusion = Literal["learned", "mean", "concat"]
VIEWS = ("plain", "noise", "negated", "reversed", "permuted", "scaled", "smoothed")


@dataclass(frozen=True)
class MemoriesConfig:
    """What the views are, how large the memories are, and what training lowers.

    views: of `VIEWS`, one at least. items: rows of the common memory and of each view's own.
    channels: of the encoder's two convolutions; memories keep vectors of the second.
    classify: weight of telling the views apart. entropy: weight of the entropy of the items'
    weights. read: softmax of the `dot` products of a place with the items, or of their `cosine`;
    temperature: by which these are divided; shrink: weight below which an item counts for nothing,
    in shares of 1 / items; 0 keeps them all. fusion: what both memories answer is added by
    `learned` gates or by halves (`mean`), or given to the decoder apart (`concat`).

    Source: Zhang et al., TKDE 2022 (arXiv 2201.00464), with the numbers of their public code.
    Raises `ConfigError`.
    """

    views: tuple[str, ...] = VIEWS
    items: int = 500
    channels: tuple[int, int] = (32, 64)
    classify: float = 1.0
    entropy: float = 2e-4
    read: Read = "dot"
    temperature: float = 1.0
    shrink: float = 0.0
    fusion: Fusion = "learned"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                f"views are some of {join_names(VIEWS)}, each once, not {join_names(self.views)}"
            )
        if len(self.channels) != 2 or min((self.items, *self.channels)) < 1:
            raise ConfigError("memories need items, and two numbers of channels, of at least 1")
        check_choice("read", self.read, Read)
        check_choice("fusion", self.fusion, Fusion)
        check_ranges(self, {"[0, inf)": "classify entropy shrink", "(0, inf)": "temperature"})


def memories_of(given: Mapping[str, Any]) -> MemoriesConfig:
    """Options from a table; raises `ConfigError` for keys and values that are none."""
    check_values(MemoriesConfig, given)
    return MemoriesConfig(**tupled(given))
