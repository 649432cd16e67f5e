"""Import timm also beside a CPU-only torch whose registry torchvision was built for CUDA."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["import_timm"]


def import_timm() -> ModuleType:
    """The timm module.

    timm imports torchvision, and package registries carry only its CUDA build. Beside a CPU-only
    torch that build cannot load its operators and fails at import, because it registers shapes
    for operators that then do not exist. fedvad calls none of them, so declaring the two names
    first lets a plant's PC do without gigabytes of CUDA libraries.
    """
    import torch

    if torch.version.cuda is None and not _has_operator("nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep_alive.append(library)
        try:
            return importlib.import_module("timm")
        except RuntimeError:
            pass  # a build that does bring its operators: fall through to the plain import
    return importlib.import_module("timm")


# the declarations vanish with the object that made them
_keep_alive: list[object] = []


def _has_operator(name: str) -> bool:
    import torch

    return (
        bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", "CPU"))
        if (f"torchvision::{name}" in torch._C._dispatch_get_all_op_names())
        else False
    )
