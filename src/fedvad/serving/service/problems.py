"""Everything that is not a success, in one form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fedvad.serving.service.limits import Refusal
from fedvad.serving.service.models import Explanation, Problem

_REFUSALS = {
    400: "Damaged multipart, or too many files",
    401: "The bearer token is missing or wrong",
    403: "Sent by a web page of another site, or not allowed by this service",
    404: "There is no such thing",
    408: "The upload took too long",
    409: "Another program is changing the run",
    413: "Too many bytes",
    415: "Not multipart/form-data",
    422: "No file, a wrong or an unknown parameter or field",
    429: "Too many requests at once; see Retry-After",
    500: "The answer is kept, but not in effect until the service is started again",
    503: "No worker was free in time; see Retry-After",
    504: "The images took too long",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses as a route's `responses`."""
    return {s: {"model": Problem, "description": _REFUSALS[s]} for s in statuses}


def problem(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The answer to a request that is refused or failed."""
    body = Problem(error=Explanation(code=code, message=message))
    return JSONResponse(body.model_dump(), status, headers)


def add_handlers(app: FastAPI) -> None:
    """Answer refusals, unknown paths and wrong parameters as a `Problem`."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return problem(error.status, error.code, error.message, error.headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, "http", _advice(request, error), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        given = str(first.get("input"))[:50].encode("ascii", "backslashreplace").decode()
        return problem(422, "invalid", f"{where}: {first['msg']}, not {given!r}")


def refuse_unknown_parameters(request: Request) -> None:
    """Dependency of every route: raise `Refusal` 422 for parameters that a path of /v1 lacks.

    One that is misspelt or not supported would else change nothing without a notice.
    """
    if not request.url.path.startswith("/v1/"):
        return
    route = request.scope["route"]
    known = [field.alias for field in route.dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    offered = f"known here: {', '.join(known)}" if known else "this path takes none"
    for name in given:
        shown = name[:50].encode("ascii", "backslashreplace").decode()
        if name not in known:
            message = f"unknown query parameter {shown!r}; {offered}"
            raise Refusal(422, "unknown_parameter", message)
        if given.count(name) > 1:
            raise Refusal(422, "invalid", f"the query parameter {shown!r} is given twice")


def _advice(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return (
            "there is no such path; images go to POST /v1/predict, /v1/openapi.json lists the rest"
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        method = request.method[:20]
        return f"{method} is not possible at {request.url.path[:100]}; use {allowed or 'another'}"
    return str(error.detail)
