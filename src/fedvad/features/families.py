"""The families of backbones, one entry each: what to expect of them, and who builds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import nn

    from fedvad.features.backbones import Backbone

_TIMM = "timm_backbone"

_CONV = "any"
_OWN = "Apache-2.0 or MIT, see the model's card"
_HUB = "timm on the Hugging Face hub, or --weights"


@dataclass(frozen=True)
class Family:
    """What to expect of the members of one family, and how a file of their weights is recognised.

    names: patterns of the names that `--backbone` takes. example: a small member; layers, strides
    and dim (channels of a descriptor) are its at the default taps. sizes: image sizes that fit.
    weights: where they come from. licence: of the usual weights. mark: regular expression of a
    name that only this family's files hold. variants: timm models that a file is compared with.
    module: of this folder, a `Builder`. brings_weights: whether its members need none from anyone.
    """

    name: str
    names: tuple[str, ...]
    example: str
    layers: tuple[int, ...]
    strides: tuple[int, ...]
    dim: int
    sizes: str = _CONV
    weights: str = _HUB
    licence: str = _OWN
    mark: str = ""
    variants: tuple[str, ...] = ()
    module: str = _TIMM
    brings_weights: bool = False


class Builder(Protocol):
    """The module that builds the backbones of a family."""

    def build(
        self,
        name: str,
        weights: Path | None,
        layers: Sequence[int] | None,
        sides: tuple[int, int] | None,
    ) -> Backbone:
        """See `backbones.build_backbone`; sides: height and width of the images to come."""
        ...

    def trainable(
        self, name: str, layers: tuple[int, ...] | None
    ) -> tuple[tuple[int, ...], Callable[[], nn.Module]]:
        """The taps of a network to be distilled, and what makes it with weights of no meaning.

        Raises `ConfigError` for unknown layers, and where there is nothing to train.
        """
        ...


FAMILIES = (
    Family(
        "fedvad-tiny", ("fedvad-tiny",), "fedvad-tiny", (1, 2), (8, 16), 192,
        weights="comes with fedvad", licence="Apache-2.0",
        module="backbone_file", brings_weights=True,
    ),
    Family(
        "filter bank", ("filterbank",), "filterbank", (0, 1, 2), (4, 8, 16), 72,
        sizes="multiples of 16", weights="needs none", licence="Apache-2.0",
        module="filterbank", brings_weights=True,
    ),
    Family(
        "spectral", ("spectral",), "spectral", (0,), (1,), 20, sizes="cubes of bands, of any size",
        weights="of the sites' own normal pixels", licence="Apache-2.0", module="bands",
    ),
    Family(
        "MCUNet", ("mcunet_in3", "mcunet_in4"), "mcunet_in3", (3, 6, 9), (4, 8, 16), 80,
        weights="--weights", licence="MIT", module="mcunet",
    ),
    Family(
        "ResNet", ("resnet*", "resnext*", "wide_resnet*", "seresnet*"), "resnet18",
        (2, 3), (8, 16), 384, mark=r"^layer1\.0\.conv1\.weight",
        variants=("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
                  "wide_resnet50_2", "wide_resnet101_2"),
    ),
    Family(
        "RegNet", ("regnetx*", "regnety*", "regnetz*"), "regnety_002", (2, 3), (8, 16), 208,
        mark=r"^s1\.b1\.conv1\.conv\.weight|^trunk_output\.",
        variants=("regnety_002", "regnety_004", "regnety_008", "regnety_016", "regnety_032",
                  "regnetx_002", "regnetx_008", "regnetx_016", "regnetx_032"),
    ),
    Family(
        "EfficientNet", ("efficientnet*", "tf_efficientnet*", "mnasnet*"), "efficientnet_b0",
        (2, 3), (8, 16), 152, mark=r"^blocks\.1\.0\.conv_pw\.weight",
        variants=("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
                  "efficientnet_b4", "efficientnet_b5", "tf_efficientnetv2_b0",
                  "tf_efficientnetv2_s", "efficientnet_lite0"),
    ),
    Family(
        "MobileNet", ("mobilenetv2*", "mobilenetv3*", "mobilenetv4*"), "mobilenetv3_small_050",
        (2, 3), (8, 16), 40, mark=r"^conv_stem\.weight",
        variants=("mobilenetv2_050", "mobilenetv2_100", "mobilenetv2_140", "mobilenetv3_small_050",
                  "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
                  "mobilenetv4_conv_medium", "mobilenetv4_conv_large"),
    ),
    Family(
        "ConvNeXt (v1, v2, DINOv3)", ("convnext*",), "convnext_atto", (1, 2), (8, 16), 240,
        licence=f"{_OWN}; v2 CC-BY-NC-4.0; DINOv3 its own",
        mark=r"^stages[._]0\.blocks\.0\.conv_dw|^downsample_layers\.",
        variants=("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano",
                  "convnext_tiny", "convnext_small", "convnext_base", "convnext_large",
                  "convnextv2_atto", "convnextv2_nano", "convnextv2_tiny", "convnextv2_base"),
    ),
    Family(
        "Swin (v1, v2)", ("swin_*", "swinv2_*_window*"), "swin_tiny_patch4_window7_224",
        (1, 2), (8, 16), 576, sizes="multiples of 4", licence="MIT",
        mark=r"^layers[._]0\.blocks\.0\.attn\.(relative_position_bias_table|cpb_mlp)",
        variants=("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224",
                  "swin_base_patch4_window7_224", "swin_base_patch4_window12_384",
                  "swinv2_tiny_window8_256", "swinv2_small_window8_256",
                  "swinv2_base_window8_256"),
    ),
    Family(
        "ViT, DeiT, CLIP, BEiT", ("vit_*", "deit*", "beit*"), "vit_tiny_patch16_224",
        (5, 8), (16, 16), 384, sizes="multiples of the patch in the name",
        mark=r"^blocks\.0\.attn\.qkv\.weight",
        variants=("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
                  "vit_small_patch32_224", "vit_base_patch32_224", "vit_base_patch8_224",
                  "vit_large_patch16_224"),
    ),
    Family(
        "DINOv2", ("vit_*_dinov2",), "vit_small_patch14_dinov2", (5, 8), (14, 14), 768,
        sizes="multiples of 14", licence="Apache-2.0", mark=r"^blocks\.0\.ls1\.gamma",
        variants=("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2",
                  "vit_base_patch14_dinov2", "vit_base_patch14_reg4_dinov2",
                  "vit_large_patch14_dinov2", "vit_large_patch14_reg4_dinov2"),
    ),
    Family(
        "DINOv3", ("vit_*_dinov3",), "vit_small_patch16_dinov3", (5, 8), (16, 16), 768,
        sizes="multiples of 16", licence="DINOv3 licence of Meta", mark=r"^blocks\.0\.gamma_1",
        variants=("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3",
                  "vit_base_patch16_dinov3", "vit_large_patch16_dinov3"),
    ),
)  # fmt: skip


# of `fedvad distill`, or of anyone
FILE = Family(
    "backbone file", ("*.safetensors", "file:*"), "mine.safetensors", (), (), 0,
    weights="in the file", licence="its maker's", module="backbone_file", brings_weights=True,
)  # fmt: skip


def family_of(name: str) -> Family | None:
    """The family of a backbone that is not timm's; None for any of timm."""
    for family in (*FAMILIES, FILE):
        if family.module != _TIMM and any(fnmatchcase(name, each) for each in family.names):
            return family
    return None


def own_names() -> list[str]:
    """Names that `--backbone` takes and timm does not know."""
    return [name for family in FAMILIES if family.module != _TIMM for name in family.names]


def builder_of(name: str) -> Builder:
    """Who builds the backbone of a name; imported when first asked for."""
    family = family_of(name)
    module = _TIMM if family is None else family.module
    return cast(Builder, import_module(f"{__package__}.{module}"))
