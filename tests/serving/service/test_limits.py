"""What the service refuses, and that it stays in order: sizes, counts, times, crowds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvad.errors import ConfigError
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.settings import ServiceSettings, read_token
from tests.serving.service.conftest import MakeClient
from tests.serving.service.support import Stub, png_of_size, upload

MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b"--x\r\nContent-Disposition: form-data; name="


def code(answer: Any) -> str:
    return str(answer.json()["error"]["code"])


def test_a_file_over_its_limit_is_a_result_and_is_not_decoded(
    make_client: MakeClient, files: list[Path]
) -> None:
    image = files[0].read_bytes()
    client = make_client(max_file_bytes=len(image))
    answer = client.post("/v1/predict", files=upload(image + b"x", image))
    large, fits = answer.json()["results"]
    assert large["error"]["code"] == "too_large"
    assert str(len(image)) in large["error"]["message"]
    assert fits["error"] is None
    assert 'outcome="too_large"} 1.0' in client.get("/v1/metrics").text


def test_a_request_over_its_limit_is_refused(make_client: MakeClient) -> None:
    client = make_client(max_total_bytes=10_000)
    answer = client.post("/v1/predict", files=upload(bytes(10_000)))
    assert answer.status_code == 413
    assert code(answer) == "too_large"


def test_a_request_without_a_length_is_counted_as_it_comes(make_client: MakeClient) -> None:
    client = make_client(max_total_bytes=100_000)
    sent = []

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(100):
            sent.append(10_000)
            yield bytes(10_000)

    answer = client.post(
        "/v1/predict",
        content=endless(),
        headers=MULTIPART,
    )
    assert answer.status_code == 413


def test_too_many_files_are_refused(make_client: MakeClient) -> None:
    client = make_client(max_files=2)
    answer = client.post("/v1/predict", files=upload(b"a", b"b", b"c"))
    assert answer.status_code == 400
    assert "2" in answer.json()["error"]["message"]
    assert client.post("/v1/predict", files=upload(b"a", b"b")).status_code == 200


@pytest.mark.parametrize("size", [(30_000, 30_000), (65_535, 65_535), (4_000_001, 1), (2001, 2000)])
def test_giant_images_are_refused_by_their_header(
    client: TestClient, size: tuple[int, int]
) -> None:
    (result,) = client.post("/v1/predict", files=upload(png_of_size(*size))).json()["results"]
    assert result["error"]["code"] == "unreadable"
    assert "over the limit" in result["error"]["message"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "reason"),
    [
        (b"{}", {"Content-Type": "application/json"}, 415, "not_multipart"),
        (b"", {}, 415, "not_multipart"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "not_multipart"),
        (b"", {"Content-Type": "multipart/form-data"}, 400, "bad_multipart"),
        (b"junk", MULTIPART, 400, "bad_multipart"),
        (
            PART + b'"a"\r\n\r\nt\r\n--x--\r\n',
            {"Content-Type": MULTIPART["Content-Type"] + "; charset=undefined"},
            400,
            "bad_multipart",
        ),
        (b"--x--\r\n", MULTIPART, 422, "no_files"),
        (
            PART + b'"files"\r\n\r\ntext\r\n--x--\r\n',
            MULTIPART,
            422,
            "no_files",
        ),
        (
            PART + b'"other"; filename="a"\r\n\r\nt\r\n--x--\r\n',
            MULTIPART,
            422,
            "unknown_field",
        ),
        (
            b"--x\r\nX-Long: " + bytes(20_000) + b"\r\n\r\n\r\n--x--\r\n",
            MULTIPART,
            400,
            "bad_multipart",
        ),
    ],
)
def test_other_bodies_are_refused(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = client.post("/v1/predict", content=content, headers=headers)
    assert (answer.status_code, code(answer)) == (status, reason)


def test_a_wrong_parameter_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/predict?heatmap=maybe", files=upload(b"x"))
    assert (answer.status_code, code(answer)) == (422, "invalid")


def test_a_crowd_is_asked_to_come_again(
    make_client: MakeClient, predictor: Predictor, files: list[Path]
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    client = make_client(stub, workers=1, waiting=1)
    stub.go.clear()
    image = upload(files[0].read_bytes())
    with ThreadPoolExecutor(2) as pool:
        let_in = [pool.submit(client.post, "/v1/predict", files=image) for _ in range(2)]
        for _ in range(200):
            if "in_flight 2.0" in client.get("/v1/metrics").text:
                break
            threading.Event().wait(0.02)
        refused = client.post("/v1/predict", files=image)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert code(refused) == "busy"
        stub.go.set()
        assert [future.result().status_code for future in let_in] == [200, 200]
    assert client.post("/v1/predict", files=image).status_code == 200


def test_what_takes_too_long_is_given_up_but_keeps_its_place_until_it_ends(
    make_client: MakeClient, predictor: Predictor, files: list[Path]
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    client = make_client(stub, workers=1, waiting=1, timeout_s=0.3)
    stub.go.clear()
    warm = stub.calls
    image = files[0].read_bytes()
    slow = client.post("/v1/predict", files=upload(image, image, image))
    assert (slow.status_code, code(slow)) == (504, "timeout")
    behind = client.post("/v1/predict", files=upload(image))
    assert (behind.status_code, code(behind)) == (503, "overloaded")
    assert behind.headers["Retry-After"] == "1"
    assert "in_flight 1.0" in client.get("/v1/metrics").text  # the first one's thread
    stub.go.set()
    for _ in range(200):
        if "in_flight 0.0" in client.get("/v1/metrics").text:
            break
        threading.Event().wait(0.02)
    assert stub.calls == warm + 1  # neither its other files nor the one behind were scored
    assert client.post("/v1/predict", files=upload(image)).status_code == 200


def test_many_clients_at_once_get_results_or_429(
    make_client: MakeClient, files: list[Path]
) -> None:
    client = make_client(workers=2, waiting=2)
    image = upload(files[0].read_bytes())
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/predict", files=image), range(60)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    scores = {a.json()["results"][0]["score"] for a in answers if a.status_code == 200}
    assert len(scores) == 1
    assert "in_flight 0.0" in client.get("/v1/metrics").text


def test_no_open_file_is_left_behind(make_client: MakeClient) -> None:
    client = make_client(max_total_bytes=4_000_000)
    large = bytes(1_500_000)  # spooled to disk
    client.post("/v1/predict", files=upload(large))
    before = open_files()
    for _ in range(5):
        assert client.post("/v1/predict", files=upload(large, large)).status_code == 200
        assert client.post("/v1/predict", files=upload(large, large, large)).status_code == 413
        sent = [("other", ("a", large))]
        assert client.post("/v1/predict", files=sent).status_code == 422
    assert open_files() <= before


def open_files() -> int:
    return psutil.Process().num_fds()


@pytest.mark.parametrize("wrong", [{"max_files": 0}, {"timeout_s": 0.0}, {"waiting": -1}])
def test_settings_without_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        ServiceSettings(**wrong)  # type: ignore[arg-type]


def test_tokens_come_from_a_file_and_must_be_long(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == "0123456789abcdef"
    for text in ("", "two words are no token", "schlüssel-und-schloss", "a\x00bbbbbbbbbbbbbbbbbb"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="one token"):
            read_token(path)
    path.write_bytes(b"\xff\xff")
    for unreadable in (path, tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the token"):
            read_token(unreadable)
    with pytest.raises(ConfigError, match="at least 16"):
        ServiceSettings(token="short")


PIECES = [b"--x", b"--x--", b"\r\n", b"\r\n\r\n", PART + b'"files"', b'; filename="a.png"', b":",
          b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(40)]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from(PIECES),
            max_size=14,
        ).map(b"".join),
    )
)
def test_no_body_is_a_failure_of_ours(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/predict?heatmap=1", content=body, headers=MULTIPART)
    assert answer.status_code in (200, 400, 422)
