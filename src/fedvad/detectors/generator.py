"""The memory generator: a small map from patch descriptors to memory space, equal at birth."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedvad.errors import MismatchError
from fedvad.memory.bank import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["Generator"]


@dataclass(frozen=True, eq=False)
class Generator:
    """Residual linear map G(p) = p + p W^T + b, for p (..., d).

    It starts as the identity at every site, because memories of differently initialised
    generators cannot be compared (image AUROC 0.53 against 0.99 in the specification's check),
    and generators never leave their sites. Source: FedDyMem specification, section 3.2 (ours).

    weight: (d, d) float32; bias: (d,) float32.
    """

    weight: FloatArray
    bias: FloatArray

    @classmethod
    def identity(cls, dim: int) -> Generator:
        """The common start, and the generator of a site that never trained."""
        return cls(np.zeros((dim, dim), np.float32), np.zeros(dim, np.float32))

    @property
    def is_identity(self) -> bool:
        """Whether G(p) = p."""
        return not self.weight.any() and not self.bias.any()

    def __call__(self, patches: FloatArray) -> FloatArray:
        """Embed (..., d) patches; raises `MismatchError` for another descriptor length."""
        if patches.shape[-1] != len(self.bias):
            raise MismatchError(
                f"generator expects {len(self.bias)} channels, descriptors have {patches.shape[-1]}"
            )
        if self.is_identity:
            return patches
        out: FloatArray = patches + patches @ self.weight.T + self.bias
        return out

    def hash(self) -> str:
        """16 hex digits over the parameters."""
        digest = hashlib.sha256(self.weight.tobytes())
        digest.update(self.bias.tobytes())
        return digest.hexdigest()[:16]

    def parameters(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Trainable copies of weight and bias."""
        import torch

        return (
            torch.from_numpy(self.weight.copy()).requires_grad_(),
            torch.from_numpy(self.bias.copy()).requires_grad_(),
        )
