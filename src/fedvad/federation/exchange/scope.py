"""Weight Scope Alignment: layers of models that will be averaged keep weights of one scale.

Source: Xu et al., arXiv 2408.12237. The paper's equations were not available: that a layer's
scope is the mean and standard deviation of its weights, a KL divergence to a target, and a fusion
of several scopes into that target are theirs; the formulas below are ours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, MismatchError, check_choice

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Fusion = Literal["average", "average_var", "mixture", "init", "global_model"]
Direction = Literal["forward", "reverse", "symmetric"]
Reduce = Literal["sum", "mean", "numel"]
_EPS = 1e-8
_SIGMA_MIN = 1e-6

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
    direction: `forward` is KL(current, target). reduce: over layers; `numel` weighs by size.
    ema: share of the previous target that is kept.
    include, exclude: shell patterns of parameter names; biases and vectors never take part.
    min_numel: smaller layers are left out. include_last_layer: whether the last one takes part.
    """

    strength: float = 0.01
    fusion: Fusion = "average"
    direction: Direction = "forward"
    reduce: Reduce = "sum"
    ema: float = 0.0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    min_numel: int = 64
    include_last_layer: bool = True

    def __post_init__(self) -> None:
        for value, kind, name in (
            (self.fusion, Fusion, "fusion"),
            (self.direction, Direction, "direction"),
            (self.reduce, Reduce, "reduce"),
        ):
            check_choice(f"WSA {name}", value, kind)
        if self.strength < 0 or not 0 <= self.ema < 1:
            raise ConfigError("WSA needs strength >= 0 and ema in [0, 1)")


def layers_in_scope(shapes: Mapping[str, Sequence[int]], config: WSAConfig) -> list[str]:
    """Names of the tables of weights (two dimensions or more) that take part, in order."""
    tables = [name for name, shape in shapes.items() if len(shape) >= 2]
    if not config.include_last_layer:
        tables = tables[:-1]
    return [
        name
        for name in tables
        if prod(shapes[name]) >= config.min_numel
        and any(fnmatchcase(name, pattern) for pattern in config.include)
        and not any(fnmatchcase(name, pattern) for pattern in config.exclude)
    ]


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
    """lambda * R: divergence of each layer's scope from its target, a differentiable scalar.

    Layers whose target has no spread are skipped. Its gradient for a weight w of a layer of n is
    (lambda / n) [(mu - mu*) / sigma*^2 + (w - mu) (1 / sigma*^2 - 1 / sigma^2)] (forward, sum):
    zero when mean and variance match, whatever the weights. Raises `MismatchError` when the
    target is of another model.
    """
    import torch

    terms, sizes = [], []
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
        forward = 0.5 * ((variance + shift) / goal - 1 - (variance / goal).log())
        reverse = 0.5 * ((goal + shift) / variance - 1 + (variance / goal).log())
        terms.append(
            {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}[
                config.direction
            ]
        )
        sizes.append(count)
    if not terms:
        return torch.zeros(())
    stacked = torch.stack(terms)
    if config.reduce == "numel":
        weights = torch.tensor(sizes, dtype=stacked.dtype, device=stacked.device)
        return config.strength * (stacked * weights).sum() / weights.sum()
    return config.strength * (stacked.sum() if config.reduce == "sum" else stacked.mean())


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
    for name, (old_mean, old_deviation, count) in before.items():
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
        keep = config.ema
        fused[name] = (
            keep * old_mean + (1 - keep) * mean,
            keep * old_deviation + (1 - keep) * deviation,
            count,
        )
    return fused
