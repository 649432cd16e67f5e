"""The web server under the service: bounded connections, and none that only waits."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

CONNECTIONS = 256
_HEADER_SECONDS = 10.0

_Protocol: Any = AutoHTTPProtocol  # one of two classes, by what is installed


class _Impatient(_Protocol):  # type: ignore[misc]
    """Closes a connection whose request headers do not come in time; uvicorn waits for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if not waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif waits and self._timer is None:
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server of the application, to be run on sockets that listen already."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
