"""Options of block-wise memories; no torch in here."""

from __future__ import annotations

from dataclasses import dataclass

from fedvad.errors import ConfigError, check_ranges


@dataclass(frozen=True)
class BlockConfig:
    """How maps are divided, what a memory keeps of the blocks, and what else training lowers.

    divisions: number of blocks along each side of a map, by level in the order of the layers; one
    number holds for all, none takes blocks of 4 x 4 cells. depth: blocks along the channels.
    items: rows of the memory of a level. temperature: of the softmax over cosines. shrink: weight
    below which an item counts for nothing, in shares of 1 / items; 0 keeps them all.
    entropy: weight of the entropy of the items' weights. adversary: weight of a critic that tells
    maps from rebuilt ones; 0 is none. match: weight of the squared distance of the critic's
    representations of both, where there is a critic.

    Source: Hou et al., ICCV 2021 (arXiv 2107.13118): blocks, a memory for each skip connection, an
    adversary whose representation scores. The numbers are ours or those of MemAE's public code.
    Raises `ConfigError`.
    """

    divisions: tuple[int, ...] = ()
    depth: int = 1
    items: int = 500
    temperature: float = 0.1
    shrink: float = 1.0
    entropy: float = 2e-4
    adversary: float = 0.0
    match: float = 0.1

    def __post_init__(self) -> None:
        if min((self.depth, self.items, *self.divisions)) < 1:
            raise ConfigError("blocks need divisions, depth and items of at least 1")
        ranges = {"(0, inf)": "temperature", "[0, inf)": "shrink entropy adversary match"}
        check_ranges(self, ranges)
