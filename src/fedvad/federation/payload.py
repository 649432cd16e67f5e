"""The one message format: named arrays and a small typed manifest, as safetensors bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedvad.data.checked import first_fault
from fedvad.detectors.student.parameters import under
from fedvad.errors import MemoryBankError, PayloadError, join_names
from fedvad.federation.codecs import Precision, decode, encode, packed, plain_dtype, unpacked
from fedvad.half import cast
from fedvad.memory.bank import MemoryBank
from fedvad.memory.origin import ORIGIN_ARRAYS, origin_arrays, origin_from

__all__ = [
    "SCHEMA",
    "WITH_ORIGIN",
    "Manifest",
    "Payload",
    "Precision",
    "bank_arrays",
    "bank_from",
    "negatives_from",
    "own_arrays",
    "with_negatives",
]

SCHEMA = 1
# of messages whose rows say which site sent them in which round
WITH_ORIGIN = 2
_HEADER = "fedvad"
_NEGATIVES = "negatives/"
# a header larger than this is no message of ours; checked before anything is parsed
_MAX_HEADER = 1 << 16
_MAX_COUNT = 1 << 50
_MAX_ROWS = 5_000_000


class Manifest(BaseModel):
    """What a message says about itself. Nothing in it names an image, a path or a file.

    Parameters
    ----------
    kind : {"upload", "global"}
        Of a site, or the merged message of a server.
    site : str, at most 255 characters, default=""
        Who sent an upload.
    round : int from 1 to 100 000
    mode : {"append", "replace"}, default="replace"
        Whether an upload adds to what the site sent before, or replaces it.
    features : str, 1 to 64 characters
        Key of the feature configuration.
    generator : str, at most 64 characters, default=""
        Hash of the initial generator.
    n_images, n_patches : int >= 0
        Sizes of the training set, summed over the sites in a global message.
    coverage : float, optional
        Of a global memory, see `memory.merge.coverage`.

    Examples
    --------
    >>> from fedvad.federation.payload import Manifest
    >>> Manifest(kind="upload", site="a", round=1, features="key", n_images=4, n_patches=90).mode
    'replace'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    schema_version: int = SCHEMA
    kind: Literal["upload", "global"]
    site: str = Field(default="", max_length=255)
    round: int = Field(ge=1, le=100_000)
    mode: Literal["append", "replace"] = "replace"
    features: str = Field(min_length=1, max_length=64)
    generator: str = Field(default="", max_length=64)
    n_images: int = Field(ge=0, le=_MAX_COUNT)
    n_patches: int = Field(ge=0, le=_MAX_COUNT)
    coverage: float | None = None


@dataclass(frozen=True, eq=False)
class Payload:
    """A manifest and its arrays; equal payloads have equal bytes.

    Parameters
    ----------
    manifest : Manifest
    arrays : dict of str to array
        By name; see `bank_arrays` for those of a memory.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.payload import Manifest, Payload
    >>> manifest = Manifest(kind="global", round=1, features="key", n_images=4, n_patches=90)
    >>> sent = Payload(manifest, {"x": np.ones(3, np.float32)}).to_bytes()
    >>> Payload.from_bytes(sent).arrays["x"]
    array([1., 1., 1.], dtype=float32)
    """

    manifest: Manifest
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def rows(self) -> int:
        """Rows of the memory in it; 0 where it holds none."""
        return len(self.arrays["vectors"]) if "vectors" in self.arrays else 0

    def to_bytes(self) -> bytes:
        """Serialise; what is logged as traffic is the length of this."""
        from safetensors.numpy import save

        arrays = packed(self.arrays)
        contiguous = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
        data: bytes = save(contiguous, {_HEADER: self.manifest.model_dump_json()})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, max_bytes: int = 1 << 30) -> Self:
        """Parse and validate a message.

        Parameters
        ----------
        data : bytes
        max_bytes : int, default=1 GiB
            A longer message is not parsed.

        Raises
        ------
        PayloadError
            Saying what is wrong; never anything else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if len(data) > max_bytes:
            raise PayloadError(f"message of {len(data)} bytes exceeds the limit of {max_bytes}")
        if len(data) < 8:
            raise PayloadError("message is truncated")
        length = int.from_bytes(data[:8], "little")
        if length > min(_MAX_HEADER, len(data) - 8):
            raise PayloadError(f"message header claims {length} bytes")
        try:
            header = json.loads(data[8 : 8 + length])
            text = header["__metadata__"][_HEADER]
            manifest = Manifest.model_validate_json(text)
            arrays = load(data)
        except ValidationError as error:
            raise PayloadError(f"message manifest: {first_fault(error)}") from error
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise PayloadError(f"not a fedvad message: {error}") from error
        if manifest.schema_version not in (SCHEMA, WITH_ORIGIN):
            raise PayloadError(
                f"message has schema {manifest.schema_version}, this fedvad speaks {SCHEMA} and "
                f"{WITH_ORIGIN}"
            )
        return cls(manifest, unpacked(arrays))


def bank_arrays(bank: MemoryBank, precision: Precision) -> dict[str, npt.NDArray[Any]]:
    """A bank as arrays for a payload: vectors by their codec, weights in float32, spread.

    Of its origin nothing, which could name images: `origin_arrays` gives that.

    Parameters
    ----------
    bank : MemoryBank
        Of n rows with d values.
    precision : {"float32", "float16", "int8", ...}
        The codec; see `federation.codecs`.

    Returns
    -------
    dict of str to array
        vectors (n, d) and what their codec adds, weights (n,) float32, spread (n,).

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.payload import bank_arrays
    >>> from fedvad.memory.bank import MemoryBank
    >>> bank = MemoryBank(np.eye(3, dtype="f"), np.ones(3), np.zeros(3, "f"))
    >>> sorted(bank_arrays(bank, "float16"))
    ['spread', 'vectors', 'weights']
    """
    return encode(bank.vectors, precision) | {
        "weights": bank.weights.astype(np.float32),
        "spread": cast(bank.spread, plain_dtype(precision)),
    }


def bank_from(payload: Payload, *, max_rows: int = _MAX_ROWS) -> MemoryBank:
    """The bank in a payload.

    Parameters
    ----------
    payload : Payload
    max_rows : int, default=5 000 000
        A larger bank is refused.

    Raises
    ------
    PayloadError
        For other arrays than those of a bank, and when they break a bank's invariants.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.payload import Manifest, Payload, bank_arrays, bank_from
    >>> from fedvad.memory.bank import MemoryBank
    >>> bank = MemoryBank(np.eye(3, dtype="f"), np.ones(3), np.zeros(3, "f"))
    >>> manifest = Manifest(kind="global", round=1, features="key", n_images=4, n_patches=90)
    >>> len(bank_from(Payload(manifest, bank_arrays(bank, "float16"))))
    3
    """
    return _bank(own_arrays(payload), max_rows)


def own_arrays(payload: Payload) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a message but for what `with_negatives` added.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.payload import Manifest, Payload, own_arrays
    >>> manifest = Manifest(kind="global", round=1, features="key", n_images=4, n_patches=90)
    >>> list(own_arrays(Payload(manifest, {"x": np.ones(2), "negatives/vectors": np.ones(2)})))
    ['x']
    """
    return {n: array for n, array in payload.arrays.items() if not n.startswith(_NEGATIVES)}


def _bank(arrays: dict[str, npt.NDArray[Any]], max_rows: int = _MAX_ROWS) -> MemoryBank:
    coded = {name: array for name, array in arrays.items() if name.startswith("vectors")}
    others = set(arrays) - set(coded) - set(ORIGIN_ARRAYS)
    if "vectors" not in coded or others != {"weights", "spread"}:
        raise PayloadError(
            f"message must hold vectors, weights, spread; it holds {join_names(arrays)}"
        )
    for name, array in arrays.items():
        if array.ndim == 0:
            raise PayloadError(f"{name} of a message is a single number, not an array")
    for name in ("weights", "spread"):
        if arrays[name].dtype not in (np.float16, np.float32, np.float64):
            kind = arrays[name].dtype
            raise PayloadError(f"{name} of a message must be floating point, not {kind}")
    if len(arrays["vectors"]) > max_rows:
        raise PayloadError(f"message of {len(arrays['vectors'])} rows exceeds {max_rows}")
    try:
        with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
            origin = origin_from(arrays, len(arrays["weights"]))
            return MemoryBank(decode(coded), arrays["weights"], arrays["spread"], origin)
    except MemoryBankError as error:
        raise PayloadError(str(error)) from error


def with_negatives(payload: Payload, negatives: MemoryBank, precision: Precision) -> Payload:
    """A message of a memory with patches of confirmed defects; unchanged where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.payload import (
    ...     Manifest, Payload, bank_arrays, negatives_from, with_negatives
    ... )
    >>> from fedvad.memory.bank import MemoryBank
    >>> bank = MemoryBank.of_patches(np.eye(3, dtype="f"))
    >>> manifest = Manifest(kind="global", round=1, features="key", n_images=4, n_patches=90)
    >>> sent = Payload(manifest, bank_arrays(bank, "int8"))
    >>> negatives_from(with_negatives(sent, bank.take([1]), "float16")).vectors.tolist()
    [[0.0, 1.0, 0.0]]
    """
    if not len(negatives):
        return payload
    arrays = bank_arrays(negatives, precision) | origin_arrays(negatives.origin)
    named = {_NEGATIVES + name: array for name, array in arrays.items()}
    return Payload(payload.manifest, payload.arrays | named)


def negatives_from(payload: Payload) -> MemoryBank | None:
    """The patches that `with_negatives` added to a message; None where it holds none.

    Raises
    ------
    PayloadError
        As `bank_from`.
    """
    found = under(_NEGATIVES, payload.arrays)
    return _bank(found) if found else None
