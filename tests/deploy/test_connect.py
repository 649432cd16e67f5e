"""What keeps a site from its server is named: certificates, plain text, nobody there."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from fedvad.deploy.connect import check_server, proxy_note, split_address
from fedvad.deploy.keys import make_authority, make_server_certificate
from fedvad.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_authority(folder / name)
        make_server_certificate(folder / name, folder / name, ["127.0.0.1"])
    return folder


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY",
                 "all_proxy", "NO_PROXY", "no_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(folder: Path) -> Iterator[int]:
    """The port of a TLS server with the certificate of `ours`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ours/server.crt", folder / "ours/server.key")

    def shake(plain: socket.socket) -> None:
        try:
            context.wrap_socket(plain, server_side=True).close()
        except (ssl.SSLError, OSError):
            plain.close()

    yield from _serve(shake)


@pytest.fixture
def plain_server() -> Iterator[int]:
    def answer(plain: socket.socket) -> None:
        plain.recv(100)
        plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        plain.close()

    yield from _serve(answer)


def _serve(answer: object) -> Iterator[int]:
    with socket.create_server(("0.0.0.0", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                answer(plain)  # type: ignore[operator]

        threading.Thread(target=run, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_the_right_certificate_passes(server: int, folder: Path) -> None:
    assert check_server(f"127.0.0.1:{server}", folder / "ours/ca.crt") is None


def test_a_wrong_authority_is_named_with_what_to_copy(server: int, folder: Path) -> None:
    authority = folder / "theirs/ca.crt"
    with pytest.raises(ConfigError, match=r"is not signed by .*copy ca\.crt") as caught:
        check_server(f"127.0.0.1:{server}", authority)
    assert str(authority) in str(caught.value)
    assert "registered" not in str(caught.value)


def test_another_name_is_named(server: int, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"for other names than 127\.0\.0\.2"):
        check_server(f"127.0.0.2:{server}", folder / "ours/ca.crt")


def test_a_server_without_tls_is_named(plain_server: int, folder: Path) -> None:
    with pytest.raises(ConfigError, match="speaks plain text"):
        check_server(f"127.0.0.1:{plain_server}", folder / "ours/ca.crt")


def test_a_file_that_is_no_certificate_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no")
    with pytest.raises(ConfigError, match=r"copy ca\.crt from the server"):
        check_server("127.0.0.1:1", tmp_path / "ca.crt")


def test_nobody_there_may_pass(folder: Path) -> None:
    assert "no server answers at 127.0.0.1:1" in str(
        check_server("127.0.0.1:1", folder / "ours/ca.crt")
    )


def test_a_proxy_is_named_unless_it_is_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_note("plant.example:8000") is None
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    note = str(proxy_note("plant.example:8000"))
    assert "proxy.example:3128" in note
    assert "NO_PROXY=plant.example" in note
    assert proxy_note("plant.example:8000", insecure=True) is None
    monkeypatch.setenv("no_proxy", ".example")
    assert proxy_note("plant.example:8000") is None


@pytest.mark.parametrize("wrong", ["plant", "plant:0x", "plant:70000", ":80", ""])
def test_an_address_is_host_and_port(wrong: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(wrong)
    assert split_address("[::1]:80") == ("::1", 80)
