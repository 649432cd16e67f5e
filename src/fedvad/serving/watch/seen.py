"""Which images a watch has scored, in a few bytes each."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

Key = tuple[str | int, ...]
_RECENT = 1 << 16


class Seen:
    """A set of keys that keeps eight bytes of each: a digest.

    Two of a hundred million keys are taken for one another with a probability below 0.001.

    Examples
    --------
    >>> from fedvad.serving.watch.seen import Seen
    >>> seen = Seen()
    >>> seen.add(("a.png", 1200, 5))
    >>> ("a.png", 1200, 5) in seen, ("a.png", 1200, 6) in seen
    (True, False)
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, key: object) -> bool:
        number = _number(key)
        if number in self._recent:
            return True
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return at < len(self._sorted) and int(self._sorted[at]) == number

    def add(self, key: Key) -> None:
        """Take in a key."""
        self._recent.add(_number(key))
        if len(self._recent) == _RECENT:
            recent = np.fromiter(self._recent, np.uint64, _RECENT)
            self._sorted = np.union1d(self._sorted, recent)
            self._recent.clear()


def _number(key: object) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")
