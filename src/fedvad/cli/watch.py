"""`fedvad watch`, and `fedvad week` about what it saw."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fedvad.cli import flags
from fedvad.cli.common import decision, exit_with_json, one_line, print_json


def watch(
    run: flags.Run,
    source: Annotated[
        str,
        typer.Argument(
            help="Folder that fills with images, number or address of a camera, or video file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the log and pictures of this watch.")],
    site: flags.Site = None,
    normals: Annotated[
        Path | None,
        typer.Option(
            help="Folder of normal images of now, which pictures are compared with "
            "[default: the first 50 watched]"
        ),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Address to which each row is sent, as JSON.")
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(help="Where each row is published: mqtt://[NAME:PASSWORD@]HOST/TOPIC."),
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds between looks into the folder, or frames of the camera.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Score what is there, and end.")] = False,
    alpha: Annotated[
        float, typer.Option(help="Greatest probability that a change is ever reported without one.")
    ] = 0.01,
    most_stopped: Annotated[
        float, typer.Option(help="Share of stopped images up to which nothing is reported.")
    ] = 0.1,
    reference: flags.Reference = None,
    threshold: flags.Threshold = None,
    target_fpr: flags.TargetFpr = None,
    weights: flags.Weights = None,
    engine: flags.Engine = None,
    device: flags.Device = None,
    as_json: flags.JsonLines = False,
) -> None:
    """Score images as they arrive, and say when something changed. Ctrl-C or SIGTERM ends it.

    The log in --out loses no image, whatever ends the watch; started again, it continues.
    """
    from fedvad.serving.watch.camera import plain_name
    from fedvad.serving.watch.log import shown
    from fedvad.serving.watch.watch import watch as run_watch

    stop = threading.Event()
    with suppress(ValueError):  # not the main thread
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
    rows = run_watch(
        run, source, out=out, site=site, reference=cast(Any, reference), threshold=threshold,
        target_fpr=target_fpr, normals=normals, alpha=alpha, most_stopped=most_stopped,
        every=every, once=once, webhook=webhook, mqtt=mqtt, weights=weights,
        engine=cast(Any, engine), device=device, stop=stop,
    )  # fmt: skip
    ends = "what is there is scored" if once else "Ctrl-C ends it"
    typer.echo(f"watching {plain_name(source)}; {ends}; log in {out}", err=True)
    count = stopped = unreadable = 0
    for row in rows:
        count, stopped = count + 1, stopped + bool(row["anomalous"])
        unreadable += row["error"] is not None
        if as_json:
            print_json(shown(row))
        else:
            typer.echo(one_line(_line(row)))
    if not as_json:
        typer.echo(f"{count} images, {stopped} stopped, {unreadable} unreadable; log in {out}")


def _line(row: dict[str, Any]) -> str:
    if row["error"] is not None:
        return f"unreadable  {row['error']}"
    return f"{decision(row['score'], row['anomalous'])}  {row['path']}"


def week(
    folder: Annotated[Path, typer.Argument(help="Folder that watch wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: .pdf or .html.")] = Path("week.pdf"),
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], help="Last of the seven days [default: that of the last image]"
        ),
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Write one page about the last week of a watch: images, alarms, scores, what changed."""
    from fedvad.serving.watch.week import week as run_week

    written = run_week(folder, out, until=None if until is None else until.date())
    exit_with_json(as_json, written)
    typer.echo(
        f"{written['path']}: {written['images']} images, {written['stopped']} stopped, "
        f"{written['unreadable']} unreadable, {written['first']} to {written['last']}"
    )
