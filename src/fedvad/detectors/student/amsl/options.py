"""Options of adaptive memories; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass

from fedvad.errors import ConfigError, check_ranges, join_names

VIEWS = ("plain", "noise", "negated", "reversed", "permuted", "scaled", "smoothed")


@dataclass(frozen=True)
class MemoriesConfig:
    """What the views are, how large the memories are, and what training lowers.

    views: of `VIEWS`, one at least. items: rows of the common memory and of each view's own.
    channels: of the encoder's two convolutions; memories keep vectors of the second.
    classify: weight of telling the views apart. entropy: weight of the entropy of the items'
    weights.

    Source: Zhang et al., TKDE 2022 (arXiv 2201.00464), with the numbers of their public code.
    Raises `ConfigError`.
    """

    views: tuple[str, ...] = VIEWS
    items: int = 500
    channels: tuple[int, int] = (32, 64)
    classify: float = 1.0
    entropy: float = 2e-4

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                f"views are some of {join_names(VIEWS)}, each once, not {join_names(self.views)}"
            )
        if len(self.channels) != 2 or min((self.items, *self.channels)) < 1:
            raise ConfigError("memories need items, and two numbers of channels, of at least 1")
        check_ranges(self, {"[0, inf)": "classify entropy"})
