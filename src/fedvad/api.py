"""The Python API: the verbs of the command line with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, Unpack

from fedvad.api_arguments import AnyPath, cache_at, listed, maybe
from fedvad.api_living import (
    doctor,
    feedback,
    forget,
    list_feedback,
    undo_feedback,
    undo_update,
    update,
)
from fedvad.api_research import (
    backbones,
    bench,
    distill_backbone,
    gallery,
    group,
    run_stream,
    score_scenes,
)
from fedvad.data.arrays import ImageLike, is_image
from fedvad.data.arrays import as_path as image_path
from fedvad.data.bounds import check_limit
from fedvad.data.labels import Names
from fedvad.evaluation.results import Results
from fedvad.features.config import Engine
from fedvad.runs.config import Reference, as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_config
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.demo import demo as _demo
from fedvad.verbs.evaluate import evaluate as _evaluate
from fedvad.verbs.inspect import inspect as _inspect
from fedvad.verbs.plan import Plan
from fedvad.verbs.plan import plan as _plan
from fedvad.verbs.predict import predict as _predict
from fedvad.verbs.recalibrate import recalibrate as _recalibrate
from fedvad.verbs.report import Written
from fedvad.verbs.report import report as _report
from fedvad.verbs.train import train as _train

__all__ = [
    "TrainOptions",
    "backbones",
    "bench",
    "calibrate",
    "demo",
    "distill_backbone",
    "doctor",
    "evaluate",
    "export",
    "feedback",
    "forget",
    "gallery",
    "group",
    "inspect",
    "list_feedback",
    "load",
    "plan",
    "predict",
    "run_stream",
    "score_scenes",
    "train",
    "undo_feedback",
    "undo_update",
    "update",
    "write_report",
]


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    plan: AnyPath | None = None,
    cache: AnyPath | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
    **options: Unpack[TrainOptions],
) -> Results:
    """Train one detector per site of `data`, write the run folder `out`, return the results.

    data: folder with one folder per site, or one image set with `split`. out: a new folder.
    config: TOML file of options, as `fedvad config` prints one; `options` win over it.
    plan: TOML file of `fedvad.plan`; `config` and `options` win over it. cache:
    folder of descriptors, by default `FEDVAD_CACHE` or the user's cache folder. resume: continue
    the interrupted run in `out`. progress: called with a stage, the steps done and their number.
    options: see `fedvad.TrainOptions`.

    The results are what `results.json` holds. Raises `ConfigError`, `DataError`,
    `FederationError` (see `fedvad.errors`).
    """
    resolved = resolve_config(maybe(config, "config"), plan=maybe(plan, "plan"), **options)
    return _train(
        as_path(data, "data"),
        as_path(out, "out"),
        resolved,
        cache=cache_at(cache),
        resume=resume,
        progress=progress,
    )


if train.__doc__ and TrainOptions.__doc__:  # for help(fedvad.train)
    train.__doc__ += "\n    " + TrainOptions.__doc__


def plan(
    data: AnyPath | Iterable[AnyPath],
    out: AnyPath | None = None,
    *,
    budget: float | None = None,
    suspects: AnyPath | None = None,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
    **options: Unpack[TrainOptions],
) -> Plan:
    """Plan a training from the normal images of each site; no test image is read.

    data: a folder of sites as `train` takes it, or a file of its `to_json`; or several. out: the
    plan to write, for `train`. suspects: picture to write of doubtful normal images. See
    `fedvad.verbs.plan.plan`.
    """
    several = [data] if isinstance(data, str | PathLike) else listed(data, "data")
    return _plan(
        [as_path(place, "data") for place in several],
        maybe(out, "out"),
        budget=budget,
        suspects=maybe(suspects, "suspects"),
        cache=cache_at(cache),
        progress=progress,
        **options,
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
    good: Names = (),
    defect: Names = (),
    progress: Progress = no_progress,
) -> Results:
    """Results of run folder `run` on the test images of `data`; out: folder for them and a page."""
    return _evaluate(
        as_path(run, "run"),
        as_path(data, "data"),
        reference=reference,
        weights=maybe(weights, "weights"),
        max_pixels=max_pixels,
        engine=engine,
        device=device,
        max_bad=max_bad,
        cache=cache_at(cache),
        heatmaps=maybe(heatmaps, "heatmaps"),
        out=maybe(out, "out"),
        good=good,
        defect=defect,
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
    progress: Progress = no_progress,
) -> Iterator[dict[str, Any]]:
    """One result per image; nothing is cached, since each is usually seen once.

    images: one, or several: paths of files and folders, bytes of files, RGB arrays, PIL images,
    torch tensors (see `data.arrays.to_rgb`); those without a path are called images[0], ...
    Everything is checked at the call; an image is scored when its result is asked for. See
    `fedvad.verbs.predict.predict`. Raises `DataError` for anything else.
    """
    if save is not None and not isinstance(save, str):
        save = [str(kind) for kind in listed(save, "save")]
    folder = as_path(run, "run")
    limit = read_config(folder).max_pixels if max_pixels is None else max_pixels
    check_limit(limit, "max_pixels")
    one = is_image(images) or not isinstance(images, Iterable)
    several: Iterable[Any] = [images] if one else images  # type: ignore[assignment]
    return _predict(
        folder,
        [image_path(image, f"images[{i}]", max_pixels=limit) for i, image in enumerate(several)],
        site=site,
        reference=reference,
        threshold=threshold,
        target_fpr=target_fpr,
        save=save,
        engine=engine,
        device=device,
        out=maybe(out, "out"),
        weights=maybe(weights, "weights"),
        max_pixels=max_pixels,
        progress=progress,
    )


def calibrate(
    run: AnyPath,
    normals: AnyPath | Iterable[AnyPath] = (),
    *,
    site: str | None = None,
    target_fpr: float | None = None,
    force: bool = False,
    undo: bool = False,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Find a site's thresholds again from normal images, and keep them in run folder `run`.

    normals: a file or folder of images, or several. site: whose images these are; may be left out
    where the run has one site only. target_fpr: wanted false-alarm rate in (0, 0.5], by default
    that of the training. See `fedvad.verbs.recalibrate.recalibrate`.
    """
    several = [normals] if isinstance(normals, str | PathLike) else listed(normals, "normals")
    return _recalibrate(
        as_path(run, "run"),
        [as_path(path, "normals") for path in several],
        site=site,
        target_fpr=target_fpr,
        force=force,
        undo=undo,
        weights=maybe(weights, "weights"),
        max_pixels=max_pixels,
        engine=engine,
        device=device,
        cache=cache_at(cache),
        progress=progress,
    )


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
    progress: Progress = no_progress,
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
        data=maybe(data, "data"),
        site=site,
        reference=reference,
        threshold=threshold,
        target_fpr=target_fpr,
        engine=engine,
        device=device,
        out=maybe(out, "out"),
        weights=maybe(weights, "weights"),
        opset=opset,
        verify=maybe(verify, "verify"),
        progress=progress,
    )


def inspect(path: AnyPath, *, good: Names = (), defect: Names = ()) -> dict[str, Any]:
    """What is in a run folder, a detector file or a memory message, or what a data folder is read
    as; good, defect: names of folders with normal images and with defects, beyond `good`.
    """
    return _inspect(as_path(path, "path"), good=good, defect=defect)


def write_report(
    run: AnyPath, out: AnyPath | None = None, *, pictures: bool = True, pdf: bool = False
) -> Written:
    """Write the HTML page of run folder `run` (default: report.html in it); path and sizes.

    pdf: one page to print in its place (default: audit.pdf).
    """
    return _report(as_path(run, "run"), out=maybe(out, "out"), pictures=pictures, pdf=pdf)


def load(run: AnyPath) -> Run:
    """A run as an object: memories and generators, or students; and the thresholds."""
    return Run.load(as_path(run, "run"))


def demo(
    out: AnyPath = "fedvad-demo", *, seed: int = 0, progress: Progress = no_progress
) -> Results:
    """Draw the demo plants, train on them, and return the results."""
    return _demo(as_path(out, "out"), seed=seed, progress=progress)
