"""Both doors that Flower leaves open: the control interface, and code that a run brings along."""

from __future__ import annotations

import asyncio
import logging
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest

from fedvad.deploy import guard
from fedvad.deploy.guard import APP, COMPONENTS, LocalOnly, why_refused

PROJECT = (APP / "pyproject.toml").read_text()


def bundle(files: dict[str, str]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


class TestAppsWithoutCode:
    def test_ours_passes_as_flower_bundles_it(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")
        from flwr.cli.build import build_fab_from_disk

        assert why_refused(build_fab_from_disk(APP)) is None

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({"pyproject.toml": PROJECT, "fedvad/__init__.py": ""}, "brings files along"),
            ({"pyproject.toml": PROJECT, "sitecustomize.py": ""}, "brings files along"),
            (
                {"pyproject.toml": PROJECT.replace("apps:client", "apps:os.system")},
                "names other components",
            ),
            (
                {"pyproject.toml": PROJECT.replace("[tool.flwr.app.components]",
                                                   "[tool.flwr.app.components]\nagentapp = 'a:b'")},
                "names other components",
            ),
            ({"pyproject.toml": "x" * 200_000}, "too large"),
            ({"pyproject.toml": "]"}, "no Flower App"),
            ({"pyproject.toml": "a = " + "[" * 5000}, "no Flower App"),
            ({"pyproject.toml": "[tool.flwr]\napp = 3"}, "no Flower App"),
            ({}, "no Flower App"),
        ],
    )  # fmt: skip
    def test_others_do_not(self, files: dict[str, str], reason: str) -> None:
        assert reason in str(why_refused(bundle(files)))

    def test_no_archive(self) -> None:
        assert "no Flower App" in str(why_refused(b"PK"))
        broken = bytearray(bundle({"pyproject.toml": PROJECT}))
        broken[60:90] = bytes(30)  # in the compressed text
        assert "no Flower App" in str(why_refused(bytes(broken)))

    def test_components_exist(self) -> None:
        pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")
        from flwr.supercore.object_ref import validate

        for reference in COMPONENTS.values():
            assert validate(reference) == (True, None)


def status(path: str, client: str | None, server: str = "10.0.0.5") -> int:
    """What a request gets; 200 where it is passed on."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "path": path, "server": (server, 8000),
        "client": None if client is None else (client, 1234),
    }  # fmt: skip
    asyncio.run(LocalOnly(app)(scope, receive, send))
    return int(sent[0]["status"])


class TestOnlyFromHere:
    @pytest.mark.parametrize(
        ("path", "client", "expected"),
        [
            ("/v1/fleet/pull-messages", "10.0.0.9", 200),
            ("/health", "10.0.0.9", 200),
            ("/v1/control/start-run", "10.0.0.9", 403),
            ("/v1/control/register-node", "10.0.0.9", 403),
            ("/v1/runtime/acquire-task", "10.0.0.9", 403),
            ("/docs", "10.0.0.9", 403),
            ("/v1/fleet", "10.0.0.9", 403),
            ("/v1/fleetx/y", "10.0.0.9", 403),
            ("/healthy", "10.0.0.9", 403),
            ("/v1/control/start-run", None, 403),
            ("/v1/control/start-run", "unix", 403),
            ("/v1/control/start-run", "127.0.0.1", 200),
            ("/v1/control/start-run", "::1", 200),
            ("/v1/control/start-run", "::ffff:127.0.0.1", 200),
            ("/v1/control/start-run", "::ffff:10.0.0.9", 403),
            ("/v1/control/start-run", "10.0.0.5", 200),
        ],
    )
    def test_sites_part_is_open_the_rest_is_not(
        self, path: str, client: str | None, expected: int
    ) -> None:
        assert status(path, client) == expected


@pytest.fixture
def _restored() -> Any:
    """Flower as it was, whatever a guard does to it."""
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fedvad[flower]'")
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate
    from flwr.superlink import extensions
    from flwr.superlink.routers.fleet import node_auth
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.supernode import start_client_internal

    modules = (in_memory_corestate, sql_corestate, extensions, node_auth, fleet_handlers,
               start_client_internal)  # fmt: skip
    before = [dict(vars(module)) for module in modules]
    yield
    for module, names in zip(modules, before, strict=True):
        vars(module).update(names)


@pytest.mark.usefixtures("_restored")
class TestInFlower:
    def test_server_answers_control_to_itself_only(self) -> None:
        from flwr.superlink.cli.flower_superlink import SuperLinkLifespan  # noqa: F401
        from flwr.superlink.main import create_app
        from starlette.testclient import TestClient

        from fedvad.deploy.guard import guard_server

        def code(client: str, path: str) -> int:
            with TestClient(create_app(), client=(client, 1)) as http:
                return int(http.post(path).status_code)

        assert code("10.0.0.9", "/v1/control/list-runs") != 403
        guard_server({})
        assert code("10.0.0.9", "/v1/control/list-runs") == 403
        assert code("10.0.0.9", "/v1/runtime/acquire-task") == 403
        assert code("127.0.0.1", "/v1/control/list-runs") != 403
        assert code("10.0.0.9", "/v1/fleet/pull-messages") != 403

    def test_who_is_not_let_in_is_named_and_hears_why(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        from unittest.mock import MagicMock

        from flwr.supercore.error import FlowerError
        from flwr.superlink.servicer.fleet import fleet_handlers as fleet

        guard.guard_server({b"a key": "alder"})
        state, request = MagicMock(), MagicMock(public_key=b"a key", heartbeat_interval=30)
        for node, activated, reported in (
            (None, False, "not registered"),
            (7, False, "is connected"),
        ):
            state.get_node_id_by_public_key.return_value = node
            state.activate_node.return_value = activated
            with pytest.raises(FlowerError) as caught:
                fleet.activate_node(request=request, state=state)
            assert reported in str(caught.value.public_details)
        state.activate_node.return_value = True
        with caplog.at_level(logging.INFO):
            assert fleet.activate_node(request=request, state=state).node_id == 7
        assert "alder is not let in: fedvad: this key is not registered" in caplog.text
        assert "alder connected" in caplog.text
        assert "node_id" not in caplog.text
        access = logging.getLogger("uvicorn.access")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            for status in (200, 403):
                access.info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "POST", "/x", "1.1", status)
        assert [record.args[-1] for record in caplog.records if record.args] == [403]

    @pytest.mark.parametrize("foreign", [False, True])
    def test_site_runs_no_code_that_comes_along(self, foreign: bool) -> None:
        from fedvad.deploy.guard import guard_site

        stored = pull(foreign, guard_site)
        assert stored == ("refused" if foreign else "accepted")


def pull(foreign: bool, guard: Callable[[], None]) -> str:
    """Let Flower's own node code take a message whose run has an app, with or without code."""
    from unittest.mock import MagicMock

    from flwr.cli.build import build_fab_from_disk
    from flwr.supercore.fab import Fab
    from flwr.supernode import start_client_internal as node

    content = build_fab_from_disk(APP)
    if foreign:
        content = bundle({"pyproject.toml": PROJECT, "fedvad/__init__.py": "1/0"})
    guard()
    state, replies = MagicMock(), []
    state.get_run.return_value = None
    state.get_run_series_context.return_value = None
    node._insert_message = lambda message, *_: replies.append(message)  # type: ignore[assignment]
    node.Message = lambda error, reply_to: error  # type: ignore[assignment,misc]
    node.pull_objects = lambda *_, **__: {}  # type: ignore[assignment]
    node.get_fused_config_from_fab = lambda *_: {}  # type: ignore[assignment]
    node._pull_and_store_message(
        state=state, object_store=MagicMock(), node_config={},
        receive=lambda: (MagicMock(), MagicMock()), get_run=lambda _: MagicMock(run_id=1),
        get_fab=lambda *_: Fab("hash", content, {}), pull_object=MagicMock(),
        confirm_message_received=MagicMock(), trusted_entities=None,
    )  # fmt: skip
    if replies:
        assert state.store_fab.call_count == 0
        return "refused"
    assert state.store_fab.call_count == 1
    return "accepted"
