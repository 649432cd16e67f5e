"""Messages as signed files: Ed25519 keys, and one frame around the bytes of a message.

Frame: 8 bytes magic, 2 bytes version (little-endian), 32 bytes public key, 64 bytes signature,
then the message to the end of the file. The signature covers a prefix that no other protocol
uses, the version and the message. Source: RFC 8032 for Ed25519; the frame is ours.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError, PayloadError, StorageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

# as the length of a safetensors header these 8 bytes are absurd, so no reader takes one for other
_MAGIC = b"\x89FEDVAD\n"
_VERSION = 1
_DOMAIN = b"fedvad signed message\x00"
_KEY, _SIGNATURE = 32, 64
_TRUNCATED = "the file is truncated, it has {} bytes: copy it again from where it was made"
OVERHEAD = len(_MAGIC) + 2 + _KEY + _SIGNATURE
MAX_BYTES = 1 << 30
# PEM files of one key have some 120 bytes; nothing larger is read as a key
_MAX_KEY_FILE = 1 << 14


@dataclass(frozen=True, eq=False)
class SigningKey:
    """A private key, held in memory only; `public` is its 32-byte public half."""

    _private: Ed25519PrivateKey
    public: bytes

    @property
    def beginning(self) -> bytes:
        """What every file begins with that this key signed."""
        return _MAGIC + _VERSION.to_bytes(2, "little") + self.public

    def sign(self, message: bytes) -> bytes:
        """The frame around a message; equal messages give equal frames."""
        version = _VERSION.to_bytes(2, "little")
        signature = self._private.sign(_DOMAIN + version + message)
        return self.beginning + signature + message


@dataclass(frozen=True, eq=False)
class SignedMessage:
    """A frame taken apart; nothing in it is to be believed before `verifies` said so.

    key: 32 bytes public key that the file names. message: the bytes that were signed.
    """

    key: bytes
    signature: bytes
    message: bytes

    @classmethod
    def parse(cls, data: bytes) -> SignedMessage:
        """Take a frame apart; raises `PayloadError` when it is none, cut short or of a version
        that this fedvad does not speak."""
        if not data.startswith(_MAGIC):
            if _MAGIC.startswith(data):
                raise PayloadError(_TRUNCATED.format(len(data)))
            raise PayloadError(
                "the file is not signed: give one that `fedvad bank` or `fedvad forget` wrote"
            )
        if len(data) <= OVERHEAD:
            raise PayloadError(_TRUNCATED.format(len(data)))
        at = len(_MAGIC)
        version = int.from_bytes(data[at : at + 2], "little")
        if version != _VERSION:
            raise PayloadError(
                f"the file is of format version {version}, this fedvad reads {_VERSION}: "
                "use the same fedvad on both sides"
            )
        key_at, signature_at = at + 2, at + 2 + _KEY
        return cls(data[key_at:signature_at], data[signature_at:OVERHEAD], data[OVERHEAD:])

    def verifies(self) -> bool:
        """Whether the holder of the key that the file names signed exactly this message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            public = Ed25519PublicKey.from_public_bytes(self.key)
            signed = _DOMAIN + _VERSION.to_bytes(2, "little") + self.message
            public.verify(self.signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True

    def check(self, trusted: dict[bytes, str]) -> str:
        """The name of the trusted key that signed this message.

        Raises `PayloadError` for a key that is not among `trusted` (public key to name) and for
        a message that was changed after it was signed.
        """
        name = trusted.get(self.key)
        if name is None:
            raise PayloadError(
                f"signed by an unknown key, fingerprint {key_fingerprint(self.key)}; trusted: "
                f"{', '.join(sorted(trusted.values())) or 'none'}; if the fingerprint "
                "is that of whom you expect, put that public key among those of --trust"
            )
        if not self.verifies():
            raise PayloadError(
                f"the signature of {name} does not fit: the file was changed or damaged after it "
                "was signed; copy it again from where it was made"
            )
        return name


def is_signed(data: bytes) -> bool:
    """Whether bytes begin like a signed file."""
    return data.startswith(_MAGIC)


def key_fingerprint(key: bytes) -> str:
    """32 hex digits in groups of four, for comparing a 32-byte public key by eye or telephone."""
    digits = hashlib.sha256(key).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def read_bounded(path: Path, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes; raises `PayloadError` for one beyond `limit` bytes, or that is unreadable."""
    try:
        if not path.is_file():
            raise PayloadError("no such file" if not path.exists() else "not a file")
        size = path.stat().st_size
        if size > limit:
            raise PayloadError(f"{size} bytes exceed the limit of {limit}")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise PayloadError(f"cannot be read: {error.strerror or error}") from error
    if len(data) > limit:  # it grew meanwhile
        raise PayloadError(f"more than {limit} bytes")
    return data


def check_name(name: str) -> str:
    """The name of a site or key in Unicode's composed form, as files of every system agree on.

    Raises `ConfigError` for one that cannot be a file name everywhere.
    """
    name = unicodedata.normalize("NFC", name)
    if not name or not name.isprintable() or name != name.strip() or name.startswith("."):
        raise ConfigError(
            f"a name must be printable, without spaces around it or a dot in front, not {name!r}"
        )
    if set(name) & set('/\\:*?"<>|') or len(name.encode()) > 200:
        raise ConfigError(f'a name must be short and without / \\ : * ? " < > |, not {name!r}')
    return name


def generate_keys(folder: Path, name: str) -> tuple[Path, Path, bytes]:
    """A new key pair: `name.key` (PKCS8 PEM, mode 0600 from its creation) and `name.pub`.

    Returns both paths and the 32-byte public key. An existing private key is never written over;
    if only its public half is missing, as after a kill, that is written. Raises `ConfigError`
    when the pair exists, `StorageError` when the disk refuses.
    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name = check_name(name)
    private_path, public_path = folder / f"{name}.key", folder / f"{name}.pub"
    if public_path.exists():
        raise ConfigError(f"{public_path} already exists: choose another --name or --out")
    if not private_path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()
        )
        create_private(private_path, pem)
    key = read_private_key(private_path)
    public = key._private.public_key().public_bytes(
        s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomically(public_path, public)
    return private_path, public_path, key.public


def create_private(path: Path, data: bytes) -> None:
    """Write a private key, 0600 from its first moment and never over another one.

    Raises `StorageError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL: not even a race may replace a key
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # half a key is of no use and would be in the way
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def read_private_key(path: Path) -> SigningKey:
    """A key that `generate_keys` wrote; warns when others may read it. Raises `ConfigError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read_key(path)
    try:
        private = s.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} is not an unencrypted Ed25519 private key; `fedvad bank keygen` makes one"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("%s can be read by others: chmod 600 it, or make a new key", path)
    raw = private.public_key().public_bytes(s.Encoding.Raw, s.PublicFormat.Raw)
    return SigningKey(private, raw)


def read_public_key(path: Path) -> bytes:
    """The 32 bytes of a public key file; raises `ConfigError` for anything else."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _read_key(path)
    try:
        public = s.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 public key (a .pub file of `bank keygen`)")
    return public.public_bytes(s.Encoding.Raw, s.PublicFormat.Raw)


def read_trusted_keys(path: Path) -> dict[bytes, str]:
    """Public keys of a `.pub` file or of all in a folder, to the names their files have.

    The name of its file says for which site a key may speak. Raises `ConfigError` when there is
    no key, one is damaged, or one key has two names.
    """
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} holds no .pub file: put the sites' public keys there")
    trusted: dict[bytes, str] = {}
    for file in files:
        key, name = read_public_key(file), unicodedata.normalize("NFC", file.stem)
        if key in trusted:
            raise ConfigError(f"{file} holds the same key as that of {trusted[key]}: remove one")
        trusted[key] = name
    return trusted


def _read_key(path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_KEY_FILE)
    except PayloadError as error:
        raise ConfigError(f"cannot read key {path}: {error}") from error
