"""What a federation is, where the server has no images: what most of the first uploads are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fedvad.errors import FederationError, PayloadError
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.payload import Payload

# the exchange that an upload asks for; raises `PayloadError` for an upload that holds none
ExchangeFor = Callable[[Payload], Exchange[Any]]


def choose_exchange(
    uploads: Sequence[Payload], exchange_for: ExchangeFor, features: str | None
) -> Exchange[Any] | None:
    """The exchange that most uploads ask for, each counting once.

    features: the features key demanded; uploads with another have no vote. None where no upload
    has a vote. Raises `FederationError` for a tie.
    """
    found: dict[tuple[str, ...], Exchange[Any]] = {}
    votes: Counter[tuple[str, ...]] = Counter()
    for upload in uploads:
        if features not in (None, upload.manifest.features):
            continue
        try:
            exchange = exchange_for(upload)
        except PayloadError:
            continue  # what is wrong with it is said where it is accepted
        votes[exchange.kind] += 1
        found.setdefault(exchange.kind, exchange)
    most = votes.most_common(2)
    if not most:
        return None
    if len(most) > 1 and most[0][1] == most[1][1]:
        shown = "; ".join(f"{kind[0]} ({', '.join(kind[1:])})" for kind, _ in most)
        raise FederationError(
            f"the sites have different features, as many of them {shown}: backbone, weights, image "
            "size or layers differ. Name the key that is meant as `features` in server.toml, or "
            "with --features"
        )
    return found[most[0][0]]
