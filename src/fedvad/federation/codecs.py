"""How vectors travel: plain floats, or compressed into fewer bytes that any receiver can read.

Each message carries all that decodes it (scales, basis, codebooks), so that a file on a stick is
as readable as a message, no round is spent on agreeing, and no site needs another's statistics.

| codec | bytes per row of d values | error |
| --- | --- | --- |
| `float32`, `float16` | 4 d, 2 d | none; rounding to 11 bits |
| `int8` | d + 2 | 1/255 of the row's largest value at most (1/127 with signs) |
| `int5` | d + 2, deflated to about half | 1/31 of that value at most (1/15 with signs) |
| `pca` | d/4 + 2, and a basis of d²/2 bytes | what the d/4 strongest directions miss, and int8 |
| `pq` | d/8, and codebooks of 512 d bytes | product quantisation: 8 values share a byte |

What `int8` or `int5` has coded once it codes to the same bytes again, as plain floats do.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvad.errors import PayloadError, join_names
from fedvad.half import as_float32, cast

Precision = Literal["float16", "float32", "int8", "int5", "pca", "pq"]
Arrays = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]

_BITS = {"int8": 8, "int5": 5}
_KEPT = 4  # pca keeps one direction for each 4 values
_GROUP = 8  # values that share a byte of pq
_CODES = 256
_SCALES = {"int8": "vectors.scale", "int5": "vectors.step"}
_LOWEST, _HIGHEST = -100, 100  # exponents of scales
_ITERATIONS = 20
_MOST_VALUES = 1 << 29  # 2 GB in float32


def row_bytes(precision: Precision, dim: int) -> int:
    """Bytes of one vector of `dim` values, without weight and spread; before `packed`."""
    if precision == "pca":
        return _directions(dim) + 2
    if precision == "pq":
        return _groups(dim)
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 2, "int5": dim + 2}[precision]


def overhead_bytes(precision: Precision, dim: int) -> int:
    """Bytes that a message carries once, however many its rows."""
    if precision == "pca":
        return 2 * dim * (_directions(dim) + 1)
    return 2 * _CODES * _GROUP * _groups(dim) if precision == "pq" else 0


def plain_dtype(precision: Precision) -> Literal["float16", "float32"]:
    """The plain precision of what a codec decodes to, and of the spread beside it."""
    return "float32" if precision == "float32" else "float16"


def downlink_precision(precision: Precision) -> Precision:
    """The codec of the merged memory: coding decoded rows once more must add no error."""
    return "float16" if precision in ("pca", "pq") else precision


def encode(vectors: Floats, precision: Precision, *, seed: int = 0) -> Arrays:
    """(m, d) vectors as arrays whose names begin with "vectors".

    Plain floats beyond the range become infinite. Source: Jégou et al. 2011 for pq.
    """
    if precision in _BITS:
        codes, scales = _quantise(vectors, _BITS[precision])
        return {"vectors": codes, _SCALES[precision]: scales}
    if precision == "pca":
        return _encode_pca(vectors)
    if precision == "pq":
        return _encode_pq(vectors, seed)
    return {"vectors": cast(vectors, plain_dtype(precision))}


def decode(arrays: Arrays) -> Floats:
    """The (m, d) vectors that `encode` was given, up to its error; the codec shows in the arrays.

    Raises `PayloadError` when they are of no codec or do not fit together.
    """
    codes = arrays.get("vectors")
    names = {name for name in arrays if name.startswith("vectors")}
    if codes is None or codes.ndim != 2:
        raise PayloadError("message holds no table of vectors")
    if names == {"vectors"}:
        if codes.dtype not in (np.float16, np.float32, np.float64):
            raise PayloadError(f"vectors of a message must be floating point, not {codes.dtype}")
        with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
            return as_float32(codes)
    for scale in _SCALES.values():
        if names == {"vectors", scale}:
            return _scaled(codes, arrays[scale])
    if names == {"vectors", "vectors.scale", "vectors.basis", "vectors.mean"}:
        return _decode_pca(arrays)
    if names == {"vectors", "vectors.codebooks", "vectors.length"}:
        return _decode_pq(arrays)
    raise PayloadError(f"vectors of a message are of no known codec: {join_names(names)}")


def rounding(precision: Precision) -> Callable[[Floats], Floats]:
    """What (m, d) vectors become by a trip over the wire."""
    return lambda vectors: decode(encode(vectors, precision))


def packed(arrays: Arrays) -> Arrays:
    """The arrays of a message as they are written: codes of `int5` deflated, column by column,
    since the values of one feature resemble each other; others as they are.
    """
    if _SCALES["int5"] not in arrays:
        return arrays
    codes = arrays["vectors"]
    deflated = zlib.compress(np.ascontiguousarray(codes.T).tobytes(), 9)
    return {name: array for name, array in arrays.items() if name != "vectors"} | {
        "vectors.deflated": np.frombuffer(deflated, np.uint8),
        "vectors.length": np.array([codes.shape[1]], np.int32),
    }


def unpacked(arrays: Arrays) -> Arrays:
    """What `packed` was given; raises `PayloadError` for what is not of its making."""
    names = {"vectors.deflated", "vectors.length", _SCALES["int5"]}
    if "vectors.deflated" not in arrays:
        return arrays
    if not names <= set(arrays) or "vectors" in arrays:
        raise PayloadError(f"deflated vectors of a message need {join_names(names)}")
    deflated, length, scales = (arrays[name] for name in sorted(names))
    if deflated.dtype != np.uint8 or length.dtype != np.int32 or length.shape != (1,):
        raise PayloadError("deflated vectors of a message must be bytes, with one length")
    rows, dim = len(np.atleast_1d(scales)), int(length[0])
    if dim < 1:
        raise PayloadError(f"vectors of a message cannot have {dim} values")
    _check_size(rows, dim)
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(deflated.tobytes(), rows * dim + 1)
    except zlib.error as error:
        raise PayloadError(f"deflated vectors of a message are damaged: {error}") from error
    if len(data) != rows * dim or not inflate.eof or inflate.unused_data:
        raise PayloadError(f"deflated vectors of a message are not {rows} rows of {dim} values")
    codes = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(dim, rows).T)
    return {name: array for name, array in arrays.items() if name not in names} | {
        "vectors": codes,
        _SCALES["int5"]: scales,
    }


def _quantise(values: Floats, bits: int = 8) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16]]:
    """(m, d) bytes and (m,) scales: value = byte * 2 ** (scale // 2).

    An odd scale says that the row's bytes are signed; rows without negative values, as most
    features are, use all `bits` for the size. Scales are powers of two and each row's own, so
    that what was decoded is encoded to the same bytes again, alone or among other rows.
    """
    signed = (values < 0).any(axis=1)
    limit = np.where(signed, 2 ** (bits - 1) - 1, 2**bits - 1)
    top = np.abs(values).max(axis=1, initial=0.0).astype(np.float64)
    with np.errstate(divide="ignore"):
        wanted = np.ceil(np.log2(top / limit))
    exponents = np.clip(np.where(np.isfinite(wanted), wanted, _LOWEST), _LOWEST, _HIGHEST)
    exponents = exponents.astype(np.int32)
    integers = np.rint(np.ldexp(values, -exponents[:, None]))
    integers = np.clip(integers, -limit[:, None], limit[:, None]).astype(np.int16)
    # a negative number and its byte differ by 256, which the conversion drops
    return integers.astype(np.uint8), (2 * exponents + signed).astype(np.int16)


def _scaled(codes: npt.NDArray[Any], scales: npt.NDArray[Any]) -> Floats:
    if codes.dtype != np.uint8 or scales.dtype != np.int16:
        raise PayloadError("compressed vectors of a message must be bytes with 16-bit scales")
    exponents = (scales >> 1).astype(np.int32)
    if scales.shape != (len(codes),) or (np.abs(exponents) > _HIGHEST).any():
        raise PayloadError("scales of a message do not fit its vectors")
    integers = codes.astype(np.float32)
    signed = (scales & 1).astype(bool)
    integers[signed] = codes[signed].view(np.int8)
    return np.ldexp(integers, exponents[:, None])


def _directions(dim: int) -> int:
    return max(1, dim // _KEPT)


def _encode_pca(vectors: Floats) -> Arrays:
    mean = vectors.mean(axis=0, dtype=np.float64) if len(vectors) else np.zeros(vectors.shape[1])
    mean = mean.astype(np.float16).astype(np.float32)
    centred = vectors - mean
    covariance = centred.T.astype(np.float64) @ centred.astype(np.float64)
    _, directions = np.linalg.eigh(covariance)
    basis = directions[:, ::-1][:, : _directions(vectors.shape[1])].T.astype(np.float16)
    # coordinates for the rounded basis, which is what the receiver has
    rounded = basis.astype(np.float32)
    coordinates = np.linalg.lstsq(rounded.T, centred.T, rcond=None)[0].T.astype(np.float32)
    codes, scales = _quantise(coordinates)
    return {
        "vectors": codes,
        "vectors.scale": scales,
        "vectors.basis": basis,
        "vectors.mean": mean.astype(np.float16),
    }


def _decode_pca(arrays: Arrays) -> Floats:
    basis, mean = arrays["vectors.basis"], arrays["vectors.mean"]
    coordinates = _scaled(arrays["vectors"], arrays["vectors.scale"])
    if basis.dtype != np.float16 or mean.dtype != np.float16:
        raise PayloadError("basis and mean of a message must be float16")
    if basis.shape != (coordinates.shape[1], len(mean)) or mean.ndim != 1:
        raise PayloadError("the basis of a message does not fit its vectors")
    _check_size(len(coordinates), len(mean))
    with np.errstate(over="ignore", invalid="ignore"):  # refused as not finite
        return coordinates @ basis.astype(np.float32) + mean.astype(np.float32)


def _groups(dim: int) -> int:
    return -(-dim // _GROUP)


def _encode_pq(vectors: Floats, seed: int) -> Arrays:
    from sklearn.cluster import KMeans

    count, dim = vectors.shape
    padded = np.zeros((count, _groups(dim) * _GROUP), np.float32)
    padded[:, :dim] = vectors
    parts = padded.reshape(count, -1, _GROUP)
    codes = np.zeros(parts.shape[:2], np.uint8)
    books = np.zeros((parts.shape[1], _CODES, _GROUP), np.float16)
    for i in range(parts.shape[1]):
        distinct = np.unique(parts[:, i], axis=0)
        if len(distinct) > _CODES:
            fit = KMeans(_CODES, n_init=1, max_iter=_ITERATIONS, random_state=seed)
            distinct = fit.fit(parts[:, i]).cluster_centers_
        books[i, : len(distinct)] = distinct
        known = books[i, : len(distinct)].astype(np.float32)
        codes[:, i] = _nearest(parts[:, i], known)
    return {
        "vectors": codes,
        "vectors.codebooks": books,
        "vectors.length": np.array([dim], np.int32),
    }


def _nearest(points: Floats, centres: Floats) -> npt.NDArray[np.int64]:
    distances = (centres**2).sum(1) - 2 * points @ centres.T
    index: npt.NDArray[np.int64] = distances.argmin(1)
    return index


def _decode_pq(arrays: Arrays) -> Floats:
    codes, books, length = (arrays["vectors" + x] for x in ("", ".codebooks", ".length"))
    if codes.dtype != np.uint8 or books.dtype != np.float16 or length.dtype != np.int32:
        raise PayloadError("product-quantised vectors need 8-bit codes and float16 codebooks")
    groups = codes.shape[1]
    if books.shape != (groups, _CODES, _GROUP) or length.shape != (1,):
        raise PayloadError("the codebooks of a message do not fit its vectors")
    dim = int(length[0])
    if dim < 1 or _groups(dim) != groups:
        raise PayloadError(f"{groups} codes per row are not those of {dim} values")
    _check_size(len(codes), groups * _GROUP)
    picked = books[np.arange(groups)[None], codes].reshape(len(codes), -1)
    return np.ascontiguousarray(picked[:, :dim], dtype=np.float32)


def _check_size(rows: int, dim: int) -> None:
    """A small message must not unfold into more memory than there is."""
    if rows * dim > _MOST_VALUES:
        raise PayloadError(f"{rows} vectors of {dim} values are more than {_MOST_VALUES} in all")
