"""One predictor for all tests of the service, and clients of services over it."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fedvad.serving.predictor import Predictor
from fedvad.serving.service.answers import Answers
from fedvad.serving.service.app import create_app
from fedvad.serving.service.server import make_server
from fedvad.serving.service.settings import ServiceSettings
from fedvad.serving.service.sites import SitePredictors

Run = tuple[Path, dict[str, Any]]
MakeClient = Callable[..., TestClient]
Serve = Callable[..., str]


@pytest.fixture(scope="session")
def predictor(trained: Run) -> Iterator[Predictor]:
    with Predictor.load(trained[0], site="birch", max_pixels=4_000_000) as loaded:
        yield loaded


@pytest.fixture
def make_client(predictor: Predictor) -> Iterator[MakeClient]:
    """`make_client(scorer=..., samples=..., **settings)`: a client of a started service."""
    with ExitStack() as stack:

        def make(
            scorer: Any = predictor, samples: Any = (), name: str = "", **settings: Any
        ) -> TestClient:
            app = create_app(scorer, ServiceSettings(**settings), samples=samples, name=name)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def answering(trained: Run, tmp_path: Path) -> Iterator[tuple[SitePredictors, Answers]]:
    """Two sites of a copy of the run, which takes answers."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    with Predictor.load(run, max_pixels=4_000_000) as everything:
        sites = SitePredictors(
            everything, ["alder", "birch"], lambda name: Predictor.load(run, site=name)
        )
        yield sites, Answers(run, sites)


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()


@pytest.fixture(scope="session")
def files(plants: Path) -> list[Path]:
    return sorted((plants / "birch/test").rglob("*.png"))


@pytest.fixture
def serve(predictor: Predictor) -> Iterator[Serve]:
    """`serve(scorer=..., samples=..., **settings)`: the address of a service in a thread."""
    with ExitStack() as stack:

        def start(
            scorer: Any = predictor, samples: Any = (), sites: Any = None, answers: Any = None,
            runs: Any = (), lines: Any = None, **settings: Any,
        ) -> str:  # fmt: skip
            app = create_app(
                scorer, ServiceSettings(**settings), samples=samples, name="run 1", sites=sites,
                answers=answers, runs=runs, lines=lines,
            )  # fmt: skip
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = make_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def end() -> None:
                server.should_exit = True
                thread.join(20)

            stack.callback(end)
            return f"http://127.0.0.1:{listener.getsockname()[1]}/"

        yield start
