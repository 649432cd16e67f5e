"""Answers of people to what the service says, kept in its run and effective at once."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.datastructures import UploadFile

from fedvad.errors import ConfigError, FedvadError, InUseError
from fedvad.report.html.record import printable
from fedvad.runs.answers import Verdict
from fedvad.runs.feedback import Box
from fedvad.serving.service.limits import Refusal
from fedvad.serving.service.models import Answered
from fedvad.serving.service.sites import SitePredictors
from fedvad.verbs.feedback import feedback, list_feedback, undo_feedback

log = logging.getLogger(__name__)

_LONGEST_NAME = 200


class Answers:
    """Takes answers to images, lists and undoes them, as `fedvad feedback` does.

    run: folder that the predictors of `sites` were loaded from; each answer changes it. ways:
    weights, engine and device, where they are not those of the training.
    """

    def __init__(self, run: Path, sites: SitePredictors, **ways: Any) -> None:
        self._run = run
        self._sites = sites
        self._ways = ways
        self._lock = threading.Lock()

    def add(
        self, upload: UploadFile, verdict: Verdict, site: str | None, region: Box | None
    ) -> Answered:
        """Keep an answer; raises `Refusal`: 409 while another process changes the run, 500 where
        the answer is kept but not in effect, else 422.
        """
        name = printable(upload.filename or "image")[:_LONGEST_NAME]
        predictor = self._sites.get(site)
        content = upload.file.read()
        (readable,) = predictor.predict([content], names=[name])  # by the limits of the service
        if readable.error is not None:
            raise Refusal(422, "unreadable", readable.error)
        with TemporaryDirectory(prefix="fedvad-") as folder, self._lock:
            path = Path(folder) / "image"
            path.write_bytes(content)
            try:
                row = feedback(
                    self._run, path, verdict, site=predictor.site, region=region, file_name=name,
                    **self._ways,
                )  # fmt: skip
            except FedvadError as error:
                raise _refusal(error) from error
            self._renew(int(row["number"]))
        return _answered(row)

    def all(self) -> list[Answered]:
        """All answers of the run in their order, those undone as well."""
        return [_answered(row) for row in list_feedback(self._run)]

    def undo(self, number: int) -> Answered:
        """Let an answer count no longer; raises `Refusal` as `add` does."""
        with self._lock:
            try:
                row = undo_feedback(self._run, number)
            except FedvadError as error:
                raise _refusal(error) from error
            self._renew(number)
        return _answered(row)

    def _renew(self, number: int) -> None:
        """Score with the answer from now on; raises `Refusal` 500 where that fails."""
        try:
            self._sites.renew()
        except FedvadError as error:
            log.error("the run cannot be loaded after answer %d: %s", number, error)
            raise Refusal(
                500, "not_in_effect",
                f"answer {number} is kept in the run, but this service could not load the run "
                "again and scores as before; its log says why: restart it, and do not send the "
                "answer once more",
            ) from error  # fmt: skip


def read_region(text: str | None) -> Box | None:
    """x, y, width and height of `x,y,width,height`; raises `Refusal` 422."""
    if text is None:
        return None
    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.isascii() and n.isdecimal() and len(n) < 9 for n in numbers):
        raise Refusal(422, "invalid", "region: give x,y,width,height in pixels of the image")
    x, y, width, height = map(int, numbers)
    return x, y, width, height


def _answered(row: dict[str, Any]) -> Answered:
    return Answered(**{key: row[key] for key in Answered.model_fields})


def _refusal(error: FedvadError) -> Refusal:
    if isinstance(error, InUseError):
        message = "another program is changing this run; try again when it has ended"
        return Refusal(409, "in_use", message)
    if isinstance(error, ConfigError):
        return Refusal(422, "not_taken", str(error))
    raise error
