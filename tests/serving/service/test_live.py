"""Over a real connection: refusals reach who is still sending, and slow ones are not waited for."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fedvad.serving.service import server
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


def test_slow_uploads_do_not_keep_others_from_their_results(
    serve: Serve, files: list[Path]
) -> None:
    address = serve(workers=1, waiting=1)
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(address)) for _ in range(18)]
        for client in slow:
            client.sendall(START)
        time.sleep(1.2)
        began = time.monotonic()
        for _ in range(3):  # of the same address as the slow ones
            sent = upload(files[0].read_bytes())
            answer = httpx.post(f"{address}v1/predict", files=sent, timeout=30)
            assert answer.status_code == 200
        assert time.monotonic() - began < 8  # a slow one may take 30
        first = slow[0].recv(4096)  # it made room
    assert first.startswith(b"HTTP/1.1 408")
    # on a busy machine it may have been given up as too slow before
    assert b"others were waiting" in first or b"less than 10 kB per second" in first


def test_uploads_of_one_client_are_bounded_and_leave_room_for_others(
    serve: Serve, files: list[Path]
) -> None:
    address = serve(uploads_per_client=2)
    with connect(address) as one, connect(address) as two:
        one.sendall(START)
        two.sendall(START)
        time.sleep(0.2)
        sent = upload(files[0].read_bytes())
        refused = httpx.post(f"{address}v1/predict", files=sent, timeout=30)
        assert refused.status_code == 429  # the others may yet be quick
        assert "--uploads-per-client" in refused.json()["error"]["message"]
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other, timeout=30) as client:
            assert client.post(f"{address}v1/predict", files=sent).status_code == 200
        assert "uploads_in_progress 2.0" in httpx.get(f"{address}v1/metrics").text


def test_who_never_ends_its_headers_loses_the_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    address = serve()
    with connect(address) as silent, connect(address) as slow:
        slow.sendall(START[:40])
        assert silent.recv(4096) == slow.recv(4096) == b""
        again = httpx.get(f"{address}v1/health", timeout=30)
    assert again.status_code == 200
