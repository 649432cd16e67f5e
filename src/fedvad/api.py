"""The Python API: the verbs of the command line with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

from fedvad.data.arrays import ImageLike, is_image
from fedvad.data.arrays import as_path as image_path
from fedvad.data.bounds import MAX_PIXELS
from fedvad.errors import ConfigError
from fedvad.evaluation.results import Results
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.config import Engine
from fedvad.pipeline.bench.run import bench as _bench
from fedvad.pipeline.bench.suite import load_suite
from fedvad.pipeline.config import Reference, as_path, resolve_config
from fedvad.pipeline.continual.run import continual as _continual
from fedvad.pipeline.continual.stream import load_stream
from fedvad.pipeline.demo import demo as _demo
from fedvad.pipeline.evaluate import evaluate as _evaluate
from fedvad.pipeline.gallery import gallery as _gallery
from fedvad.pipeline.inspect import inspect as _inspect
from fedvad.pipeline.predict import predict as _predict
from fedvad.pipeline.progress import Progress, silent
from fedvad.pipeline.report import Written
from fedvad.pipeline.report import report as _report
from fedvad.pipeline.run_folder import TrainedRun
from fedvad.pipeline.runs import load_run
from fedvad.pipeline.student_run import StudentRun
from fedvad.pipeline.train import train as _train

__all__ = [
    "backbones",
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
) -> Results:
    """Train on the sites of `data` into run folder `out`; `options` are those of the config."""
    resolved = resolve_config(_maybe(config, "config"), **options)
    return _train(
        as_path(data, "data"),
        as_path(out, "out"),
        resolved,
        cache=_cache(cache),
        resume=resume,
        progress=progress,
    )


def evaluate(
    run: AnyPath,
    data: AnyPath,
    *,
    reference: Reference | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    max_bad: float | None = None,
    cache: AnyPath | None = None,
    heatmaps: AnyPath | None = None,
    out: AnyPath | None = None,
    good: Iterable[str] = (),
    defect: Iterable[str] = (),
    progress: Progress = silent,
) -> Results:
    """Results of run folder `run` on the test images of `data`; out: folder for them and a page."""
    return _evaluate(
        as_path(run, "run"),
        as_path(data, "data"),
        reference=reference,
        weights=_maybe(weights, "weights"),
        max_pixels=max_pixels,
        engine=engine,
        device=device,
        max_bad=max_bad,
        cache=_cache(cache),
        heatmaps=_maybe(heatmaps, "heatmaps"),
        out=_maybe(out, "out"),
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
    threshold: float | None = None,
    target_fpr: float | None = None,
    out: AnyPath | None = None,
    save: str | Iterable[str] | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Iterator[dict[str, Any]]:
    """One result per image; nothing is cached, since each is usually seen once.

    images: one, or several: paths of files and folders, bytes of files, RGB arrays, PIL images,
    torch tensors (see `data.arrays.to_rgb`); those without a path are called images[0], ...
    Everything is checked at the call; an image is scored when its result is asked for. See
    `fedvad.pipeline.predict.predict`. Raises `DataError` for anything else.
    """
    if save is not None and not isinstance(save, str):
        save = [str(kind) for kind in _listed(save, "save")]
    one = is_image(images) or not isinstance(images, Iterable)
    several: Iterable[Any] = [images] if one else images  # type: ignore[assignment]
    return _predict(
        as_path(run, "run"),
        [
            image_path(image, f"images[{i}]", max_pixels=max_pixels or MAX_PIXELS)
            for i, image in enumerate(several)
        ],
        site=site,
        reference=reference,
        threshold=threshold,
        target_fpr=target_fpr,
        save=save,
        engine=engine,
        device=device,
        out=_maybe(out, "out"),
        weights=_maybe(weights, "weights"),
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
        as_path(out, "out"),
        data=_maybe(data, "data"),
        weights=_maybe(weights, "weights"),
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
        as_path(out, "out"),
        data=_maybe(data, "data"),
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
        as_path(out, "out"),
        data=[as_path(folder, "folder") for folder in data],
        weights=_by_backbone(weights),
        resume=resume,
        progress=progress,
    )


def gallery(data: AnyPath, out: AnyPath, **options: Any) -> dict[str, Any]:
    """Draw synthetic defects on normal images of `data` into the PNG file `out`; options are those
    of `fedvad gallery`.
    """
    known = [name for name in signature(_gallery).parameters if name not in ("data", "out")]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r} of gallery; known: {', '.join(known)}")
    return _gallery(as_path(data, "data"), as_path(out, "out"), **options)


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
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write one site's detector of run folder `run` as an "onnx" or "openvino" model file.

    opset: ONNX's operator set, 14 to 20. verify: data folder on whose images the model must score
    like the run.
    """
    from fedvad.serving.export.package import export as export_run  # loads torch

    return export_run(
        as_path(run, "run"),
        format=format,
        int8=int8,
        data=_maybe(data, "data"),
        site=site,
        reference=reference,
        threshold=threshold,
        target_fpr=target_fpr,
        engine=engine,
        device=device,
        out=_maybe(out, "out"),
        weights=_maybe(weights, "weights"),
        opset=opset,
        verify=_maybe(verify, "verify"),
        progress=progress,
    )


def inspect(
    path: AnyPath, *, good: Iterable[str] = (), defect: Iterable[str] = ()
) -> dict[str, Any]:
    """What is in a run folder, a detector file or a memory message, or what a data folder is read
    as; good, defect: names of folders with normal images and with defects, beyond `good`.
    """
    return _inspect(as_path(path, "path"), good=tuple(good), defect=tuple(defect))


def write_report(
    run: AnyPath, out: AnyPath | None = None, *, pictures: bool = True, pdf: bool = False
) -> Written:
    """Write the HTML page of run folder `run` (default: report.html in it); path and sizes.

    pdf: one page to print in its place (default: audit.pdf).
    """
    return _report(as_path(run, "run"), out=_maybe(out, "out"), pictures=pictures, pdf=pdf)


def load(run: AnyPath) -> TrainedRun | StudentRun:
    """A run as an object: memories and generators, or students; and the thresholds."""
    return load_run(as_path(run, "run"))


def demo(out: AnyPath = "fedvad-demo", *, seed: int = 0, progress: Progress = silent) -> Results:
    """Draw the demo plants, train on them, and return the results."""
    return _demo(as_path(out, "out"), seed=seed, progress=progress)


def _maybe(value: AnyPath | None, name: str) -> Path | None:
    return None if value is None else as_path(value, name)


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} is a {type(values).__name__}; give a list")
    return list(values)


def backbones(pattern: str | None = None) -> list[dict[str, Any]]:
    """Families of backbones that are known to work, or the models whose name holds `pattern`."""
    from fedvad.features.listing import families, models  # models loads torch

    return families() if pattern is None else models(pattern)


def _by_backbone(weights: Mapping[str, AnyPath] | None) -> dict[str, Path]:
    if weights is not None and not isinstance(weights, Mapping):
        raise ConfigError('weights is a mapping here: {"NAME of the backbone": FILE}')
    return {name: as_path(file, f"weights of {name}") for name, file in (weights or {}).items()}


def _cache(root: AnyPath | None) -> DescriptorCache:
    return DescriptorCache(default_cache_root() if root is None else as_path(root, "cache"))
