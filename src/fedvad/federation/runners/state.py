"""A run's state after a round, on disk: complete or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fedvad.data.files import write_atomically
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, MemoryBankError, PayloadError
from fedvad.federation.ledger import Ledger
from fedvad.federation.payload import Payload
from fedvad.half import as_float32, cast

__all__ = ["RunState", "clear_state", "load_state", "save_state"]

_MARK = "complete.json"


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything needed to go on behind `round`."""

    round: int
    merged: Payload
    server: Mapping[str, Payload]
    sites: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    ledger: Ledger


def save_state(folder: Path, state: RunState) -> None:
    """Write the state of a round, then the mark that makes it count, then drop older rounds.

    kill -9 at any moment leaves the last marked round intact. Raises `StorageError`.
    """
    target = folder / f"round-{state.round:04d}"
    write_atomically(target / "global.safetensors", state.merged.to_bytes())
    for i, (_, payload) in enumerate(sorted(state.server.items())):
        compact = Payload(payload.manifest, _compact(payload.arrays))
        write_atomically(target / f"server-{i:04d}.safetensors", compact.to_bytes())
    for i, (name, kept) in enumerate(sorted(state.sites.items())):
        values = {"kind": "site", "site": name}
        write_arrays(target / f"site-{i:04d}.safetensors", _compact(kept), values)
    write_atomically(target / _MARK, state.ledger.model_dump_json().encode())
    for other in folder.glob("round-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def _compact(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The same values; vectors in half the bytes where float16 holds them exactly (patches)."""
    vectors = arrays.get("vectors")
    if vectors is None or vectors.dtype != np.float32:
        return dict(arrays)
    half = cast(vectors, "float16")
    return {**arrays, "vectors": half if np.array_equal(as_float32(half), vectors) else vectors}


def load_state(folder: Path) -> RunState | None:
    """The newest complete round's state, or None; raises `ArtefactError` when it is damaged."""
    complete = sorted(p.parent for p in folder.glob(f"round-*/{_MARK}"))
    if not complete:
        return None
    source = complete[-1]
    try:
        return _read(source)
    except (ValidationError, PayloadError, MemoryBankError, KeyError, ValueError, OSError) as error:
        raise ArtefactError(
            f"the state of the interrupted run in {source} is damaged ({error}): remove {folder} "
            "and train anew"
        ) from error


def _read(source: Path) -> RunState:
    ledger = Ledger.model_validate_json((source / _MARK).read_bytes())
    sites: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for path in sorted(source.glob("site-*.safetensors")):
        arrays, values = read_arrays(path)
        sites[values["site"]] = arrays
    server: dict[str, Payload] = {}
    for path in sorted(source.glob("server-*.safetensors")):
        payload = Payload.from_bytes(path.read_bytes())
        server[payload.manifest.site] = payload
    merged = Payload.from_bytes((source / "global.safetensors").read_bytes())
    return RunState(int(source.name.removeprefix("round-")), merged, server, sites, ledger)


def clear_state(folder: Path) -> None:
    """Remove a finished run's state."""
    shutil.rmtree(folder, ignore_errors=True)
