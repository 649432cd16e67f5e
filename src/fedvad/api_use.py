"""The Python API's verbs of a trained run at work: measure, score, calibrate, export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

from fedvad.api_arguments import AnyPath, cache_at, listed, maybe
from fedvad.data.arrays import ImageLike, is_image
from fedvad.data.arrays import as_path as image_path
from fedvad.data.bounds import check_limit
from fedvad.data.labels import Names
from fedvad.evaluation.results import Results
from fedvad.features.config import Engine
from fedvad.runs.config import Reference, as_path
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run_folder import read_config
from fedvad.verbs.evaluate import evaluate as _evaluate
from fedvad.verbs.predict import predict as _predict
from fedvad.verbs.recalibrate import recalibrate as _recalibrate

__all__ = ["calibrate", "evaluate", "export", "predict"]


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
    """Measure a run on labelled images, also of sites that never trained.

    Parameters
    ----------
    run, data : path
        Run folder, and a folder of sites or one set with test images.
    reference : {"global", "local", "union"}, optional
        Memory that scores: of all sites, the site's own, or both; None takes the run's.
    weights, engine, device, max_pixels : optional
        In place of those of the training, for a run that was moved: file of the backbone's weights,
        "openvino" or "torch", "cpu", "cuda" or "mps", and greatest number of pixels of an image.
    max_bad : float in [0, 1], optional
        Share of unreadable images tolerated per site; None takes that of the training.
    cache, progress : optional
        As those of `train`.
    heatmaps : path, optional
        PNG file to write with a contact sheet.
    out : path, optional
        Folder for the results and a page of their own.
    good, defect : str or list of str, default=()
        Names of folders with normal images and with defects, beyond `good`.

    Returns
    -------
    Results
        In the shape that `train` returns, with nothing compared.

    Raises
    ------
    ConfigError, ArtefactError, DataError, MismatchError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> results = fedvad.evaluate("run", "plants")
    >>> results.threshold.sites["alder"].counts.defects
    4
    """
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
    """Score images with a trained run: decision and heat-map of each. Nothing is cached.

    Everything is checked at the call; an image is scored when its result is asked for.

    Parameters
    ----------
    run : path
    images : path, bytes, array, PIL image or torch tensor, or several of them
        Paths are files or folders; bytes are those of a file; arrays are RGB, uint8 (H, W, 3) (see
        `fedvad.data.arrays.to_rgb`). Those without a path are called images[0], images[1], ...
    site : str, optional
        Site whose own parts and threshold are used; None decides by the median of all sites'.
    reference : {"global", "local", "union"}, optional
        Memory that scores: of all sites, the site's own, or both; None takes the run's.
    threshold : float, optional
        Score that decides, in place of the run's threshold.
    target_fpr : float in [1e-6, 0.5], optional
        Wanted false-alarm rate, for which the threshold is found again. Not with `threshold`.
    out : path, optional
        Folder for what `save` names; neither a run folder nor one of the images.
    save : str or list of str, optional
        Of "overlays", "maps", "maps16", "masks", "boxes" and "csv"; None saves overlays.
    weights, engine, device, max_pixels : optional
        In place of those of the training, for a run that was moved: file of the backbone's weights,
        "openvino" or "torch", "cpu", "cuda" or "mps", and greatest number of pixels of an image.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Yields
    ------
    dict
        path, site, score, threshold, anomalous (None without a threshold), overlay, error (None, or
        why there is no score), reason (None, or why there is no decision) and files.

    Raises
    ------
    ConfigError, DataError, ArtefactError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> rows = list(fedvad.predict("run", "plants/alder/test/good", site="alder"))
    >>> len(rows), [row["score"] > row["threshold"] for row in rows]
    (3, [False, False, False])
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
    """Find a site's thresholds again from images of good parts, and keep them in the run.

    Parameters
    ----------
    run : path
    normals : path, or several
        Files or folders of at least three different images of good parts, no defect among them.
    site : str, optional
        Whose images these are; may be omitted where the run has one site only.
    target_fpr : float in [1e-6, 0.5], optional
        Wanted false-alarm rate; None takes that of the training.
    force : bool, default=False
        Keep a threshold more than 1.5 times the present one, which is otherwise refused.
    undo : bool, default=False
        Put the site's thresholds before its last calibration back; without `normals`.
    weights, engine, device, max_pixels : optional
        In place of those of the training, for a run that was moved: file of the backbone's weights,
        "openvino" or "torch", "cpu", "cuda" or "mps", and greatest number of pixels of an image.
    cache, progress : optional
        As those of `train`.

    Returns
    -------
    dict
        site, reference, thresholds (before, now and method by reference) and, unless undone,
        images, target_fpr, promised (a sentence) and above_before (images above the threshold that
        held before, highest first).

    Raises
    ------
    ConfigError, DataError, ArtefactError
        See `fedvad.errors`; `DataError` for a suspicious threshold, too. Nothing is changed then.

    Examples
    --------
    >>> import fedvad
    >>> answer = fedvad.calibrate("run", "plants/alder/train/good", site="alder", target_fpr=0.05)
    >>> answer["images"], answer["promised"][:54]
    (6, '6 normal images promise at most 39.3 % false alarms wi')
    >>> fedvad.calibrate("run", undo=True, site="alder")["site"]
    'alder'
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
    """Write one site's detector of a run as a model file that needs no fedvad to run.

    Parameters
    ----------
    run : path
    format : {"onnx", "openvino"}, default="onnx"
    int8 : bool, default=False
        Quantise the backbone; needs `data`.
    data : path, optional
        Data folder, whose normal training images set the ranges of int8.
    site, reference, threshold, target_fpr : optional
        As those of `predict`.
    out : path, optional
        Folder to write; by default export in `run`.
    weights, engine, device : optional
        As those of `predict`, of what the model is compared with.
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
        See `fedvad.errors`. Nothing is written then.

    Examples
    --------
    >>> import fedvad
    >>> manifest = fedvad.export("run", format="openvino", site="alder", out="model")
    >>> manifest["model"], manifest["site"]
    ('model.xml', 'alder')
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
