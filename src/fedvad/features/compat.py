"""Import timm also beside a CPU-only torch whose registry torchvision was built for CUDA."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType


def import_timm() -> ModuleType:
    """The timm module.

    timm imports torchvision, and package registries carry only its CUDA build. Beside a CPU-only
    torch that build cannot load its operators and fails at import, because it registers shapes
    for operators that then do not exist. fedvad calls none of them, so declaring the two names
    first lets a plant's PC do without gigabytes of CUDA libraries.
    """
    import torch

    if not _declared and torch.version.cuda is None and _torchvision_is_cuda():
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(signature)  # type: ignore[no-untyped-call]
        _declared.append(library)
    return importlib.import_module("timm")


# a declaration vanishes with the object that made it
_declared: list[object] = []


def _torchvision_is_cuda() -> bool:
    """Whether the installed torchvision says so in its version file, read without importing it."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    return re.search(r"__version__\s*=\s*['\"][^'\"]*\+cu\d", text) is not None
