"""What a configuration means for the federation: its exchange, schedule, seeds and split."""

from __future__ import annotations

from collections.abc import Mapping

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import choose_images
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.runners.inprocess import Schedule
from fedvad.pipeline.config import TrainConfig

__all__ = ["plan", "site_seed", "split_held_out"]


def site_seed(seed: int, index: int) -> int:
    """Seed of the index-th site by name, so that sites draw independently of one another."""
    return seed * 10_007 + index


def plan(config: TrainConfig, extractor: FeatureExtractor) -> tuple[MemoryExchange, Schedule]:
    """The exchange and the schedule that a configuration asks for."""
    exchange = MemoryExchange(
        features=extractor.config.key(),
        dim=extractor.grid[2],
        merge_mode=config.merge,
        size=config.memory_rows,
        precision=config.precision,
        seed=config.seed,
    )
    schedule = Schedule(
        rounds=config.rounds,
        participation=config.participation,
        joins=config.join,
        seed=config.seed,
    )
    return exchange, schedule


def split_held_out(
    features: Mapping[str, NormalFeatures], config: TrainConfig
) -> tuple[dict[str, NormalFeatures], dict[str, NormalFeatures]]:
    """Normal images to fit on and to calibrate on, by site.

    Leave-one-out calibration fits on all of them and calibrates on a sample of the same.
    """
    fitting: dict[str, NormalFeatures] = {}
    held_out: dict[str, NormalFeatures] = {}
    for name, feature in features.items():
        if config.calibration_mode == "holdout":
            count = round(config.holdout * len(feature))
            chosen = choose_images(len(feature), count, config.seed)
            rest = sorted(set(range(len(feature))) - set(chosen))
            fitting[name], held_out[name] = feature.subset(rest), feature.subset(chosen)
        else:
            limit = config.calibration_images if config.calibration_mode != "none" else 0
            chosen = choose_images(len(feature), limit, config.seed)
            fitting[name], held_out[name] = feature, feature.subset(chosen)
    return fitting, held_out
