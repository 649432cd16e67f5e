"""Which maps of a backbone are taken."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fedvad.errors import ConfigError
from fedvad.features.compat import import_timm
from fedvad.features.mcunet import MCUNET
from fedvad.features.names import BUNDLED

__all__ = ["check_taps", "default_taps", "timm_reductions"]


def timm_reductions(name: str) -> list[int]:
    """Strides of the maps that a timm model gives.

    Raises `ConfigError` for a name that timm does not know, or a model without maps.
    """
    timm = import_timm()
    if not timm.is_model(name):
        known = [*timm.list_models(), *MCUNET, "filterbank", BUNDLED]
        close = difflib.get_close_matches(name.split(".")[0], known, 5)
        hint = f" (close: {', '.join(close)})" if close else ""
        raise ConfigError(
            f"unknown backbone {name!r}{hint}; any timm model, mcunet_in3, mcunet_in4, {BUNDLED}, "
            "filterbank or a backbone file (.safetensors, of `fedvad distill`) is accepted"
        )
    try:
        return list(timm.create_model(name, features_only=True).feature_info.reduction())
    except Exception as error:  # timm raises RuntimeError, AttributeError, AssertionError, ...
        raise ConfigError(f"timm cannot give feature maps of {name!r}: {error}") from error


def default_taps(reductions: Sequence[int]) -> tuple[int, ...]:
    """The taps of strides 8 and 16, PatchCore's choice (layer2 + layer3 of a ResNet)."""
    taps = [
        max(i for i, r in enumerate(reductions) if r == stride)
        for stride in (8, 16)
        if stride in reductions
    ]
    return tuple(taps) if taps else tuple(range(max(0, len(reductions) - 2), len(reductions)))


def check_taps(name: str, taps: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    """The taps in order, each once; raises `ConfigError` for none or unknown ones."""
    chosen = tuple(sorted(set(taps)))
    unknown = [t for t in chosen if t not in known]
    if unknown or not chosen:
        raise ConfigError(f"{name} has layers {list(known)}, not {unknown}")
    return chosen
