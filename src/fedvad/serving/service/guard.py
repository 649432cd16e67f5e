"""What holds for every answer: headers that keep browsers careful, a count, no traceback."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvad.serving.service.metrics import ServiceMetrics
from fedvad.serving.service.problems import problem

__all__ = ["SECURITY_HEADERS", "Guard", "KnownHosts"]

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
        await problem(400, "unknown_host", "not a name of this service")(scope, receive, send)

    def _knows(self, host: str) -> bool:
        name = re.sub(r":[0-9]*$", "", host.lower())
        return any(
            name == known or (known.startswith("*.") and name.endswith(known[1:]))
            for known in self._hosts
        )


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
