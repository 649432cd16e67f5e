"""Rows reach others in order and at last all of them, without holding anybody up."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import fedvad
from fedvad.errors import ArtefactError, ConfigError, StorageError
from fedvad.serving.watch.log import WatchLog
from fedvad.serving.watch.outbox import Outbox, mqtt, webhook


def written(folder: Path, count: int, first: int = 1) -> int:
    """Size of a log to which some rows were added."""
    log = WatchLog(folder)
    row = {
        "time": "2026-11-30T10:00:00+00:00", "path": "a.png", "size": 1, "modified": 1,
        "site": None, "score": 1.5, "threshold": None, "anomalous": None, "error": None,
    }  # fmt: skip
    log.append([{"number": first + i, "looks": {}} | row for i in range(count)])
    log.close()
    return log.size


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_rows_come_in_order_once_and_an_outage_is_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[str] = []
    refused, works = threading.Event(), threading.Event()

    def deliver(body: bytes, name: str) -> None:
        if not works.is_set() and len(taken) == 2:
            refused.set()
            raise OSError("no route")
        taken.append(name)
        row = json.loads(body)
        assert (row["number"], row["score"], row["watch"]) == (len(taken), 1.5, "w")
        assert "looks" not in row

    box = Outbox(tmp_path, "webhook", "w", deliver, patience=0.01)
    box.ready(written(tmp_path, 4))
    assert refused.wait(10)
    assert not box.close(10)  # the next failure ends it
    assert taken == ["w-1", "w-2"]
    assert "not delivered yet" in caplog.text
    works.set()
    size = written(tmp_path, 1, first=5)
    box = Outbox(tmp_path, "webhook", "w", deliver)  # after a restart
    box.ready(size)
    assert box.close(10)
    assert taken == [f"w-{n}" for n in range(1, 6)]


def test_it_tries_again_until_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures, done = iter([OSError("one"), TimeoutError("two")]), threading.Event()
    caplog.set_level(logging.WARNING)

    def deliver(body: bytes, name: str) -> None:
        for error in failures:
            raise error
        done.set()

    box = Outbox(tmp_path, "webhook", "w", deliver, patience=0.01)
    box.ready(written(tmp_path, 1))
    assert done.wait(10)
    assert box.close(10)
    assert [r.message for r in caplog.records] == [
        "webhook: one; trying again until it works", "webhook: works again",
    ]  # fmt: skip


def test_a_disk_that_refuses_ends_no_delivery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def refuse(path: Path, data: bytes) -> None:
        raise StorageError(f"cannot write {path}: full")

    monkeypatch.setattr("fedvad.serving.watch.outbox.write_atomically", refuse)
    box = Outbox(tmp_path, "webhook", "w", lambda _, name: taken.append(name), patience=0.01)
    size = written(tmp_path, 3)
    (tmp_path / "results.jsonl").rename(tmp_path / "away")  # a share that comes back
    box.ready(size)
    assert _within(10, lambda: "trying again" in caplog.text)
    (tmp_path / "away").rename(tmp_path / "results.jsonl")
    assert _within(10, lambda: len(taken) == 3)
    assert box.close(10)
    assert taken == ["w-1", "w-2", "w-3"]
    assert caplog.text.count("may be delivered twice") == 1


@pytest.mark.parametrize(
    "place",
    ["{}", "", "[]", '{"bytes": 20, "rows": 1}', '{"bytes": -1, "rows": 1}',
     '{"bytes": 0, "rows": 1}'],
)  # fmt: skip
def test_a_damaged_place_is_named(place: str, tmp_path: Path) -> None:
    written(tmp_path, 2)
    (tmp_path / "sent-webhook.json").write_text(place)
    with pytest.raises(ArtefactError, match="every row is delivered once more"):
        Outbox(tmp_path, "webhook", "w", lambda body, name: None)


def test_a_log_that_lost_rows_is_named(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "webhook", "w", lambda body, name: None)
    box.ready(written(tmp_path, 3))
    assert box.close(10)
    for name in ("results.jsonl", "results.csv"):
        (tmp_path / name).unlink()
    again = Outbox(tmp_path, "webhook", "w", lambda body, name: None)
    with pytest.raises(ArtefactError, match="shorter than what sent-webhook"):
        again.ready(written(tmp_path, 1))
    again.close(10)


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler, bytes], int]) -> Iterator[str]:
    """Address of a server that says what it makes of a POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = answer(self, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/rows"
        found.shutdown()
        thread.join()


def test_a_webhook_posts_json_with_a_key_and_only_2xx_is_taken() -> None:
    seen, status = [], 204

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> int:
        seen.append((request.path, request.headers["Idempotency-Key"], json.loads(body)))
        return status

    with server(answer) as url:
        deliver = webhook(url)
        deliver(b'{"number": 1}', "w-1")
        assert seen == [("/rows", "w-1", {"number": 1})]
        for status in (302, 404, 500):
            with pytest.raises(OSError, match=str(status)):
                deliver(b"{}", "w-2")


def test_a_watch_delivers_what_was_not_taken_at_its_next_start(
    trained: tuple[Path, dict[str, Any]], plants: Path, tmp_path: Path
) -> None:
    line = plants / "alder/test/good"
    options: dict[str, Any] = {"out": tmp_path / "out", "site": "alder", "once": True}
    found = []

    def answer(_: BaseHTTPRequestHandler, body: bytes) -> int:
        found.append(json.loads(body))
        return 200 if works else 503

    works = False
    with server(answer) as url:
        rows = list(fedvad.watch(trained[0], line, webhook=url, every=0.01, **options))
        assert {row["number"] for row in found} == {1}  # nothing overtakes
        works = True
        found.clear()
        assert list(fedvad.watch(trained[0], line, webhook=url, every=0.01, **options)) == []
    assert [row["number"] for row in found] == [1, 2, 3]
    assert [row["score"] for row in found] == [row["score"] for row in rows]
    assert "looks" not in found[0]


def test_addresses_that_are_none_are_refused() -> None:
    for url in ("here", "ftp://host/", "https:///path"):
        with pytest.raises(ConfigError, match="--webhook"):
            webhook(url)
    for url in ("host", "mqtt://host", "http://host/topic"):
        with pytest.raises(ConfigError, match="--mqtt takes"):
            mqtt(url)


def test_without_paho_the_message_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "paho.mqtt.client", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvad\[mqtt\]'"):
        mqtt("mqtt://host/topic")


def test_mqtt_publishes_with_a_confirmation() -> None:
    pytest.importorskip("paho.mqtt.client")
    found: list[tuple[str, bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker = threading.Thread(target=_broker, args=(listener, found))
        broker.start()
        deliver, close = mqtt(f"mqtt://127.0.0.1:{listener.getsockname()[1]}/plant/line")
        deliver(b'{"number": 1}', "w-1")
        deliver(b'{"number": 2}', "w-2")
        close()
        broker.join(10)
    assert found == [("plant/line", b'{"number": 1}'), ("plant/line", b'{"number": 2}')]


def _broker(listener: socket.socket, found: list[tuple[str, bytes]]) -> None:
    """As much of an MQTT 3.1.1 broker as two messages need."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        while head := stream.read(1):
            body = stream.read(stream.read(1)[0])  # messages here are shorter than 128 bytes
            kind = head[0] >> 4
            if kind == 1:
                connection.sendall(b"\x20\x02\x00\x00")
            elif kind == 3:
                (length,) = struct.unpack(">H", body[:2])
                found.append((body[2 : 2 + length].decode(), body[4 + length :]))
                connection.sendall(b"\x40\x02" + body[2 + length : 4 + length])
            elif kind == 14:
                return
