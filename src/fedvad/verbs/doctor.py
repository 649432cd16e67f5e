"""`doctor`: what is wrong with this installation, a run, a data folder or a deployment."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedvad._version import __version__
from fedvad.data.contents import check_contents
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.labels import LabelNames
from fedvad.data.sets import Site
from fedvad.errors import FedvadError
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine
from fedvad.features.engine import has_bf16
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import resolve_config
from fedvad.runs.opening import open_run
from fedvad.runs.run_folder import (
    CONFIG_FILE,
    DETECTOR_FILE,
    RESULTS_FILE,
    read_ledger,
    read_results,
)
from fedvad.verbs.inspect import pictures_or_cubes

__all__ = ["PORT", "doctor"]

PORT = 8000  # of fedvad serve, by default
_NEEDED = ("numpy", "scipy", "torch", "openvino", "safetensors", "PIL", "pydantic", "cryptography")
_PACKAGES = {"PIL": "pillow"}
_LITTLE, _TOO_LITTLE = 5 << 30, 500 << 20  # bytes free on a disk
_SOON = timedelta(days=30)
_TRIED = 20  # images of a site that are decoded
_TOLERANCE = 300  # seconds by which clocks may differ

State = Literal["ok", "warning", "wrong"]


class Check(NamedTuple):
    """One finding. says: what was found. mend: what to do about it; empty for nothing."""

    name: str
    state: State
    says: str
    mend: str = ""


def doctor(
    path: AnyPath | None = None,
    *,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    port: int = PORT,
    cache: AnyCache | None = None,
) -> dict[str, Any]:
    """Check this installation, and optionally a run, images or a deployment. Changes nothing.

    Parameters
    ----------
    path : path, optional
        Run folder, folder of images, or folder of a deployment.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    port : int, default=8000
        Port on which `fedvad serve` would listen.

    Returns
    -------
    dict
        `ok` and `checks`, each with name, state ("ok", "warning" or "wrong"), what is there and
        how to mend it.

    Examples
    --------
    >>> import fedvad
    >>> {check["state"] for check in fedvad.doctor("run")["checks"]} <= {"ok", "warning", "wrong"}
    True
    """
    path, weights = maybe(path, "path"), maybe(weights, "weights")
    cache = cache_at(cache)
    checks = [
        *_environment(),
        _guarded("cache", lambda: _cache(cache)),
        *(_disk(name, place) for name, place in _places(cache, path)),
        _port(port),
        _clock(path),
    ]
    run = path is not None and any((path / name).exists() for name in (DETECTOR_FILE, CONFIG_FILE))
    if run and path is not None:
        checks.append(_guarded("run", lambda: _run(path, weights, engine, device)))
        checks += _results(path)
    else:
        checks.append(_guarded("backbone", lambda: _backbone(weights, engine, device)))
    if path is not None and not run:
        certificates = sorted(path.rglob("*.crt"))
        checks += [_guarded(str(c), lambda c=c: _certificate(c)) for c in certificates]  # type: ignore[misc]
        checks += _keys(path)
        if not certificates:
            checks.append(_guarded("data", lambda: _data(path)))
    return {
        "ok": all(check.state != "wrong" for check in checks),
        "path": None if path is None else str(path),
        "checks": [check._asdict() for check in checks],
    }


def _guarded(name: str, make: Callable[[], Check]) -> Check:
    """A check whose failure is the finding."""
    try:
        return make()
    except (FedvadError, OSError, ValueError) as error:
        what, _, mend = str(error).partition("\n")
        return Check(name, "wrong", what, mend.replace("\n", " "))


def _environment() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("fedvad", "ok", f"{__version__}, Python {python}, {os.cpu_count()} processors")
    for module in _NEEDED:
        package = _PACKAGES.get(module, module)
        try:
            import_module(module)
            yield Check(package, "ok", version(package))
        except (ImportError, OSError, PackageNotFoundError) as error:
            yield Check(
                package, "wrong", f"cannot be imported: {error}",
                f"install it again: pip install --force-reinstall {package}",
            )  # fmt: skip


def _cache(cache: DescriptorCache) -> Check:
    root = Path(cache.root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root):
        pass
    found = cache.info()
    says = f"{root}: {found.entries} images, {_size(found.bytes)} of {_size(found.max_bytes)}"
    return Check("cache", "ok", says)


def _places(cache: DescriptorCache, path: Path | None) -> Iterator[tuple[str, Path]]:
    yield "disk of the cache", Path(cache.root)
    if path is not None and path.exists():
        yield f"disk of {path}", path


def _disk(name: str, place: Path) -> Check:
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free >= _LITTLE:
        return Check(name, "ok", f"{_size(free)} free")
    mend = "free some space, put the cache elsewhere (FEDVAD_CACHE) or clear it: fedvad cache clear"
    return Check(name, "wrong" if free < _TOO_LITTLE else "warning", f"{_size(free)} free", mend)


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if not taken:
        return Check("port", "ok", f"{port} is free for fedvad serve")
    mend = f"if that is not fedvad serve itself: fedvad serve --port {port + 1}"
    return Check("port", "warning", f"something listens on {port} already", mend)


def _clock(path: Path | None) -> Check:
    """Whether time has passed since files were written; not by a clock that was set back."""
    files = [Path(__file__), *(() if path is None or not path.is_dir() else path.glob("*"))]
    newest = max(files, key=lambda file: file.stat().st_mtime)
    ahead = newest.stat().st_mtime - time.time()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if ahead <= _TOLERANCE:
        return Check("clock", "ok", now)
    return Check(
        "clock", "wrong", f"{now}, but {newest} was written {ahead / 3600:.1f} hours later",
        "set the clock (timedatectl set-ntp true): certificates and dates of answers rest on it",
    )  # fmt: skip


def _backbone(weights: Path | str | None, engine: Engine | None, device: str | None) -> Check:
    config = resolve_config(None, weights=weights, engine=engine, device=device)
    return _tried("backbone", FeatureExtractor(config.features()))


def _tried(name: str, extractor: FeatureExtractor, more: str = "") -> Check:
    """Whether a backbone describes an image, and in what time."""
    view = extractor.config.view
    blank = np.full((1, view.height, view.width, 3), 128, np.uint8)
    described = np.asarray(extractor.describe(blank)[0])
    config = extractor.config
    seconds = f"{extractor.seconds():.2g} s an image"
    says = f"{config.backbone} with {config.engine} on {config.device}, {seconds}"
    if config.engine == "openvino" and not extractor.bands and has_bf16():
        says += " (--engine openvino-bf16 may be several times as fast on this processor)"
    if np.isnan(described).all():
        return Check(name, "wrong", f"{says}: it describes nothing", "restore its weights")
    return Check(name, "ok", says + more)


def _run(
    path: Path, weights: Path | str | None, engine: Engine | None, device: str | None
) -> Check:
    run, _, extractor = open_run(path, weights=weights, engine=engine, device=device)
    without = sorted(name for name in run.sites if run.threshold(name) is None)
    found = _tried("run", extractor, f"; {len(run.sites)} sites, method {run.method}")
    if found.state == "ok" and without:
        mend = "give each three different normal images: fedvad calibrate, or predict --threshold"
        return Check("run", "warning", f"{found.says}; no threshold: {', '.join(without)}", mend)
    return found


def _results(path: Path) -> Iterator[Check]:
    if (path / "state").exists():
        mend = "finish it: the command that began it, with --resume"
        yield Check("training", "wrong", f"{path} holds an interrupted training", mend)

    def read() -> Check:
        rounds = len(read_ledger(path).rounds)
        if not (path / RESULTS_FILE).exists():
            return Check("results", "ok", f"none kept, {rounds} rounds in the ledger")
        read_results(path)
        return Check("results", "ok", f"whole, {rounds} rounds in the ledger")

    yield _guarded("results", read)


def _certificate(path: Path) -> Check:
    from cryptography.x509 import load_pem_x509_certificate

    certificate = load_pem_x509_certificate(path.read_bytes())
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if now < begins:
        return Check(str(path), "wrong", f"valid from {begins:%Y-%m-%d} only", "set the clock")
    mend = f"remove {path} and its .key, and make new ones: fedvad deploy init"
    if now > ends:
        return Check(str(path), "wrong", f"expired on {ends:%Y-%m-%d}", mend)
    soon: State = "warning" if ends - now < _SOON else "ok"
    return Check(str(path), soon, f"valid until {ends:%Y-%m-%d}", mend if soon != "ok" else "")


def _keys(path: Path) -> Iterator[Check]:
    for key in sorted(path.rglob("*.key")):
        if os.name == "posix" and key.stat().st_mode & 0o077:
            yield Check(str(key), "wrong", "others can read this private key", f"chmod 600 {key}")


def _data(path: Path) -> Check:
    reading = check_contents(pictures_or_cubes(path, LabelNames()), 256)
    bad = [f"{site.name}: {reason}" for site in reading.sites for reason in _unreadable(site)]
    says = f"{len(reading.sites)} sites; {reading.summary() or 'nothing to note'}"
    if bad:
        mend = "replace or remove these files; fedvad inspect shows what is read and what not"
        return Check("data", "wrong", f"{says}; unreadable: {'; '.join(bad[:3])}", mend)
    return Check("data", "ok", says)


def _unreadable(site: Site) -> Iterator[str]:
    """Why images out of a sample of a site cannot be read."""
    paths = [item.path for item in (*site.train, *site.test)]
    for path in paths[:: max(1, len(paths) // _TRIED)]:
        try:
            read_picture(path)
        except FedvadError as error:
            yield str(error)


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GB"
