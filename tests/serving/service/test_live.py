"""Over a real connection: refusals reach who is still sending, and slow ones are not waited for."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serving.service.conftest import Serve
from tests.serving.service.support import upload

TOKEN = "correct-horse-battery"
START = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
)


def connect(address: str) -> socket.socket:
    host, _, port = urlsplit(address).netloc.partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"token": TOKEN}, 401),
        ({"max_total_bytes": 3_000_000}, 413),
        ({"max_total_bytes": 200_000_000, "max_files": 1}, 400),
    ],
)
def test_a_refusal_reaches_a_client_that_is_still_sending(
    serve: Serve, settings: dict[str, int], status: int
) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    body = 2 * (part + bytes(2_500_000) + b"\r\n") + b"--x--\r\n"
    with connect(serve(**settings)) as client:
        # as browsers do: the whole of it before a look at the answer
        client.sendall(START.replace(b"5000", str(len(body)).encode())[:-3] + body)
        answer = client.recv(65536)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())


def test_who_waits_for_leave_to_send_gets_the_refusal_at_once(serve: Serve) -> None:
    with connect(serve(max_total_bytes=1000)) as client:
        client.sendall(START.replace(b"\r\n\r\n--x", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_slow_upload_is_given_up_and_its_place_is_free_again(
    serve: Serve, files: list[Path]
) -> None:
    address = serve(timeout_s=0.5, workers=1, waiting=0)
    with connect(address) as slow:
        slow.sendall(START)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    answer = httpx.post(f"{address}v1/predict", files=upload(files[0].read_bytes()), timeout=30)
    assert answer.status_code == 200


def test_an_upload_that_is_broken_off_frees_its_place(serve: Serve, files: list[Path]) -> None:
    address = serve(workers=1, waiting=0)
    for _ in range(3):
        with connect(address) as gone:
            gone.sendall(START)
    for _ in range(100):
        if "in_flight 0.0" in httpx.get(f"{address}v1/metrics").text:
            break
    answer = httpx.post(f"{address}v1/predict", files=upload(files[0].read_bytes()), timeout=30)
    assert answer.status_code == 200
