"""Runs of any kind, opened with what they need to score."""

from __future__ import annotations

from pathlib import Path

from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.pipeline.config import TrainConfig
from fedvad.pipeline.fitted import Run
from fedvad.pipeline.run_folder import TrainedRun, read_config, read_run
from fedvad.pipeline.student_run import KIND, StudentRun

__all__ = ["load_run", "open_memory_run", "open_run"]


def load_run(folder: Path) -> TrainedRun | StudentRun:
    """Read a run of memories or of students; raises `ArtefactError`."""
    arrays, values, path = read_run(folder)
    if values.get("kind") == KIND:
        return StudentRun.from_arrays(arrays, values, path)
    return TrainedRun.from_arrays(arrays, values, path)


def open_run(
    folder: Path,
    *,
    weights: Path | None = None,
    cache: DescriptorCache | None = None,
    max_pixels: int | None = None,
) -> tuple[Run, TrainConfig, FeatureExtractor]:
    """A run with its configuration and an extractor that provably gives its features.

    `weights` replaces the path stored at training, for a run that was moved to another machine,
    `max_pixels` the limit on the size of images. Raises `ArtefactError`, `WeightsError`, or
    `MismatchError` when the backbone's values differ.
    """
    run = load_run(folder)
    return run, *_extractor(run, folder, weights, cache, max_pixels=max_pixels)


def open_memory_run(
    folder: Path, *, weights: Path | None = None, device: str | None = None
) -> tuple[TrainedRun, TrainConfig, FeatureExtractor]:
    """As `open_run`, for those who need a memory; raises `ArtefactError` for a student's run.

    `device` replaces the one that the run was trained on.
    """
    run = TrainedRun.load(folder)
    return run, *_extractor(run, folder, weights, None, device)


def _extractor(
    run: Run,
    folder: Path,
    weights: Path | None,
    cache: DescriptorCache | None,
    device: str | None = None,
    max_pixels: int | None = None,
) -> tuple[TrainConfig, FeatureExtractor]:
    config = read_config(folder)
    given = {"weights": weights, "device": device, "max_pixels": max_pixels}
    config = config.model_copy(update={k: v for k, v in given.items() if v is not None})
    extractor = FeatureExtractor(config.features(), cache)
    run.features.check_same(extractor.config, f"run {folder.name}")
    return config, extractor
