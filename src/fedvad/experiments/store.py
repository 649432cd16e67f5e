"""Resumable cells: pieces of work whose results and state survive an interruption."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fedvad.data.sealed import finite
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError

log = logging.getLogger(__name__)
_KIND = "cell"
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Stored:
    """What a cell holds.

    identity: options, images and versions that the work depends on. record: JSON values. arrays:
    the state from which unfinished work continues; empty for finished work.
    """

    identity: dict[str, Any]
    record: dict[str, Any]
    arrays: Arrays = field(default_factory=dict)


class Cell:
    """One file with the results, and the state if any, of one piece of work.

    The file is replaced in one step, so a killed process leaves either the old or the new one.

    Parameters
    ----------
    path : Path
        The file, see `cell_path`.
    identity : dict
        JSON values; a file that was written under other ones is never used.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        # as a reader of the file sees it
        self.identity: dict[str, Any] = json.loads(json.dumps(finite(dict(identity))))

    def read(self) -> Stored | None:
        """What the file holds, whatever its identity; None where there is no file.

        Raises `ArtefactError` for a damaged file, or one that is not a cell.
        """
        if not self.path.is_file():
            return None
        arrays, values = read_arrays(self.path)
        identity, record = values.get("identity"), values.get("record")
        if values.get("kind") != _KIND or not isinstance(identity, dict):
            raise ArtefactError(f"{self.path} does not hold the state of an experiment")
        if not isinstance(record, dict):
            raise ArtefactError(f"{self.path} is incomplete: it holds no record")
        return Stored(identity, record, arrays)

    def load(self) -> Stored | None:
        """What the file holds if it can be used again; the log says why it cannot."""
        try:
            stored = self.read()
        except ArtefactError as error:
            log.warning("starting from the beginning: %s", error)
            return None
        if stored is None or stored.identity == self.identity:
            return stored
        log.warning(
            "%s was made with other options or images (%s): starting from the beginning",
            self.path, ", ".join(self.differences(stored)),
        )  # fmt: skip
        return None

    def differences(self, stored: Stored) -> list[str]:
        """Keys of the identity in which the file differs from this cell."""
        known = stored.identity | self.identity
        return sorted(k for k in known if stored.identity.get(k) != self.identity.get(k))

    def keep(self, record: Mapping[str, Any], arrays: Arrays | None = None) -> Stored:
        """Write the record and the state; returns them as `load` will. Raises `StorageError`.

        NaN and infinity become null in the record.
        """
        values = json.loads(json.dumps(finite(dict(record))))
        header = {"kind": _KIND, "identity": self.identity, "record": values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(self.path, arrays or {}, header)
        return Stored(self.identity, values, arrays or {})

    def remove(self) -> None:
        """Delete the file, if it is there."""
        self.path.unlink(missing_ok=True)


def cell_path(folder: Path, *parts: object) -> Path:
    """The file of a cell in `folder`: readable, and different for any two lists of parts.

    >>> cell_path(Path("cells"), "mtd", "PatchCore 10 %", 0).as_posix()
    'cells/mtd--PatchCore-10----0-8d28cc.safetensors'
    """
    readable = "--".join("".join(c if c.isalnum() else "-" for c in str(p)) for p in parts)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:6]
    return folder / f"{readable}-{digest}.safetensors"
