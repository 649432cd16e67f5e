"""A trainable backbone by its description: what a backbone file says, and a distillation asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fedvad.errors import ConfigError
from fedvad.features.families import builder_of
from fedvad.features.taps import check_taps

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Which network, tapped where.

    backbone: `tiny`, `mcunet_in3`, `mcunet_in4`, or any timm model name. layers: its taps, by its
    own count. options: of `tiny` alone, see `TinyConfig`. heads: output channels of a 1 x 1
    convolution after each tap; none when empty.
    """

    backbone: str
    layers: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    heads: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        backbone: str,
        layers: tuple[int, ...] | None = None,
        options: dict[str, Any] | None = None,
        heads: tuple[int, ...] = (),
    ) -> Architecture:
        """Checked, with default taps (strides 8 and 16) where none are given.

        Raises `ConfigError` for a backbone that cannot be trained, unknown layers or options.
        """
        if options and backbone != "tiny":
            raise ConfigError(f"options are those of a tiny student, not of {backbone}")
        if backbone == "tiny":
            from fedvad.features.tiny import TinyConfig

            tiny = TinyConfig.of(options or {})
            # all of them, so that a file does not depend on what is usual later
            options = {k: list(v) if type(v) is tuple else v for k, v in asdict(tiny).items()}
            chosen = check_taps(backbone, layers or (1, 2), range(len(tiny.widths)))
        else:
            chosen, _ = builder_of(backbone).trainable(backbone, layers)
        if heads and len(heads) != len(chosen):
            raise ConfigError(f"{len(chosen)} layers need as many heads, not {len(heads)}")
        return cls(backbone, chosen, dict(options or {}), tuple(heads))

    @classmethod
    def from_values(cls, values: Any) -> Architecture:
        """What `values` gave, checked; raises `ConfigError` for anything else."""
        try:
            numbers = [tuple(values[key]) for key in ("layers", "heads")]
            if not all(type(n) is int for part in numbers for n in part):
                raise TypeError("layers and heads are whole numbers")
            if not all(1 <= n <= 4096 for n in numbers[1]):
                raise TypeError("a head has 1 to 4096 channels")
            name, options = values["backbone"], dict(values["options"])
            if not isinstance(name, str):
                raise TypeError("the backbone is a name")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"no description of a backbone: {error}") from error
        return cls.of(name, numbers[0], options, numbers[1])

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        return found | {"layers": list(self.layers), "heads": list(self.heads)}

    def build(self) -> nn.Module:
        """The network with weights of no meaning: images (b, 3, S, S) to one map per layer."""
        from fedvad.features.modules import Headed

        network: nn.Module
        if self.backbone == "tiny":
            from fedvad.features.tiny import TinyConfig, TinyNet

            network = TinyNet(TinyConfig.of(self.options), self.layers)
        else:
            _, make = builder_of(self.backbone).trainable(self.backbone, self.layers)
            network = make()
        return Headed(network, self.heads) if self.heads else network
