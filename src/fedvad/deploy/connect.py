"""Why a site does not reach its server, in words that say what to do about it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fedvad.errors import ConfigError

_EXPIRED, _NOT_YET, _NAMES = 10, 9, (62, 64)  # of OpenSSL: X509_V_ERR_...


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:8000` included; raises `ConfigError`."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError(f"server = {address!r} in site.toml is not HOST:PORT")
    return host, port


def proxy_note(address: str, *, insecure: bool = False) -> str | None:
    """That the environment sends the way to the server through a proxy, and how to go around."""
    host, _ = split_address(address)
    found = getproxies()
    proxy = found.get("http" if insecure else "https") or found.get("all")
    if not proxy or proxy_bypass(host):
        return None
    shown = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    name = f"{shown.hostname}:{shown.port}" if shown.port else str(shown.hostname)
    return (
        f"the way to {address} goes through the proxy {name} (HTTPS_PROXY, HTTP_PROXY or "
        f"ALL_PROXY is set); to go around it, set NO_PROXY={host}"
    )


def check_server(address: str, authority: Path, *, timeout: float = 5.0) -> str | None:
    """Why the server cannot be reached just now, which may pass; None if it can, or by a proxy.

    Raises `ConfigError` for what does not pass by itself: a certificate that `authority` (the
    site's ca.crt) has not signed, of another name, or out of date; a server without TLS.
    """
    host, port = split_address(address)
    if proxy_note(address) is not None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{authority} is not a certificate: copy ca.crt from the server's folder to it"
        ) from error
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(_distrusted(error, address, host, authority)) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            raise ConfigError(
                f"{address} speaks plain text, no TLS: it is not the server's port, or the "
                "server runs with --insecure"
            ) from error
        return f"no TLS connection to {address}: {error.reason or error}"
    except OSError as error:
        return f"no server answers at {address} ({error.strerror or error})"


def _distrusted(
    error: ssl.SSLCertVerificationError, address: str, host: str, authority: Path
) -> str:
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {address} has expired by this machine's clock: check the clock, "
            "or remove server.crt and server.key at the server and run `fedvad deploy init` there"
        )
    if error.verify_code == _NOT_YET:
        return f"the certificate of {address} is not valid yet: set the clock of this machine"
    if error.verify_code in _NAMES:
        return (
            f"the certificate of {address} is for other names than {host}: set `server` in "
            "site.toml to one of them, or make a new one (`fedvad deploy init --server NAMES`)"
        )
    return (
        f"the certificate of {address} is not signed by {authority}: copy ca.crt from the "
        "server's folder there (or another machine answers at that address)"
    )
