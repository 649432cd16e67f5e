"""What the service allows: sizes, counts, times, who may ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedvad.data.texts import read_text
from fedvad.errors import ConfigError

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service; each is refused with an answer that names it.

    token: bearer token that every /v1 request but health and openapi.json must carry; None asks
    for none.
    max_file_bytes: of one image file. max_files, max_total_bytes: of one request.
    timeout_s: seconds for an upload, and again for queueing and scoring.
    uploads: requests whose images are being received at a time; uploads_per_client: those of one
    address. Beyond it 429, unless a slow one can be given up instead.
    workers: requests worked on at a time; waiting: further ones that may wait, then 429.
    allowed_hosts: values of the Host header that are answered, against DNS rebinding; empty: any.
    allowed_origins: web pages of others that may send images, as `https://name:port`, or `*`.
    """

    token: str | None = None
    max_file_bytes: int = 20_000_000
    max_files: int = 16
    max_total_bytes: int = 64_000_000
    timeout_s: float = 30.0
    uploads: int = 64
    uploads_per_client: int = 16
    workers: int = 2
    waiting: int = 16
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.max_file_bytes, self.max_files, self.max_total_bytes, self.workers,
                  self.uploads, self.uploads_per_client)  # fmt: skip
        if min(counts) < 1 or self.waiting < 0 or not self.timeout_s > 0:
            raise ConfigError("every limit of the service must be at least 1 (waiting: 0)")
        for origin in self.allowed_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise ConfigError(
                    f"--allow-origin {origin}: give scheme, name and port only, for example "
                    "https://line4.example:8443"
                )
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters; give at least {_SHORTEST_TOKEN}, "
                "for example from: openssl rand -hex 24"
            )


def read_token(path: Path) -> str:
    """The bearer token in a file, surrounding white space removed; raises `ConfigError`."""
    try:
        token = read_text(path).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read the token in {path}: {reason}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{path} must hold one token of ASCII characters without spaces")
    return token
