"""`inspect`: what is in a run, a detector or a memory message, for an auditor's eyes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.contents import check_contents
from fedvad.data.folders import holds_sets, read_data
from fedvad.data.labels import LabelNames, Names
from fedvad.data.layouts.base import left_over
from fedvad.data.listing import scan
from fedvad.data.reading import DataReading
from fedvad.data.view_choice import USUAL_SIZE, choose_size, sizes_of
from fedvad.detectors.artefact import read_arrays
from fedvad.detectors.student.parameters import under
from fedvad.errors import ArtefactError, ConfigError, DataError, PayloadError
from fedvad.federation.exchange.sums import has_sums
from fedvad.federation.exchange.weights import has_weights
from fedvad.federation.payload import Payload
from fedvad.federation.signed import (
    SignedMessage,
    is_signed,
    key_fingerprint,
    read_bounded,
    read_trusted_keys,
)
from fedvad.memory.origin import ORIGIN_ARRAYS, origin_from
from fedvad.runs.arguments import AnyPath, maybe
from fedvad.runs.config import as_path
from fedvad.runs.data import data_with_masks
from fedvad.runs.receipt import read_receipt
from fedvad.runs.run import run_file
from fedvad.runs.run_folder import CONFIG_FILE, DETECTOR_FILE
from fedvad.verbs.inspect_words import contents_of, on_key, on_receipt, on_signature, sentences

__all__ = ["inspect"]

_SHOWN = 5
_UNSIGNED = "{} carries no signature to check: --trust (trust=) is for messages and receipts"
_ARRAYS = {"vectors", "weights", "spread"}


def inspect(
    path: AnyPath, *, trust: AnyPath | None = None, good: Names = (), defect: Names = ()
) -> dict[str, Any]:
    """Say what is in a run folder, a file of fedvad's or a public key, or how data are read.

    Parameters
    ----------
    path : path
        Run folder, file, or folder of images.
    trust : path, optional
        Public key, or folder of public keys. `trusted` in the result says whether one of them
        signed the message or receipt.
    good, defect : str or list of str, default=()
        Names of folders with normal images and with defects, beyond `good`.

    Returns
    -------
    dict
        path, bytes, kind, what the file says about itself, and for every array its shape, type,
        bytes and range. For a run also a summary. For a folder of images also `data`: what is read,
        as which label, and what is not read. For a message also `contents`, `signature` and `says`
        (sentences for an auditor).

    Raises
    ------
    ArtefactError, DataError
        If the file or folder is none of these.
    ConfigError
        If `trust` is given for something without a signature, or a `.pub` file holds no key.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.inspect("run")["summary"][:56]
    'Run of 3 sites with feddymem, trained on 18 images; thre'
    >>> fedvad.inspect("plants")["data"]["sites"]["alder"]["train"]
    6
    """
    path, trust = as_path(path, "path"), maybe(trust, "trust")
    if trust is not None and path.is_dir():
        raise ConfigError(_UNSIGNED.format(path))
    if path.is_dir():
        file = path / DETECTOR_FILE
        if not (file.exists() or (path / CONFIG_FILE).exists()):
            reading = pictures_or_cubes(path, LabelNames.of(good, defect))
            sizes = sizes_of(reading.sites)
            size = choose_size("auto", sizes, tiled=False)
            if sizes is not None and size != USUAL_SIZE:
                reading = reading.noted([f"{sizes.words()}: training reads them at {size}"])
            return {
                "path": str(path),
                "kind": "folder of images",
                "data": data_with_masks(check_contents(reading, size), size),
            }
        described = inspect(run_file(path))
        described = {"path": str(path), "summary": _summary(described)} | described
        described["path"] = str(path)
        described["files"] = {
            str(p.relative_to(path)): p.stat().st_size
            for p in sorted(path.rglob("*"))
            if p.is_file()
        }
        return described
    if not path.is_file():
        raise ArtefactError(f"{path} does not exist")
    if path.suffix == ".pub" and trust is None:
        (key, name), *_ = read_trusted_keys(path).items()
        return {
            "path": str(path),
            "kind": "public key",
            "name": name,
            "fingerprint": key_fingerprint(key),
            "says": on_key(path, name, key_fingerprint(key)),
            "arrays": {},
        }
    try:
        arrays, values = read_arrays(path)
        if trust is not None:
            raise ConfigError(_UNSIGNED.format(path))
    except ArtefactError as not_an_artefact:
        try:
            arrays, values = _message(read_bounded(path), trust)
        except _NoMessageError:
            if path.suffix in (".safetensors", ".fedvad"):
                raise not_an_artefact from None
            of_run = path.with_name(DETECTOR_FILE).is_file()
            raise ArtefactError(
                f"{path} is neither a run folder, a detector file, a message, a public key nor a "
                "folder of images"
                + f"; it lies in a run: fedvad inspect {path.parent} says what is in that"
                * of_run
            ) from None
        except PayloadError as error:
            raise ArtefactError(f"{path}: {error}") from error
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        **values,
        **_shares(arrays, values),
        "arrays": {name: _describe(array) for name, array in sorted(arrays.items())},
    }


def _summary(described: Mapping[str, Any]) -> str:
    """A run in a sentence: sites, training images, thresholds."""
    sites = described.get("sites", [])
    limits = {
        site["name"]: found["value"]
        for site in sites
        if (found := site["thresholds"].get(described.get("reference", "global")))
    }
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(limits.items())[:_SHOWN])
    more = f" and {len(limits) - _SHOWN} more" if len(limits) > _SHOWN else ""
    count = len(sites)
    return (
        f"Run of {count} site{'s' * (count != 1)} with {described.get('method')}, trained on "
        f"{sum(site['n_images'] for site in sites)} images; "
        + (f"thresholds: {shown}{more}" if limits else "no thresholds")
    )


def _shares(arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """What each site gave to a memory: rows, and its share of the patches that they stand for.

    None, under the same key, where a memory of several sites does not say whose its rows are.
    """
    found = under("global/", arrays) or arrays
    if "vectors" not in found or "weights" not in found:
        return {}
    weights = found["weights"].astype(np.float64)
    origin = origin_from(found, len(weights))
    if origin is None:  # the rows of a detector and of an upload are of one place
        one = values.get("kind") == "detector" or values.get("contents", {}).get("site")
        return {} if one else {"provenance": None}
    rows, patches = origin.by_site(np.ones(len(weights))), origin.by_site(weights)
    return {
        "provenance": {
            site or "unknown": {
                "rows": round(rows[site], 1),
                "share_of_rows": rows[site] / len(weights),
                "share_of_patches": patches[site] / weights.sum(),
                "rounds": sorted({s.round for s in origin.sources if s.site == site}),
            }
            for site in sorted(rows)
        }
    }


def pictures_or_cubes(folder: Path, names: LabelNames) -> DataReading:
    """What of a folder is read: its pictures, or cubes where a site has no pictures.

    Raises `DataError`, with what lies there, for one that holds neither these nor a run.
    """
    top = scan(folder)
    of_cubes = replace(names, cubes=True)
    cubes = top.holds_cubes() and holds_sets(folder, of_cubes)
    if top.holds_images():
        reading = read_data(folder, names, allow_empty_train=True)
        if not cubes or all(len(site.train) + len(site.test) for site in reading.sites):
            return reading
    if cubes:
        return read_data(folder, of_cubes, allow_empty_train=True)
    skipped = left_over(top, (), {})
    found = ", ".join(f"{s.files} files ({s.reason})" for s in skipped[:_SHOWN])
    raise DataError(f"{folder} holds neither images nor a run; found: {found or 'nothing'}")


class _NoMessageError(PayloadError):
    """Not even the beginning of a message."""


def _message(
    data: bytes, trust: Path | None
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    signed = SignedMessage.parse(data) if is_signed(data) else None
    if signed is not None and (receipt := read_receipt(data)) is not None:
        signature = _signature(signed, trust)
        values = {**receipt.model_dump(), "signature": signature}
        return {}, values | _judged(on_receipt(receipt), signature, trust)
    body = data if signed is None else signed.message
    try:
        payload = Payload.from_bytes(body)
    except PayloadError as error:
        if signed is None:
            raise _NoMessageError(str(error)) from error
        why = "" if signed.verifies() else "; its signature does not verify either"
        raise PayloadError(f"{error}{why}") from error
    # what would be written from the parts alone: nothing can hide beside them
    weights = has_weights(payload)
    known = all(name.startswith("weight/") for name in payload.arrays) or has_sums(payload)
    nothing_else = payload.to_bytes() == body and (
        known if weights else known or set(payload.arrays) - set(ORIGIN_ARRAYS) == _ARRAYS
    )
    contents = contents_of(payload) | {"nothing_else": nothing_else}
    values = {
        "kind": "message" if signed is None else "signed message",
        "manifest": payload.manifest.model_dump(),
        "contents": contents,
        "signature": None if signed is None else _signature(signed, trust),
    }
    return payload.arrays, values | _judged(sentences(contents), values["signature"], trust)


def _signature(signed: SignedMessage, trust: Path | None) -> dict[str, Any]:
    trusted = {} if trust is None else read_trusted_keys(trust)
    return {
        "fingerprint": key_fingerprint(signed.key),
        "verifies": signed.verifies(),
        "signer": trusted.get(signed.key),
        "checked_against": None if trust is None else str(trust),
    }


def _judged(
    says: list[str], signature: dict[str, Any] | None, trust: Path | None
) -> dict[str, Any]:
    """The sentences with that on the signature: first, where trust was asked for and is denied."""
    if trust is None:
        return {"says": [*says, on_signature(signature)]}
    trusted = signature is not None and signature["verifies"] and signature["signer"] is not None
    if trusted:
        return {"trusted": True, "says": [*says, on_signature(signature)]}
    caution = on_signature(signature)
    if signature is None:
        caution = f"CAUTION: {caution[0].lower()}{caution[1:]}"
    return {"trusted": False, "says": [caution, *says]}


def _describe(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    low, high = (float(array.min()), float(array.max())) if array.size else (None, None)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "bytes": array.nbytes,
        "min": low,
        "max": high,
    }
