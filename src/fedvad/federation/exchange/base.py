"""What an exchange is: how a site answers, and how a server merges the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from fedvad.federation.payload import Payload

__all__ = ["Exchange"]

SiteState = TypeVar("SiteState", contravariant=True)


class Exchange(Protocol[SiteState]):
    """Pure protocol logic: runners move its payloads and know nothing of their content."""

    def site_step(self, state: SiteState, incoming: Payload | None, round_: int) -> Payload:
        """A site's answer to what the server handed out last (None before round one)."""
        ...

    def accept(self, payload: Payload) -> None:
        """Take an upload into the server's state; raises `PayloadError` to refuse it."""
        ...

    def merge(self, round_: int) -> Payload:
        """The message for all sites, from everything accepted so far."""
        ...

    def server_state(self) -> Mapping[str, Payload]:
        """What a server must keep to go on after a restart, by site."""
        ...
