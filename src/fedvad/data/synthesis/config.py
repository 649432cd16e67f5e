"""Options of synthetic defects, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedvad.errors import ConfigError, check_choice

KINDS: tuple[str, ...] = ("texture", "cutpaste", "scratch", "stain", "blur", "warp")

ForegroundFunction = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
Side = Literal["auto", "bright", "dark"]
Source = Literal["auto", "textures", "others", "procedural"]

# The fall-back changes every value by 1.5 times as much, which any value has room for up to 85.
_MOST_CHANGE = 64.0


@dataclass(frozen=True)
class SynthesisConfig:
    """Which defects are drawn, how large, how strong and where.

    kinds: name to weight; a kind is drawn with its share of the sum. area: least and most share of
    the foreground that a defect covers, drawn log-uniformly; min_pixels goes before it.
    min_change: least mean absolute change inside the mask, in grey levels over all channels.
    beta: least and most share of the original that stays under a texture, scratch or stain
    (the beta of DRAEM's public code); the other kinds replace it.
    foreground: `none` (the whole image), `otsu`, a grey level 0 to 254 as threshold, or a function
    from uint8 (H, W, 3) to bool (H, W). side: which side of the threshold is the object, `auto`
    takes the one that fills less of the image's border.
    source: where the content of a `texture` comes from; `auto` takes the textures given, else the
    other images given, else draws one.

    Source: beta and Perlin masks from DRAEM (Zavrtanik et al., ICCV 2021, section 3.3), cut-paste
    from Li et al. (CVPR 2021); everything else is ours. Raises `ConfigError`.
    """

    kinds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    area: tuple[float, float] = (0.003, 0.06)
    min_pixels: int = 16
    min_change: float = 8.0
    beta: tuple[float, float] = (0.0, 0.8)
    foreground: Literal["none", "otsu"] | int | ForegroundFunction = "none"
    side: Side = "auto"
    source: Source = "auto"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ConfigError(f"unknown kind of defect {unknown[0]!r}; choose from {KINDS}")
        weights = list(self.kinds.values())
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise ConfigError(f"kinds need weights >= 0, not all of them 0, got {dict(self.kinds)}")
        low, high = self.area
        if not 0 < low <= high <= 0.5:
            raise ConfigError(
                f"area must rise within (0, 0.5], like (0.003, 0.06), not {self.area}"
            )
        low, high = self.beta
        if not 0 <= low <= high < 1:
            raise ConfigError(f"beta must rise within [0, 1), like (0, 0.8), not {self.beta}")
        if self.min_pixels < 1:
            raise ConfigError(f"min_pixels must be at least 1, not {self.min_pixels}")
        if not 0 < self.min_change <= _MOST_CHANGE:
            raise ConfigError(
                f"min_change must lie in (0, {_MOST_CHANGE:g}] grey levels, not {self.min_change}"
            )
        check_choice("side", self.side, Side)
        check_choice("source", self.source, Source)
        if isinstance(self.foreground, int):
            if not 0 <= self.foreground <= 254:
                raise ConfigError(
                    f"a foreground threshold must be a grey level 0 to 254, not {self.foreground}"
                )
        elif not callable(self.foreground) and self.foreground not in ("none", "otsu"):
            raise ConfigError(
                f"unknown foreground {self.foreground!r}; choose 'none', 'otsu', a grey level or "
                "a function"
            )
