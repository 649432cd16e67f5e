"""Sums that hide their terms: fixed-point numbers under masks that cancel when all are added."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedvad.errors import FederationError, PayloadError, join_names

Fixed = npt.NDArray[np.uint64]
_SCALE = 2.0**32
_LARGEST = 2.0**30
_KEY_BYTES = 32


def to_fixed(values: npt.NDArray[np.float64]) -> Fixed:
    """Numbers in steps of 2^-32, modulo 2^64: their sums are exact, in any order.

    Raises `FederationError` for values beyond 2^30, or no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.federation.masks import from_fixed, to_fixed
    >>> from fedvad.mergeable import merge_states
    >>> parts = np.array([1.5, -0.25]), np.array([-2.0, 0.5])
    >>> from_fixed(merge_states(map(to_fixed, parts)))
    array([-0.5 ,  0.25])
    """
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > _LARGEST:
        raise FederationError("a sum is beyond 2^30, or no number: it cannot be sent")
    return np.rint(values * _SCALE).astype(np.int64).view(np.uint64)


def from_fixed(total: Fixed) -> npt.NDArray[np.float64]:
    """The numbers of a sum of `to_fixed` arrays, which must lie within 2^31."""
    return total.view(np.int64).astype(np.float64) / _SCALE


def new_secret() -> bytes:
    """The private half of a new pair of keys, of the system's own randomness."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(secret: bytes) -> bytes:
    """The 32 bytes that others may know."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def mask(
    site: str, secret: bytes, keys: Mapping[str, bytes], *, round_: int, shape: tuple[int, ...]
) -> Fixed:
    """What a site adds to its sum of a round: the masks of all sites together are zero.

    Each pair of sites agrees on a stream of numbers that nobody else can compute (X25519, HKDF
    with SHA-256, ChaCha20); the first of the two by name adds it, the other subtracts it. Whoever
    lacks the stream of even one pair of a site learns nothing of that site's sum but what the total
    says. A mask hides one message only: never send two under the same round and keys.

    Parameters
    ----------
    site : str
    secret : bytes
        See `new_secret`.
    keys : dict of str to bytes
        Public keys of all sites, this one's among them.
    round_ : int
    shape : tuple of int

    Raises
    ------
    FederationError
        Where the site's own key is not among them, or is another one.
    PayloadError
        For a key that is none.

    Source: Bonawitz et al. 2017, without recovery from a site that drops out.

    Examples
    --------
    >>> from fedvad.federation.masks import mask, new_secret, public_key
    >>> from fedvad.mergeable import merge_states
    >>> secrets = {name: new_secret() for name in ("alder", "birch", "cedar")}
    >>> keys = {name: public_key(secret) for name, secret in secrets.items()}
    >>> merge_states([mask(n, s, keys, round_=2, shape=(2,)) for n, s in secrets.items()])
    array([0, 0], dtype=uint64)
    """
    if keys.get(site) != public_key(secret):
        raise FederationError(
            f"the key of {site} that the server hands out is not its own: the message is of "
            "another federation, or the server exchanged it; begin again in new folders"
        )
    total = np.zeros(shape, np.uint64)
    for other in sorted(set(keys) - {site}):
        shared = _stream(secret, keys[other], sorted((site, other)), round_, total.size)
        total += shared.reshape(shape) if site < other else np.negative(shared).reshape(shape)
    return total


def _stream(secret: bytes, other: bytes, names: list[str], round_: int, size: int) -> Fixed:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        agreed = X25519PrivateKey.from_private_bytes(secret).exchange(
            X25519PublicKey.from_public_bytes(other)
        )
    except ValueError as error:
        raise PayloadError(f"a key of {join_names(names)} is none: {error}") from error
    about = "\n".join(["fedvad sums", *names, str(round_)]).encode()
    key = HKDF(SHA256(), _KEY_BYTES, salt=None, info=about).derive(agreed)
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, "<u8").astype(np.uint64)
