"""The `fedvad` command: verbs, exit codes, and nothing that is slow to import."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer
from typer.core import TyperGroup

from fedvad._version import __version__
from fedvad.cli.backbones import backbones
from fedvad.cli.bank import bank_app
from fedvad.cli.bench import bench
from fedvad.cli.cache import cache_app
from fedvad.cli.calibrate import calibrate
from fedvad.cli.common import QUIET, one_line
from fedvad.cli.connectivity import connectivity
from fedvad.cli.continual import continual
from fedvad.cli.demo import demo
from fedvad.cli.deploy import deploy_app, launch, server, site, status
from fedvad.cli.distill import distill
from fedvad.cli.doctor import doctor
from fedvad.cli.evaluate import evaluate
from fedvad.cli.export import export
from fedvad.cli.feedback import feedback
from fedvad.cli.forget import forget
from fedvad.cli.gallery import gallery
from fedvad.cli.group import group
from fedvad.cli.inspect import inspect
from fedvad.cli.options import OptionsCommand, Verb
from fedvad.cli.plan import plan
from fedvad.cli.predict import predict
from fedvad.cli.report import report
from fedvad.cli.serve import serve
from fedvad.cli.signals import signals
from fedvad.cli.spectral import spectral
from fedvad.cli.train import config, train
from fedvad.cli.update import update
from fedvad.cli.watch import watch, week
from fedvad.errors import ConfigError, FedvadError, StorageError

INTERRUPTED = 130
# a disk to which standard output goes is full
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ANYWHERE = ("--quiet", "--verbose")
_NARROWEST = 20  # columns in which a table can be read


class _Root(TyperGroup):
    """Takes `--quiet` and `--verbose` behind the verb, too, where people write them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ours = [word for word in args[:end] if word in _ANYWHERE]
        others = [word for word in args[:end] if word not in _ANYWHERE]
        return super().parse_args(ctx, [*ours, *others, *args[end:]])


app = typer.Typer(
    name="fedvad",
    cls=_Root,
    help="Find defects in product photos; several sites learn together, no image leaves a site.",
    epilog="Exit codes: 0 ok, 1 doctor finds something wrong, 2 usage or configuration, 3 data, "
    "4 federation, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # click suggests names already
    suggest_commands=False,
)

_START, _USE, _FEDERATION, _RESEARCH = "Start", "Use", "Federation", "Research"
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    _START: (demo, plan, train, config, inspect, doctor),
    _USE: (
        evaluate,
        predict,
        watch,
        week,
        calibrate,
        feedback,
        update,
        forget,
        report,
        serve,
        export,
    ),
    _FEDERATION: (server, site, launch, status, group),
    _RESEARCH: (bench, continual, distill, connectivity, gallery, backbones, spectral, signals),
}
_MORE = "More options: --help-all. All of them as a file to edit: fedvad config."
for panel, verbs in _PANELS.items():
    for verb in verbs:
        if verb in (plan, train, config, group):
            app.command(cls=OptionsCommand, rich_help_panel=panel, epilog=_MORE)(verb)
        else:
            app.command(cls=Verb, rich_help_panel=panel)(verb)
for name, grouped, panel in (
    ("bank", bank_app, _FEDERATION),
    ("deploy", deploy_app, _FEDERATION),
    ("cache", cache_app, _RESEARCH),
):
    for command in grouped.registered_commands:
        if command.cls is None or not issubclass(command.cls, Verb):
            command.cls = Verb
    app.add_typer(grouped, name=name, rich_help_panel=panel)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedvad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more on standard error.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress on standard error, warnings only.")
    ] = False,
) -> None:
    context.obj = QUIET if quiet else None
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s" if verbose else "%(levelname)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    # warnings of other libraries are theirs to solve, not the operator's
    for noisy in ("PIL", "matplotlib", "httpx", "huggingface_hub", "timm"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def main() -> None:
    """Run the command line; errors of ours become one line and their exit code."""
    for name in ("stdout", "stderr"):  # None where the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end
    if isinstance(sys.stdout, TextIOWrapper):  # file names need not be valid in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    # Threads that wait for others of a computation sleep, unless somebody wants otherwise: those of
    # torch would spin, which beside another busy program makes scoring about ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Without a terminal some systems say 0 columns, into which no text at all would be printed.
    width = os.environ.get("COLUMNS", "")
    if width.isdecimal() and int(width) < _NARROWEST:
        del os.environ["COLUMNS"]
    _end_on_signals()
    # The interpreter looks for cycles among all objects twice before it ends: a second of a
    # processor after torch was imported, and most of a minute where others compute, too.
    atexit.register(gc.freeze)
    try:
        if "" in sys.argv[1:]:  # as a path it would mean the folder one is in
            raise ConfigError("an argument is empty: a variable of the command line is not set")
        _check_place()
        app()
    except FedvadError as error:
        typer.echo("error: " + "\n".join(map(one_line, str(error).split("\n"))), err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        typer.echo(f"error: {error.strerror}: the output is not complete", err=True)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - what is left cannot be written
        sys.exit(StorageError.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:  # typer turns an interrupt within a verb into this
        if leaving.code == INTERRUPTED:
            _interrupted()
        raise


def _check_place() -> None:
    """Raise `ConfigError` when the folder one is in was removed: libraries end in odd ways then."""
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError("the folder you are in is not there any more: go to another") from error


def _end_on_signals() -> None:
    """Batch systems and `docker stop` send SIGTERM, a closed terminal SIGHUP: both end a verb as
    Ctrl-C does, unless `nohup` had the second ignored.
    """
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        hang_up = getattr(signal, "SIGHUP", None)  # there is none on Windows
        if hang_up is not None and signal.getsignal(hang_up) == signal.SIG_DFL:
            signal.signal(hang_up, signal.default_int_handler)


def _interrupted() -> NoReturn:
    typer.echo(
        "interrupted; continue train and distill with --resume, other verbs with the same command",
        err=True,
    )
    sys.exit(INTERRUPTED)
