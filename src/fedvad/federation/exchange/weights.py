"""Weight averaging of a small trainable part: FedAvg, FedProx, SCAFFOLD, MOON, with or without WSA.

The classical alternative to exchanging memories, for comparison and for methods that have weights
to average. The aggregation rule itself is one weighted mean; what the variants add is on the
clients, see `terms`. Sources: McMahan et al. 2017 (FedAvg), Li et al. 2020 (FedProx), Karimireddy
et al. 2020 (SCAFFOLD, option II), Li et al. 2021 (MOON), Xu et al. 2024 (WSA, see distill.scope).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.student.parameters import (
    buffers_of,
    load_buffers,
    load_parameters,
    parameters_of,
    under,
    weights_hash,
)
from fedvad.detectors.student.training import Trainer, TrainLog
from fedvad.errors import ConfigError, FederationError, PayloadError
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.weights import bound_weights
from fedvad.federation.exchange.base import check_answer, check_incoming, merged_manifest
from fedvad.federation.exchange.scope import Scope, fuse_scopes, scope_of
from fedvad.federation.exchange.terms import ClientTerms, WeightConfig
from fedvad.federation.payload import Manifest, Payload

Arrays = dict[str, npt.NDArray[Any]]
_WEIGHT, _CONTROL, _SCOPE, _BUFFER = "weight/", "control/", "scope/", "buffer/"
_LOG, _CURVES, _STEPS = "log/", ("loss", "validation", "at"), "steps"
# of a message besides its arrays: manifest, names and shapes
_HEADER_BYTES = (1 << 16) + 8


@dataclass(eq=False)
class WeightSite:
    """A site's state: its trainer, and what its algorithm keeps between rounds.

    first: number of its first round. kept: own control variate (SCAFFOLD) and last model (MOON),
    under the names of the messages.
    """

    name: str
    trainer: Trainer
    n_images: int
    n_patches: int
    seed: int = 0
    first: int = 1
    kept: Arrays = field(default_factory=dict)
    spread: float | None = None

    def snapshot(self) -> Arrays:
        """See `Member.snapshot`; batch statistics among it, which MOON's frozen models use."""
        log = {name: np.array(getattr(self.trainer.log, name), np.float64) for name in _CURVES}
        log[_STEPS] = np.array([self.trainer.log.steps], np.float64)
        found = self.kept | _named(_BUFFER, buffers_of(self.trainer.student))
        return found | _named(_LOG, {name: array for name, array in log.items() if array.size})

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Member.restore`."""
        self.kept = {n: a for n, a in arrays.items() if not n.startswith((_BUFFER, _LOG))}
        kept = under(_LOG, arrays)
        loss, validation, at = (kept.get(n, np.zeros(0)).tolist() for n in _CURVES)
        steps = [int(step) for step in at]
        # an earlier fedvad kept no number of steps: that of a site that was in every round
        done, best = int(kept.get(_STEPS, [max(steps, default=0)])[0]), len(loss) - 1
        self.trainer.log = TrainLog(loss, validation, steps=done, best=best, at=steps)
        if buffers := under(_BUFFER, arrays):  # an earlier fedvad kept none
            load_buffers(self.trainer.student, buffers)


class WeightExchange:
    """Weights up, their mean over the round's sites by number of images down.

    initial: the common start, by parameter name; every site must have it (its hash is checked).
    sites: their number, by which SCAFFOLD's control grows. start: hash of the common start, for a
    server that knows only its shapes; then the values of `initial` are not used. defence: how much
    the mean distrusts the sites (None: not at all), see `defence.weights`.

    Raises `ConfigError` without any weights, and for a defence with SCAFFOLD.
    """

    def __init__(
        self,
        *,
        features: str,
        initial: Mapping[str, npt.NDArray[np.float32]],
        config: WeightConfig,
        sites: int,
        start: str | None = None,
        defence: RobustConfig | None = None,
    ) -> None:
        if not initial:
            raise ConfigError("weight averaging needs a trainable part; this method has none")
        if defence is not None and config.algorithm == "scaffold":
            raise ConfigError(
                "defence 'robust' bounds weights, and not the control variates of scaffold: choose "
                "fedavg, fedprox or moon"
            )
        self.features = features
        self.config = config
        self.sites = sites
        self.defence = defence
        self._reasons: dict[str, str] = {}
        self._start = weights_hash(initial) if start is None else start
        self._weights: Arrays = {name: np.array(a) for name, a in initial.items()}
        self._control: Arrays = {name: np.zeros_like(a) for name, a in initial.items()}
        self._target = scope_of(self._weights, config.wsa) if config.wsa else {}
        self._sites: dict[str, Payload] = {}

    def site_step(self, state: WeightSite, incoming: Payload | None, round_: int) -> Payload:
        """One site's round: take the mean, train on, send weights (and change of the control)."""
        student = state.trainer.student
        if incoming is not None:
            check_incoming(incoming, self.features)
            _check_arrays("the server", incoming.arrays, self._message())
        handed = incoming.arrays if incoming is not None else self._message()
        start = under(_WEIGHT, handed)
        load_parameters(student, start)
        target = _scope_from(under(_SCOPE, handed), start)
        terms = ClientTerms(self.config, start, under(_CONTROL, handed), state.kept, target)
        settings = state.trainer.in_round(round_ - state.first)
        log = state.trainer.train(
            seed=state.seed * 1009 + round_,
            penalty=terms.penalty(student, state.trainer.represent),
            correction=terms.correction(student),
            config=settings,
        )
        state.trainer.log = state.trainer.log.then(log, settings.begun)
        trained = parameters_of(student)
        rates = sum(settings.rate(step) for step in range(1, log.steps + 1))
        change = terms.finish(trained, rates)
        arrays = _named(_WEIGHT, trained) | _named(_CONTROL, change)
        manifest = Manifest(
            kind="upload",
            site=state.name,
            round=round_,
            features=self.features,
            generator=self._start,
            n_images=state.n_images,
            n_patches=state.n_patches,
        )
        return Payload(manifest, arrays)

    def accept(self, payload: Payload) -> None:
        """See `Exchange.accept`: refuses other features, starts, names, shapes, stale rounds."""
        before = self._sites.get(payload.manifest.site)
        manifest = check_answer(payload, before, self.features, self._start)
        _check_arrays(f"site {manifest.site}", payload.arrays, self._expected())
        self._sites[manifest.site] = payload

    def merge(self, round_: int, without: Collection[str] = ()) -> Payload:
        """See `Exchange.merge`: of the sites that answered this round; without any, no change."""
        sites = [self._sites[name] for name in sorted(set(self._sites) - set(without))]
        answered = [payload for payload in sites if payload.manifest.round == round_]
        if not sites:
            raise FederationError("no site has answered: nothing to merge")
        self._reasons = {}
        if answered:
            shares = np.array([p.manifest.n_images for p in answered], dtype=np.float64)
            sent = [under(_WEIGHT, p.arrays) for p in answered]
            if self.defence is not None:
                names = [p.manifest.site for p in answered]
                bound = bound_weights(names, sent, shares, self.defence)
                sent, shares, self._reasons = bound.weights, bound.shares, bound.reasons
            self._weights = self._averaged(sent, shares)
            if self.config.algorithm == "scaffold":
                for name, control in self._control.items():
                    changes = sum(p.arrays[_CONTROL + name] for p in answered)
                    self._control[name] = (control + changes / self.sites).astype(np.float32)
            if self.config.wsa is not None:
                self._target = fuse_scopes(
                    [scope_of(w, self.config.wsa) for w in sent],
                    shares.tolist(),
                    self.config.wsa,
                    before=self._target,
                    averaged=scope_of(self._weights, self.config.wsa),
                )
        manifest = merged_manifest(round_, sites, generator=self._start)
        return Payload(manifest, self._message())

    @property
    def kind(self) -> tuple[str, ...]:
        """See `Exchange.kind`."""
        names = "".join(f"{name} {array.shape};" for name, array in sorted(self._weights.items()))
        shapes = hashlib.sha256(names.encode()).hexdigest()[:8]
        values = sum(array.size for array in self._weights.values())
        return self.features, f"{values} weights of shapes {shapes}", f"start {self._start}"

    @property
    def max_bytes(self) -> int:
        """See `Exchange.max_bytes`: of the arrays that an upload must hold, and a header."""
        return sum(array.nbytes for array in self._expected().values()) + _HEADER_BYTES

    @property
    def distrusted(self) -> Mapping[str, str]:
        """See `Exchange.distrusted`."""
        return dict(self._reasons)

    def drift(self, before: Payload, after: Payload) -> float:
        """Length of the change of the weights, relative to their length."""
        old, new = (_flat(under(_WEIGHT, p.arrays)) for p in (before, after))
        return float(np.linalg.norm(new - old)) / max(float(np.linalg.norm(old)), 1e-12)

    def server_state(self) -> Mapping[str, Payload]:
        """See `Exchange.server_state`; the merged weights are kept under no site's name."""
        rounds = [p.manifest.round for p in self._sites.values()]
        manifest = Manifest(
            kind="global",
            round=max(rounds, default=1),
            features=self.features,
            generator=self._start,
            n_images=0,
            n_patches=0,
        )
        return {"": Payload(manifest, self._message()), **self._sites}

    def restore(self, state: Mapping[str, Payload]) -> None:
        """Continue from a saved `server_state`."""
        self._sites = {name: payload for name, payload in state.items() if name}
        arrays = state[""].arrays
        self._weights = under(_WEIGHT, arrays)
        self._control = under(_CONTROL, arrays) or self._control
        self._target = _scope_from(under(_SCOPE, arrays), self._weights)

    def _averaged(self, sent: Sequence[Arrays], shares: npt.NDArray[np.float64]) -> Arrays:
        """The common weights, from what each site sent and its number of images. A variant of the
        mean overrides this alone; any order of the sites must give the same bytes.
        """
        return {name: _mean([own[name] for own in sent], shares) for name in self._weights}

    def _expected(self) -> Arrays:
        """Arrays as an upload must hold them, by name and shape."""
        arrays = _named(_WEIGHT, self._weights)
        if self.config.algorithm == "scaffold":
            arrays |= _named(_CONTROL, self._control)
        return arrays

    def _message(self) -> Arrays:
        arrays = self._expected()
        pairs = {name: np.array([mean, sd]) for name, (mean, sd, _) in self._target.items()}
        return arrays | _named(_SCOPE, pairs)


def has_weights(payload: Payload) -> bool:
    """Whether a message holds weights, and no memory."""
    return any(name.startswith(_WEIGHT) for name in payload.arrays)


def _check_arrays(who: str, arrays: Arrays, wanted: Arrays) -> None:
    """Raise `PayloadError` unless a message holds finite arrays of the wanted names and shapes."""
    if set(arrays) != set(wanted):
        raise PayloadError(f"{who} sent the weights of another model")
    for name, array in arrays.items():
        if array.shape != wanted[name].shape or array.dtype != wanted[name].dtype:
            raise PayloadError(f"{who} sent {name} of another shape or type than expected")
        if not np.isfinite(array).all():
            raise PayloadError(f"{who} sent {name} with values that are no numbers")


def _mean(arrays: list[npt.NDArray[np.float32]], shares: npt.NDArray[np.float64]) -> Any:
    # in float64, so that the order of sites does not matter to the last bit that is sent
    return np.average(np.stack(arrays).astype(np.float64), axis=0, weights=shares).astype(
        np.float32
    )


def _named(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def _scope_from(pairs: Arrays, weights: Arrays) -> Scope:
    return {n: (float(p[0]), float(p[1]), weights[n].size) for n, p in pairs.items()}


def _flat(arrays: Arrays) -> npt.NDArray[np.float64]:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)
