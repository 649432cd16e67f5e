"""fedvad's detectors as models of anomalib: `--model fedvad.integrations.anomalib.FedDyMem`.

Needs the extra `anomalib`. The rest of fedvad never imports this package.
"""

from __future__ import annotations

from fedvad.features.compat import import_timm

# anomalib imports torchvision, which needs this with a CPU-only torch
import_timm()

try:
    from fedvad.integrations.anomalib.models import FedDyMem, PatchCore
    from fedvad.integrations.anomalib.post_processor import NormalOnlyPostProcessor
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in {"anomalib", "lightning"}:
        raise
    raise ModuleNotFoundError(
        f"the anomalib plugin needs anomalib ({error}): pip install 'fedvad[anomalib]'",
        name=error.name,
    ) from error

__all__ = ["FedDyMem", "NormalOnlyPostProcessor", "PatchCore"]
