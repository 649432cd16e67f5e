"""`inspect`: what is in a run, a detector or a memory message, for an auditor's eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedvad.detectors.artefact import read_arrays
from fedvad.errors import ArtefactError, PayloadError
from fedvad.federation.payload import Payload
from fedvad.pipeline.run_folder import DETECTOR_FILE

__all__ = ["inspect"]


def inspect(path: Path) -> dict[str, Any]:
    """Describe a run folder, a detector file or a message file.

    Keys: path, bytes, kind, what the file says about itself, and for every array its shape, type,
    bytes and range. Raises `ArtefactError` for anything else.
    """
    if path.is_dir():
        file = path / DETECTOR_FILE
        described = inspect(file)
        described["path"] = str(path)
        described["files"] = {
            str(p.relative_to(path)): p.stat().st_size
            for p in sorted(path.rglob("*"))
            if p.is_file()
        }
        return described
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist")
    try:
        arrays, values = read_arrays(path)
    except ArtefactError as not_an_artefact:
        try:
            payload = Payload.from_bytes(path.read_bytes())
        except (PayloadError, OSError):
            raise not_an_artefact from None
        arrays = payload.arrays
        values = {"kind": "message", "manifest": payload.manifest.model_dump()}
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        **values,
        "arrays": {name: _describe(array) for name, array in sorted(arrays.items())},
    }


def _describe(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    low, high = (float(array.min()), float(array.max())) if array.size else (None, None)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "bytes": array.nbytes,
        "min": low,
        "max": high,
    }
