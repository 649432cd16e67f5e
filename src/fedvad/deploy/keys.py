"""Certificates and keys of a deployment: one authority, one server, one key pair per site."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError
from fedvad.federation.signed import create_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

log = logging.getLogger(__name__)
_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 825
# clocks of plants differ: a certificate must not be refused for being from tomorrow
_SKEW = timedelta(days=1)


def make_authority(folder: Path) -> bool:
    """`ca.key` (0600) and `ca.crt`, unless they exist; says whether they were made.

    Raises `ConfigError` when only one of the two is there.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    if _pair_exists(folder / "ca.key", folder / "ca.crt"):
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    usage = {
        "digital_signature": False, "content_commitment": False, "key_encipherment": False,
        "data_encipherment": False, "key_agreement": False, "key_cert_sign": True,
        "crl_sign": True, "encipher_only": False, "decipher_only": False,
    }  # fmt: skip
    builder = (
        _builder("fedvad authority", _AUTHORITY_DAYS)
        .issuer_name(_name("fedvad authority"))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write(folder / "ca.key", folder / "ca.crt", key, _signed(builder, key))
    return True


def make_server_certificate(authority: Path, folder: Path, names: Sequence[str]) -> bool:
    """`server.key` (0600) and `server.crt` for these names and addresses, signed by `authority`.

    localhost is always among them. Says whether they were made; raises `ConfigError` when there
    is a certificate for other names.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    wanted = [_general_name(name) for name in dict.fromkeys([*names, "localhost", "127.0.0.1"])]
    key_path, path = folder / "server.key", folder / "server.crt"
    if _pair_exists(key_path, path):
        certificate = _read_certificate(path)
        names_there = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        if set(names_there.value) != set(wanted):
            raise ConfigError(
                f"{path} is for other names; to make one for these, remove {path} and {key_path}"
            )
        return False
    ca_key = _read_key(authority / "ca.key")
    ca = _read_certificate(authority / "ca.crt")
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    builder = (
        _builder(names[0], _SERVER_DAYS)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    _write(key_path, path, key, _signed(builder, ca_key))
    return True


def check_certificate(folder: Path) -> None:
    """Raise `ConfigError` where no site will trust the server of a folder.

    That is where `server.crt` or `ca.crt` is out of date, where the first is not signed by the
    second, or where `server.key` is that of another certificate.
    """
    from cryptography.exceptions import InvalidSignature

    paths = folder / "server.crt", folder / "ca.crt"
    own, authority = (_read_certificate(there(path)) for path in paths)
    key_path, now = folder / "server.key", datetime.now(UTC)
    again = f"remove {paths[0]} and {key_path} and run `fedvad deploy init` again"
    for path, certificate in zip(paths, (own, authority), strict=True):
        if now > certificate.not_valid_after_utc:
            raise ConfigError(
                f"{path} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}: check this "
                f"machine's clock, or "
                + (again if path == paths[0] else "make the deployment again in a new folder")
            )
    try:
        own.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError(
            f"{paths[0]} is not signed by the authority in {paths[1]}, which the sites trust: "
            f"restore both from one copy, or {again}"
        ) from error
    if _read_key(there(key_path)).public_key() != own.public_key():
        raise ConfigError(
            f"{key_path} is not the key of {paths[0]}: restore both from one copy, or {again}"
        )


def make_site_key(folder: Path) -> bool:
    """`site.key` (OpenSSH, P-384, 0600) and `site.pub`, unless they exist; says whether made."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    if _pair_exists(folder / "site.key", folder / "site.pub"):
        return False
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    create_private(folder / "site.key", private)
    write_atomically(folder / "site.pub", public + b"\n")
    return True


def check_site_key(folder: Path) -> None:
    """Raise `ConfigError` where `site.key` is damaged, or `site.pub` next to it of another key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    path, public = folder / "site.key", folder / "site.pub"
    again = f"restore it from a copy, or remove {path} and {public}, make them again with `fedvad "
    again += "deploy init` and give the server the new site.pub"
    try:
        key = s.load_ssh_private_key(there(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"cannot read the private key {path}: {error}; {again}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key of `fedvad deploy init`: {again}")
    own = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    if public.is_file() and public_pem(public) != own:
        raise ConfigError(f"{path} is not the key of {public}, which the server knows: {again}")


def public_pem(path: Path) -> bytes:
    """A site's public key in the form in which Flower tells which node has it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = s.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} is not an elliptic-curve key; `fedvad deploy init` makes one")
    return key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def there(path: Path) -> Path:
    """A file of a deployment; raises `ConfigError` where it is missing."""
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing; `fedvad deploy init` makes it (or --insecure for plain text)"
        )
    return path


def sync_keys(database: Path, keys: Mapping[bytes, str]) -> None:
    """Register the public keys (PEM, with the names of their sites) that are new, lock out others.

    Flower's own command for it needs a running server and a process per key. A key that was
    locked out stays so in this database: its site needs a new one.
    """
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

    state = _state(database)
    known = {bytes(node.public_key): node for node in state.get_node_info()}
    for key, node in known.items():
        if key not in keys and node.status != "unregistered":
            state.delete_node(node.owner_aid, node.node_id)
            log.warning("locked out a site whose key is no longer in the folder")
    for key, name in keys.items():
        if key not in known:
            state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL)
        elif known[key].status == "unregistered":
            log.error("the key of %s was locked out earlier: the site needs a new one", name)


def online_keys(database: Path) -> set[bytes]:
    """Public keys (PEM) of the nodes that are connected; none where there is no database yet."""
    if not database.is_file():
        return set()
    return {bytes(node.public_key) for node in _state(database).get_node_info(statuses=["online"])}


def _pair_exists(private: Path, public: Path) -> bool:
    if private.exists() != public.exists():
        there, gone = (private, public) if private.exists() else (public, private)
        raise ConfigError(f"{there} exists but {gone} does not: restore it, or remove both")
    return private.exists()


def _name(common: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common[:64])])


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigError(f"{name!r} is neither a host name nor an address") from error


def _builder(common: str, days: int) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _write(key_path: Path, path: Path, key: EllipticCurvePrivateKey, certificate: bytes) -> None:
    from cryptography.hazmat.primitives import serialization as s

    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    create_private(key_path, pem)
    write_atomically(path, certificate)


def _read_certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a certificate: {error}") from error


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = s.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read the private key {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key of `fedvad deploy init`")
    return key


def _state(database: Path) -> Any:
    from flwr.superlink.config_loader import (
        get_federation_manager,
        get_objectstore_linkstate_factories,
    )

    _, factory = get_objectstore_linkstate_factories(str(database), get_federation_manager())
    return factory.state()
