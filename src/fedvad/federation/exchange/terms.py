"""What weight-averaging algorithms add to a client's training: penalties and corrections."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.parameters import load_parameters
from fedvad.errors import ConfigError, check_choice
from fedvad.federation.exchange.scope import Scope, WSAConfig, scope_penalty

if TYPE_CHECKING:
    import torch

Algorithm = Literal[
    "fedavg",
    "fedprox",
    "scaffold",
    "moon",
]
Arrays = dict[str, npt.NDArray[Any]]
Represent = Callable[["torch.nn.Module", Any], "torch.Tensor"]
Penalty = Callable[["torch.nn.Module", Any], "torch.Tensor"]


@dataclass(frozen=True)
class WeightConfig:
    """Options of weight averaging.

    prox: mu of FedProx's mu/2 ||w - w_global||². moon: weight of MOON's contrastive term, with
    its temperature. wsa: weight-scope alignment, None for none; goes with every algorithm.
    """

    algorithm: Algorithm = "fedavg"
    prox: float = 0.01
    moon: float = 1.0
    temperature: float = 0.5
    wsa: WSAConfig | None = None

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, Algorithm)
        if self.prox < 0 or self.moon < 0 or not self.temperature > 0:
            raise ConfigError("weight averaging needs prox, moon >= 0 and temperature > 0")


class ClientTerms:
    """One site's terms in one round.

    start: the weights handed out. control: the server's control variate (SCAFFOLD). kept: the
    site's own state, which `finish` renews. target: the scopes to align with (WSA).
    """

    def __init__(
        self, config: WeightConfig, start: Arrays, control: Arrays, kept: Arrays, target: Scope
    ) -> None:
        self.config = config
        self.start = start
        self.control = control
        self.kept = kept
        self.target = target

    def penalty(self, student: torch.nn.Module, represent: Represent) -> Penalty | None:
        """Sum of the terms for the loss of each step; None when there is none."""
        terms = []
        if self.config.algorithm == "fedprox" and self.config.prox > 0:
            terms.append(self._proximal(student))
        if self.config.algorithm == "moon" and self.config.moon > 0:
            terms.append(self._contrastive(student, represent))
        wsa = self.config.wsa
        if wsa is not None and wsa.strength > 0:
            terms.append(
                lambda net, _: scope_penalty(dict(net.named_parameters()), self.target, wsa)
            )
        if not terms:
            return None
        return lambda net, batch: sum((t(net, batch) for t in terms[1:]), terms[0](net, batch))

    def correction(self, student: torch.nn.Module) -> Mapping[str, torch.Tensor] | None:
        """SCAFFOLD's c - c_i, to be added to each gradient."""
        if self.config.algorithm != "scaffold":
            return None
        import torch

        own = self._own_control()
        device = next(student.parameters()).device
        return {
            name: torch.from_numpy(self.control[name] - own[name]).to(device) for name in self.start
        }

    def finish(self, trained: Arrays, rates: float) -> Arrays:
        """Renew the site's kept state; returns the change of its control variate (SCAFFOLD).

        rates: sum of the learning rates of all steps. Source: SCAFFOLD, option II:
        c_i+ = c_i - c + (start - trained) / rates.
        """
        if self.config.algorithm == "moon":
            self.kept.update({f"last/{name}": array for name, array in trained.items()})
        if self.config.algorithm != "scaffold":
            return {}
        own, change = self._own_control(), {}
        for name, array in trained.items():
            moved = (self.start[name].astype(np.float64) - array) / rates
            change[name] = (moved - self.control[name]).astype(np.float32)
            self.kept[f"control/{name}"] = own[name] + change[name]
        return change

    def _own_control(self) -> Arrays:
        return {n: self.kept.get(f"control/{n}", np.zeros_like(a)) for n, a in self.start.items()}

    def _proximal(self, student: torch.nn.Module) -> Penalty:
        anchor = {n: p.detach().clone() for n, p in student.named_parameters() if p.requires_grad}

        def term(net: torch.nn.Module, _: Any) -> torch.Tensor:
            parameters = dict(net.named_parameters())
            squares = [(parameters[n] - a).square().sum() for n, a in anchor.items()]
            return self.config.prox / 2 * sum(squares[1:], squares[0])

        return term

    def _contrastive(self, student: torch.nn.Module, represent: Represent) -> Penalty:
        import torch
        from torch.nn.functional import cosine_similarity

        frozen = copy.deepcopy(student).eval().requires_grad_(False)
        last = copy.deepcopy(frozen)
        own = {n: self.kept.get(f"last/{n}", a) for n, a in self.start.items()}
        last.requires_grad_(True)
        load_parameters(last, own)
        last.requires_grad_(False)

        def term(net: torch.nn.Module, batch: Any) -> torch.Tensor:
            with torch.no_grad():
                to_global, to_last = represent(frozen, batch), represent(last, batch)
            now = represent(net, batch)
            near = cosine_similarity(now, to_global) / self.config.temperature
            far = cosine_similarity(now, to_last) / self.config.temperature
            # -log of the softmax share of the global model
            return self.config.moon * torch.nn.functional.softplus(far - near).mean()

        return term
