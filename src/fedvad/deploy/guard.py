"""Two doors that Flower 1.41 leaves open, shut; and patience with slow machines.

1. Its server has one port for everything, and asks only sites for a key: whoever reaches the port
   may start runs, register keys of their own and take over a server's task. Here everything but
   the sites' part is answered to the server's own machine only.
2. Its sites run whatever code a run brings along. Here a run may bring none: it names components
   of the fedvad that the site has installed, or is refused.
3. It gives each process that it starts 30 seconds to say something, and then starts another
   beside it. A busy or small machine needs longer to import Python, and never catches up again.
   And it turns away a site whose clock is five seconds ahead.

All of it is done at places that Flower does not promise to keep, so the extra pins its version
and tests try the doors.
"""

from __future__ import annotations

import ipaddress
import logging
import tomllib
import zipfile
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from fedvad.errors import join_names

log = logging.getLogger(__name__)

APP = Path(__file__).parent / "app"
COMPONENTS = {
    "serverapp": "fedvad.deploy.apps:server",
    "clientapp": "fedvad.deploy.apps:client",
}
# why a site is not let in; Flower tells it for both the same
NOT_REGISTERED = "fedvad: this key is not registered"
IN_USE = "fedvad: a node with this key is connected"
_OPEN = ("/v1/fleet/", "/health")
_FILES = {"pyproject.toml", ".info/CONTENT"}
_MAX_FILE = 1 << 16
# what a process may be silent before (once) and after (twice) its first word
_SILENCE_SECONDS = 180
# how far a site's clock may be ahead; behind, Flower allows 300 more
_SKEW_SECONDS = 300
_LEAVING_SECONDS = 30

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LocalOnly:
    """ASGI middleware: from other machines only what sites need; 403 for the rest."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan" or _allowed(scope):
            await self.app(scope, receive, send)
            return
        log.warning("refused %s from %s", scope.get("path"), (scope.get("client") or ["?"])[0])
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": b"only from the server's own machine\n"})


def _allowed(scope: _Scope) -> bool:
    path = scope.get("path", "")
    if scope["type"] == "http" and (path == _OPEN[1] or path.startswith(_OPEN[0])):
        return True
    client, server = scope.get("client"), scope.get("server")
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    if address is None:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback or (server and client and server[0] == client[0]))


def guard_server(names: Mapping[bytes, str]) -> None:
    """Put `LocalOnly` before everything that a SuperLink of this process answers.

    `names`: public keys in PEM to names of sites, for its log.
    """
    from flwr.superlink import extensions
    from flwr.superlink.routers.fleet import node_auth
    from starlette.middleware import Middleware

    extensions.get_middleware = lambda: (Middleware(LocalOnly),)
    assert hasattr(node_auth, "SYSTEM_TIME_TOLERANCE")
    node_auth.SYSTEM_TIME_TOLERANCE = _SKEW_SECONDS
    _more_time()
    _name_sites(names)


def _name_sites(names: Mapping[bytes, str]) -> None:
    """Log who comes and goes by name, and tell a site why it is not let in."""
    from flwr.supercore.error import FlowerError
    from flwr.superlink.servicer.fleet import fleet_handlers as fleet

    activate, deactivate = fleet.activate_node, fleet.deactivate_node

    def name_of(node_id: int, state: Any) -> str:
        keys = [bytes(n.public_key) for n in state.get_node_info(node_ids=[node_id])]
        return names.get(keys[0], f"node {node_id}") if keys else f"node {node_id}"

    def activated(request: Any, state: Any) -> Any:
        name = names.get(bytes(request.public_key), "a site without a name")
        try:
            answer = activate(request=request, state=state)
        except FlowerError as error:
            known = state.get_node_id_by_public_key(request.public_key) is not None
            error.public_details = IN_USE if known else NOT_REGISTERED
            log.warning("%s is not let in: %s", name, error.public_details)
            raise
        log.info("%s connected", name)
        return answer

    def deactivated(request: Any, state: Any) -> Any:
        answer = deactivate(request=request, state=state)
        log.info("%s left", name_of(request.node_id, state))
        return answer

    fleet.activate_node, fleet.deactivate_node = activated, deactivated
    # numbers and keys, said above in names
    _leave_out("node_id=", "[ApiError:2004]", "[Fleet.")
    logging.getLogger("uvicorn.access").addFilter(_failed)


def _failed(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's access log is of a request that was not answered well."""
    status = record.args[-1] if isinstance(record.args, tuple) and record.args else None
    return not isinstance(status, int) or status >= 400


def _leave_out(*parts: str) -> None:
    """Drop Flower's log messages that hold one of these, and its empty ones."""

    def wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return bool(text) and not any(part in text for part in parts)

    logging.getLogger("flwr").addFilter(wanted)


class last_error:
    """Context manager: `text` is the last error that Flower logged within it."""

    def __enter__(self) -> last_error:
        self.text = ""
        self._handler = logging.Handler(logging.ERROR)
        self._handler.emit = self._keep  # type: ignore[method-assign]
        logging.getLogger("flwr").addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flwr").removeHandler(self._handler)

    def _keep(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def why_refused(app: bytes) -> str | None:
    """Why a Flower App Bundle must not run here; None for one that brings no code."""
    try:
        with zipfile.ZipFile(BytesIO(app)) as archive:
            foreign = sorted(set(archive.namelist()) - _FILES)
            if foreign:
                return f"it brings files along: {join_names(foreign, 5)}"
            if any(info.file_size > _MAX_FILE for info in archive.infolist()):
                return "its description is too large"
            project = tomllib.loads(archive.read("pyproject.toml").decode())
        components = project["tool"]["flwr"]["app"]["components"]
    except Exception as error:  # zip and TOML have many ways to be broken, none may get through
        return f"it is no Flower App: {error}"
    if components != COMPONENTS:
        return f"it names other components than fedvad's: {components}"
    return None


def guard_site() -> None:
    """Let a SuperNode of this process run apps without code only; others get an error reply."""
    from flwr.supercore.fab import Fab
    from flwr.supernode import start_client_internal as node

    original = node._pull_and_store_message
    _leave_out("SuperNode ID: ", "[RUN ", "message (ID: ")
    # when its node stops, Flower ends the process so soon; ours finds out why and tries again
    leaving = import_module("flwr.supercore.exit.exit")
    assert hasattr(leaving, "FORCE_EXIT_TIMEOUT_SECONDS")
    vars(leaving)["FORCE_EXIT_TIMEOUT_SECONDS"] = _LEAVING_SECONDS

    def checked(**arguments: Any) -> Any:
        get_fab = arguments["get_fab"]

        def verified(hash_: str, run_id: int) -> Any:
            fab = get_fab(hash_, run_id)
            # without any verification Flower refuses it before it asks ours
            return Fab(fab.hash_str, fab.content, {"valid_license": "checked by fedvad"})

        changes = {"get_fab": verified, "trusted_entities": {"fedvad": "-"}}
        return original(**(arguments | changes))

    def verify(fab: Any, _: dict[str, str]) -> bool:
        reason = why_refused(fab.content)
        if reason is not None:
            log.error("refused the app of a run: %s", reason)
        return reason is None

    node._pull_and_store_message = checked
    node._verify_fab = verify
    _more_time()


def bound_pulls(seconds: float) -> None:
    """Let the server wait so long at most for the parts of an answer that a site announced."""
    from flwr.superlink.grid import http_grid

    assert hasattr(http_grid, "pull_objects")
    http_grid.pull_objects = partial(http_grid.pull_objects, max_time=seconds)


def _more_time() -> None:
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate

    for state in (in_memory_corestate, sql_corestate):
        assert hasattr(state, "HEARTBEAT_DEFAULT_INTERVAL")
        state.HEARTBEAT_DEFAULT_INTERVAL = _SILENCE_SECONDS
