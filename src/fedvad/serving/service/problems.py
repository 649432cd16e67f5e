"""Everything that is not a success, in one form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fedvad.serving.service.limits import Refusal
from fedvad.serving.service.models import Explanation, Problem

__all__ = ["add_handlers", "described", "problem"]

_REFUSALS = {
    400: "Damaged multipart, or too many files",
    401: "The bearer token is missing or wrong",
    404: "There is no such thing",
    408: "The upload took too long",
    413: "Too many bytes",
    415: "Not multipart/form-data",
    422: "No file, or a wrong parameter",
    429: "Too many requests at once; see Retry-After",
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
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, "http", str(error.detail), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(422, "invalid", f"{where}: {first['msg']}")
