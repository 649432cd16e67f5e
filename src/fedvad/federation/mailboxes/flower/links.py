"""Links over Flower's grid: which node is which site, messages out, answers in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from time import sleep
from typing import Any

from fedvad.errors import PayloadError
from fedvad.federation.mailboxes.flower.messages import (
    MAX_BYTES,
    Instruction,
    Reply,
    from_records,
    to_records,
)

log = logging.getLogger(__name__)
_POLL, _TTL = 1.0, 12 * 3600.0  # seconds


class FlowerLinks:
    """See `rounds.Links`. A node is the site whose public key it proved to have.

    grid: Flower's. keys: PEM public key to site name; None on a server without authentication,
    where nodes are asked for their name and believed. Nodes with other keys are never asked.
    """

    def __init__(self, grid: Any, keys: Mapping[bytes, str] | None) -> None:
        self.grid = grid
        self.keys = keys
        self._nodes: dict[str, int] = {}
        self._asked: dict[str, str] = {}
        self._greeted: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def connected(self) -> set[str]:
        """See `Links.connected`."""
        nodes = [(int(n.node_id), bytes(n.public_key)) for n in self.grid.get_nodes()]
        if self.keys is None:
            self._greet([node for node, _ in nodes])
            named = {self._names[node]: node for node, _ in nodes if self._names.get(node)}
        else:
            named = {self.keys[key]: node for node, key in nodes if key in self.keys}
        self._nodes = named
        return set(named)

    def ask(self, site: str, instruction: Instruction) -> None:
        """See `Links.ask`."""
        sent = self._push(self._nodes[site], instruction)
        if sent is not None:
            self._asked[sent] = site

    def collect(self) -> Iterator[tuple[str, Reply | str]]:
        """See `Links.collect`."""
        for sent, site in list(self._asked.items()):
            answer = self._pull(sent)
            if answer is not None:
                del self._asked[sent]
                yield site, answer

    def forget(self) -> None:
        """See `Links.forget`."""
        self._asked.clear()

    def wait(self) -> None:
        """See `Links.wait`."""
        sleep(_POLL)

    def _push(self, node: int, instruction: Instruction) -> str | None:
        from flwr.app import Message

        message = Message(
            to_records(instruction), node, "train", ttl=_TTL, group_id=str(instruction.round)
        )
        for sent in self.grid.push_messages([message]):
            if sent:
                return str(sent)
        log.warning("node %d could not be asked", node)
        return None

    def _pull(self, sent: str) -> Reply | str | None:
        """The answer to one message, if it came: alone, so that a broken one harms no other."""
        import httpx

        try:
            for message in self.grid.pull_messages([sent]):
                return _answer(message)
        except httpx.HTTPError:  # that is this machine's own server
            raise
        except Exception as error:
            return f"its answer cannot be read: {error!r}"[:500]
        return None

    def _greet(self, nodes: list[int]) -> None:
        """Learn the names of nodes that did not prove any: by asking, and by believing them."""
        for node in nodes:
            if node not in self._names and node not in self._greeted.values():
                sent = self._push(node, Instruction("hello"))
                if sent is not None:
                    self._greeted[sent] = node
        for sent, node in list(self._greeted.items()):
            answer = self._pull(sent)
            if answer is None:
                continue
            del self._greeted[sent]
            if isinstance(answer, Reply):
                self._names[node] = answer.site
            else:
                log.warning("node %d does not say who it is: %s", node, answer)


def _answer(message: Any) -> Reply | str:
    if not message.has_content():
        return f"no answer: {message.error.reason or 'error'} (Flower code {message.error.code})"
    try:
        reply = from_records(message.content, Reply, MAX_BYTES)
    except PayloadError as error:
        return str(error)
    assert isinstance(reply, Reply)
    return reply
