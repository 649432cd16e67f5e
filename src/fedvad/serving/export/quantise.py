"""Backbones in int8, by NNCF's post-training quantisation."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.images import read_rgb
from fedvad.detectors.calibration import choose_images
from fedvad.errors import ConfigError, DataError, ImageError
from fedvad.features.extractor import check_bad_share
from fedvad.runs.config import TrainConfig
from fedvad.runs.data import fingerprint, load_sites
from fedvad.runs.progress import Progress, Stage
from fedvad.runs.run import Run
from fedvad.serving.export.check import whole_view

_IMAGES = 100


def calibration_images(
    data: Path, run: Run, config: TrainConfig, site: str | None, progress: Progress
) -> list[npt.NDArray[np.uint8]]:
    """At most 100 normal training images of a site (None: of all), each uint8 (1, H, W, 3).

    Never test images: ranges fitted to these would flatter the figures. Raises `DataError` when
    `data` has none of the site, or too many cannot be read.
    """
    names, view = config.label_names(), config.features().view
    split = config.split if fingerprint(data, names) == run.data else None
    # with the limit of the training, so that a split gives the same parts
    sites = load_sites(data, split, config.seed, names, max_pixels=config.max_pixels)
    sites = [s for s in sites if site in (None, s.name)]
    if not sites:
        raise DataError(f"{data} has no site {site!r}, whose normal images int8 needs")
    paths = [item.path for s in sites for item in s.train if item.label == 0]
    chosen = [paths[i] for i in choose_images(len(paths), _IMAGES, config.seed)]
    stage = Stage(progress, "reading", len(chosen))
    images, bad = [], []
    for path in chosen:
        try:
            whole = read_rgb(path, max_pixels=config.max_pixels)
            images.append(whole_view(whole, view, path)[None])
        except ImageError as error:
            bad.append(str(error))
        stage()
    check_bad_share(bad, len(chosen), config.max_bad, str(data))
    if not images:
        raise DataError(f"{data}: no readable normal image to find the ranges of int8 with")
    return images


def quantised(model: Any, samples: Sequence[Any], keep: str) -> Any:
    """The ONNX or OpenVINO model with weights and activations in int8, except some nodes.

    samples: inputs of single images, by which ranges are found. keep: regular expression of the
    names of nodes that stay in float32. Raises `ConfigError` when NNCF is missing or refuses.
    """
    # NNCF reports its use to its makers, unless it believes to be under test
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise ConfigError("int8 needs more packages: pip install 'fedvad[export]'") from error
    nncf.set_log_level(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # its bars
            return nncf.quantize(
                model,
                nncf.Dataset(samples),
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(patterns=[keep]),
            )
    except Exception as error:  # NNCF raises its own types, RuntimeError, AttributeError, ...
        raise ConfigError(
            f"NNCF {nncf.__version__} cannot quantise this backbone ({error}): export it "
            "without int8"
        ) from error
