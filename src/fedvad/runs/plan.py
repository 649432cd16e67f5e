"""What a configuration means for the federation: its exchange, schedule, seeds and split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import choose_images
from fedvad.detectors.memory.site import MemorySite
from fedvad.errors import ConfigError, join_names
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.defence.robust import RobustConfig
from fedvad.federation.defence.validation import Limits
from fedvad.federation.exchange.memory import MemoryExchange
from fedvad.federation.mailboxes.inprocess import Schedule
from fedvad.federation.privacy import NEIGHBOURS, ONE_REPLACED, epsilon
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import method_class

log = logging.getLogger(__name__)


_AHEAD_BYTES = 1 << 30


def site_seed(seed: int, index: int) -> int:
    """Seed of the index-th site by name, so that sites draw independently of one another."""
    return seed * 10_007 + index


def check_join(config: TrainConfig, sites: Sequence[str]) -> None:
    """Raise `ConfigError` for a late joiner that is no site, before any image is read."""
    unknown = sorted(set(config.join) - set(sites))
    if unknown:
        raise ConfigError(
            f"--join names unknown sites {join_names(unknown)}; there are {join_names(sites)}"
        )
    rounds = method_class(config.method).rounds(config)
    for name, round_ in config.join.items():
        if round_ > rounds:
            log.warning("%s joins in round %d of %d: it never takes part", name, round_, rounds)


def plan(config: TrainConfig, extractor: FeatureExtractor) -> tuple[MemoryExchange, Schedule]:
    """The exchange and the schedule that a configuration asks for.

    Raises `ConfigError` when the means of all patch positions do not fit into `upload_bytes`, and
    when there is no accountant for the noise asked for.
    """
    privacy(config)
    height, width, dim = extractor.grid
    if config.reduce == "position" and (extractor.config.view.varies or extractor.config.region):
        raise ConfigError(
            "reduce 'position' averages over images place by place, so all of them need the same "
            "cells: use an --image-size such as 256 or 256x512 and no --region"
        )
    if config.reduce == "position" and height * width > config.affordable_rows(dim):
        raise ConfigError(
            f"reduce 'position' sends one vector for each of {height} x {width} patches, more "
            f"than --upload-bytes {config.upload_bytes} allows: raise it, take a smaller image "
            "size or fewer layers, or another --method"
        )
    exchange = memory_exchange(config, extractor.config.key(), dim, height * width)
    schedule = Schedule(
        rounds=config.rounds,
        participation=config.participation,
        joins=config.join,
        seed=config.seed,
    )
    return exchange, schedule


def memory_exchange(config: TrainConfig, features: str, dim: int, patches: int) -> MemoryExchange:
    """The exchange of a configuration for rows of `dim` values, `patches` of them per image."""
    return MemoryExchange(
        features=features,
        dim=dim,
        merge_mode=config.merge,
        size=config.memory_rows,
        temper=config.merge_weights,
        precision=config.precision,
        seed=config.seed,
        limits=upload_limits(config, dim, patches),
        defence=robust(config),
    )


def robust(config: TrainConfig) -> RobustConfig | None:
    """How much the server distrusts sites; None for not at all."""
    return RobustConfig(config.malicious) if config.defence == "robust" else None


def upload_limits(config: TrainConfig, dim: int, patches: int) -> Limits:
    """What a site may send, for rows of `dim` values and `patches` of them per image."""
    return Limits(
        rows=patches if config.reduce == "position" else config.rows(dim),
        patches_per_image=patches,
        upload_bytes=config.upload_bytes,
    )


def privacy(config: TrainConfig) -> dict[str, Any] | None:
    """What the configuration guarantees for one image of a site; None if nothing was asked for."""
    if config.epsilon is not None:
        return {"epsilon": config.epsilon, "delta": config.delta, "neighbours": ONE_REPLACED}
    if config.min_count == 1 and config.clip is None:
        return None
    promised: dict[str, Any] = {"min_count": config.min_count}
    if config.clip is not None:
        spent = epsilon(config.noise, config.rounds, config.delta)
        promised |= {
            "clip": config.clip, "noise": config.noise, "releases": config.rounds,
            "delta": config.delta, "epsilon": spent, "neighbours": NEIGHBOURS,
        }  # fmt: skip
    return promised


def memory_sites(
    config: TrainConfig,
    fitting: Mapping[str, NormalFeatures],
    dim: int,
    first: int = 0,
    rounds: int | None = None,
) -> dict[str, MemorySite]:
    """The state of every site before the first round, by name; first: position of the first."""
    memory, rounds = config.memory(dim), rounds or config.rounds
    return {
        name: MemorySite(features, memory, seed=site_seed(config.seed, i), rounds=rounds)
        for i, (name, features) in enumerate(sorted(fitting.items()), first)
    }


def sampling_ahead(
    config: TrainConfig, members: Mapping[str, MemorySite]
) -> dict[str, Callable[[npt.NDArray[np.float16]], None]]:
    """Watchers of the features' first pass that spare the sites' rounds a pass of their own.

    None where sites fit on a part of their images only, or are too many to hold samples of all.
    """
    if config.calibration_mode == "holdout" or config.reduce == "position":
        return {}
    if len(members) * config.candidate_bytes > _AHEAD_BYTES:
        return {}
    return {name: member.sample_ahead() for name, member in members.items()}


def split_held_out(
    features: Mapping[str, NormalFeatures], config: TrainConfig
) -> tuple[dict[str, NormalFeatures], dict[str, NormalFeatures]]:
    """Normal images to fit on and to calibrate on, by site.

    Leave-one-out calibration fits on all of them and calibrates on a sample of the same. Near
    copies of an image are neither calibrated on, nor fitted on where it is held out.
    """
    fitting: dict[str, NormalFeatures] = {}
    held_out: dict[str, NormalFeatures] = {}
    for name, feature in features.items():
        able = feature.witnesses()
        if config.calibration_mode == "holdout":
            count = min(round(config.holdout * len(able)), len(able) - 1)
            chosen = [able[i] for i in choose_images(len(able), count, config.seed)]
            out = {feature.paths[i] for i in chosen}
            out |= {path for own in out for path in feature.copies.get(own, [])}
            rest = [i for i, path in enumerate(feature.paths) if path not in out]
            fitting[name], held_out[name] = feature.subset(rest), feature.subset(chosen)
        else:
            limit = config.calibration_images if config.calibration_mode != "none" else 0
            chosen = [able[i] for i in choose_images(len(able), limit, config.seed)]
            fitting[name], held_out[name] = feature, feature.subset(chosen)
    return fitting, held_out
