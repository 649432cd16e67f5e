"""The routes of the service that show what watches have seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fedvad.errors import ArtefactError
from fedvad.serving.service.limits import Refusal
from fedvad.serving.service.models import DayInfo, LineInfo
from fedvad.serving.service.problems import described
from fedvad.serving.watch.lines import Line, Lines

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
