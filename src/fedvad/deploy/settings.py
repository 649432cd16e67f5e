"""Settings of a server and a site of a deployment, as small TOML files in their folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from fedvad.data.checked import Given, first_fault, read_toml
from fedvad.data.outputs import folded
from fedvad.errors import ConfigError
from fedvad.features.config import Engine
from fedvad.federation.mailboxes.flower.rounds import WaitPolicy
from fedvad.federation.signed import check_name
from fedvad.runs.method import MAX_WEIGHT_BYTES
from fedvad.runs.template import as_toml

# how the folder reaches the processes that Flower starts
SERVER_VARIABLE = "FEDVAD_SERVER"
SITE_VARIABLE = "FEDVAD_SITE"
# flags of a running server, for those who talk to it
RUNNING = "running.toml"


def _site_name(name: str) -> str:
    """A name that can be that of a file everywhere; raises `ValueError`."""
    try:
        return check_name(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


class ServerSettings(Given):
    """`server.toml`; `folder` is where it lies.

    sites: names of all sites. host, port: where to listen. deadline, retry: seconds, see
    `WaitPolicy`. features: key of the feature configuration, if not that of most sites.
    allow_weights: whether sites may be asked for weights of a student; max_weight_bytes: of one
    message of those.
    """

    folder: Path
    sites: tuple[str, ...] = Field(min_length=1)
    host: str = "0.0.0.0"
    port: int = Field(default=8000, ge=1, le=65535)
    quorum: int | None = Field(default=None, ge=1)
    deadline: float = Field(default=3600.0, gt=0)
    retry: float = Field(default=300.0, gt=0)
    missing: Literal["keep", "drop"] = "keep"
    features: str | None = None
    allow_weights: bool = False
    max_weight_bytes: int = Field(default=MAX_WEIGHT_BYTES, ge=4096)
    insecure: bool = False

    @field_validator("sites")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known: dict[str, str] = {}
        for name in map(_site_name, names):
            other = known.setdefault(folded(name), name)
            if other != name or names.count(name) > 1:
                raise ValueError(f"{name} and {other} are one name where capitals do not count")
        return names

    @property
    def state(self) -> Path:
        """What must outlive the process: Flower's database and home, the runs."""
        return self.folder / "state"

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.state / "runs" / check_run_name(name)

    def patience(self) -> WaitPolicy:
        """How long to wait; the default quorum is more than half of the sites."""
        quorum = self.quorum or len(self.sites) // 2 + 1
        return WaitPolicy(self.deadline, quorum, self.retry, self.missing)


class SiteSettings(Given):
    """`site.toml`; `folder` is where it lies.

    server: its `host:port`. data: folder of this site's images. state: what must outlive
    everything. max_upload_bytes: more than this per round the site does not send, whatever the
    server's configuration says; weights of a student it sends only with allow_weights, and then
    max_weight_bytes at most. share_scores: whether the scores of own normal images go to the
    server, for thresholds found with those of other sites. share_answers: whether patches of false
    alarms that were answered in the site's run folder go out with its next round; share_defects:
    those of confirmed defects. leave_out:
    normal images to leave out, by their paths in data. weights, engine, device: this site's way to
    the features.
    """

    folder: Path
    name: str
    server: str
    data: Path | None = None
    state: Path | None = None
    cache: Path | None = None
    weights: Path | None = None
    engine: Engine | None = None
    device: str | None = None
    max_upload_bytes: int = Field(default=1_000_000, ge=4096)
    allow_weights: bool = False
    max_weight_bytes: int = Field(default=MAX_WEIGHT_BYTES, ge=4096)
    share_scores: bool = True
    share_answers: bool = False
    share_defects: bool = False
    leave_out: tuple[str, ...] = ()
    port: int = Field(default=9094, ge=1, le=65535)
    insecure: bool = False

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        return _site_name(name)


Settings = TypeVar("Settings", ServerSettings, SiteSettings)


def read_server(folder: Path) -> ServerSettings:
    """`server.toml` of a folder, or of the folder `server` in it; raises `ConfigError`."""
    if not (folder / "server.toml").is_file() and (folder / "server" / "server.toml").is_file():
        folder = folder / "server"
    return _read(ServerSettings, folder, "server.toml")


def read_running(folder: Path) -> ServerSettings:
    """The settings of the server that runs in a folder, flags of its command included."""
    settings = read_server(folder)
    path = settings.state / RUNNING
    if not path.is_file():
        return settings
    return _read(ServerSettings, settings.folder, "server.toml", **_toml(path))


def read_site(folder: Path, **changes: Any) -> SiteSettings:
    """`site.toml` of a folder, with `changes` that are not None; raises `ConfigError`.

    The paths of its file are relative to the folder.
    """
    site = _read(SiteSettings, folder, "site.toml", **changes)
    paths = {
        name: site.folder / value
        for name in ("data", "state", "cache", "weights")
        if (value := getattr(site, name)) is not None
    }
    return site.model_copy(update=paths)


def _read(model: type[Settings], folder: Path, name: str, **changes: Any) -> Settings:
    path = folder / name
    values = _toml(path)
    values |= {key: value for key, value in changes.items() if value is not None}
    try:
        return model(**(values | {"folder": folder.resolve()}))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from error


def _toml(path: Path) -> dict[str, Any]:
    return read_toml(path, mend="; `fedvad deploy init` makes it")


def check_run_name(name: str) -> str:
    """A name that is a folder everywhere; raises `ConfigError`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
        raise ConfigError(f"a run's name has small letters, digits and hyphens only, not {name!r}")
    return name


def to_toml(values: dict[str, Any]) -> str:
    """Flat TOML of strings, numbers, booleans, paths and lists of strings; None is left out."""
    for value in values.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if not str(item).isprintable():
                raise ConfigError(f"{str(item)!r} cannot be written to a settings file")
    return "".join(f"{k} = {as_toml(value)}\n" for k, value in values.items() if value is not None)
