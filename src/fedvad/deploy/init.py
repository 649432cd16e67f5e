"""Make the folders of a deployment: one for the server, one for each site, one to lock away."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.data.outputs import folded
from fedvad.data.texts import read_text
from fedvad.deploy.keys import make_authority, make_server_certificate, make_site_key
from fedvad.deploy.settings import read_server, to_toml
from fedvad.errors import ConfigError, join_names
from fedvad.federation.signed import check_name

_TEMPLATES = Path(__file__).parent / "templates"


def init(
    root: Path, server: Sequence[str], sites: Sequence[str], *, port: int = 8000
) -> dict[str, Any]:
    """Make, below `root`, what is not there yet: `authority/`, `server/`, `sites/NAME/`.

    server: names and addresses by which sites reach the server, the first being the one that
    they use. Again with more sites it adds those; nothing that exists is written over, except
    the list of sites in server.toml. Returns what was made. Raises `ConfigError` for impossible
    names and for a server that was made with others.
    """
    _check(server, sites)
    _check_known(root / "server", sites)
    authority, home = root / "authority", root / "server"
    made = []
    if _needs_authority(authority, home) and make_authority(authority):
        made.append(str(authority / "ca.key"))
    if make_server_certificate(authority, home, server):
        made.append(str(home / "server.crt"))
    if not (home / "ca.crt").exists():
        write_atomically(home / "ca.crt", (authority / "ca.crt").read_bytes())
    certificate = (home / "ca.crt").read_bytes()
    for name in sites:
        folder = root / "sites" / name
        if (home / "sites" / f"{name}.pub").exists() and not (folder / "site.key").exists():
            continue  # its folder is where it belongs, at the site
        if make_site_key(folder):
            made.append(str(folder))
        _keep(folder / "ca.crt", certificate)
        _keep(home / "sites" / f"{name}.pub", (folder / "site.pub").read_bytes())
        values = {"name": name, "server": _address(server[0], port)}
        _keep(folder / "site.toml", to_toml(values).encode())
        _keep(folder / "fedvad-site.service", _filled("site.service", folder, port, name))
        _keep(folder / "site.env", _filled("site.env", folder, port, name))
        _keep(folder / "compose.yaml", _filled("site.compose.yaml", folder, port, name))
    everybody = _server_toml(home, sites, port)
    _keep(home / "federation.toml", (_TEMPLATES / "federation.toml").read_bytes())
    _keep(home / "fedvad-server.service", _filled("server.service", home, port))
    _keep(home / "server.env", _filled("server.env", home, port))
    _keep(home / "compose.yaml", _filled("server.compose.yaml", home, port))
    return {"root": str(root), "server": str(home), "sites": everybody, "made": made}


def _needs_authority(authority: Path, home: Path) -> bool:
    """Whether the authority has to sign; not the one that sites trust already is refused."""
    if not (home / "ca.crt").exists():
        return True
    if (home / "server.crt").exists():
        return False  # it may stay locked away
    own = authority / "ca.crt"
    if not own.exists() or own.read_bytes() != (home / "ca.crt").read_bytes():
        raise ConfigError(
            f"bring {authority} back: only the authority that the sites trust can sign a new "
            "certificate of the server"
        )
    return True


def _check(server: Sequence[str], sites: Sequence[str]) -> None:
    if not server or not all(server):
        raise ConfigError("--server needs the name or address by which sites reach it")
    for name in sites:
        if check_name(name) != name or name != name.strip():
            raise ConfigError(f"site {name!r}: another Unicode form of that name is meant")
    plain = [folded(name) for name in sites]
    twice = sorted({name for name in sites if plain.count(folded(name)) > 1})
    if twice:
        raise ConfigError(
            f"sites are named twice: {join_names(twice)} (not every disk tells capitals apart)"
        )


def _check_known(home: Path, sites: Sequence[str]) -> None:
    """Raise `ConfigError`, before anything is made, where server.toml cannot take further sites."""
    if not (home / "server.toml").exists():
        return
    known = {folded(name): name for name in read_server(home).sites}
    for name in sites:
        if known.get(folded(name), name) != name:
            raise ConfigError(
                f"site {name} is {known[folded(name)]} already: not every disk tells capitals apart"
            )
    if not set(sites) <= set(known.values()):
        _with_sites(home / "server.toml", sorted({*known.values(), *sites}))


def _with_sites(path: Path, names: Sequence[str]) -> str:
    """The text of server.toml with these sites, all else as it is; raises `ConfigError`."""
    text = read_text(path)
    wanted = tomllib.loads(text) | {"sites": list(names)}
    line = to_toml({"sites": list(names)})
    for pattern in (r"^[ \t]*sites[ \t]*=[^\n]*\n?", r"^[ \t]*sites[ \t]*=\s*\[.*?\][^\n]*\n?"):
        changed = re.sub(pattern, lambda _: line, text, count=1, flags=re.MULTILINE | re.DOTALL)
        with suppress(tomllib.TOMLDecodeError):
            if tomllib.loads(changed) == wanted:
                return changed
    raise ConfigError(
        f"{path} is written so that sites cannot be added to it: add them to its `sites` by hand, "
        f"which are then {join_names(names, len(names))}"
    )


def _server_toml(home: Path, sites: Sequence[str], port: int) -> list[str]:
    path = home / "server.toml"
    if not path.exists():
        names = sorted(sites)
        if not names:
            raise ConfigError("--site is missing: a federation needs sites")
        text = to_toml({"sites": names, "host": "0.0.0.0", "port": port})
        text += (
            "# seconds that a round may take; uploads that it needs (more than half by default)\n"
            "deadline = 3600\n# quorum = 2\n"
            '# whether the last memory of a site that does not answer counts: "keep" or "drop"\n'
            'missing = "keep"\n'
        )
        write_atomically(path, text.encode())
        return names
    before = read_server(home)
    if before.port != port:
        raise ConfigError(f"{path} has port {before.port}: change it there and in each site.toml")
    names = sorted({*before.sites, *sites})
    if names != sorted(before.sites):
        write_atomically(path, _with_sites(path, names).encode())
    return names


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _filled(template: str, folder: Path, port: int, name: str = "") -> bytes:
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    user = f"{os.getuid()}:{os.getgid()}" if os.name == "posix" else "1000:1000"
    program = Path(sys.executable).with_name("fedvad")
    values = {
        "folder": folder.resolve(), "port": port, "name": name, "program": program,
        "image": "fedvad", "user": user,
    }  # fmt: skip
    return text.format(**values).encode()


def _keep(path: Path, data: bytes) -> None:
    if not path.exists():
        write_atomically(path, data)
