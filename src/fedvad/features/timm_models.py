"""timm's models as feature networks: what they give, how they are built, which sizes they take."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fedvad.data.views import SIDES
from fedvad.errors import ConfigError
from fedvad.features.compat import import_timm
from fedvad.features.families import own_names
from fedvad.features.taps import default_taps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TimmModel:
    """What a timm model gives when it is tapped, found without its weights.

    strides, channels: of the map of each tap; taps count from 0, blocks in a plain transformer,
    stages in other networks. patch: pixels that the image's side must be a multiple of; 1 for
    convolutions. native: side in pixels that the published weights were trained at. channels_last:
    whether its maps are (h, w, c), which `build` turns.
    """

    name: str
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    patch: int
    native: int
    channels_last: bool

    @property
    def taps(self) -> tuple[int, ...]:
        """The default taps."""
        return default_taps(self.strides)

    def build(self, taps: Sequence[int], **options: Any) -> torch.nn.Module:
        """The network, images (b, 3, S, S) to a list of maps (b, c, h, w), at its native size.

        options: for `timm.create_model`. Values are random unless `pretrained` is among them.
        """
        if self.channels_last:
            options["feature_cls"] = "getter"  # timm's wrapper that can turn maps
        network: torch.nn.Module = import_timm().create_model(
            self.name, features_only=True, out_indices=tuple(taps), **options
        )
        return network

    def sizes(self) -> str:
        """The image sizes that fit, in words.

        Found by trying a few: networks that take two odd multiples of their patch take them all.
        """
        step = self.patch if self.patch > 1 else 2
        tried = [step * (64 // step + 2), step * (128 // step + 1)]
        if not any(_refusal(self, side) for side in tried):
            return "any" if self.patch == 1 else f"multiples of {self.patch}"
        fit = [side for side in (128, 192, 256, 384, 512) if not _refusal(self, side)]
        return ", ".join(map(str, sorted({*fit, self.native})))

    def check_side(self, side: int) -> None:
        """Raise `ConfigError`, naming sizes that fit, for images that the network cannot take.

        Takes a fraction of a second: shapes are computed without values.
        """
        if side % self.patch:
            low, high = side // self.patch * self.patch, (side // self.patch + 1) * self.patch
            fit = [s for s in (low, high) if SIDES[0] <= s <= SIDES[1]]
            raise ConfigError(
                f"{self.name} cannot take images of {side} pixels, which its patches of "
                f"{self.patch} do not divide: use --image-size {_any_of(fit)}"
            )
        reason = _refusal(self, side)
        if reason:
            steps = {self.patch, 32, 64, 256} - {1}
            near = {n // s * s for s in steps for n in (side, side + s)} | {self.native}
            fit = [s for s in sorted(near) if SIDES[0] <= s <= SIDES[1] and not _refusal(self, s)]
            ways = f"use --image-size {_any_of(fit)}" if fit else "use another --backbone"
            raise ConfigError(f"{self.name} cannot take images of {side} pixels{reason}: {ways}")


@cache
def describe(name: str) -> TimmModel:
    """What the timm model `name` gives.

    Raises `ConfigError` for a name that timm does not know, or a model without maps.
    """
    timm = import_timm()
    if not timm.is_model(name):
        known = [*timm.list_models(), *own_names()]
        close = difflib.get_close_matches(name.split(".")[0], known, 5)
        hint = f" (close: {', '.join(close)})" if close else ""
        raise ConfigError(
            f"unknown backbone {name!r}{hint}; any timm model, {', '.join(own_names())} or a "
            "backbone file (.safetensors, of `fedvad distill`) is accepted"
        )
    try:
        network = skeleton(lambda: timm.create_model(name, features_only=True))
    except Exception as error:  # timm raises RuntimeError, AttributeError, AssertionError, ...
        raise ConfigError(f"timm cannot give feature maps of {name!r}: {error}") from error
    inner = getattr(network, "model", None)
    # a getter's own list has only the maps that it was asked for
    every = getattr(inner, "feature_info", None)
    info = every if isinstance(every, list) else network.feature_info.get_dicts()  # type: ignore[operator, union-attr]
    return TimmModel(
        name,
        tuple(int(entry["reduction"]) for entry in info),
        tuple(int(entry["num_chs"]) for entry in info),
        _patch(network),
        int(timm.get_pretrained_cfg(name).input_size[-1]),
        getattr(network, "output_fmt", None) == "NHWC",
    )


def skeleton(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """What `make` builds, where possible without memory or values for its parameters."""
    import torch

    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):  # older models ask for values while they are built
        return make()


def resize(network: torch.nn.Module, sides: tuple[int, int]) -> None:
    """Bring position codes and windows to images of (height, width) pixels, in place, as timm does.

    Networks without these stay as they are.
    """
    set_input_size = getattr(getattr(network, "model", None), "set_input_size", None)
    if set_input_size is not None:
        set_input_size(img_size=sides)


@cache  # building a network takes longer than most of what is done with it
def _refusal(model: TimmModel, side: int) -> str:
    """Why images of that side do not fit, as a continuation; empty when they do."""
    import torch

    network = skeleton(lambda: model.build(model.taps)).eval()
    device = next(network.parameters()).device
    try:
        resize(network, (side, side))
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side, device=device))
    except NotImplementedError:  # no sizes without values for one of its operations
        return ""
    except (AssertionError, RuntimeError, ValueError) as error:
        # torch's own words are about tensors that nobody knows
        words = str(error).splitlines() if isinstance(error, AssertionError) else []
        return f" ({words[0]})" if words else ", only some sizes"
    return ""


def _patch(network: torch.nn.Module) -> int:
    for module in (getattr(network, "model", network), network):
        size = getattr(getattr(module, "patch_embed", None), "patch_size", 1)
        if size != 1:
            return int(max(size) if isinstance(size, tuple | list) else size)
    return 1


def _any_of(sides: Sequence[int]) -> str:
    *others, last = map(str, sides)
    return f"{', '.join(others)} or {last}" if others else last
