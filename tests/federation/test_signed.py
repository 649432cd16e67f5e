"""Signed files: keys, the frame, and that nothing altered, cut or foreign passes."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError, PayloadError, StorageError
from fedvad.federation.payload import Payload
from fedvad.federation.signed import (
    OVERHEAD,
    SignedMessage,
    SigningKey,
    check_name,
    generate_keys,
    is_signed,
    key_fingerprint,
    read_bounded,
    read_private_key,
    read_public_key,
    read_trusted_keys,
)
from tests.helpers import upload


def _key(seed: int) -> SigningKey:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    raw = private.public_key().public_bytes(s.Encoding.Raw, s.PublicFormat.Raw)
    return SigningKey(private, raw)


KEY = _key(1)
TRUSTED = {KEY.public: "alder"}
MESSAGE = upload().to_bytes()
SIGNED = KEY.sign(MESSAGE)


def _open(data: bytes) -> bytes:
    signed = SignedMessage.parse(data)
    signed.check(TRUSTED)
    return signed.message


class TestFrame:
    def test_what_was_signed_comes_out(self) -> None:
        assert _open(SIGNED) == MESSAGE
        assert SignedMessage.parse(SIGNED).check(TRUSTED) == "alder"
        assert len(SIGNED) == OVERHEAD + len(MESSAGE)
        assert KEY.sign(MESSAGE) == SIGNED  # the same file whenever it is written again
        assert is_signed(SIGNED)
        assert not is_signed(MESSAGE)

    def test_no_reader_of_messages_takes_a_signed_file_for_one(self) -> None:
        with pytest.raises(PayloadError):
            Payload.from_bytes(SIGNED)

    @given(at=st.integers(0, len(SIGNED) - 1), change=st.integers(1, 255))
    def test_any_changed_byte_is_refused(self, at: int, change: int) -> None:
        changed = bytearray(SIGNED)
        changed[at] ^= change
        with pytest.raises(PayloadError):
            _open(bytes(changed))

    @given(st.integers(0, len(SIGNED) - 1))
    def test_any_truncation_is_refused(self, length: int) -> None:
        with pytest.raises(PayloadError):
            _open(SIGNED[:length])

    @given(st.binary(min_size=1, max_size=40))
    def test_anything_appended_is_refused(self, more: bytes) -> None:
        with pytest.raises(PayloadError, match="changed or damaged"):
            _open(SIGNED + more)

    @given(data=st.binary(max_size=400), framed=st.booleans())
    def test_random_bytes_are_refused_and_never_crash(self, data: bytes, framed: bool) -> None:
        with pytest.raises(PayloadError):
            _open(SIGNED[:10] + data if framed else data)

    @given(st.binary(min_size=1, max_size=300))
    def test_whatever_is_signed_is_parsed_or_refused(self, message: bytes) -> None:
        assert _open(KEY.sign(message)) == message
        with pytest.raises(PayloadError):
            Payload.from_bytes(_open(KEY.sign(message)))

    def test_an_unknown_key_is_named_by_its_fingerprint(self) -> None:
        other = _key(2)
        with pytest.raises(PayloadError, match=f"unknown key.*{key_fingerprint(other.public)}"):
            _open(other.sign(MESSAGE))

    def test_a_signature_of_another_key_does_not_fit_under_a_trusted_name(self) -> None:
        forged = bytearray(_key(2).sign(MESSAGE))
        forged[10:42] = KEY.public
        with pytest.raises(PayloadError, match="signature of alder does not fit"):
            _open(bytes(forged))

    def test_reasons(self) -> None:
        with pytest.raises(PayloadError, match="not signed"):
            _open(MESSAGE)
        with pytest.raises(PayloadError, match="truncated"):
            _open(SIGNED[:50])
        with pytest.raises(PayloadError, match="truncated"):
            _open(SIGNED[:3])
        with pytest.raises(PayloadError, match="version 2, this fedvad reads 1"):
            _open(SIGNED[:8] + b"\x02\x00" + SIGNED[10:])

    def test_the_bare_message_signed_is_no_frame(self) -> None:
        """A signature of another program over the same bytes must not serve here."""
        bare = KEY._private.sign(MESSAGE)
        with pytest.raises(PayloadError, match="does not fit"):
            _open(SIGNED[:42] + bare + MESSAGE)


class TestKeys:
    def test_a_pair_as_files(self, tmp_path: Path) -> None:
        private, public, raw = generate_keys(tmp_path / "keys", "Werk Süd")
        assert (private.name, public.name) == ("Werk Süd.key", "Werk Süd.pub")
        assert read_private_key(private).public == raw == read_public_key(public)
        assert read_trusted_keys(public) == {raw: "Werk Süd"}
        assert b"PRIVATE" not in public.read_bytes()

    @pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
    def test_the_private_key_is_born_secret(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes = []
        real = os.fdopen

        def spy(handle: int, mode: str) -> object:
            modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
            return real(handle, mode)

        monkeypatch.setattr("fedvad.federation.signed.os.fdopen", spy)
        before = os.umask(0)
        try:
            private, _, _ = generate_keys(tmp_path, "a")
        finally:
            os.umask(before)
        assert modes == [0o600]
        assert stat.S_IMODE(private.stat().st_mode) == 0o600

    def test_no_key_is_written_over(self, tmp_path: Path) -> None:
        private, public, raw = generate_keys(tmp_path, "a")
        before = private.read_bytes()
        with pytest.raises(ConfigError, match="already exists"):
            generate_keys(tmp_path, "a")
        public.unlink()  # as after a kill between the two
        assert generate_keys(tmp_path, "a") == (private, public, raw)
        assert private.read_bytes() == before
        assert generate_keys(tmp_path, "b")[2] != raw

    def test_a_kill_while_writing_leaves_no_half_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(handle: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("fedvad.federation.signed.os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            generate_keys(tmp_path, "a")
        assert list(tmp_path.iterdir()) == []

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot write"):
            generate_keys(tmp_path / "file", "a")

    @pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
    def test_a_key_that_others_can_read_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        private, _, _ = generate_keys(tmp_path, "a")
        private.chmod(0o640)
        with caplog.at_level(logging.WARNING):
            read_private_key(private)
        assert "chmod 600" in caplog.text

    def test_files_that_are_no_keys(self, tmp_path: Path) -> None:
        private, public, _ = generate_keys(tmp_path, "a")
        for wrong in (public, tmp_path / "none", tmp_path):
            with pytest.raises(ConfigError):
                read_private_key(wrong)
        (tmp_path / "x.pub").write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n")
        (tmp_path / "big.pub").write_bytes(b"x" * 20_000)
        for wrong in (private, tmp_path / "x.pub", tmp_path / "big.pub", tmp_path / "none"):
            with pytest.raises(ConfigError):
                read_public_key(wrong)

    def test_keys_of_other_kinds_are_refused(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec

        other = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "o.key").write_bytes(
            other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        )
        (tmp_path / "o.pub").write_bytes(
            other.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        )
        with pytest.raises(ConfigError, match="Ed25519"):
            read_private_key(tmp_path / "o.key")
        with pytest.raises(ConfigError, match="Ed25519"):
            read_public_key(tmp_path / "o.pub")

    def test_a_folder_of_trusted_keys(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no \.pub file"):
            read_trusted_keys(tmp_path)
        keys = {generate_keys(tmp_path, name)[2]: name for name in ("a", "b")}
        assert read_trusted_keys(tmp_path) == keys
        (tmp_path / "c.pub").write_bytes((tmp_path / "a.pub").read_bytes())
        with pytest.raises(ConfigError, match="the same key as that of a"):
            read_trusted_keys(tmp_path)

    @pytest.mark.parametrize("name", ["", " a", "a/b", "..", "a\nb", "a:b", "x" * 300, "a\\b"])
    def test_names_that_make_no_file(self, name: str) -> None:
        with pytest.raises(ConfigError, match="name"):
            check_name(name)

    def test_names_are_composed(self) -> None:
        assert check_name("Su\u0308d") == "S\u00fcd"


class TestReading:
    def test_size_is_checked_before_reading(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(bytes(11))
        assert read_bounded(tmp_path / "f", 11) == bytes(11)
        with pytest.raises(PayloadError, match="11 bytes exceed the limit of 10"):
            read_bounded(tmp_path / "f", 10)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(PayloadError, match="no such file"):
            read_bounded(tmp_path / "none")
        with pytest.raises(PayloadError, match="not a file"):
            read_bounded(tmp_path)
