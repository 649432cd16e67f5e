"""The Python API: the verbs of the command line with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from fedvad.data.arrays import ImageLike, as_path, is_image
from fedvad.data.bounds import MAX_PIXELS
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.pipeline.bench.run import bench as _bench
from fedvad.pipeline.bench.suite import load_suite
from fedvad.pipeline.config import Reference, resolve_config
from fedvad.pipeline.continual.run import continual as _continual
from fedvad.pipeline.continual.stream import load_stream
from fedvad.pipeline.demo import demo as _demo
from fedvad.pipeline.evaluate import evaluate as _evaluate
from fedvad.pipeline.gallery import gallery as _gallery
from fedvad.pipeline.inspect import inspect as _inspect
from fedvad.pipeline.predict import predict as _predict
from fedvad.pipeline.progress import Progress, silent
from fedvad.pipeline.report import report as _report
from fedvad.pipeline.run_folder import TrainedRun
from fedvad.pipeline.runs import load_run
from fedvad.pipeline.student_run import StudentRun
from fedvad.pipeline.train import train as _train

__all__ = [
    "bench",
    "demo",
    "distill_backbone",
    "evaluate",
    "export",
    "gallery",
    "inspect",
    "load",
    "predict",
    "run_stream",
    "train",
    "write_report",
]

AnyPath = str | PathLike[str]


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    cache: AnyPath | None = None,
    resume: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Train on the sites of `data` into run folder `out`; `options` are those of the config."""
    resolved = resolve_config(None if config is None else Path(config), **options)
    return _train(
        Path(data), Path(out), resolved, cache=_cache(cache), resume=resume, progress=progress
    )


def evaluate(
    run: AnyPath,
    data: AnyPath,
    *,
    reference: Reference | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    cache: AnyPath | None = None,
    heatmaps: AnyPath | None = None,
    good: Iterable[str] = (),
    defect: Iterable[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Results of run folder `run` on the test images of `data`."""
    return _evaluate(
        Path(run),
        Path(data),
        reference=reference,
        weights=None if weights is None else Path(weights),
        max_pixels=max_pixels,
        cache=_cache(cache),
        heatmaps=None if heatmaps is None else Path(heatmaps),
        good=tuple(good),
        defect=tuple(defect),
        progress=progress,
    )


def predict(
    run: AnyPath,
    images: ImageLike | Iterable[ImageLike],
    *,
    site: str | None = None,
    reference: Reference | None = None,
    out: AnyPath | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    progress: Progress = silent,
) -> Iterator[dict[str, Any]]:
    """One result per image; nothing is cached, since each is usually seen once.

    images: one, or several: paths of files and folders, bytes of files, RGB arrays, PIL images,
    torch tensors (see `data.arrays.to_rgb`); those without a path are called images[0], ...
    Raises `DataError` for anything else.
    """
    one = is_image(images) or not isinstance(images, Iterable)
    several: Iterable[Any] = [images] if one else images  # type: ignore[assignment]
    return _predict(
        Path(run),
        [
            as_path(image, f"images[{i}]", max_pixels=max_pixels or MAX_PIXELS)
            for i, image in enumerate(several)
        ],
        site=site,
        reference=reference,
        out=None if out is None else Path(out),
        weights=None if weights is None else Path(weights),
        max_pixels=max_pixels,
        progress=progress,
    )


def bench(
    suite: str,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
    cache: AnyPath | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare the methods of a suite (shipped name or TOML file); tables and plots in `out`."""
    chosen = load_suite(suite).only(
        seeds=None if seeds is None else list(seeds),
        methods=None if methods is None else list(methods),
    )
    return _bench(
        chosen,
        Path(out),
        data=None if data is None else Path(data),
        weights=None if weights is None else Path(weights),
        cache=_cache(cache),
        progress=progress,
    )


def run_stream(
    stream: str,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: Mapping[str, AnyPath] | None = None,
    cache: AnyPath | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`fedvad continual`: learn the tasks of a stream (shipped name or TOML file) one by one.

    weights: a file by backbone name.
    """
    chosen = load_stream(stream).only(
        seeds=None if seeds is None else list(seeds),
        methods=None if methods is None else list(methods),
    )
    return _continual(
        chosen,
        Path(out),
        data=None if data is None else Path(data),
        weights=_by_backbone(weights),
        cache=_cache(cache),
        progress=progress,
    )


def distill_backbone(
    recipe: str,
    out: AnyPath,
    *,
    data: Iterable[AnyPath] = (),
    weights: Mapping[str, AnyPath] | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`fedvad distill`: teach a small backbone by a recipe (shipped name or TOML file).

    weights: a file by the teacher's name.
    """
    from fedvad.pipeline.distill.recipe import load_recipe  # loads torch, with the next one
    from fedvad.pipeline.distill.run import distill

    return distill(
        load_recipe(recipe),
        Path(out),
        data=[Path(folder) for folder in data],
        weights=_by_backbone(weights),
        resume=resume,
        progress=progress,
    )


def gallery(data: AnyPath, out: AnyPath, **options: Any) -> dict[str, Any]:
    """Draw synthetic defects on normal images of `data` into the PNG file `out`; options are those
    of `fedvad gallery`.
    """
    return _gallery(Path(data), Path(out), **options)


def export(
    run: AnyPath,
    *,
    format: str = "onnx",
    int8: bool = False,
    data: AnyPath | None = None,
    site: str | None = None,
    reference: Reference | None = None,
    out: AnyPath | None = None,
    weights: AnyPath | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write one site's detector of run folder `run` as an "onnx" or "openvino" model file."""
    from fedvad.serving.export.package import export as export_run  # loads torch

    return export_run(
        Path(run),
        format=format,
        int8=int8,
        data=None if data is None else Path(data),
        site=site,
        reference=reference,
        out=None if out is None else Path(out),
        weights=None if weights is None else Path(weights),
        progress=progress,
    )


def inspect(
    path: AnyPath, *, good: Iterable[str] = (), defect: Iterable[str] = ()
) -> dict[str, Any]:
    """What is in a run folder, a detector file or a memory message, or what a data folder is read
    as; good, defect: names of folders with normal images and with defects, beyond `good`.
    """
    return _inspect(Path(path), good=tuple(good), defect=tuple(defect))


def write_report(
    run: AnyPath, out: AnyPath | None = None, *, pictures: bool = True
) -> dict[str, Any]:
    """Write the HTML page of run folder `run` (default: report.html in it); path and sizes."""
    return _report(Path(run), out=None if out is None else Path(out), pictures=pictures)


def load(run: AnyPath) -> TrainedRun | StudentRun:
    """A run as an object: memories and generators, or students; and the thresholds."""
    return load_run(Path(run))


def demo(out: AnyPath = "fedvad-demo", *, seed: int = 0, progress: Progress = silent) -> Any:
    """Draw the demo plants, train on them, and return the results."""
    return _demo(Path(out), seed=seed, progress=progress)


def _by_backbone(weights: Mapping[str, AnyPath] | None) -> dict[str, Path]:
    return {name: Path(file) for name, file in (weights or {}).items()}


def _cache(root: AnyPath | None) -> DescriptorCache:
    return DescriptorCache(default_cache_root() if root is None else Path(root))
