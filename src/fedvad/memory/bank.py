"""The memory bank: vectors that stand for many normal patches, and how many, and how widely."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.errors import MemoryBankError, join_names
from fedvad.half import as_float32
from fedvad.memory.origin import Origin, join_origins

__all__ = ["FloatArray", "LazyBanks", "MemoryBank", "concatenate", "joined_origin", "rows_at"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Weighted normal patch features of one site or of a federation.

    Parameters
    ----------
    vectors : (m, d) float32 array
        Rows of the memory, in the units of the patch descriptors; m >= 0, d >= 1.
    weights : (m,) float64 array
        Number of patches that each vector stands for, > 0.
    spread : (m,) float32 array
        Root-mean-square distance of these patches to their vector, >= 0; 0 for a vector of a
        single patch.
    origin : Origin, default=None
        Which site sent each row in which round; None if unknown.

    Raises
    ------
    MemoryBankError
        When shapes disagree, values are not finite, weights not positive or spreads negative.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank
    >>> bank = MemoryBank(np.eye(2), weights=np.array([3, 1]), spread=np.zeros(2))
    >>> len(bank), bank.dim, bank.total_weight
    (2, 2, 4.0)
    """

    vectors: FloatArray
    weights: npt.NDArray[np.float64]
    spread: FloatArray
    origin: Origin | None = None

    def __post_init__(self) -> None:
        vectors = as_float32(self.vectors)
        weights = np.ascontiguousarray(self.weights, dtype=np.float64)
        spread = np.ascontiguousarray(self.spread, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise MemoryBankError(f"memory vectors must be (m, d), got shape {vectors.shape}")
        if weights.shape != (len(vectors),) or spread.shape != (len(vectors),):
            raise MemoryBankError(
                f"{len(vectors)} memory vectors need as many weights and spreads, "
                f"got shapes {weights.shape} and {spread.shape}"
            )
        for name, array in (("vectors", vectors), ("weights", weights), ("spread", spread)):
            if array.size and not np.isfinite([array.min(), array.max()]).all():
                raise MemoryBankError(f"memory {name} contain NaN or infinity")
        if (weights <= 0).any():
            raise MemoryBankError("memory weights must be positive")
        if (spread < 0).any():
            raise MemoryBankError("memory spread must not be negative")
        if self.origin is not None and len(self.origin) != len(vectors):
            raise MemoryBankError(f"{len(vectors)} memory vectors, {len(self.origin)} origins")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "spread", spread)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Length d of a patch descriptor."""
        return int(self.vectors.shape[1])

    @property
    def total_weight(self) -> float:
        """Number of patches that the whole bank stands for."""
        return float(self.weights.sum())

    @classmethod
    def empty(cls, dim: int) -> MemoryBank:
        """A bank of no vectors of length `dim`, the neutral element of `concatenate`."""
        return cls(np.zeros((0, dim), np.float32), np.zeros(0), np.zeros(0, np.float32))

    @classmethod
    def of_patches(cls, patches: FloatArray) -> MemoryBank:
        """Each of the (m, d) patches as a vector of weight 1 and spread 0.

        Examples
        --------
        >>> MemoryBank.of_patches(np.ones((3, 2), np.float32)).total_weight
        3.0
        """
        return cls(patches, np.ones(len(patches)), np.zeros(len(patches), np.float32))

    def take(self, indices: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> MemoryBank:
        """The rows at `indices`, numbers or an (m,) mask, in that order."""
        origin = None if self.origin is None else self.origin.take(indices)
        return MemoryBank(
            self.vectors[indices], self.weights[indices], self.spread[indices], origin
        )

    def rescaled(self, total_weight: float) -> MemoryBank:
        """The same vectors with weights that sum to `total_weight` > 0; an empty bank stays empty.

        Examples
        --------
        >>> MemoryBank.of_patches(np.ones((3, 2), np.float32)).rescaled(30).weights.tolist()
        [10.0, 10.0, 10.0]
        """
        if len(self) == 0:
            return self
        weights = self.weights * (total_weight / self.total_weight)
        return MemoryBank(self.vectors, weights, self.spread, self.origin)

    def canonical(self) -> MemoryBank:
        """The same rows in an order that does not depend on the order they are in now."""
        rows = np.column_stack(
            [self.vectors, self.weights.view(np.float32).reshape(-1, 2), self.spread]
        )
        as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
        order = np.argsort(as_bytes, kind="stable")
        del rows, as_bytes  # of a large federation there is no room for another copy
        return self.take(order)


def concatenate(banks: Sequence[MemoryBank]) -> MemoryBank:
    """All rows of all banks; total weight is conserved.

    Parameters
    ----------
    banks : sequence of MemoryBank
        At least one; all of the same descriptor length.

    Raises
    ------
    MemoryBankError
        When there is no bank, or descriptor lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank, concatenate
    >>> one = MemoryBank.of_patches(np.zeros((2, 3), np.float32))
    >>> len(concatenate([one, one, MemoryBank.empty(3)]))
    4
    """
    dims = {bank.dim for bank in banks}
    if len(dims) != 1:
        raise MemoryBankError(f"banks to merge need one descriptor length, got {join_names(dims)}")
    return MemoryBank(
        np.concatenate([bank.vectors for bank in banks]),
        np.concatenate([bank.weights for bank in banks]),
        np.concatenate([bank.spread for bank in banks]),
        joined_origin(banks),
    )


class LazyBanks(Mapping[str, MemoryBank]):
    """Banks by name, in the order of names, each made again whenever it is asked for, so that those
    of very many sites are never in memory together.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import LazyBanks, MemoryBank
    >>> banks = LazyBanks(["b", "a"], lambda name: MemoryBank.of_patches(np.ones((1, 2), "f")))
    >>> list(banks), len(banks["a"])
    (['a', 'b'], 1)
    """

    def __init__(self, names: Collection[str], make: Callable[[str], MemoryBank]) -> None:
        self._names = dict.fromkeys(sorted(names))
        self._make = make

    def __getitem__(self, name: str) -> MemoryBank:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:  # without making it
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def rows_at(banks: Mapping[str, MemoryBank], rows: npt.NDArray[np.integer]) -> MemoryBank:
    """The rows of these numbers, in this order, where all rows of all banks are numbered from 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.memory.bank import MemoryBank, rows_at
    >>> banks = {"a": MemoryBank.of_patches(np.array([[1.0], [2.0]], "f"))}
    >>> banks["b"] = MemoryBank.of_patches(np.array([[3.0]], "f"))
    >>> rows_at(banks, np.array([2, 0])).vectors[:, 0].tolist()
    [3.0, 1.0]
    """
    order = np.argsort(rows, kind="stable")
    wanted, start, found = rows[order], 0, []
    for bank in banks.values():
        first, last = np.searchsorted(wanted, [start, start + len(bank)])
        if last > first:
            found.append(bank.take(wanted[first:last] - start))
        start += len(bank)
    return concatenate(found).take(np.argsort(order))


def joined_origin(banks: Iterable[MemoryBank]) -> Origin | None:
    """Of all rows of all banks, one after another; None where no bank knows any."""
    known = [(bank.origin, len(bank)) for bank in banks if len(bank)]
    if all(origin is None for origin, _ in known):
        return None
    return join_origins([origin or Origin.unknown(rows) for origin, rows in known])
