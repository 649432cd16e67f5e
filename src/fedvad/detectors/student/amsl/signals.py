"""AMSL on signals, as in its paper: windows of normal signals, rebuilt in several views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.kept import tupled
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.training import TrainConfig, Trainer
from fedvad.errors import ArtefactError, DataError, MismatchError

if TYPE_CHECKING:
    import torch

    from fedvad.detectors.student.amsl.net import AdaptiveMemories

_Windows = npt.NDArray[np.float32]
_HELD_OUT = 0.2
_TOGETHER = 64


def signal_net(channels: int, length: int, config: MemoriesConfig, seed: int) -> AdaptiveMemories:
    """The untrained net for windows of signals, which it sees as (1, length, channels) pictures."""
    from fedvad.detectors.student.amsl.net import AdaptiveMemories

    return AdaptiveMemories((1, length, channels), config, seed=seed)


class SignalModel:
    """A net with a site's scale of each channel.

    mean, spread: (channels,). threshold: of scores; windows above it are anomalous.
    """

    def __init__(
        self,
        net: AdaptiveMemories,
        config: MemoriesConfig,
        seed: int,
        mean: _Windows,
        spread: _Windows,
        threshold: float = float("nan"),
    ) -> None:
        self.net, self.config, self.seed = net, config, seed
        self.mean, self.spread, self.threshold = mean, spread, threshold

    def inputs(self, windows: _Windows) -> torch.Tensor:
        """(n, 1, length, channels) of (n, channels, length), each channel standardised."""
        import torch

        scaled = (windows - self.mean[:, None]) / self.spread[:, None]
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 2, 1)[:, None]))

    def score(self, windows: _Windows) -> npt.NDArray[np.float64]:
        """(n,) sums over the views of the mean squared error; higher is more anomalous."""
        import torch

        wanted = (len(self.mean), self.net.shape[1])
        if windows.ndim != 3 or windows.shape[1:] != wanted:
            raise DataError(f"windows are {windows.shape}, not (n, {wanted[0]}, {wanted[1]})")
        found = []
        with torch.inference_mode():
            for start in range(0, len(windows), _TOGETHER):
                answer = self.net.answer(self.inputs(windows[start : start + _TOGETHER]))
                found.append(_errors(answer.views, answer.rebuilt).double().numpy())
        return np.concatenate(found) if found else np.zeros(0)

    def save(self, path: Path) -> None:
        """Write one safetensors file; raises `StorageError` when the disk refuses."""
        arrays = {f"net/{name}": array for name, array in parameters_of(self.net).items()}
        arrays |= {"mean": self.mean, "spread": self.spread}
        write_arrays(
            path,
            arrays,
            {
                "kind": "signals",
                "memories": asdict(self.config),
                "seed": self.seed,
                "length": self.net.shape[1],
                "threshold": self.threshold,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises `ArtefactError`."""
        arrays, values = read_arrays(path)
        if values.get("kind") != "signals":
            raise ArtefactError(f"{path} holds a {values.get('kind')}, no detector of signals")
        try:
            config = MemoriesConfig(**tupled(values["memories"]))
            mean, spread = arrays["mean"], arrays["spread"]
            net = signal_net(len(mean), int(values["length"]), config, int(values["seed"]))
            load_parameters(net, under("net/", arrays))
            return cls(net, config, int(values["seed"]), mean, spread, float(values["threshold"]))
        except (KeyError, TypeError, ValueError, MismatchError) as error:
            raise ArtefactError(f"{path} is incomplete or damaged: {error}") from error


class SignalMemories(Trainer):
    """A site's training: a fifth of its normal windows is held out, for the threshold."""

    def __init__(
        self,
        windows: _Windows,
        config: MemoriesConfig,
        train: TrainConfig,
        *,
        start: int,
        seed: int,
    ) -> None:
        self.settings = train
        net = signal_net(windows.shape[1], windows.shape[2], config, start)
        mean = windows.mean((0, 2), np.float64).astype(np.float32)
        spread = windows.std((0, 2), np.float64).astype(np.float32)
        # a channel that never changes is left as it is; its computed spread may be rounding
        spread[np.ptp(windows, (0, 2)) == 0] = 1
        self.model = SignalModel(net, config, start, mean, spread)
        order = np.random.default_rng(seed).permutation(len(windows))
        count = max(1, round(_HELD_OUT * len(windows)))
        self._unseen, self._own = windows[order[:count]], windows[order[count:]]

    @property
    def student(self) -> torch.nn.Module:
        """See `Trainer.student`."""
        return self.model.net

    def losses(self, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """See `Trainer.losses`."""
        return self.loss

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Squared error of all views, telling them apart, and the entropy of the items' weights."""
        answer = self.model.net.answer(batch)
        error = _errors(answer.views, answer.rebuilt).mean()
        return error + answer.regulariser(self.model.config)

    def batches(self, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """See `Trainer.batches`."""
        order = rng.permutation(len(self._own))
        for part in np.array_split(order, -(-len(order) // self.settings.batch)):
            yield self.model.inputs(self._own[part])

    def represent(self, student: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """(b, c) means of what the encoder gives, of any student."""
        net: Any = student
        encoded: torch.Tensor = net.encoder(net._filled(batch))
        return encoded.mean((2, 3))

    def finish(self, quantile: float) -> SignalModel:
        """The model, with its threshold from the held-out windows."""
        scores = self.model.score(self._unseen)
        self.model.threshold = float(np.quantile(scores, quantile))
        return self.model


def _errors(views: list[torch.Tensor], rebuilt: list[torch.Tensor]) -> torch.Tensor:
    import torch

    pairs = zip(views, rebuilt, strict=True)
    return torch.stack([(v - r).square().mean((1, 2, 3)) for v, r in pairs]).sum(0)
