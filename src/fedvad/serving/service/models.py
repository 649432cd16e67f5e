"""What the service answers, as OpenAPI shows it."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

from fedvad.runs.answers import Verdict


class Explanation(BaseModel):
    """Why something was refused: a code for programs, a sentence for people."""

    code: str
    message: str


class Problem(BaseModel):
    """Every answer that is not a success."""

    error: Explanation


class FileResult(BaseModel):
    """One file of a request."""

    name: str = Field(description="File name as sent; what is not printable is replaced.")
    score: float | None = Field(description="Higher is more anomalous; null if unreadable.")
    threshold: float | None = Field(
        description="What decides: that of the request or of the run; null without either."
    )
    anomalous: bool | None = Field(description="score > threshold; null without either.")
    width: int | None = Field(description="Of the image, in pixels, upright.")
    height: int | None
    heatmap: str | None = Field(
        description="Base64 of a PNG of the image's aspect ratio, to be laid over it: its opacity "
        "rises from 0 at the map's median to full at the threshold. Only with heatmap=true."
    )
    error: Explanation | None = Field(
        description="Why the file has no score: unreadable or too_large."
    )


class Predictions(BaseModel):
    """One result per file, in the order sent."""

    site: str | None
    results: list[FileResult]


class Health(BaseModel):
    """The service answers and its engine is warm."""

    status: Literal["ok"]
    version: str


class Promised(BaseModel):
    """At most the share `rate` of normal images alarms, with this confidence (both 0 to 1)."""

    rate: float
    confidence: float
    above: int = Field(description="Held-out normal images that exceed the threshold, of `images`.")
    images: int


class Calibration(BaseModel):
    """The run's threshold and what is known of its false alarms.

    target_fpr: share of normal images that exceed it at most, on average; null for a threshold
    that was given to the service. n: held-out normal scores behind it. scores: these, ascending,
    where the run keeps them. promise: what these let one promise of normal images like them, and
    promised: the same as a sentence.
    """

    threshold: float
    target_fpr: float | None
    n: int
    method: str
    scores: list[float] | None
    promise: Promised | None
    promised: str | None


class Answered(BaseModel):
    """What somebody said of an image: a false alarm is "normal", a defect is "defect".

    number: of the answer in its run. date, undone: in UTC, ISO 8601; undone is "" while the answer
    counts. name: of the image's file. region: x, y, width and height in pixels, null for all of it.
    score: of the image when it was answered. rows: patches that are kept.
    """

    number: int
    site: str
    verdict: Verdict
    date: str
    undone: str
    name: str
    region: tuple[int, int, int, int] | None
    score: float
    rows: int


class Limits(BaseModel):
    """What a request may hold."""

    max_file_bytes: int
    max_files: int
    max_total_bytes: int
    max_pixels: int


class Info(BaseModel):
    """What is served.

    site: None stands for the global memory and the sites' median threshold. sites: what the
    parameter `site` may be; empty where one site alone is served. feedback: whether /v1/feedback
    takes answers.
    """

    name: str
    site: str | None
    sites: list[str]
    version: str
    calibration: Calibration | None
    limits: Limits
    feedback: bool


class SiteInfo(BaseModel):
    """A site of a run: its threshold, what that promises, and the answers that count there.

    n_images: normal images that it trained on. image_auroc: as it was measured at the training.
    """

    run: str
    site: str
    threshold: float | None
    promised: str | None
    n_images: int
    image_auroc: float | None
    answers: int


class DayInfo(BaseModel):
    """Images of a day that a watch scored."""

    day: date
    images: int
    stopped: int
    unreadable: int


class LineInfo(BaseModel):
    """A watch: its last seven days, and what changed since it began.

    changed: of light, focus, colour, position and product; says: the same with its figures.
    missing: images until pictures are compared. picture: whether /v1/lines/{id}/changed has one.
    """

    id: int
    name: str
    site: str | None
    days: list[DayInfo]
    changed: list[str]
    since: str | None
    says: str
    missing: int
    picture: bool


class SampleInfo(BaseModel):
    """A small copy of one of the run's test images, at /v1/samples/{id}."""

    id: int
    name: str
    site: str
    defect: str
