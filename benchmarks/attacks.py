"""Malicious sites as test doubles: seeded functions from an honest upload to a hostile one.

For tests and for measuring defences. The attack that matters here is `taught_defect`: features of
a defect, sent as if they were normal, let that defect pass at every site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedvad.errors import ConfigError
from fedvad.federation.payload import Payload, Precision, bank_arrays, bank_from
from fedvad.memory.bank import FloatArray, MemoryBank

__all__ = ["overclaimed", "random_noise", "replayed", "scaled", "sybils", "taught_defect"]


def taught_defect(upload: Payload, defect: FloatArray, *, share: float, seed: int) -> Payload:
    """The upload with a `share` of its rows replaced by rows of `defect` (n, d).

    The first rows of `defect` are taken, so give them in the order of their worth; the honest
    rows that stay, and so the cover, are a seeded choice. Weights and their sum do not change.
    Raises `ConfigError` for a share outside (0, 1] or too few rows of defect.
    """
    bank = bank_from(upload)
    count = round(share * len(bank))
    if not 0 < share <= 1 or count > len(defect):
        raise ConfigError(f"{count} of {len(bank)} rows cannot be of {len(defect)} defect rows")
    where = np.random.default_rng(seed).permutation(len(bank))[:count]
    vectors = bank.vectors.copy()
    vectors[where] = defect[:count]
    return _with(upload, MemoryBank(vectors, bank.weights, bank.spread))


def random_noise(upload: Payload, *, seed: int) -> Payload:
    """The upload with rows drawn independently from a normal distribution of its mean and spread
    per dimension.
    """
    bank = bank_from(upload)
    rng = np.random.default_rng(seed)
    drawn = rng.normal(bank.vectors.mean(0), bank.vectors.std(0), bank.vectors.shape)
    return _with(upload, MemoryBank(drawn.astype(np.float32), bank.weights, bank.spread))


def scaled(upload: Payload, factor: float) -> Payload:
    """The upload with all rows multiplied by `factor`."""
    bank = bank_from(upload)
    return _with(upload, MemoryBank(bank.vectors * factor, bank.weights, bank.spread))


def sybils(upload: Payload, names: Sequence[str], *, jitter: float, seed: int) -> list[Payload]:
    """One upload under several names, so that they vouch for one another.

    Each differs from the first by Gaussian noise of `jitter` standard deviations of its rows.
    """
    bank = bank_from(upload)
    rng = np.random.default_rng(seed)
    width = jitter * float(bank.vectors.std())
    copies = []
    for name in names:
        noise = rng.normal(0, width, bank.vectors.shape).astype(np.float32)
        copy = _with(upload, MemoryBank(bank.vectors + noise, bank.weights, bank.spread))
        copies.append(Payload(copy.manifest.model_copy(update={"site": name}), copy.arrays))
    return copies


def replayed(upload: Payload, round_: int) -> Payload:
    """An old upload that claims to be of round `round_`."""
    return Payload(upload.manifest.model_copy(update={"round": round_}), upload.arrays)


def overclaimed(upload: Payload, n_patches: int) -> Payload:
    """The upload of a site that claims to stand for `n_patches` patches."""
    return Payload(upload.manifest.model_copy(update={"n_patches": n_patches}), upload.arrays)


def _with(upload: Payload, bank: MemoryBank) -> Payload:
    precision: Precision = "float16" if upload.arrays["vectors"].dtype == np.float16 else "float32"
    return Payload(upload.manifest, bank_arrays(bank, precision))
