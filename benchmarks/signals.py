"""Signals of a public set: adaptive memories (AMSL) beside simple baselines.

    pip install aeon; python benchmarks/signals.py [--seeds 0,1,2] [--rounds 5] [--steps 100]

JapaneseVowels, which comes with the package aeon: 12 cepstral coefficients of nine speakers who say
"ae", resampled to 24 times. Three speakers are unknown, another three with each seed; the other six
are normal, two at each of three sites. Every site is tested on the six and the unknown, so that a
site which learns alone takes the others' normal windows for anomalies. Ends with a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from aeon.datasets import load_classification
from scipy.spatial.distance import cdist

import fedvad
from fedvad.evaluation.metrics import image_auroc

Floats = npt.NDArray[np.float32]
_LENGTH = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    training = {"rounds": arguments.rounds, "steps": arguments.steps}
    thirds = list(vowels())
    found: dict[str, list[float]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        train, test, labels = thirds[seed % 3]
        pooled = {"all": np.concatenate(list(train.values()))}
        alone = [{site: own} for site, own in train.items()]
        for how, runs in (("each site alone", alone), ("pooled", [pooled])):
            for method, score in (("nearest window", nearest), ("Mahalanobis", mahalanobis)):
                scores = [score(own, test) for run in runs for own in run.values()]
                value = fmean(image_auroc(s, labels) for s in scores)
                found.setdefault(f"{method}, {how}", []).append(value)
        for how, runs in (("each site alone", alone), ("federated", [train]), ("pooled", [pooled])):
            value = fmean(v for run in runs for v in amsl(run, test, labels, seed, training))
            found.setdefault(f"AMSL, {how}", []).append(value)
    print(table(found))


def amsl(
    train: Mapping[str, Floats],
    test: Floats,
    labels: npt.NDArray[np.bool_],
    seed: int,
    training: Mapping[str, int],
) -> list[float]:
    """AUROC of each site that trained together."""
    with TemporaryDirectory() as folder:
        for site, windows in train.items():
            root = Path(folder) / site
            root.mkdir()
            np.save(root / "train.npy", windows)
            np.save(root / "test.npy", test)
            np.save(root / "labels.npy", labels.astype(np.int8))
        results = fedvad.train_signals(folder, seed=seed, **training)
    return [result.auroc for result in results if result.auroc is not None]


def nearest(train: Floats, test: Floats) -> npt.NDArray[np.float64]:
    """Distance to the nearest training window, each channel standardised."""
    mean, spread = train.mean((0, 2)), train.std((0, 2))
    own, new = (((x - mean[:, None]) / spread[:, None]).reshape(len(x), -1) for x in (train, test))
    apart: npt.NDArray[np.float64] = cdist(new, own).min(1)
    return apart


def mahalanobis(train: Floats, test: Floats) -> npt.NDArray[np.float64]:
    """Of mean and standard deviation of each channel, with a tenth of the variance as ridge."""
    own, new = (np.concatenate([x.mean(2), x.std(2)], axis=1) for x in (train, test))
    covariance = np.cov(own.T) + np.diag(0.1 * own.var(0) + 1e-9)
    off = new - own.mean(0)
    found: npt.NDArray[np.float64] = (off * np.linalg.solve(covariance, off.T).T).sum(1)
    return found


def vowels() -> Iterator[tuple[dict[str, Floats], Floats, npt.NDArray[np.bool_]]]:
    """Training windows by site, test windows and labels, for each choice of unknown speakers."""
    learn, test = (
        _resampled(*load_classification("JapaneseVowels", split=s)) for s in ("train", "test")
    )
    for first in (7, 1, 4):
        unknown = {first, first + 1, first + 2}
        known = [speaker for speaker in range(1, 10) if speaker not in unknown]
        sites = {
            f"speakers{a}and{b}": learn[0][np.isin(learn[1], (a, b))]
            for a, b in zip(known[::2], known[1::2], strict=True)
        }
        yield sites, test[0], np.isin(test[1], list(unknown))


def _resampled(windows: Any, speakers: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
    at = np.linspace(0, 1, _LENGTH)
    same = [
        [np.interp(at, np.linspace(0, 1, w.shape[1]), channel) for channel in w] for w in windows
    ]
    return np.asarray(same, np.float32), np.asarray(speakers).astype(np.int64)


def table(found: Mapping[str, list[float]]) -> str:
    """One row by method: mean ± standard deviation over seeds."""
    lines = ["| method | AUROC, mean of the sites | seeds |", "| --- | ---: | ---: |"]
    for how, values in found.items():
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"| {how} | {fmean(values):.3f}{spread} | {len(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
