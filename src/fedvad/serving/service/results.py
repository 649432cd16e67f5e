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

__all__ = ["score_files"]

_LONGEST_NAME = 200
_OUTCOMES = {True: "anomalous", False: "normal", None: "unjudged"}


def score_files(
    predictor: Predictor,
    metrics: ServiceMetrics,
    files: Sequence[UploadFile],
    stopped: Callable[[], bool],
    *,
    heatmap: bool,
    max_file_bytes: int,
) -> list[FileResult]:
    """Results of the files one after another, so that only one of them is in memory.

    Gives up before the next file once `stopped()`.
    """
    results = []
    for upload in files:
        if stopped():
            break
        name = printable(upload.filename or "image")[:_LONGEST_NAME]
        if (upload.size or 0) > max_file_bytes:
            metrics.image("too_large")
            message = f"{name}: has {upload.size} bytes, over the limit of {max_file_bytes}"
            results.append(_unscored(name, predictor, "too_large", message))
            continue
        with metrics.image_seconds.time():
            (found,) = predictor.predict([upload.file.read()], names=[name])
        if found.error is not None:
            metrics.image("unreadable")
            results.append(_unscored(name, predictor, "unreadable", found.error))
            continue
        metrics.image(_OUTCOMES[found.anomalous])
        results.append(_scored(name, found, heatmap))
    return results


def _scored(name: str, found: Prediction, heatmap: bool) -> FileResult:
    assert found.map is not None
    assert found.size is not None
    picture = heat_png(found.map, found.size, found.threshold) if heatmap else None
    return FileResult(
        name=name,
        score=found.score,
        threshold=found.threshold,
        anomalous=found.anomalous,
        height=found.size[0],
        width=found.size[1],
        heatmap=None if picture is None else base64.b64encode(picture).decode(),
        error=None,
    )


def _unscored(name: str, predictor: Predictor, code: str, message: str) -> FileResult:
    return FileResult(
        name=name,
        score=None,
        threshold=None if predictor.threshold is None else predictor.threshold.value,
        anomalous=None,
        height=None,
        width=None,
        heatmap=None,
        error=Explanation(code=code, message=message),
    )
