"""Arrays and values as single safetensors files, with what they need to be trusted later."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad._version import __version__
from fedvad.data.checked import strictly
from fedvad.data.files import write_atomically
from fedvad.data.sealed import parse_json
from fedvad.errors import ArtefactError
from fedvad.features.config import FeatureConfig

log = logging.getLogger(__name__)
_KEY = "fedvad"
_SCHEMA = 1  # where the values name no other
_READ = (1, 2, 3)
_NO_DIGEST = "0" * 64
_MAX_HEADER = 1 << 26


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], values: dict[str, Any]) -> None:
    """Write named arrays and JSON values as one safetensors file, atomically.

    The file carries a SHA-256 of all its other bytes, so that a reader notices one flipped bit.
    """
    from safetensors.numpy import save

    header = {"digest": _NO_DIGEST, "schema": _SCHEMA, "version": __version__, **values}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(contiguous, {_KEY: json.dumps(header)})
    at = _digest_at(data, _NO_DIGEST)
    digest = _digest(data, at).encode()
    write_atomically(path, b"".join([data[:at], digest, data[at + len(digest) :]]))


def read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote; raises `ArtefactError` for anything else.

    A file of an earlier version, which has no digest, is read as it is.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise ArtefactError(f"{path} does not exist or is not a file")
    try:
        data = path.read_bytes()
        values = _values(data)
        if not isinstance(values, dict):
            raise ArtefactError(f"{path} is a safetensors file, but not one of fedvad's")
        _check_digest(data, values.pop("digest", None), path)
        if values.get("schema") not in _READ:
            raise ArtefactError(
                f"{path} has schema {values.get('schema')}, this fedvad "
                f"({__version__}) reads {', '.join(map(str, _READ))}; it was written by fedvad "
                f"{values.get('version')}"
            )
        arrays = dict(sorted(load(data).items()))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(
            f"{path} is damaged or not a safetensors file: {error}; restore it from a copy, or "
            "make it again"
        ) from error
    return arrays, values


def _values(data: bytes) -> Any:
    """The JSON values in the header of a safetensors file; None where it has none of fedvad's."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header claims {length} bytes")
    header = parse_json(data[8 : 8 + length])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    # what training keeps of its losses may be NaN; runs check their own values
    return parse_json(text.encode(), constants=True) if isinstance(text, str) else None


def _check_digest(data: bytes, digest: Any, path: Path) -> None:
    if digest is None and b'{\\"schema\\": ' in data[:64]:
        log.info("%s carries no digest (an earlier fedvad wrote it): damage is not noticed", path)
    elif not isinstance(digest, str) or _digest(data, _digest_at(data, digest)) != digest:
        raise ArtefactError(
            f"{path} was damaged or changed after it was written: restore it from a copy, or make "
            "it again"
        )


def _digest_at(data: bytes, digest: str) -> int:
    """Where the digest stands: as the first of the values, before all that could look like it."""
    before = b'\\"digest\\": \\"'
    return data.index(before + digest.encode()) + len(before)


def _digest(data: bytes, at: int) -> str:
    """SHA-256 of a file in which no digest has been entered yet."""
    found = hashlib.sha256(memoryview(data)[:at])
    found.update(_NO_DIGEST.encode())
    found.update(memoryview(data)[at + len(_NO_DIGEST) :])
    return found.hexdigest()


def feature_identity(values: dict[str, Any], path: Path) -> FeatureConfig:
    """The feature configuration stored in an artefact's values; raises `ArtefactError`."""
    return strictly(FeatureConfig, values.get("features"), f"the feature configuration of {path}")
