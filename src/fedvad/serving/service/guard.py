"""What holds for every answer: headers that keep browsers careful, a count, no traceback."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from time import perf_counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvad.serving.service.metrics import ServiceMetrics
from fedvad.serving.service.problems import problem

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


class KnownHosts:
    """ASGI middleware: 400 for requests by another name than those given, any port.

    Against DNS rebinding: a web page that points its own name at this machine. Starlette's own does
    not know IPv6 addresses in all releases. `hosts`: names, addresses, or `*.domain`.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http" or self._knows(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = "not a name of this service; see --allow-host of fedvad serve"
        await problem(400, "unknown_host", message)(scope, receive, send)

    def _knows(self, host: str) -> bool:
        name = re.sub(r":[0-9]*$", "", host.lower())
        return any(
            name == known or (known.startswith("*.") and name.endswith(known[1:]))
            for known in self._hosts
        )


class SameOrigin:
    """ASGI middleware: 403 for what pages of other sites send; programs name no origin and pass.

    Any page that a browser shows could otherwise have images scored by a service that only this
    browser's machine or network reaches. `origins`: other pages that may, or `*`.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str] = ()) -> None:
        self._app = app
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        reads = scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS")
        if reads or self._may(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = (
            "a web page of another site sent this; to allow it, start fedvad serve with "
            "--allow-origin and the page's scheme, name and port"
        )
        await problem(403, "cross_site", message)(scope, receive, send)

    def _may(self, headers: Headers) -> bool:
        origin = headers.get("origin", "").lower()
        if "*" in self._origins or origin in self._origins:
            return True
        fetched = headers.get("sec-fetch-site")  # no page can set it; not sent over plain HTTP
        if fetched is not None:
            return fetched in ("same-origin", "none")
        return not origin or urlsplit(origin).netloc == headers.get("host", "").lower()


class HeadAsGet:
    """ASGI middleware: a HEAD request gets the answer to GET without its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, as GET if it is HEAD."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            scope["method"] = "HEAD"  # a server that sees another one expects the body
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope["method"] = "GET"  # in the same dictionary: Guard reads the route from it
        await self._app(scope, receive, bodiless)


class Guard:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; what fails unforeseen is logged and answered with 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        answered = False

        async def guarded(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.answered(route, message["status"], perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        except Exception:
            log.exception("request failed")
            if answered:  # too late to say anything else
                raise
            answer = problem(500, "internal", "the service failed; its log says why")
            await answer(scope, receive, guarded)
