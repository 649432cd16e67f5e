"""Weight Scope Alignment: layers of models that will be averaged keep weights of one scale.

Source: Xu et al., arXiv 2408.12237. The paper's equations were not available: that a layer's
scope is the mean and standard deviation of its weights, a KL divergence to a target, and a fusion
of several scopes into that target are theirs; the formulas below are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MismatchError, check_choice

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Fusion = Literal["average", "average_var", "mixture", "init", "global_model"]
_EPS = 1e-8
_SIGMA_MIN = 1e-6
# last names of parameters that are vectors to be recalled: they are no layer's weights
_MEMORIES = frozenset({"items", "memory", "common", "own"})

# mean, standard deviation and number of weights of each layer, by parameter name
Scope = dict[str, tuple[float, float, int]]


@dataclass(frozen=True)
class WSAConfig:
    """Options of weight-scope alignment.

    strength: lambda of the penalty; 0 is plain averaging, bit for bit.
    fusion: how the sites' scopes become the target. `average` of means and deviations (the
        Wasserstein barycentre); `average_var` of means and variances; `mixture` matches the
        moments of all sites' weights together; `init` keeps the scope of the common start;
        `global_model` takes that of the averaged model, whose deviation shrinks round by round.
    min_numel: smaller layers are left out, as biases, vectors and the items of memories are.
    """

    strength: float = 0.01
    fusion: Fusion = "average"
    min_numel: int = 64

    def __post_init__(self) -> None:
        check_choice("WSA fusion", self.fusion, Fusion)
        if self.strength < 0:
            raise ConfigError("WSA needs strength >= 0")


def layers_in_scope(shapes: Mapping[str, Sequence[int]], config: WSAConfig) -> list[str]:
    """Names of the tables of weights (two dimensions or more) that take part, in order."""
    return [
        name
        for name, shape in shapes.items()
        if len(shape) >= 2 and prod(shape) >= config.min_numel and not _of_memory(name)
    ]


def _of_memory(name: str) -> bool:
    *_, last = (part for part in name.split(".") if not part.isdigit())
    return last in _MEMORIES


def scope_of(weights: Mapping[str, npt.NDArray[np.floating]], config: WSAConfig) -> Scope:
    """The scope of a model from its weights by name, computed in float64."""
    shapes = {name: array.shape for name, array in weights.items()}
    scope = {}
    for name in layers_in_scope(shapes, config):
        values = np.asarray(weights[name], dtype=np.float64)
        scope[name] = (float(values.mean()), float(np.sqrt(values.var() + _EPS**2)), values.size)
    return scope


def scope_penalty(
    parameters: Mapping[str, torch.Tensor], target: Scope, config: WSAConfig
) -> torch.Tensor:
    """lambda * sum over layers of KL(scope, target): a differentiable scalar.

    Layers whose target has no spread are skipped. Its gradient for a weight w of a layer of n is
    (lambda / n) [(mu - mu*) / sigma*^2 + (w - mu) (1 / sigma*^2 - 1 / sigma^2)]: zero when mean and
    variance match, whatever the weights. Raises `MismatchError` when the target is of another
    model.
    """
    import torch

    terms = []
    for name, (mean, deviation, count) in target.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.numel() != count:
            raise MismatchError(f"the scope target has a layer {name} of {count} weights, not here")
        if deviation < _SIGMA_MIN:
            log.debug("layer %s has no spread to align with", name)
            continue
        values = parameter.double() if parameter.dtype == torch.float64 else parameter.float()
        mu = values.mean()
        variance = (values - mu).square().mean().clamp_min(_SIGMA_MIN**2)
        goal = deviation**2
        shift = (mu - mean).square()
        terms.append(0.5 * ((variance + shift) / goal - 1 - (variance / goal).log()))
    return config.strength * torch.stack(terms).sum() if terms else torch.zeros(())


def fuse_scopes(
    scopes: Sequence[Scope],
    shares: Sequence[float],
    config: WSAConfig,
    *,
    before: Scope,
    averaged: Scope,
) -> Scope:
    """The next target from the sites' scopes and their (positive) shares.

    before: the target so far. averaged: the scope of the averaged model, for `global_model`.
    Raises `MismatchError` when the scopes are of different models.
    """
    if any({n: s[2] for n, s in scope.items()} != {n: s[2] for n, s in before.items()}
           for scope in scopes):  # fmt: skip
        raise MismatchError("sites sent scopes of different layers")
    if config.fusion == "init" or not scopes:
        return dict(before)
    p = np.asarray(shares, dtype=np.float64)
    p = p / p.sum()
    fused = {}
    for name, (_, _, count) in before.items():
        means = np.array([scope[name][0] for scope in scopes])
        deviations = np.array([scope[name][1] for scope in scopes])
        mean = float(p @ means)
        if config.fusion == "global_model":
            mean, deviation = averaged[name][0], averaged[name][1]
        elif config.fusion == "average":
            deviation = float(p @ deviations)
        elif config.fusion == "average_var":
            deviation = float(np.sqrt(p @ deviations**2))
        else:
            deviation = float(np.sqrt(max(p @ (deviations**2 + means**2) - mean**2, 0.0)))
        fused[name] = (mean, deviation, count)
    return fused
