"""Ways to deliver a row: an HTTP POST, and a message of MQTT."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from fedvad._version import __version__
from fedvad.errors import ConfigError
from fedvad.serving.watch.outbox import Deliver

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
