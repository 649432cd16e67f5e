"""What of the aligners a student keeps: heads by which its distances are those that it learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedvad.features.modules import Headed

if TYPE_CHECKING:
    from fedvad.distillation.masked import MaskedHeads
    from fedvad.features.architecture import Architecture


def metric_root(matrix: Tensor) -> Tensor:
    """(M^T M)^(1/2) of M (t, s): the symmetric (s, s) matrix H with |H x| = |M x| for every x."""
    values, vectors = torch.linalg.eigh(matrix.double().T @ matrix.double())
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root.to(matrix.dtype)


@torch.no_grad()
def fold_heads(
    architecture: Architecture, student: nn.Module, heads: MaskedHeads
) -> tuple[Architecture, nn.Module]:
    """The student with a 1 x 1 convolution after each tap, of as many channels as the tap.

    Nearest neighbours in its features are those in the aligned features, in the teacher's own
    units, at the size of the student's: A(S) = M S + b has the distances of H S, with H the root
    of M^T M. Several teacher levels on one tap count together.
    """
    taps: list[list[Tensor]] = [[] for _ in architecture.layers]
    for level, tap in heads.paired():
        scaled = level.spread * level.aligner.weight.flatten(1)
        taps[tap].append(scaled.cpu())
    roots = [metric_root(torch.cat(rows)) for rows in taps]
    folded = replace(architecture, heads=tuple(len(root) for root in roots))
    network = Headed(student.cpu(), folded.heads)
    for head, root in zip(network.heads, roots, strict=True):
        assert isinstance(head, nn.Conv2d)  # as `Headed` makes them
        head.weight.copy_(root[:, :, None, None])
    return folded, network.eval()
