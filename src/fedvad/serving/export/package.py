"""`export`: a run as one model file, with a manifest and an example beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.data.views import View
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import Engine
from fedvad.features.engine import BF16
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import Reference, as_path, check_reference
from fedvad.runs.decision import check_threshold_options, choose_threshold, warn_of_threshold
from fedvad.runs.guards import guard_output_file, guard_plain_folder
from fedvad.runs.opening import check_pictures, known_site, open_run
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run_folder import DETECTOR_FILE, write_json
from fedvad.serving.export.check import (
    Difference,
    Model,
    compare,
    drawn_images,
    images_of,
    opened,
)
from fedvad.serving.export.graph import ExportNet, export_net
from fedvad.serving.export.quantise import calibration_images

__all__ = ["EXAMPLE_FILE", "TOLERANCE", "export"]

EXAMPLE_FILE = "example.py"
# Beyond these shares an export is not the detector that was trained. Where two vectors of a
# shortlist are equally near, rounding may choose the other: that moves a few cells, not the score.
TOLERANCE = {"score": 1e-3, "map": 2e-2}
_SCHEMA = 1
_FILES = tuple(
    f"model{precision}{suffix}"
    for precision in ("", "-int8")
    for suffix in (".onnx", ".xml", ".bin")
)


class _Backend(Protocol):
    """What `onnx` and `openvino` here have in common."""

    def build(self, net: ExportNet, sides: tuple[int, int], opset: int | None) -> Any: ...
    def quantise(self, model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any: ...
    def files(self, model: Any) -> dict[str, bytes]: ...
    def load(self, path: Path) -> Model: ...


def export(
    run: AnyPath,
    *,
    format: str = "onnx",
    int8: bool = False,
    data: AnyPath | None = None,
    site: str | None = None,
    reference: Reference | None = None,
    threshold: float | None = None,
    target_fpr: float | None = None,
    out: AnyPath | None = None,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    opset: int | None = None,
    verify: AnyPath | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the detector of a site as a model file that runs without fedvad.

    The model is tried on three images before it is kept, and must score like the run within
    `TOLERANCE`. For int8 the difference is only measured.

    Parameters
    ----------
    run : path
    format : {"onnx", "openvino"}, default="onnx"
    int8 : bool, default=False
        Quantise the backbone; needs `data`.
    data : path, optional
        Data folder; its normal training images determine the ranges of int8.
    site, reference, threshold, target_fpr : optional
        As those of `predict`.
    out : path, optional
        Folder to write; by default export in `run`.
    weights, engine, device : optional
        As those of `predict`, for the run that the model is compared with.
    opset : int from 14 to 20, default=17
        ONNX's operator set.
    verify : path, optional
        Data folder on whose images the model must score like the run.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        The manifest, and the folder.

    Raises
    ------
    ConfigError, ArtefactError, DataError, StorageError
        See `fedvad.errors`. In that case nothing is written.

    Examples
    --------
    >>> import fedvad
    >>> manifest = fedvad.export("run", format="openvino", site="alder", out="model")
    >>> manifest["model"], manifest["site"]
    ('model.xml', 'alder')
    """
    progress = progress or no_progress
    run_folder = as_path(run, "run")
    data, verify = maybe(data, "data"), maybe(verify, "verify")
    backend = _backend(format)
    if int8 and data is None:
        raise ConfigError("int8 needs normal training images: give the data folder (--data)")
    check_reference(reference)
    check_threshold_options(threshold, target_fpr)
    folder = run_folder / "export" if out is None else as_path(out, "out")
    trained, config, extractor = open_run(
        run_folder, weights=maybe(weights, "weights"), engine=engine, device=device or "cpu"
    )
    check_pictures(extractor, "an exported model")
    if extractor.config.engine == BF16:
        raise ConfigError(
            "an exported model computes in float32, this run in bfloat16: give --engine openvino "
            "to export it all the same; its scores differ from the run's by about a percent"
        )
    site = known_site(trained, site)
    _guard(folder, run_folder, [data, verify], extractor.config.weights, site)
    if int8 and config.backbone == "filterbank":  # correlation of scores 0.25 on the demo plants
        raise ConfigError("the filter bank does not work in int8: export it without --int8")
    detector = trained.detector(site, extractor, reference)
    decides = choose_threshold(trained, site, reference, threshold=threshold, target_fpr=target_fpr)
    warn_of_threshold(trained, site, decides, target_fpr)
    view, limit = extractor.config.view, None if decides is None else decides.value
    size = view.height, view.width
    net = export_net(detector, limit)
    if int8 and not net.quantises:
        raise ConfigError(
            f"int8 of {trained.method}, whose scores are differences of two nets, has not been "
            "measured: export it without --int8"
        )
    model = backend.build(net, size, opset)
    calibrated_on = 0
    tried = drawn_images(size)
    if int8 and data is not None:
        images = calibration_images(data, trained, config, site, progress)
        calibrated_on = len(images)
        model = backend.quantise(model, images)
        tried = np.concatenate(images[:3])  # its ranges are those of real images

    name = "model-int8" if int8 else "model"
    contents = {name + suffix: content for suffix, content in backend.files(model).items()}
    model_file = next(file for file in contents if not file.endswith(".bin"))
    with opened(backend.load, contents, model_file) as score:
        tolerance = None if int8 else TOLERANCE
        difference = compare(score, detector, limit, [tried])
        _check(difference, tolerance, config.backbone)
        verified = None
        if verify is not None:
            batches = images_of(verify, config, site, progress)
            verified = compare(score, detector, limit, batches)
            _check(verified, tolerance, config.backbone)
    manifest = {
        "schema": _SCHEMA,
        "fedvad": __version__,
        "format": format,
        "model": model_file,
        "files": {file: _described(content) for file, content in contents.items()},
        "input": _input(view),
        "outputs": _outputs(net.head.grid, net.head.decides),
        "site": site,
        "reference": reference or (trained.reference if site in trained.sites else "global"),
        "threshold": None if decides is None else _without_scores(decides),
        "int8": {"part": "backbone", "calibration_images": calibrated_on} if int8 else None,
        "difference_from_run": {"score": difference.score, "map": difference.map},
        "verified": None if verified is None else {"tolerance": tolerance} | asdict(verified),
        "features": {"key": extractor.config.key()} | extractor.config.identity(),
        **detector.facts(),
        "run": {"method": trained.method} | _described((run_folder / DETECTOR_FILE).read_bytes()),
    }
    for file, content in contents.items():
        write_atomically(folder / file, content)
    write_atomically(folder / EXAMPLE_FILE, Path(__file__).with_name(EXAMPLE_FILE).read_bytes())
    write_json(folder / f"{model_file}.json", manifest)  # last, since it vouches for the others
    return {"folder": str(folder)} | manifest


def _guard(
    folder: Path,
    run_folder: Path,
    data: Iterable[Path | None],
    weights: Path | None,
    site: str | None,
) -> None:
    """Raise `ConfigError` for a folder in which the export would replace what is not its own."""
    guard_plain_folder(folder, "--out", [path for path in data if path is not None])
    for name in (*_FILES, EXAMPLE_FILE):
        guard_output_file(folder / name, "--out", run=run_folder, others=[weights])
    earlier = [folder / f"{name}.json" for name in _FILES if (folder / f"{name}.json").exists()]
    for manifest in earlier:
        before = _site_of(manifest)
        if before != site:
            raise ConfigError(
                f"{folder} holds a model {_whose(before)}, not {_whose(site)}: choose another "
                "--out, or remove it"
            )
    if earlier:
        return
    foreign = [name for name in (*_FILES, EXAMPLE_FILE) if (folder / name).exists()]
    if foreign:
        raise ConfigError(
            f"{folder / foreign[0]} exists and is not from an export: choose another --out, "
            "or remove it"
        )


def _site_of(manifest: Path) -> str | None:
    """The site of an earlier export; raises `ConfigError` for what is no manifest."""
    try:
        site = json.loads(manifest.read_bytes())["site"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{manifest} exists and is no manifest of an export: choose another --out, or remove it"
        ) from None
    return None if site is None else str(site)


def _whose(site: str | None) -> str:
    return "for any site" if site is None else f"for {site}"


def _check(found: Difference, tolerance: dict[str, float] | None, backbone: str) -> None:
    """Raise `ArtefactError` for a model that is not the detector it was made of."""
    if tolerance is not None and not found.within(tolerance):
        raise ArtefactError(
            f"the exported model does not score like the run: on {found.images} images its score "
            f"differs by up to {found.score:.1e} of the value (at most {tolerance['score']:.0e}), "
            f"its map by {found.map:.1e} of the highest cell (at most {tolerance['map']:.0e}). "
            "Nothing was written: try another --format, and report this with the backbone "
            f"({backbone})"
        )


def _backend(format: str) -> _Backend:
    if format == "onnx":
        from fedvad.serving.export import onnx

        return onnx
    if format == "openvino":
        from fedvad.serving.export import openvino

        return openvino
    raise ConfigError(f"unknown format {format!r}; choose onnx or openvino")


def _input(view: View) -> dict[str, Any]:
    words = "aspect not kept"
    if view.fit:
        words = (
            "by min(1, height / its height, width / its width); an image that is not height x "
            "width then cannot be scored by this model: fedvad itself takes any"
        )
    return {
        "name": "images",
        "type": "uint8",
        "shape": ["batch", view.height, view.width, 3],
        "channels": "RGB",
        "size": view.size,
        "height": view.height,
        "width": view.width,
        "keeps_proportions": view.fit,
        "resize": f"the whole image to height x width with Pillow's BILINEAR, {words}",
    }


def _outputs(grid: tuple[int, int], decides: bool) -> dict[str, str]:
    outputs = {
        "score": "float32 (batch,), higher is more anomalous",
        "map": f"float32 (batch, {grid[0]}, {grid[1]}), the same unit by place",
    }
    return outputs | ({"anomalous": "bool (batch,), score > threshold"} if decides else {})


def _without_scores(threshold: Threshold) -> dict[str, Any]:
    """What was found and what it promises, without the calibration scores that it rests on."""
    found = {name: value for name, value in asdict(threshold).items() if name != "scores"}
    promise = threshold.promise
    stated = None if promise is None else asdict(promise)
    return found | {"promise": stated, "promised": threshold.promised}


def _described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
