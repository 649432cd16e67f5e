"""The long-running processes of a deployment: Flower's server and site nodes, well behaved."""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, NoReturn

from fedvad.data.files import locked, write_atomically
from fedvad.deploy.connect import check_server, proxy_note, split_address
from fedvad.deploy.follow import follow_runs
from fedvad.deploy.guard import IN_USE, NOT_REGISTERED, last_error
from fedvad.deploy.keys import check_certificate, check_site_key, sync_keys, there
from fedvad.deploy.server import site_keys
from fedvad.deploy.settings import (
    RUNNING,
    SERVER_VARIABLE,
    SITE_VARIABLE,
    ServerSettings,
    SiteSettings,
    to_toml,
)
from fedvad.deploy.tether import tethered
from fedvad.errors import ConfigError, FederationError, StorageError

log = logging.getLogger(__name__)
CONNECTION = "fedvad"
_RETRY_SECONDS = 15
_PAUSE = "FEDVAD_SITE_PAUSE"
_IN_USE = "FEDVAD_SITE_KEY_IN_USE_SINCE"
_IN_USE_SECONDS = 150.0
LOCK = "process.lock"
DATABASE = "flower.db"


def run_server(settings: ServerSettings) -> None:
    """Be the server until stopped: Flower's SuperLink, its keys registered, its doors shut."""
    need_flower()
    if not settings.insecure:
        check_certificate(settings.folder)
    state = settings.state
    _private(state)
    with locked(state / LOCK, otherwise=_taken(settings.folder, "server")):
        _server(settings)


def _server(settings: ServerSettings) -> None:
    state = settings.state
    host, _ = split_address(local_address(settings))
    _environment(state / "flower", host)
    os.environ[SERVER_VARIABLE] = str(settings.folder)
    write_connection(settings)
    given = {"host": settings.host, "port": settings.port, "insecure": settings.insecure}
    write_atomically(state / RUNNING, to_toml(given).encode())
    database = state / DATABASE
    arguments = [
        "--host", settings.host, "--port", str(settings.port),
        "--database", str(database), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    if settings.insecure:
        log.warning("PLAIN TEXT: everybody on the network can read and change everything")
        arguments.append("--insecure")
    else:
        arguments += [
            "--ssl-ca-certfile", str(there(settings.folder / "ca.crt")),
            "--ssl-certfile", str(there(settings.folder / "server.crt")),
            "--ssl-keyfile", str(there(settings.folder / "server.key")),
            "--enable-supernode-auth",
        ]  # fmt: skip
        sync_keys(database, site_keys(settings))

    from flwr.superlink.cli.flower_superlink import flower_superlink

    from fedvad.deploy.guard import guard_server

    guard_server(site_keys(settings) if not settings.insecure else {})
    sys.argv = ["flower-superlink", *arguments]
    stop = Event()
    Thread(target=follow_runs, args=(state / "runs", stop), daemon=True).start()
    with tethered():
        try:
            flower_superlink()
        finally:
            stop.set()


def run_site(site: SiteSettings) -> None:
    """Be the site until stopped: Flower's SuperNode, that runs no code but fedvad's."""
    need_flower()
    time.sleep(float(os.environ.pop(_PAUSE, "0")))
    if not site.insecure:
        check_site_key(site.folder)
    state = site.state or site.folder / "state"
    resolved = site.model_dump(exclude={"folder"}) | {"state": state}
    for name in ("data", "cache", "state", "weights"):
        if resolved[name] is not None:
            resolved[name] = Path(resolved[name]).resolve()
    _private(state)
    with locked(state / LOCK, otherwise=_taken(state, "site")):
        cause = _site(site, resolved, state)
    log.warning("%s. Trying again in %d s", cause, _RETRY_SECONDS)
    _again()


def _site(site: SiteSettings, resolved: dict[str, Any], state: Path) -> str:
    """Be the site until its node stops; returns why it may be tried again."""
    write_atomically(state / "site.toml", to_toml(resolved).encode())
    _environment(state / "flower")
    os.environ[SITE_VARIABLE] = str(state.resolve())
    arguments = ["--superlink", site.server, "--port", str(site.port)]
    note = proxy_note(site.server, insecure=site.insecure)
    if note is not None:
        log.warning("%s", note)
    if site.insecure:
        log.warning("PLAIN TEXT: everybody on the network can read and change everything")
        arguments.append("--insecure")
    else:
        authority = there(site.folder / "ca.crt")
        arguments += [
            "--root-certificates", str(authority),
            "--auth-supernode-private-key", str(there(site.folder / "site.key")),
        ]  # fmt: skip
        missing = check_server(site.server, authority)
        if missing is not None:
            log.warning("%s: waiting for it", missing)

    from flwr.supernode.cli.flower_supernode import flower_supernode

    from fedvad.deploy.guard import guard_site

    guard_site()
    sys.argv = ["flower-supernode", *arguments]
    with tethered(), last_error() as said:
        try:
            flower_supernode()
        except SystemExit as leaving:
            if not leaving.code:
                raise
            return _why_stopped(site, note, said.text)
    return "the site's node stopped, see above"


def _why_stopped(site: SiteSettings, note: str | None, said: str) -> str:
    """The reason in our words; raises `FederationError` when trying again would not help."""
    if NOT_REGISTERED in said:
        os.environ.pop(_IN_USE, None)
        return (
            f"the server does not know the key of this site: copy {site.folder / 'site.pub'} to "
            f"sites/{site.name}.pub in the server's folder and restart the server"
        )
    if IN_USE in said:
        # a node that was killed is noticed within a minute; a living one never goes
        since = float(os.environ.setdefault(_IN_USE, str(time.time())))
        if time.time() - since > _IN_USE_SECONDS:
            raise FederationError(
                f"another machine is connected as site {site.name} with the same key: stop that "
                "one, or make a site of its own for this machine (`fedvad deploy init --site`)"
            )
        return "the server still counts an earlier node with this site's key as connected"
    os.environ.pop(_IN_USE, None)
    if not site.insecure:
        missing = check_server(site.server, site.folder / "ca.crt")
        if missing is not None:
            return missing
    return note or "the server does not take this site, see above"


def need_flower() -> None:
    """Raise `ConfigError` where Flower is not installed."""
    if find_spec("flwr") is None:
        raise ConfigError("this needs Flower: pip install 'fedvad[flower]'")


def write_connection(settings: ServerSettings) -> None:
    """Tell Flower's own commands, in the server's home of theirs, how to reach it."""
    values: dict[str, Any] = {"address": local_address(settings)}
    if settings.insecure:
        values["insecure"] = True
    else:
        values["root-certificates"] = settings.folder / "ca.crt"
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{to_toml(values)}'
    write_atomically(settings.state / "flower" / "config.toml", text.encode())


def local_address(settings: ServerSettings) -> str:
    """`host:port` of the server as its own machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "localhost"}.get(settings.host, settings.host)
    return f"{host}:{settings.port}"


def healthy(settings: ServerSettings) -> bool:
    """Whether the server answers."""
    scheme = "http" if settings.insecure else "https"
    context = None
    if not settings.insecure:
        context = ssl.create_default_context(cafile=str(there(settings.folder / "ca.crt")))
    try:
        url = f"{scheme}://{local_address(settings)}/health"
        # never by a proxy: the server is on this machine
        direct = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        with urllib.request.build_opener(*direct).open(url, timeout=5.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def is_running(settings: ServerSettings) -> bool:
    """Whether a process is the server of this folder, be it that it does not answer yet."""
    try:
        with locked(settings.state / LOCK, otherwise=_taken(settings.folder, "server")):
            return os.name != "posix"  # where there are no locks, nobody knows
    except ConfigError:
        return True


def control(settings: ServerSettings, *arguments: str) -> dict[str, Any]:
    """Run a command of Flower's own command line and return what it says as JSON.

    Raises `FederationError` with its words when it fails.
    """
    _environment(settings.state / "flower", split_address(local_address(settings))[0])
    command = [str(Path(sys.executable).with_name("flwr")), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FederationError(f"flwr {' '.join(arguments[:2])}: {error}") from error
    start = done.stdout.find("{")
    try:
        answer = dict(json.loads(done.stdout[start:])) if start >= 0 else {}
    except ValueError:
        answer = {}
    if not answer.get("success"):
        words = str(answer.get("error-message") or done.stderr or done.stdout).strip()
        raise FederationError(f"flwr {' '.join(arguments[:2])}: {words[-2000:] or 'no answer'}")
    return answer


def _again() -> NoReturn:
    """Start this very command again, to pause first, with none of the old one's children left.

    At once: a thread of Flower's ends this process in a few seconds.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os.environ[_PAUSE] = str(_RETRY_SECONDS)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _environment(home: Path, *here: str) -> None:
    """For this process and all that Flower starts: its own home, nothing sent to its makers.

    `here`: names of this machine, which no proxy is asked for.
    """
    direct = ("127.0.0.1", "localhost", "::1", *here)
    for name in ("NO_PROXY", "no_proxy"):
        known = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*known, *direct]))
    home.mkdir(parents=True, exist_ok=True)
    os.environ["FLWR_HOME"] = str(home.resolve())
    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("FLWR_DISABLE_UPDATE_CHECK", "1"),
        ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
    ):
        os.environ.setdefault(name, value)
    # it has handlers of its own, and would say everything twice
    logging.getLogger("flwr").propagate = False
    # Flower starts its parts by name: they must be those next to this Python
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])


def _taken(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"another process is the {what} of {folder} already: stop it first, or give this one a "
        "folder of its own"
    )


def _private(folder: Path) -> None:
    """Make a folder that no other user of the machine can look into: uploads tell of images."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot make {folder} private: {error.strerror or error}") from error
