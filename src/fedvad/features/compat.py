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

    if (
        torch.version.cuda is None
        and "torchvision::nms" not in torch._C._dispatch_get_all_op_names()
    ):
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(signature)  # type: ignore[no-untyped-call]
        _keep_alive.append(library)
    return importlib.import_module("timm")


# the declarations vanish with the object that made them
_keep_alive: list[object] = []
