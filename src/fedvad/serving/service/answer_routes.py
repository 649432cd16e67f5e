"""The routes of the service that take answers to its alarms."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from fedvad.runs.answers import Verdict
from fedvad.serving.service.answers import Answers, read_region
from fedvad.serving.service.intake import Intake
from fedvad.serving.service.limits import Refusal, WorkQueue
from fedvad.serving.service.models import Answered
from fedvad.serving.service.problems import described
from fedvad.serving.service.sites import SitePredictors


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
