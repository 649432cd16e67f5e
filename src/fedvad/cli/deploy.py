"""`fedvad deploy`, `server`, `site`, `launch`: a federation of real machines, over Flower."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from fedvad.cli import flags
from fedvad.cli.common import exit_with_json, showing

deploy_app = typer.Typer(
    help="Certificates, keys and settings of a federation of real machines.",
    epilog="After init: fedvad server on the server's machine, fedvad site on each site's, and "
    "fedvad launch to start a run. See the --help of each.",
    no_args_is_help=True,
)

InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Plain text and no keys: anybody on the network can read and change all."
    ),
]


@deploy_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    server: Annotated[
        str,
        typer.Option(
            help="Names and addresses of the server, comma-separated; sites use the first."
        ),
    ],
    site: Annotated[list[str] | None, typer.Option(help="Name of a site; once for each.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's one port.")] = 8000,
    as_json: flags.Json = False,
) -> None:
    """Make certificates, a key pair per site, settings, Compose and systemd files.

    Again with more --site it adds those; nothing that exists is written over.
    """
    from fedvad.deploy.init import init as make

    names = [name.strip() for name in server.split(",") if name.strip()]
    answer = make(folder, names, site or [], port=port)
    exit_with_json(as_json, answer)
    typer.echo(f"sites      {', '.join(answer['sites'])}")
    typer.echo(f"server     {answer['server']}  (stays on the server's machine)")
    typer.echo(f"each site  {folder / 'sites' / 'NAME'}  (goes to that site only)")
    typer.echo(f"authority  {folder / 'authority'}  (lock it away: it can make certificates)")


@deploy_app.command()
def forget(
    site: Annotated[str, typer.Argument(help="Name of the site that leaves.")],
    folder: Annotated[Path, typer.Argument(help="Folder `server` of `deploy init`.")],
    key: Annotated[Path, typer.Option(help="Private key (.key) that signs the receipt.")],
    receipt: Annotated[Path, typer.Option(help="Signed statement to write of what left.")],
    name: Annotated[str, typer.Option(help="Name of the run.")] = "federation",
    as_json: flags.Json = False,
) -> None:
    """Take a site out of a finished run; the next launch gives the others the run without it."""
    from fedvad.deploy.changes import forget_site
    from fedvad.deploy.settings import read_server

    result = forget_site(read_server(folder), name, site, key, receipt)
    exit_with_json(as_json, result)
    typer.echo(f"{site} left run {name}   receipt: {result['receipt']}")
    typer.echo(
        f"The others get the memory without it from: fedvad launch {folder} --name {name} --out "
        "NEW; with --more 1 they also send what it had sent for them."
    )


@deploy_app.command()
def app() -> None:
    """Print the folder of the Flower App, for those who start it with `flwr run` themselves."""
    from fedvad.deploy.guard import APP

    typer.echo(str(APP))


def server(
    folder: Annotated[Path, typer.Argument(help="Folder `server` of `deploy init`.")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [default: server.toml's]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port [default: server.toml's]")] = None,
    insecure: InsecureOption = False,
) -> None:
    """Run the server of a federation. Only sites with a registered key get in."""
    from fedvad.deploy.processes import run_server
    from fedvad.deploy.settings import read_server

    changes = {"host": host, "port": port, "insecure": insecure or None}
    given = {name: value for name, value in changes.items() if value is not None}
    _speak_up()
    run_server(read_server(folder).model_copy(update=given))


def site(
    folder: Annotated[Path, typer.Argument(help="This site's folder of `deploy init`.")],
    data: Annotated[Path | None, typer.Option(help="Folder of this site's images.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for state that is kept [default: `state` in the site's folder]"),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Descriptor cache folder.")] = None,
    weights: flags.Weights = None,
    engine: Annotated[
        str | None, typer.Option(help="openvino, openvino-bf16 or torch [default: the server's]")
    ] = None,
    max_upload_bytes: Annotated[
        int | None, typer.Option(help="Bytes per round that may leave this site [default: 1000000]")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT of the server [default: site.toml's]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Local port, on 127.0.0.1 only [default: 9094]")
    ] = None,
    insecure: InsecureOption = False,
) -> None:
    """Run a site of a federation: take part in every run that the server starts."""
    from fedvad.deploy.processes import run_site
    from fedvad.deploy.settings import read_site

    here = {"data": data, "state": state, "cache": cache, "weights": weights}
    changes = {name: path.resolve() for name, path in here.items() if path is not None}
    _speak_up()
    run_site(
        read_site(
            folder,
            **changes,
            engine=engine,
            max_upload_bytes=max_upload_bytes,
            server=server,
            port=port,
            insecure=insecure or None,
        )
    )


def status(
    folder: Annotated[Path, typer.Argument(help="Folder of `deploy init`, or its `server`.")],
    as_json: flags.Json = False,
) -> None:
    """Show where a deployment stands: connected sites, the last round of each run, refusals."""
    from fedvad.deploy.settings import read_running
    from fedvad.deploy.status import overview

    answer = overview(read_running(folder))
    exit_with_json(as_json, answer)
    typer.echo(f"server: {answer['server']}")
    if answer["connected"] is not None:
        missing = sorted(set(answer["sites"]) - set(answer["connected"]))
        away = f"   not connected: {', '.join(missing)}" if missing else ""
        typer.echo(f"connected: {', '.join(answer['connected']) or 'none'}{away}")
    for name, run in answer["runs"].items():
        typer.echo(f"run {name}: {run['says'] or run['state']}")
        for round_, refused in run["refused"].items():
            for site, reason in refused.items():
                typer.echo(f"  round {round_} without {site}: {reason}")


def launch(
    folder: Annotated[Path, typer.Argument(help="Folder `server` of `deploy init`.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    name: Annotated[
        str, typer.Option(help="Name of the run; an interrupted one continues under its name.")
    ] = "federation",
    more: Annotated[
        int,
        typer.Option(min=0, help="Rounds to add to a finished run, with the current images."),
    ] = 0,
    as_json: flags.Json = False,
) -> None:
    """Start a federated run on the server's machine, follow it, fetch its result.

    The result holds the global memory, for places that never trained; each site has made a run
    folder of its own, with its own thresholds.
    """
    from fedvad.deploy.launch import launch as start
    from fedvad.deploy.settings import read_running

    with showing() as progress:
        answer = start(read_running(folder), name, out, more=more, progress=progress, note=_say)
    exit_with_json(as_json, answer)
    for missing in answer["missing"]:
        typer.echo(
            f"{missing} did not get the final memory: launch again when it is there", err=True
        )
    typer.echo(f"{answer['rounds']} rounds   Run folder: {answer['run']}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _speak_up() -> None:
    """A server's log is all that its people see of it."""
    logging.getLogger("fedvad").setLevel(logging.INFO)
