"""Rows of a log passed on to somebody else, in order, until they are taken; scoring never waits."""

from __future__ import annotations

import json
import logging
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.errors import ArtefactError, ConfigError, StorageError
from fedvad.serving.watch.log import LOG_FILE, shown

log = logging.getLogger(__name__)

Deliver = Callable[[bytes, str], None]  # a row as JSON, and its name; raises until it is taken
_SLOWEST = 60.0


class Outbox:
    """A thread that delivers the rows of a watch folder's log, one by one.

    How far it came is kept in a file, so that rows of an outage, or of a kill, are delivered later.
    A row whose delivery was cut off comes twice; its name is the same both times.
    """

    def __init__(
        self, folder: Path, name: str, watch: str, deliver: Deliver, *, patience: float = 1.0
    ) -> None:
        """name: of the file that keeps the place. patience: seconds before the first retry."""
        self._log, self._place = folder / LOG_FILE, folder / f"sent-{name}.json"
        self._name, self._watch, self._deliver, self._patience = name, watch, deliver, patience
        self._at, self._count = self._read_place()
        self._safe, self._closing = self._at, False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"fedvad-{name}", daemon=True)
        self._thread.start()

    def ready(self, size: int) -> None:
        """The log is safely on the disk up to this byte.

        Raises `ArtefactError` for a log that has fewer than were delivered.
        """
        if size < self._at:
            raise ArtefactError(
                f"{self._log} is shorter than what {self._place.name} says was delivered: restore "
                "the log from a copy, or watch into another folder"
            )
        with self._news:
            self._safe = size
            self._news.notify()

    def close(self, wait: float) -> bool:
        """End, after `wait` seconds at most or the next failure; whether all was delivered."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(wait)
        done = self._at >= self._safe
        if not done:
            log.warning("%s: some rows are not delivered yet; the next start does it", self._name)
        return done

    def _work(self) -> None:
        pause, failed, unkept = self._patience, False, False
        while True:
            with self._news:
                while self._at >= self._safe and not self._closing:
                    self._news.wait()
                if self._at >= self._safe:
                    return
            try:
                with self._log.open("rb") as file:
                    file.seek(self._at)
                    line = file.readline()
                row = shown(json.loads(line))
                name = f"{self._watch}-{row['number']}"
                self._deliver(json.dumps(row | {"watch": self._watch}).encode("ascii"), name)
            except Exception as error:  # whatever disks, networks and others' servers come up with
                if not failed:
                    log.warning("%s: %s; trying again until it works", self._name, error)
                failed = True
                with self._news:
                    if self._closing:
                        return
                    self._news.wait(pause)
                pause = min(2 * pause, _SLOWEST)
                continue
            if failed:
                log.warning("%s: works again", self._name)
            pause, failed = self._patience, False
            self._at, self._count = self._at + len(line), self._count + 1
            place = {"bytes": self._at, "rows": self._count}
            try:
                write_atomically(self._place, json.dumps(place).encode())
                unkept = False
            except StorageError as error:
                if not unkept:
                    log.warning("%s: %s; rows may be delivered twice", self._name, error)
                unkept = True

    def _read_place(self) -> tuple[int, int]:
        try:
            place = json.loads(self._place.read_bytes())
            at, count = int(place["bytes"]), int(place["rows"])
            if not self._is_end(at, count):
                raise ValueError(f"no {count} rows end at byte {at}")
        except FileNotFoundError:
            return 0, 0
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{self._place} is damaged: remove it, and every row is delivered once more"
            ) from error
        return at, count

    def _is_end(self, at: int, count: int) -> bool:
        """Whether `at` is where a number of rows of the log end; also beyond, see `ready`."""
        if at <= 0 or count <= 0:
            return at == count == 0
        if not self._log.exists():
            return True
        with self._log.open("rb") as file:
            if at >= file.seek(0, os.SEEK_END):
                return True
            file.seek(at - 1)
            return file.read(1) == b"\n"


_TIMEOUT = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would become a GET without the row."""

    def redirect_request(self, *_: object) -> None:
        return None


def webhook(url: str) -> Deliver:
    """POST each row as JSON to a URL; any answer but 2xx means that it was not taken.

    The header Idempotency-Key is the same when a row comes again. Raises `ConfigError`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--webhook {url!r} is no address: write https://HOST/PATH")
    opener = urllib.request.build_opener(_NoRedirect)

    def deliver(body: bytes, name: str) -> None:
        request = urllib.request.Request(
            url,
            data=body,
            method="POST",
            headers={
                "Content-Type": "application/json",
                "Idempotency-Key": name,
                "User-Agent": f"fedvad/{__version__}",
            },
        )
        with opener.open(request, timeout=_TIMEOUT) as answer:
            answer.read()

    return deliver


def mqtt(url: str) -> tuple[Deliver, Callable[[], None]]:
    """Publish each row to mqtt[s]://[NAME:PASSWORD@]HOST[:PORT]/TOPIC, at least once (QoS 1).

    Returns how to deliver, and what ends the connection. Raises `ConfigError`, also where
    paho-mqtt is not installed.
    """
    parts = urlsplit(url)
    topic = parts.path.strip("/")
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic:
        raise ConfigError("--mqtt takes mqtt://[NAME:PASSWORD@]HOST[:PORT]/TOPIC, or mqtts://")
    try:
        from paho.mqtt.client import Client, MQTTMessageInfo
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise ConfigError("--mqtt needs paho-mqtt: pip install 'fedvad[mqtt]'") from error
    client: Any = Client(CallbackAPIVersion.VERSION2)
    if parts.username is not None:
        client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
    if parts.scheme == "mqtts":
        client.tls_set()
    port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)

    def deliver(body: bytes, name: str) -> None:
        if not client.is_connected():
            client.connect(parts.hostname, port, keepalive=30)
            client.loop_start()
        sent: MQTTMessageInfo = client.publish(topic, body, qos=1)
        sent.wait_for_publish(_TIMEOUT)
        if not sent.is_published():
            raise TimeoutError(f"{parts.hostname} does not confirm messages")

    def close() -> None:
        client.loop_stop()
        client.disconnect()

    return deliver, close
