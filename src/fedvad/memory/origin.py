"""Provenance: which site sent each row of a memory in which round, and at home from which image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedvad.errors import MemoryBankError

__all__ = ["ORIGIN_ARRAYS", "Origin", "Source", "join_origins", "origin_arrays", "origin_from"]

ORIGIN_ARRAYS = ("origin", "origin.sources", "origin.count", "origin.share")
_LARGEST_TABLE = 1 << 26
_LONGEST = {"site": 255, "image": 64}
_LAST_ROUND = 1_000_000
Arrays = dict[str, npt.NDArray[Any]]


class Source(NamedTuple):
    """Where a row is from.

    Attributes
    ----------
    site : str
        Name of the site; "" where nobody knows, as of the memories of earlier versions.
    round : int
        Round in which the site sent it, from 1; 0 where nobody knows.
    image : str, default=""
        Digest of the image file; "" where it stays at the site, and for averages of patches.
    """

    site: str
    round: int
    image: str = ""


_UNKNOWN = Source("", 0)


@dataclass(frozen=True, eq=False)
class Origin:
    """Sources of the rows of a memory.

    A row that is a patch has one source; a row that is an average has several, with shares.

    Attributes
    ----------
    sources : tuple of Source
        Ascending and distinct; each is that of some row.
    source : (e,) int64 array
        Positions in `sources`, row by row.
    share : (e,) float32 array
        In (0, 1]; those of a row sum to 1.
    count : (m,) int64 array
        Number of sources of each row, at least 1; their sum is e.

    Examples
    --------
    >>> from fedvad.memory.origin import Origin, Source
    >>> sites = Origin.of([Source("alder", 1), Source("birch", 1)], [0, 0, 1, 1])
    >>> sites.by_site([1, 1, 1, 5])
    {'alder': 2.0, 'birch': 6.0}
    >>> sites.cells([0, 0, 0, 1], [1, 1, 2, 3]).share.tolist()
    [0.5, 0.5, 1.0]
    """

    sources: tuple[Source, ...]
    source: npt.NDArray[np.int64]
    share: npt.NDArray[np.float32]
    count: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sources: Sequence[Source], index: npt.ArrayLike) -> Origin:
        """One source for each of m rows; index: (m,) positions in `sources`."""
        source = np.asarray(index, dtype=np.int64)
        ones = np.ones(len(source), np.int64)
        return _tidy(sources, source, ones.astype(np.float32), ones)

    @classmethod
    def unknown(cls, rows: int) -> Origin:
        """Of rows whose source nobody knows."""
        return cls.of([_UNKNOWN], np.zeros(rows, np.int64))

    def __len__(self) -> int:
        return len(self.count)

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """(e,) the row that each entry of `source` is of."""
        return np.repeat(np.arange(len(self)), self.count)

    def take(self, indices: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Origin:
        """Of the rows at `indices`, numbers or an (m,) mask, in that order."""
        chosen = np.arange(len(self))[indices]
        count = self.count[chosen]
        first = np.cumsum(self.count) - self.count
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        entries = np.repeat(first[chosen], count) + within
        return _tidy(self.sources, self.source[entries], self.share[entries], count)

    def cells(self, label: npt.ArrayLike, weights: npt.ArrayLike) -> Origin:
        """Of the averages of rows: row i, which weighs `weights[i]` > 0, is in cell `label[i]`.

        Cells are numbered from 0 and none is empty.
        """
        from scipy.sparse import csr_array

        cell = np.asarray(label)[self.row]
        weight = np.asarray(weights, np.float64)[self.row] * self.share
        sums = csr_array((weight, (cell, self.source)), shape=(cell.max() + 1, len(self.sources)))
        count = np.diff(sums.indptr).astype(np.int64)
        share = sums.data / np.repeat(sums.sum(1), count)
        return _tidy(self.sources, sums.indices, share, count)

    def without_images(self) -> Origin:
        """What leaves a site: sites and rounds."""
        return self.renamed([Source(s.site, s.round) for s in self.sources])

    def renamed(self, sources: Sequence[Source]) -> Origin:
        """With other sources at the places of its own; equal ones become one."""
        merged = Origin(tuple(sources), self.source, self.share, self.count)
        return join_origins([merged]).cells(np.arange(len(self)), np.ones(len(self)))

    def share_of(self, site: str, image: str | None = None) -> npt.NDArray[np.float64]:
        """(m,) share of each row that is from a site, or from one image of it."""
        wanted = [s.site == site and image in (None, s.image) for s in self.sources]
        share = self.share.astype(np.float64) * np.asarray(wanted, np.float64)[self.source]
        return np.bincount(self.row, share, len(self)).astype(np.float64)

    def by_site(self, weights: npt.ArrayLike) -> dict[str, float]:
        """Sum of the (m,) weights of rows by the name of their site, "" for those unknown."""
        weight = np.asarray(weights, np.float64)[self.row] * self.share
        total = np.bincount(self.source, weight, len(self.sources))
        found: dict[str, float] = {}
        for source, value in zip(self.sources, total.tolist(), strict=True):
            found[source.site] = found.get(source.site, 0.0) + value
        return found


def join_origins(origins: Sequence[Origin]) -> Origin:
    """Of all rows of several memories, one after another.

    Examples
    --------
    >>> from fedvad.memory.origin import Origin, Source, join_origins
    >>> joined = join_origins([Origin.of([Source(site, 1)], [0, 0]) for site in ("b", "a")])
    >>> joined.source.tolist(), [source.site for source in joined.sources]
    ([1, 1, 0, 0], ['a', 'b'])
    """
    sources = sorted({source for origin in origins for source in origin.sources})
    place = {source: i for i, source in enumerate(sources)}
    return _tidy(
        sources,
        np.concatenate(
            [np.array([place[s] for s in o.sources], np.int64)[o.source] for o in origins]
        ),
        np.concatenate([o.share for o in origins]),
        np.concatenate([o.count for o in origins]),
    )


def origin_arrays(origin: Origin | None) -> Arrays:
    """What a file keeps of an origin, a few bytes per row; nothing of an unknown one.

    Examples
    --------
    >>> from fedvad.memory.origin import Origin, Source, origin_arrays
    >>> sorted(origin_arrays(Origin.of([Source("alder", 1)], [0, 0])))
    ['origin', 'origin.sources']
    """
    if origin is None:
        return {}
    table = json.dumps([s if s.image else s[:2] for s in origin.sources], separators=(",", ":"))
    width = np.uint16 if len(origin.sources) <= 1 << 16 else np.uint32
    arrays: Arrays = {
        "origin": origin.source.astype(width),
        "origin.sources": np.frombuffer(table.encode(), np.uint8),
    }
    if len(origin.source) != len(origin):
        arrays["origin.count"] = origin.count.astype(np.uint32)
        arrays["origin.share"] = origin.share
    return arrays


def origin_from(arrays: Mapping[str, npt.NDArray[Any]], rows: int) -> Origin | None:
    """What `origin_arrays` wrote of this many rows; None where a file holds nothing of it.

    Raises `MemoryBankError` for what is none.

    Examples
    --------
    >>> from fedvad.memory.origin import Origin, Source, origin_arrays, origin_from
    >>> origin_from(origin_arrays(Origin.of([Source("alder", 1)], [0, 0])), 2).sources[0].site
    'alder'
    """
    found = {name: arrays[name] for name in ORIGIN_ARRAYS if name in arrays}
    if not found:
        return None
    kinds = {"origin": "u", "origin.sources": "u", "origin.count": "u", "origin.share": "f"}
    if not {"origin", "origin.sources"} <= set(found) or any(
        array.ndim != 1 or array.dtype.kind != kinds[name] for name, array in found.items()
    ):
        raise MemoryBankError("the origin of memory rows is incomplete or of other types")
    sources = _read_table(found["origin.sources"])
    source = found["origin"].astype(np.int64)
    count = found.get("origin.count", np.ones(len(source), np.uint32)).astype(np.int64)
    share = found.get("origin.share", np.ones(len(source), np.float32)).astype(np.float32)
    if (
        len(count) != rows
        or count.sum() != len(source)
        or len(share) != len(source)
        or (len(count) and count.min() < 1)
        or (len(source) and source.max() >= len(sources))
        or not ((share > 0) & (share <= 1)).all()
    ):
        raise MemoryBankError(f"the origin of memory rows does not fit a memory of {rows} rows")
    return _tidy(sources, source, share, count)


def _read_table(coded: npt.NDArray[Any]) -> list[Source]:
    try:
        if coded.dtype != np.uint8 or coded.nbytes > _LARGEST_TABLE:
            raise ValueError("the table is too large")
        sources = [Source(*entry) for entry in json.loads(coded.tobytes())]
    except (ValueError, TypeError, RecursionError) as error:
        raise MemoryBankError(f"the table of sources cannot be read: {error}") from error
    for source in sources:
        for name, longest in _LONGEST.items():
            value = getattr(source, name)
            if not isinstance(value, str) or len(value) > longest:
                raise MemoryBankError(f"the table of sources has {name} {str(value)[:50]!r}")
        if type(source.round) is not int or not 0 <= source.round <= _LAST_ROUND:
            raise MemoryBankError(f"the table of sources has round {str(source.round)[:50]}")
    if len(set(sources)) < len(sources):
        raise MemoryBankError("the table of sources names one twice")
    return sources


def _tidy(
    sources: Sequence[Source],
    source: npt.NDArray[Any],
    share: npt.NDArray[Any],
    count: npt.NDArray[np.int64],
) -> Origin:
    """Without the sources of no row: a site that left must not be named any longer."""
    used, place = np.unique(source, return_inverse=True)
    named = sorted({sources[i] for i in used})
    rank = {found: i for i, found in enumerate(named)}
    index = np.array([rank[sources[i]] for i in used], np.int64)
    return Origin(tuple(named), index[place.reshape(-1)], np.asarray(share, np.float32), count)
