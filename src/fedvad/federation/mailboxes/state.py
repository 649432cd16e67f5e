"""A run's state after a round, on disk: complete or not there at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvad.data.checked import Stored, parse_values
from fedvad.data.files import write_atomically
from fedvad.data.sealed import read_sealed, sha256_of, write_sealed
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, FedvadError, join_names
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.half import as_float32, cast

log = logging.getLogger(__name__)

_MARK, _GLOBAL = "complete.json", "global.safetensors"
# no path can lead out of the folder
_FILE_NAME = r"^(global|server-[0-9]{4,}|site-[0-9]{4,})\.safetensors$"


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything needed to continue after `round`."""

    round: int
    merged: Payload
    server: Mapping[str, Payload]
    sites: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    ledger: Ledger


class _File(Stored):
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class _Mark(Stored):
    """What makes a round count; without files where an earlier fedvad wrote it."""

    round: int | None
    files: dict[Annotated[str, Field(pattern=_FILE_NAME)], _File] | None
    ledger: Ledger


def save_state(folder: Path, state: RunState) -> None:
    """Write the state of a round, then the mark that makes it count, then drop older rounds.

    The mark names the round and, with size and SHA-256, every file of it. kill -9 at any moment
    leaves the last marked round intact. Raises `StorageError`.
    """
    target = folder / f"round-{state.round:04d}"
    files: dict[str, dict[str, Any]] = {}

    def keep(name: str, write: Callable[[Path], None]) -> None:
        write(target / name)
        data = (target / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": sha256_of(data)}

    # a round that was begun before may count no longer while its files are written again
    (target / _MARK).unlink(missing_ok=True)
    merged = state.merged.to_bytes()
    keep(_GLOBAL, lambda path: write_atomically(path, merged))
    for i, (_, payload) in enumerate(sorted(state.server.items())):
        compact = Payload(payload.manifest, _compact(payload.arrays)).to_bytes()
        keep(f"server-{i:04d}.safetensors", partial(write_atomically, data=compact))
    for i, (name, kept) in enumerate(sorted(state.sites.items())):
        values = {"kind": "site", "site": name}
        keep(
            f"site-{i:04d}.safetensors",
            partial(write_arrays, arrays=_compact(kept), values=values),
        )
    mark = {"round": state.round, "files": files, "ledger": state.ledger.model_dump()}
    write_sealed(target / _MARK, mark)
    for other in folder.glob("round-*"):
        if other != target:
            clear_state(other)


def _compact(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The same values; vectors in half the bytes where float16 holds them exactly (patches)."""
    vectors = arrays.get("vectors")
    if vectors is None or vectors.dtype != np.float32:
        return dict(arrays)
    half = cast(vectors, "float16")
    return {**arrays, "vectors": half if np.array_equal(as_float32(half), vectors) else vectors}


def load_state(folder: Path) -> RunState | None:
    """The newest complete round's state, or None.

    Raises `ArtefactError` when a file of it is missing, changed, or of another round. The state of
    an earlier version, whose mark holds no digests, is read as it is.
    """
    complete = sorted(p.parent for p in folder.glob(f"round-*/{_MARK}"))
    if not complete:
        return None
    source = complete[-1]
    try:
        return _read(source)
    except (FedvadError, KeyError, ValueError, OSError) as error:
        raise ArtefactError(
            f"the state of the interrupted run in {source} is damaged: {error}\n"
            f"Restore it from a copy, or remove {folder} and begin again"
        ) from error


def _read(source: Path) -> RunState:
    values = read_sealed(source / _MARK)
    if "files" not in values:
        log.info("%s is of an earlier fedvad: its files carry no digests", source)
        values = {"round": None, "files": None, "ledger": values}
    mark = parse_values(_Mark, values, _MARK)
    data = _files(source, mark)
    sites: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name in _named(data, "site-"):
        arrays, values = read_arrays(source / name)
        sites[values["site"]] = arrays
    server: dict[str, Payload] = {}
    for name in _named(data, "server-"):
        payload = Payload.from_bytes(data[name])
        server[payload.manifest.site] = payload
    merged = Payload.from_bytes(data[_GLOBAL])
    claims = {source.name, f"round-{merged.manifest.round:04d}"}
    if mark.round is not None:
        claims.add(f"round-{mark.round:04d}")
    if len(claims) > 1:
        raise ArtefactError(
            f"its folder was renamed: it holds another round ({join_names(claims)})"
        )
    if len(server) < len(_named(data, "server-")) or len(sites) < len(_named(data, "site-")):
        raise ArtefactError("two of its files are of one site")
    return RunState(merged.manifest.round, merged, server, sites, mark.ledger)


def _files(source: Path, mark: _Mark) -> dict[str, bytes]:
    """Content of the round's files by name, as the mark says."""
    if mark.files is None:
        return {path.name: path.read_bytes() for path in sorted(source.glob("*.safetensors"))}
    found = {}
    for name, wanted in mark.files.items():
        try:
            data = (source / name).read_bytes()
        except OSError as error:
            raise ArtefactError(f"{name} is missing: {error.strerror or error}") from error
        if len(data) != wanted.bytes or sha256_of(data) != wanted.sha256:
            raise ArtefactError(f"{name} was changed after it was written")
        found[name] = data
    return found


def _named(files: Mapping[str, bytes], prefix: str) -> list[str]:
    return sorted(name for name in files if name.startswith(prefix))


def has_state(folder: Path) -> bool:
    """Whether a round below `folder` is complete."""
    return any(True for _ in folder.rglob(_MARK))


def clear_state(folder: Path) -> None:
    """Remove a finished run's state, its marks first: half a state must not count as one."""
    for mark in folder.rglob(_MARK):
        mark.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
