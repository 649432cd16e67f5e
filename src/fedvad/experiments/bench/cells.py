"""One cell of a bench: a method on a set with a seed, run and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from fedvad.data.folders import Site
from fedvad.data.frames import split_frame
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.evaluation.metrics import image_auroc
from fedvad.evaluation.sites import SiteResult, summarise
from fedvad.experiments.bench.suite import BenchMethod
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger, peak_rss_mb, reset_peak_rss
from fedvad.mergeable import merge_by_name
from fedvad.runs.config import TrainConfig
from fedvad.runs.method import Baseline, Method, make_method
from fedvad.runs.progress import Progress
from fedvad.runs.scoring import score_with


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the cells of one set and feature configuration share."""

    sites: Sequence[Site]
    features: Mapping[str, NormalFeatures]
    extractor: FeatureExtractor
    macs_forward: float


@dataclass(eq=False)
class _Trained:
    """A detector for each site, and what it cost; bytes are whole runs, by site.

    earlier: a detector for all sites after each round but the last.
    """

    detectors: Mapping[str, Detector]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    rounds: int
    seconds: dict[str, float]
    earlier: dict[int, Detector] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of the largest memory."""
        return max(detector.memory_rows for detector in self.detectors.values())


def run_cell(
    method: BenchMethod,
    config: TrainConfig,
    prepared: Prepared,
    *,
    convergence: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train and score; the JSON form of everything that tables and statistics need."""
    separate = reset_peak_rss()
    trained = _MAKERS[method.kind](config, prepared)
    start = perf_counter()
    results = score_with(
        lambda site: (trained.detectors[site], None),
        prepared.sites,
        prepared.extractor,
        f"scoring {method.name}",
        config.max_bad,
        progress,
    )
    scoring = perf_counter() - start
    peak = peak_rss_mb()
    curve = _curve(prepared, trained, results) if convergence else None
    summary = summarise(
        # pixels of all sites ranked together take longer than everything else, for a figure
        # that no table here shows
        results,
        target_fpr=config.target_fpr,
        pixel_metrics=False,
    )
    height, width, dim = prepared.extractor.grid
    return {
        **{
            metric: summary[metric]
            for metric in ("image_auroc", "average_precision", "pixel_auroc", "aupro")
        },
        "scores": {
            r.name: {"scores": r.scores.tolist(), "labels": r.test.labels.astype(int).tolist()}
            for r in results
        },
        "costs": {
            "bytes_up": trained.bytes_up,
            "bytes_down": trained.bytes_down,
            "rounds": trained.rounds,
            "memory_rows": trained.rows,
            "seconds": {**trained.seconds, "score": scoring},
            "test_images": sum(len(r.test) for r in results),
            # a high-water mark that could not be reset is that of all cells so far
            "peak_rss_mb": peak if separate else None,
            "macs_forward": prepared.macs_forward,
            "macs_search": float(height * width * trained.rows * dim),
        },
        "convergence": curve,
    }


def _federated(config: TrainConfig, prepared: Prepared) -> _Trained:
    ledger, earlier = Ledger(), {}
    with _taken(config, prepared) as trains:
        run = trains.train(ledger, on_round=lambda round_, found: earlier.update({round_: found}))
        detectors = {name: run.detector(name, prepared.extractor) for name in run.sites}
    rounds = len(ledger.rounds)
    earlier.pop(rounds, None)
    up, down = _traffic(ledger, prepared)
    return _Trained(detectors, up, down, rounds, dict(ledger.seconds), earlier)


def _local(config: TrainConfig, prepared: Prepared) -> _Trained:
    detectors, seconds, _ = _baseline("local", config, prepared)
    nothing = dict.fromkeys(prepared.features, 0)
    return _Trained(detectors, nothing, nothing, 0, {"local": seconds})


def _pooled(config: TrainConfig, prepared: Prepared) -> _Trained:
    detectors, seconds, downlink_bytes = _baseline("pooled", config, prepared)
    images = {
        name: sum(f.stat().st_size for f in {split_frame(p)[0] for p in features.paths})
        for name, features in prepared.features.items()
    }
    down = dict.fromkeys(images, downlink_bytes)
    return _Trained(detectors, images, down, 1, {"merge": seconds})


def _baseline(
    name: Baseline, config: TrainConfig, prepared: Prepared
) -> tuple[dict[str, Detector], float, int]:
    """Detectors by site, seconds, and the bytes that a site would get of them."""
    with _taken(config, prepared) as trains:
        start = perf_counter()
        made = trains.baseline(name)
        seconds = perf_counter() - start
        assert made is not None  # only 'identity' may be the method itself
        detectors = {site: found.detector for site, found in made.items()}
        return detectors, seconds, trains.downlink_bytes(next(iter(detectors.values())))


_MAKERS = {"federated": _federated, "local": _local, "pooled": _pooled}


@contextmanager
def _taken(config: TrainConfig, prepared: Prepared) -> Iterator[Method]:
    with closing(make_method(config, prepared.extractor)) as method:
        method.take(prepared.features)
        yield method


def _traffic(ledger: Ledger, prepared: Prepared) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes up and down by site, summed over the rounds."""
    none = dict.fromkeys(prepared.features, 0)
    up = merge_by_name([none, *(entry.bytes_up for entry in ledger.rounds)])
    return up, merge_by_name([none, *(entry.bytes_down for entry in ledger.rounds)])


def _curve(
    prepared: Prepared, trained: _Trained, last: Sequence[SiteResult]
) -> list[dict[str, Any]]:
    """Image AUROC after each round of which a detector was kept, mean and worst over sites."""
    curve = []
    for round_, detector in sorted(trained.earlier.items()):
        values = []
        for site in prepared.sites:
            if not len(site.test):
                continue
            scores = detector.score(site.test.paths)
            kept = site.test.subset(scores.kept.tolist())
            values.append(image_auroc(scores.image, kept.labels))
        curve.append(_point(round_, values))
    if trained.rounds:
        curve.append(_point(trained.rounds, [r.image_auroc for r in last]))
    return curve


def _point(round_: int, values: Sequence[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    return {
        "round": round_,
        "mean": float(np.mean(known)) if known else None,
        "worst": min(known) if known else None,
    }
