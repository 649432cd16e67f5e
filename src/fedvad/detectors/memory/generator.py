"""The memory generator: a small map from patch descriptors to memory space, equal at birth."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedvad.errors import ArtefactError, MemoryBankError, MismatchError
from fedvad.memory.bank import FloatArray, MemoryBank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Generator:
    """Residual linear map G(p) = p + p W^T + b, for p (..., d).

    It starts as the identity at every site, because memories of differently initialised
    generators cannot be compared (image AUROC 0.53 against 0.99 in the specification's check),
    and generators never leave their sites. Source: FedDyMem specification, section 3.2 (ours).

    weight: (d, d) float32; bias: (d,) float32. Raises `MemoryBankError` for other shapes and for
    values that are not finite.
    """

    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        dim = len(self.bias) if self.bias.ndim == 1 else 0
        if self.weight.shape != (dim, dim) or self.bias.shape != (dim,):
            raise MemoryBankError(
                f"a generator has a square weight and a bias of its side, not shapes "
                f"{self.weight.shape} and {self.bias.shape}"
            )
        for name, array in (("weight", self.weight), ("bias", self.bias)):
            if not np.isfinite(array).all():
                raise MemoryBankError(f"a generator's {name} holds NaN or infinity")

    @classmethod
    def identity(cls, dim: int) -> Generator:
        """The common start, and the generator of a site that never trained."""
        return cls(np.zeros((dim, dim), np.float32), np.zeros(dim, np.float32))

    @property
    def is_identity(self) -> bool:
        """Whether G(p) = p."""
        return not self.weight.any() and not self.bias.any()

    def __call__(self, patches: FloatArray) -> FloatArray:
        """Embed (..., d) patches.

        Raises `MismatchError` for another descriptor length, `ArtefactError` where the result is
        beyond float32: no score could be made of it.
        """
        if patches.shape[-1] != len(self.bias):
            raise MismatchError(
                f"generator expects {len(self.bias)} channels, descriptors have {patches.shape[-1]}"
            )
        if self.is_identity:
            return patches
        with np.errstate(over="ignore", invalid="ignore"):
            out: FloatArray = patches + patches @ self.weight.T + self.bias
        if not np.isfinite(out).all():
            raise ArtefactError(
                "the generator of this site gives values beyond float32: its run is damaged, or "
                "its training diverged; train again"
            )
        return out

    def embedded(self, bank: MemoryBank) -> MemoryBank:
        """A memory of descriptors as this generator's site sees it; spreads stay those there."""
        return bank if self.is_identity else replace(bank, vectors=self(bank.vectors))

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
