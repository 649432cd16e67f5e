"""Which maps of a backbone are taken."""

from __future__ import annotations

from collections.abc import Sequence

from fedvad.errors import ConfigError, join_names


def default_taps(strides: Sequence[int]) -> tuple[int, ...]:
    """The taps to take where nobody chooses, from the stride of each map.

    Strides 8 and 16, PatchCore's choice (layer2 + layer3 of a ResNet). A plain transformer, whose
    maps all have one stride, is tapped at half and three quarters of its depth: later blocks serve
    the task that it was trained for.
    """
    depth = len(strides)
    if depth > 3 and len(set(strides)) == 1:
        return depth // 2 - 1, 3 * depth // 4 - 1
    taps = [
        max(i for i, r in enumerate(strides) if r == stride)
        for stride in (8, 16)
        if stride in strides
    ]
    return tuple(taps) if taps else tuple(range(max(0, depth - 2), depth))


def check_taps(name: str, taps: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    """The taps in order, each once; raises `ConfigError` for none or unknown ones."""
    chosen = tuple(sorted(set(taps)))
    unknown = [t for t in chosen if t not in known]
    if unknown or not chosen:
        raise ConfigError(f"{name} has layers {join_names(known)}, not {join_names(unknown)}")
    return chosen
