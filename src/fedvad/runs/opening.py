"""Runs of any kind, opened with what they need to score."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvad.errors import ConfigError, join_names
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine
from fedvad.features.engine import BF16, check_engine, has_bf16
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import TrainConfig, as_path
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_config

log = logging.getLogger(__name__)


def known_site(run: Run, site: object) -> str | None:
    """The site of a run that is meant; None means the only one, or none of several.

    Raises `ConfigError` for one that the run does not know.
    """
    if site is None:
        return next(iter(run.sites)) if len(run.sites) == 1 else None
    if isinstance(site, str) and site not in run.sites:
        with suppress(UnicodeError):  # a command line in a locale that is not UTF-8
            site = os.fsencode(site).decode()
    if not isinstance(site, str) or site not in run.sites:
        raise ConfigError(f"the run has no site {site!r}; known sites: {join_names(run.sites)}")
    return site


def open_run(
    folder: Path,
    *,
    weights: Path | str | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: DescriptorCache | None = None,
    max_pixels: int | None = None,
) -> tuple[Run, TrainConfig, FeatureExtractor]:
    """A run with its configuration and an extractor that provably gives its features.

    `weights`, `engine` and `device` replace what was stored at training, for a run that was moved
    to another machine; `max_pixels` replaces the limit on the size of images. A stored device that
    this machine lacks becomes the CPU, and a stored precision float32, with a warning. Raises
    `ArtefactError`, `WeightsError`, `MismatchError` when the backbone's values differ, or
    `ConfigError` for a given engine or device that is not there.
    """
    run = Run.load(folder)
    config = _placed(read_config(folder), weights, engine, device)
    if max_pixels is not None:
        config = config.model_copy(update={"max_pixels": max_pixels})
    return run, config, _extractor(run, folder, config, cache)


def open_memory_run(
    folder: Path,
    *,
    weights: Path | str | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: DescriptorCache | None = None,
) -> tuple[TrainedRun, TrainConfig, FeatureExtractor]:
    """As `open_run`, for those who change a memory; raises `ArtefactError` for a student's run.

    In the precision of the training, or `ConfigError`: a memory knows the rows of an image by their
    values.
    """
    run = TrainedRun.load(folder)
    trained = read_config(folder)
    wanted = trained.engine if engine is None else engine
    if (wanted == BF16) != (trained.engine == BF16):
        raise ConfigError(
            f"this run was trained with engine {trained.engine}: change its memory with that, not "
            f"with {wanted}, because in another precision it would not recognise its own rows"
        )
    # the engine is given, so that none takes its place
    config = _placed(trained, weights, wanted, device)
    return run, config, _extractor(run, folder, config, cache)


def check_pictures(extractor: FeatureExtractor, what: str) -> None:
    """Raise `ConfigError` for a run of cubes where `what` takes pictures."""
    if extractor.bands:
        raise ConfigError(
            f"the run scores cubes of {extractor.bands} bands, and {what} takes pictures: score "
            "files of cubes with fedvad predict"
        )


def _placed(
    config: TrainConfig, weights: Path | str | None, engine: Engine | None, device: str | None
) -> TrainConfig:
    """The configuration with other weights, and an engine and device that are there."""
    changed: dict[str, Any] = {} if weights is None else {"weights": as_path(weights, "weights")}
    changed["engine"] = engine or config.engine
    if engine is None and config.engine == BF16 and not has_bf16():
        log.warning(
            "this run was trained with engine %s, and this processor has no instructions for "
            "bfloat16: it runs in float32 (--engine openvino)", BF16,
        )  # fmt: skip
        changed["engine"] = "openvino"
    changed["device"] = device
    if device is None:
        changed["device"] = config.device if engine in (None, config.engine) else "cpu"
    try:
        check_engine(changed["engine"], changed["device"])
    except ConfigError:
        if device is not None or changed["device"] == "cpu":
            raise
        log.warning(
            "this run was trained on device %r, which is not available here: it runs on the CPU "
            "(--device chooses another)", config.device,
        )  # fmt: skip
        changed["device"] = "cpu"
    return config.model_copy(update=changed)


def _extractor(
    run: Run, folder: Path, config: TrainConfig, cache: DescriptorCache | None
) -> FeatureExtractor:
    # a later version may tap a backbone elsewhere by default: the run knows its own layers
    wanted = replace(config.features(), layers=run.features.layers)
    extractor = FeatureExtractor(wanted, cache)
    run.features.check_same(extractor.config, f"run {folder.name}")
    return extractor
