"""JSON files that notice damage: read strictly, and compared with the digest that they carry."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

from fedvad.data.files import write_atomically
from fedvad.errors import ArtefactError

log = logging.getLogger(__name__)
_DIGEST = "digest"
_MAX_BYTES = 1 << 28
_MAX_DEPTH = 64
_MAX_DIGITS = 40  # of an integer: states of random generators have 128 bits


def parse_json(data: bytes, *, constants: bool = False) -> Any:
    """The value of a JSON document that means the same to every reader.

    Raises `ValueError` for anything else: text that is not UTF-8, a key that occurs twice,
    integers of more than 40 digits, nesting deeper than 64, and, unless `constants` are allowed,
    NaN and infinity.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are more than the {_MAX_BYTES} that are read")
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_no_duplicates,
            parse_constant=float if constants else _no_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}") from None
    _check_depth(value)
    return value


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write JSON with a digest of its content, atomically; NaN and infinity become null.

    Raises `StorageError`.
    """
    plain = finite(values)
    sealed = {**plain, _DIGEST: _digest(plain)}
    write_atomically(path, json.dumps(sealed, indent=2, allow_nan=False).encode())


def read_table(path: Path) -> tuple[dict[str, Any], bytes]:
    """The table of values of a JSON file, and its bytes; raises `ArtefactError`."""
    try:
        values = parse_json(data := path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no table of values")
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{path} is missing: restore it from a copy, or make it again"
        ) from error
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtefactError(
            f"{path} is damaged: {error}; restore it from a copy, or make it again"
        ) from error
    return values, data


def read_sealed(path: Path, *, editable: bool = False) -> dict[str, Any]:
    """What `write_sealed` wrote, without the digest; raises `ArtefactError` where it does not fit.

    A file without a digest, as earlier versions wrote, is read as it is. Spaces may differ.
    editable: people change this file by hand, so that another content is a warning.
    """
    values, _ = read_table(path)
    recorded = values.pop(_DIGEST, None)
    if recorded is None:
        log.info("%s carries no digest (an earlier fedvad wrote it): damage is not noticed", path)
    elif recorded != _digest(values) and editable:
        log.warning("%s was changed after it was written: its values count as they are now", path)
    elif recorded != _digest(values):
        raise ArtefactError(
            f"{path} was damaged or changed after it was written: restore it from a copy. If you "
            'changed it on purpose, remove its line "digest"'
        )
    return values


def finite(value: Any) -> Any:
    """JSON values with NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sha256_of(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _digest(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it names {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return values


def _no_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which is beyond every float")
    return value


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [
        child
        for item in level
        if isinstance(item, dict | list)
        for child in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
