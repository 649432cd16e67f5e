"""Masked pre-training of HyperSIGMA's branches: to draw the tokens that were hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvad.spectral.attention import Block
from fedvad.spectral.sigma import Branch, SigmaNet

__all__ = ["Decoder", "pretrain"]

_RATIOS = {"spatial": 0.75, "spectral": 0.25}


def pretrain(
    network: SigmaNet, features: Tensor, spectra: Tensor, *, epochs: int, rate: float
) -> list[float]:
    """Train the branches of `network` to fill in what is hidden of tiles of a scene.

    Three quarters of the pixels, and a quarter of the bands, are hidden; full attention, since
    what is left lies on no grid. Order and choice come from torch's random state.

    Parameters
    ----------
    network : SigmaNet
        Changed in place, and left in eval mode.
    features, spectra : (n, ..., side, side) float tensors
        Tiles as the two branches see them: see `SigmaNet`.
    epochs : int
        Passes over the tiles; 0 for none.
    rate : float
        Of AdamW.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Examples
    --------
    >>> from fedvad.spectral.sigma import SIZES
    >>> network = SigmaNet(5, 4, SIZES["tiny"])
    >>> tiles = torch.randn(2, 5, 4, 4), torch.randn(2, 40, 4, 4)
    >>> len(pretrain(network, *tiles, epochs=2, rate=1e-3))
    2

    Source: He et al. 2022, in HyperSIGMA's two forms.
    """
    branches = {"spatial": (network.spatial, network.pixels(features))}
    if network.spectral is not None:
        branches["spectral"] = (network.spectral, network.bands(spectra))
    decoders = {name: Decoder(branch) for name, (branch, _) in branches.items()}
    modules = nn.ModuleList([*decoders.values(), *(branch for branch, _ in branches.values())])
    network.eval()  # as in the public code no part of a block is left out here
    optimiser = torch.optim.AdamW(modules.parameters(), lr=rate, weight_decay=0.05)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for number in torch.randperm(len(features)).tolist():
            optimiser.zero_grad()
            loss = torch.zeros(())
            for name, (branch, tokens) in branches.items():
                one = tokens[number : number + 1]
                loss = loss + decoders[name].loss(branch, one, _RATIOS[name])
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.item()
        losses.append(total / len(features))
    return losses


class Decoder(nn.Module):
    """One block and a layer that draw hidden tokens from what a branch made of the others.

    >>> from fedvad.spectral.sigma import SIZES
    >>> branch = Branch(5, (4, 4), SIZES["tiny"])
    >>> Decoder(branch).loss(branch, torch.randn(2, 16, 5), 0.75).shape
    torch.Size([])
    """

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        size = branch.size
        self.hidden = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.block = Block(size.dim, heads=size.heads, points=size.points)
        self.draw = nn.Linear(size.dim, branch.embed.in_features)

    def loss(self, branch: Branch, tokens: Tensor, ratio: float) -> Tensor:
        """Mean squared error of the hidden share `ratio` of tokens (b, n, length)."""
        count, number = tokens.shape[:2]
        order = torch.rand(count, number).argsort(1)
        kept = order[:, : max(1, round(number * (1 - ratio)))]
        seen = branch.seen(tokens, kept)
        places = kept[:, :, None].expand_as(seen)
        everything = self.hidden.expand(count, number, -1).scatter(1, places, seen)
        drawn = self.draw(self.block(everything + branch.places, branch.grid, sparse=False))
        hidden = torch.ones(count, number, dtype=torch.bool).scatter(1, kept, False)
        return F.mse_loss(drawn[hidden], tokens[hidden])
