"""Uploaded files to results; runs in a worker thread."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

from starlette.datastructures import UploadFile

from fedvad.report.html.record import printable
from fedvad.serving.predictor import Prediction, Predictor
from fedvad.serving.service.heat import heat_png
from fedvad.serving.service.metrics import ServiceMetrics
from fedvad.serving.service.models import Explanation, FileResult

_LONGEST_NAME = 200
_OUTCOMES = {True: "anomalous", False: "normal", None: "unjudged"}


def score_files(
    predictor: Predictor,
    metrics: ServiceMetrics,
    files: Sequence[UploadFile],
    stopped: Callable[[], bool],
    *,
    heatmap: bool,
    threshold: float | None,
    max_file_bytes: int,
    report: Callable[[str], None],
) -> list[FileResult]:
    """Results of the files one after another, so that only one of them is in memory.

    `threshold` decides instead of the predictor's. Gives up before the next file once
    `stopped()`; `report` hears which one is worked on.
    """
    if threshold is None and predictor.threshold is not None:
        threshold = predictor.threshold.value
    results = []
    for number, upload in enumerate(files, 1):
        if stopped():
            break
        name = printable(upload.filename or "image")[:_LONGEST_NAME]
        report(f"{name} (image {number} of {len(files)})")
        if (upload.size or 0) > max_file_bytes:
            metrics.image("too_large")
            message = (
                f"{name}: has {upload.size} bytes, over the limit of {max_file_bytes} (--max-mb "
                "of fedvad serve)"
            )
            results.append(_unscored(name, threshold, "too_large", message))
            continue
        with metrics.image_seconds.time():
            (found,) = predictor.predict([upload.file.read()], names=[name])
        if found.error is not None:
            metrics.image("unreadable")
            message = found.error
            if f"over the limit of {predictor.max_pixels}" in message:
                message += " (--max-megapixels of fedvad serve)"
            results.append(_unscored(name, threshold, "unreadable", message))
            continue
        result = _scored(name, found, threshold, heatmap)
        metrics.image(_OUTCOMES[result.anomalous])
        results.append(result)
    return results


def _scored(name: str, found: Prediction, threshold: float | None, heatmap: bool) -> FileResult:
    assert found.score is not None
    assert found.map is not None
    assert found.size is not None
    picture = heat_png(found.map, found.size, threshold) if heatmap else None
    return FileResult(
        name=name,
        score=found.score,
        threshold=threshold,
        anomalous=None if threshold is None else found.score > threshold,
        height=found.size[0],
        width=found.size[1],
        heatmap=None if picture is None else base64.b64encode(picture).decode(),
        error=None,
    )


def _unscored(name: str, threshold: float | None, code: str, message: str) -> FileResult:
    return FileResult(
        name=name,
        score=None,
        threshold=threshold,
        anomalous=None,
        height=None,
        width=None,
        heatmap=None,
        error=Explanation(code=code, message=message),
    )
