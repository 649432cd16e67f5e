"""`signals`: adaptive memories of multivariate signals, averaged over sites; and their scores."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.signals import SignalSite, read_signal_sites, read_windows
from fedvad.detectors.student.amsl.options import MemoriesConfig
from fedvad.detectors.student.amsl.signals import SignalMemories, SignalModel
from fedvad.detectors.student.parameters import load_parameters, parameters_of, under
from fedvad.detectors.student.training import TrainConfig
from fedvad.errors import ConfigError
from fedvad.evaluation.metrics import image_auroc
from fedvad.federation.exchange.terms import WeightConfig
from fedvad.federation.exchange.weights import WeightExchange, WeightSite
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.inprocess import Schedule, run_rounds
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import as_path
from fedvad.runs.guards import guard_output_file, guard_plain_folder
from fedvad.runs.plan import site_seed
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run_folder import write_json

__all__ = ["SignalResult", "SignalScores", "score_signals", "train_signals"]


@dataclass(frozen=True, eq=False)
class SignalResult:
    """What was learned of a site's signals, and found in its test windows.

    Attributes
    ----------
    site : str
    model : SignalModel
        Scores windows.
    scores : (m,) float64 array or None
        Of the test windows; None where there are none.
    auroc, f1 : float or None
        Of the scores, and at the threshold; None without labels of both kinds.
    """

    site: str
    model: SignalModel
    scores: npt.NDArray[np.float64] | None
    auroc: float | None
    f1: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "site": self.site,
            "threshold": self.model.threshold,
            "auroc": self.auroc,
            "f1": self.f1,
            "scores": None if self.scores is None else self.scores.tolist(),
        }


@dataclass(frozen=True, eq=False)
class SignalScores:
    """What a trained model says of windows.

    Attributes
    ----------
    scores : (n,) float64 array
        Higher is more anomalous.
    threshold : float
        Of the model; windows above it are anomalous.
    """

    scores: npt.NDArray[np.float64]
    threshold: float

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """(n,) whether each window is above the threshold."""
        found: npt.NDArray[np.bool_] = self.scores > self.threshold
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "threshold": self.threshold,
            "scores": self.scores.tolist(),
            "anomalous": self.anomalous.tolist(),
        }


def score_signals(
    windows: AnyPath | npt.NDArray[Any], model: AnyPath, out: AnyPath | None = None
) -> SignalScores:
    """`fedvad signals --model`: score windows with a model that `train_signals` wrote.

    Parameters
    ----------
    windows : path or (n, channels, length) array
        Windows shaped as those that the model was trained on; a path is of a .npy file.
    model : path
        A site's file in the folder `out` of `train_signals`.
    out : path, optional
        JSON file for the result.

    Returns
    -------
    SignalScores

    Raises
    ------
    ConfigError
        When `out` is a file that fedvad did not write.
    DataError
        For windows that cannot be read, are of another shape, or are not finite.
    ArtefactError
        For a file that holds no such model.
    StorageError
        When the disk refuses.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.score_signals("today.npy", "found/east.safetensors").anomalous  # doctest: +SKIP
    """
    target, file = maybe(out, "out"), as_path(model, "model")
    given = None if isinstance(windows, np.ndarray) else as_path(windows, "windows")
    guard_output_file(target, "--out", others=[file, given], own=b'"threshold"')
    trained = SignalModel.load(file)
    found = SignalScores(trained.score(read_windows(windows)), trained.threshold)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, found.to_dict())
    return found


def train_signals(
    data: AnyPath,
    out: AnyPath | None = None,
    *,
    rounds: int = 5,
    steps: int = 100,
    seed: int = 0,
    quantile: float = 0.98,
    memories: MemoriesConfig | None = None,
    progress: Progress | None = None,
) -> list[SignalResult]:
    """`fedvad signals`: find anomalous windows of signals, with a model that all sites train.

    Parameters
    ----------
    data : path
        Folder with one folder per site. It holds train.npy, (n, channels, length) normal windows;
        optionally test.npy, and labels.npy (0 normal, 1 anomalous).
    out : path, optional
        Folder for scores and models.
    rounds, steps : int, default=5, 100
        Rounds, and training steps of a site in each.
    seed : int, default=0
        Fixes all random choices.
    quantile : float in (0, 1), default=0.98
        The threshold is this quantile of the scores of held-out normal windows.
    memories : MemoriesConfig, optional
        Number and size of the memories.
    progress : callable, optional
        As that of `bench`.

    Returns
    -------
    list of SignalResult
        One per site: `model`, `scores`, `auroc` and `f1`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.train_signals("DATA")[0].scores  # doctest: +SKIP
    """
    progress = progress or no_progress
    data, out = as_path(data, "data"), maybe(out, "out")
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile must lie in (0, 1), not {quantile}")
    if out is not None:
        guard_plain_folder(out, "--out", [data])
    config = memories or MemoriesConfig()
    # Adam as in the paper's public code; the warm-up is ours
    train = TrainConfig(
        steps=steps, batch=16, learning_rate=0.001, optimiser="adam", weight_decay=0.0, warmup=5,
        patience=None,
    )  # fmt: skip
    sites = read_signal_sites(data)
    trainers = {
        site.name: SignalMemories(
            site.train, config, train, start=seed, seed=site_seed(seed, index)
        )
        for index, site in enumerate(sites)
    }
    _average(sites, trainers, config, rounds, seed, Stage(progress, "rounds", rounds * len(sites)))
    results = [_result(site, trainers[site.name].finish(quantile)) for site in sites]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "signals.json", [result.to_dict() for result in results])
        for result in results:
            result.model.save(out / f"{result.site}.safetensors")
    return results


def _average(
    sites: list[SignalSite],
    trainers: dict[str, SignalMemories],
    config: MemoriesConfig,
    rounds: int,
    seed: int,
    stage: Stage,
) -> None:
    shape = sites[0].train.shape[1:]
    features = hashlib.sha256(repr((shape, asdict(config))).encode()).hexdigest()[:16]
    members = {
        site.name: WeightSite(
            site.name,
            trainers[site.name],
            n_images=len(site.train),
            n_patches=len(site.train),
            seed=site_seed(seed, index),
        )
        for index, site in enumerate(sites)
    }
    initial = parameters_of(trainers[sites[0].name].student)
    merged = run_rounds(
        WeightExchange(features=features, initial=initial, config=WeightConfig(), sites=len(sites)),
        members,
        Schedule(rounds, seed=seed),
        ledger=Ledger(),
        on_step=lambda round_, site: stage(),
    )
    for trainer in trainers.values():
        load_parameters(trainer.student, under("weight/", merged.arrays))


def _result(site: SignalSite, model: SignalModel) -> SignalResult:
    if site.test is None:
        return SignalResult(site.name, model, None, None, None)
    scores = model.score(site.test)
    if site.labels is None:
        return SignalResult(site.name, model, scores, None, None)
    auroc = image_auroc(scores, site.labels)
    found, truth = scores > model.threshold, site.labels
    f1 = 2 * (found & truth).sum() / max(1, found.sum() + truth.sum())
    return SignalResult(site.name, model, scores, auroc, None if auroc is None else float(f1))
