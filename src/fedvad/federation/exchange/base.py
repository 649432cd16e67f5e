"""What an exchange is: how a site answers, and how a server merges the answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from fedvad.errors import FederationError, PayloadError
from fedvad.federation.payload import Manifest, Payload

__all__ = ["Exchange", "Member", "check_answer", "check_incoming", "merged_manifest"]


class Member(Protocol):
    """A site's state between rounds, as runners see it.

    n_patches: training patches, by which a changed training set is noticed.
    """

    @property
    def n_patches(self) -> int:
        """Patches of all training images."""
        ...

    @property
    def spread(self) -> float | None:
        """Share of the features' spread that training kept, None where nothing was trained."""
        ...

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """All that the next round needs of the rounds so far, as named arrays."""
        ...

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue from a `snapshot`; raises KeyError or `FedvadError` for what is none."""
        ...


State = TypeVar("State", bound=Member, contravariant=True)


class Exchange(Protocol[State]):
    """Pure protocol logic: a server moves its payloads and knows nothing of their content.

    `docs/howto/write-an-exchange.md` writes one step by step.

    Attributes
    ----------
    features : str
        Key of the feature configuration that all sites share.

    Examples
    --------
    >>> from fedvad.federation.exchange.base import Exchange
    >>> from fedvad.federation.exchange.memory import MemoryExchange
    >>> exchange: Exchange = MemoryExchange(features="key", dim=6)
    >>> exchange.features, exchange.server_state()
    ('key', {})
    """

    features: str

    @property
    def kind(self) -> tuple[str, ...]:
        """What all uploads of a federation share, in words: the features key, then what a row or
        the weights are. Servers that have no images count votes on it.
        """
        ...

    @property
    def max_bytes(self) -> int:
        """Length of the longest upload that a server should parse, in bytes."""
        ...

    @property
    def distrusted(self) -> Mapping[str, str]:
        """What the last merge left out of accepted uploads, and why, by site."""
        ...

    def site_step(self, state: State, incoming: Payload | None, round_: int) -> Payload:
        """A site's answer to what the server handed out last (None before round one)."""
        ...

    def accept(self, payload: Payload) -> None:
        """Take an upload into the server's state; raises `PayloadError` to refuse it."""
        ...

    def merge(self, round_: int, without: Collection[str] = ()) -> Payload:
        """The message for all sites, from everything accepted so far but for sites in `without`.

        Raises `FederationError` when nothing was accepted.
        """
        ...

    def drift(self, before: Payload, after: Payload) -> float:
        """How far the merged state moved in a round, in the exchange's own measure."""
        ...

    def server_state(self) -> Mapping[str, Payload]:
        """What a server must keep to continue after a restart, by site."""
        ...

    def restore(self, state: Mapping[str, Payload]) -> None:
        """Continue from a saved `server_state`."""
        ...


def check_answer(payload: Payload, before: Payload | None, features: str, start: str) -> Manifest:
    """The manifest of a site's upload, once its claims are checked.

    Parameters
    ----------
    payload : Payload
    before : Payload or None
        What the same site sent last.
    features : str
        Key of the feature configuration of the federation.
    start : str
        Hash of the initial generator or weights.

    Raises
    ------
    PayloadError
        For another kind of message, other features, another start, no image or patch, and a round
        that is not after that of `before`.

    Examples
    --------
    >>> from fedvad.federation.exchange.base import check_answer
    >>> from fedvad.federation.payload import Manifest, Payload
    >>> upload = Manifest(
    ...     kind="upload", site="alder", round=1, features="key", generator="g", n_images=4,
    ...     n_patches=90,
    ... )
    >>> check_answer(Payload(upload, {}), None, "key", "g").site
    'alder'
    """
    manifest = payload.manifest
    if manifest.kind != "upload" or not manifest.site:
        raise PayloadError("expected the upload of a site")
    if manifest.features != features:
        raise PayloadError(
            f"site {manifest.site} has features {manifest.features}, the federation "
            f"{features}: backbone, weights, image size or layers differ"
        )
    if manifest.generator != start:
        raise PayloadError(f"site {manifest.site} started from another generator or other weights")
    if manifest.n_images < 1 or manifest.n_patches < 1:
        raise PayloadError(f"site {manifest.site} says that it trained on no image or no patches")
    if before is not None and manifest.round <= before.manifest.round:
        raise PayloadError(f"site {manifest.site} already answered round {manifest.round}")
    return manifest


def check_incoming(incoming: Payload, features: str) -> None:
    """Check at a site that a message is the merged one of its federation.

    Parameters
    ----------
    incoming : Payload
    features : str
        Key of the feature configuration of the federation.

    Raises
    ------
    FederationError
        For an upload, and for other features.

    Examples
    --------
    >>> from fedvad.federation.exchange.base import check_incoming
    >>> from fedvad.federation.payload import Manifest, Payload
    >>> merged = Manifest(kind="global", round=1, features="key", n_images=4, n_patches=90)
    >>> check_incoming(Payload(merged, {}), "key")
    """
    manifest = incoming.manifest
    if manifest.kind != "global":
        raise FederationError(
            f"expected the merged message of a server, got the upload of site {manifest.site}"
        )
    if manifest.features != features:
        raise FederationError(
            f"the merged message is of another feature configuration, {manifest.features}; this "
            f"site has {features}"
        )


def merged_manifest(round_: int, sent: Collection[Payload], **more: Any) -> Manifest:
    """The manifest of a global message, from what sites sent.

    Parameters
    ----------
    round_ : int from 1 to 100 000
    sent : collection of Payload, at least one
        Uploads of the sites; their numbers of images and patches are summed.
    **more
        Further fields of the manifest.

    Examples
    --------
    >>> from fedvad.federation.exchange.base import merged_manifest
    >>> from fedvad.federation.payload import Manifest, Payload
    >>> sent = [
    ...     Manifest(kind="upload", site=site, round=1, features="key", n_images=4, n_patches=90)
    ...     for site in ("alder", "birch")
    ... ]
    >>> merged_manifest(1, [Payload(manifest, {}) for manifest in sent]).n_images
    8
    """
    manifests = [payload.manifest for payload in sent]
    return Manifest(
        kind="global",
        round=round_,
        features=manifests[0].features,
        n_images=sum(m.n_images for m in manifests),
        n_patches=sum(m.n_patches for m in manifests),
        **more,
    )
