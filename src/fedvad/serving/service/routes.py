"""Routes of the service that take answers to its alarms, and that show watched lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fedvad.errors import ArtefactError
from fedvad.runs.answers import Verdict
from fedvad.serving.service.answers import Answers, read_region
from fedvad.serving.service.intake import Intake
from fedvad.serving.service.limits import Refusal, WorkQueue
from fedvad.serving.service.models import Answered, DayInfo, LineInfo
from fedvad.serving.service.problems import described
from fedvad.serving.service.sites import SitePredictors
from fedvad.serving.watch.lines import Line, Lines


def answer_routes(
    answers: Answers | None,
    sites: SitePredictors,
    intake: Intake,
    queue: WorkQueue,
    body: dict[str, Any],
    guarded: dict[str, Any],
) -> APIRouter:
    """Routes to give, list and undo answers; without `answers` each refuses, and says why."""
    router = APIRouter(**guarded)

    def allowed() -> Answers:
        if answers is None:
            message = (
                "this service takes no answers, since they change its run; fedvad serve "
                "--feedback allows them"
            )
            raise Refusal(403, "no_feedback", message)
        return answers

    @router.post("/v1/feedback", openapi_extra=body, responses=described(400, 401, 403, 408, 409,
                 413, 415, 422, 429, 500, 503, 504))  # fmt: skip
    async def give(
        request: Request,
        verdict: Annotated[Verdict, Query(description="What the image shows.")],
        site: Annotated[
            str | None, Query(description="Site whose image it is, where the run has several.")
        ] = None,
        region: Annotated[
            str | None, Query(description="x,y,width,height in pixels, if a part is meant.")
        ] = None,
    ) -> Answered:
        """Say of one image that it is normal, or shows a defect; counts from the next image on."""
        takes, box = allowed(), read_region(region)
        sites.check(site)
        queue.check_room()
        files = await intake.files(request)
        with queue.place() as place:
            for upload in files:
                place.at_end(upload.file.close)
            if len(files) != 1:
                raise Refusal(422, "invalid", "an answer is about one image; send one file")
            return await place.run(lambda _: takes.add(files[0], verdict, site, box))

    @router.get("/v1/feedback", responses=described(401, 403, 422))
    async def listed() -> list[Answered]:
        """All answers that the run holds, those undone as well."""
        found: list[Answered] = await run_in_threadpool(allowed().all)
        return found

    @router.post("/v1/feedback/{number}/undo", responses=described(401, 403, 409, 422, 500))
    async def undo(number: int) -> Answered:
        """Let an answer count no longer."""
        row: Answered = await run_in_threadpool(allowed().undo, number)
        return row

    return router


Shown = TypeVar("Shown")
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def watch_routes(lines: Lines, guarded: dict[str, Any]) -> APIRouter:
    """Routes for the week of each watch, and for the picture of what changed there."""
    router = APIRouter(**guarded)

    @router.get("/v1/lines", responses=described(401, 422, 503))
    async def listed() -> list[LineInfo]:
        """The last week of each watch, and what changed there."""
        return await _read(lines, _info)

    @router.get("/v1/lines/{number}/changed", response_class=Response,
                responses=_PNG | described(401, 404, 422, 503))  # fmt: skip
    async def changed(number: int) -> Response:
        """Images before and after the last change, as PNG."""
        pictures = await _read(lines, lambda _, line: line.picture and line.picture.read_bytes())
        if not 0 <= number < len(pictures) or not pictures[number]:
            raise Refusal(404, "no_picture", "nothing changed there, or there is no such line")
        return Response(pictures[number], media_type="image/png")

    return router


async def _read(lines: Lines, show: Callable[[int, Line], Shown]) -> list[Shown]:
    try:
        found: list[Shown] = await run_in_threadpool(lines.read, show)
    except ArtefactError as error:
        raise Refusal(503, "no_log", f"a watch cannot be read: {error}") from error
    return found


def _info(number: int, line: Line) -> LineInfo:
    change = line.change
    return LineInfo(
        id=number,
        name=line.folder.resolve().name,
        site=line.settings.site,
        days=[DayInfo(day=day, **counts) for day, counts in sorted(line.days.items())],
        changed=change["changed"],
        since=change["since"],
        says=change["says"],
        missing=change["missing"],
        picture=line.picture is not None,
    )
