"""One cell of a bench: a method on a set with a seed, run and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from fedvad.data.folders import Site
from fedvad.data.frames import split_frame
from fedvad.detectors.base import Detector, NormalFeatures
from fedvad.detectors.feddymem import FedDyMem, MemoryDetector
from fedvad.detectors.generator import Generator
from fedvad.detectors.memory_site import MemorySite
from fedvad.evaluation.metrics import image_auroc
from fedvad.evaluation.sites import SiteResult, summarise
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger, peak_rss_mb, reset_peak_rss
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.runners.inprocess import run_rounds
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.pipeline.bench.suite import BenchMethod
from fedvad.pipeline.bench.weights import WeightOptions, average_weights
from fedvad.pipeline.compare import local_banks, pooled_banks
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.memories import wire_exact
from fedvad.pipeline.plan import memory_sites, plan
from fedvad.pipeline.progress import Progress
from fedvad.pipeline.scoring import score_with

__all__ = ["Prepared", "run_cell"]


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

    rows: of the largest memory. earlier: global memory behind each round but the last.
    """

    detectors: Mapping[str, Detector]
    rows: int
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    rounds: int
    seconds: dict[str, float]
    earlier: dict[int, MemoryBank]


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
    if method.weights is not None:
        trained = _weights(method.weights, config, prepared)
    else:
        makers = {"federated": _federated, "local": _local, "pooled": _pooled}
        trained = makers[method.kind](config, prepared)
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
    curve = _curve(config, prepared, trained, results) if convergence else None
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
    exchange, schedule = plan(config, prepared.extractor)
    members = memory_sites(config, prepared.features, prepared.extractor.grid[2])
    ledger = Ledger()
    earlier: dict[int, MemoryBank] = {}

    def keep(round_: int, merged: Payload) -> None:
        if round_ < config.rounds and not config.train_generator:
            earlier[round_] = bank_from(merged)

    merged = bank_from(
        run_rounds(exchange, members, schedule, ledger=ledger, jobs=config.jobs, on_round=keep)
    )
    banks = {
        name: (_reference(config, merged, site), site.generator) for name, site in members.items()
    }
    up, down = _traffic(ledger, prepared)
    return _Trained(
        **_memories(config, prepared, banks),
        bytes_up=up,
        bytes_down=down,
        rounds=config.rounds,
        seconds=dict(ledger.seconds),
        earlier=earlier,
    )


def _reference(config: TrainConfig, merged: MemoryBank, site: MemorySite) -> MemoryBank:
    """What a site's images are held against, as `TrainedRun.detector` has it."""
    if config.reference == "global" or len(site.bank) == 0:
        return merged
    own = wire_exact(site.bank, config)
    return own if config.reference == "local" else concatenate([merged, own])


def _weights(options: WeightOptions, config: TrainConfig, prepared: Prepared) -> _Trained:
    done = average_weights(options, config, prepared.features, prepared.extractor)
    up, down = _traffic(done.ledger, prepared)
    return _Trained(
        done.detectors,
        done.rows,
        bytes_up=up,
        bytes_down=down,
        rounds=len(done.ledger.rounds),
        seconds=dict(done.ledger.seconds),
        earlier={},
    )


def _traffic(ledger: Ledger, prepared: Prepared) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes up and down by site, summed over the rounds."""
    up, down = dict.fromkeys(prepared.features, 0), dict.fromkeys(prepared.features, 0)
    for entry in ledger.rounds:
        for total, part in ((up, entry.bytes_up), (down, entry.bytes_down)):
            for site, count in part.items():
                total[site] += count
    return up, down


def _memories(
    config: TrainConfig, prepared: Prepared, banks: Mapping[str, tuple[MemoryBank, Generator]]
) -> dict[str, Any]:
    return {
        "detectors": {name: _detector(config, prepared, memory) for name, memory in banks.items()},
        "rows": max(len(bank) for bank, _ in banks.values()),
    }


def _local(config: TrainConfig, prepared: Prepared) -> _Trained:
    start = perf_counter()
    banks = local_banks(config, prepared.features, prepared.extractor.grid[2])
    seconds = perf_counter() - start
    nothing = dict.fromkeys(prepared.features, 0)
    memories = _memories(config, prepared, banks)
    return _Trained(**memories, bytes_up=nothing, bytes_down=nothing, rounds=0,
                    seconds={"local": seconds}, earlier={})  # fmt: skip


def _pooled(config: TrainConfig, prepared: Prepared) -> _Trained:
    dim = prepared.extractor.grid[2]
    sent = config.rows(dim) * config.rounds * len(prepared.features)
    rows = min(sent, config.memory_rows or sent)
    start = perf_counter()
    banks = pooled_banks(config, rows, prepared.features, prepared.extractor)
    seconds = perf_counter() - start
    images = {
        name: sum(f.stat().st_size for f in {split_frame(p)[0] for p in features.paths})
        for name, features in prepared.features.items()
    }
    memory = next(iter(banks.values()))[0].vectors.nbytes // 2
    return _Trained(
        **_memories(config, prepared, banks),
        bytes_up=images,
        bytes_down=dict.fromkeys(images, memory),
        rounds=1,
        seconds={"merge": seconds},
        earlier={},
    )


def _detector(
    config: TrainConfig, prepared: Prepared, memory: tuple[MemoryBank, Generator]
) -> MemoryDetector:
    detector = FedDyMem(extractor=prepared.extractor, scoring=config.scoring())
    return detector.with_memory(*memory)


def _curve(
    config: TrainConfig, prepared: Prepared, trained: _Trained, last: Sequence[SiteResult]
) -> list[dict[str, Any]]:
    """Image AUROC behind each round whose memory was kept, mean and worst over sites."""
    curve = []
    for round_, bank in sorted(trained.earlier.items()):
        values = []
        for site in prepared.sites:
            if not len(site.test):
                continue
            memory = bank, Generator.identity(bank.dim)
            scores = _detector(config, prepared, memory).score(site.test.paths)
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
