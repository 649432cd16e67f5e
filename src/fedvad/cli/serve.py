"""`fedvad serve`."""

from __future__ import annotations

import ipaddress
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvad.cli import flags

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 256


def serve(
    run: flags.Run,
    site: flags.Site = None,
    reference: flags.Reference = None,
    threshold: flags.Threshold = None,
    target_fpr: flags.TargetFpr = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token to ask for.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which a proxy reaches the service.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Web page of another site that may send images: its scheme, name and port."
        ),
    ] = None,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    max_mb: Annotated[float, typer.Option(min=0.01, help="Megabytes of one image file.")] = 20,
    max_files: Annotated[int, typer.Option(min=1, help="Files of one request.")] = 16,
    max_total_mb: Annotated[float, typer.Option(min=0.01, help="Megabytes of one request.")] = 64,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Megapixels of one image.")] = 25,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for an upload, and again for its scores.")
    ] = 30,
    uploads: Annotated[int, typer.Option(min=1, help="Requests received at a time.")] = 64,
    uploads_per_client: Annotated[
        int, typer.Option(min=1, help="The same from one address; raise it behind a proxy.")
    ] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Requests worked on at a time.")] = 2,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; then 429.")] = 16,
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Offer some of the run's test images.")
    ] = True,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Further run folder whose sites the page shows next to these."),
    ] = None,
    watched: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a watch (its --out), whose week and changes the page shows."),
    ] = None,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Take answers to alarms, which change the run.")
    ] = False,
) -> None:
    """Serve a run: an HTTP API and a page to drop images on. Ctrl-C ends it."""
    _check_extra()
    from fedvad.data.bounds import SERVICE_EXPANSION
    from fedvad.errors import ConfigError
    from fedvad.runs.memory_run import TrainedRun
    from fedvad.runs.run import Run
    from fedvad.serving.predictor import Predictor
    from fedvad.serving.service.answers import Answers
    from fedvad.serving.service.app import create_app
    from fedvad.serving.service.overview import sites_of
    from fedvad.serving.service.samples import load_samples
    from fedvad.serving.service.settings import ServiceSettings, read_token
    from fedvad.serving.service.sites import SitePredictors
    from fedvad.serving.watch.lines import Lines

    token = None if token_file is None else read_token(token_file)
    loopback = _is_loopback(host)
    if feedback and token is None and not loopback:
        raise ConfigError(
            f"with --feedback whoever reaches {host} could change the run: ask for a token with "
            "--token-file, or listen on 127.0.0.1"
        )
    runs = [run, *(also or ())]
    sites_of(runs)  # what cannot be shown is said now
    if feedback:
        TrainedRun.load(run)  # a student takes no answers
    hosts = allow_host or []
    settings = ServiceSettings(
        token=token,
        max_file_bytes=round(max_mb * 1e6),
        max_files=max_files,
        max_total_bytes=round(max_total_mb * 1e6),
        timeout_s=timeout,
        uploads=uploads,
        uploads_per_client=uploads_per_client,
        workers=workers,
        waiting=waiting,
        allowed_hosts=("localhost", "127.0.0.1", "[::1]", host, *hosts) if loopback else (*hosts,),
        allowed_origins=tuple(origin.rstrip("/") for origin in allow_origin or ()),
    )
    ways: dict[str, Any] = {
        "reference": reference,
        "threshold": threshold,
        "target_fpr": target_fpr,
        "weights": weights,
        "engine": engine,
        "device": device,
        "max_pixels": round(max_megapixels * 1e6),
        "max_expansion": SERVICE_EXPANSION,
    }
    listener = _listen(host, port)
    with (
        listener,
        Predictor.load(run, site=site, **ways) as predictor,
    ):
        predictor.warm_up()  # here its errors still become one line
        names = [] if predictor.site is not None else sorted(Run.load(run).sites)
        sites = SitePredictors(
            predictor, names, lambda name: Predictor.load(run, site=name, **ways)
        )
        where = {"weights": weights, "engine": engine, "device": device}
        app = create_app(
            predictor,
            settings,
            sites=sites,
            samples=load_samples(run, predictor.site) if samples else (),
            name=run.resolve().name,
            answers=Answers(run, sites, **where) if feedback else None,
            runs=runs,
            lines=Lines(watched or ()),
        )
        if token is None and not loopback:
            typer.echo(
                f"warning: whoever reaches {host} may score images"
                f"{' and see the samples' if samples else ''}; --token-file asks for a token, "
                "--host 127.0.0.1 keeps it on this machine",
                err=True,
            )
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"serving {run} at http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends)")
        _run(app, listener)
    typer.echo("stopped")


def _check_extra() -> None:
    from fedvad.errors import ConfigError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"fedvad serve needs the package {error.name}: pip install 'fedvad[serve]'"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    from fedvad.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another with --host and --port"
        ) from error


def _run(app: FastAPI, listener: socket.socket) -> None:
    from fedvad.serving.service.server import make_server

    # systemd and containers end it this way; uvicorn hands the signal on when it has ended
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[listener])
