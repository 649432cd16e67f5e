"""What a method means where every site is on a machine of its own: by file, or over a network.

One object per family of methods says what travels, what a site does in a round, and what run
folder it makes in the end; servers and sites of both mailboxes call it and know no more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

from fedvad.data.folders import Site
from fedvad.errors import ConfigError
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.exchange.base import Exchange
from fedvad.federation.payload import Payload
from fedvad.runs.bank_state import SiteState
from fedvad.runs.config import TrainConfig
from fedvad.runs.method import family_of, method_class
from fedvad.runs.progress import Progress
from fedvad.runs.run import Run
from fedvad.runs.thresholds import Calibration

__all__ = ["MAX_WEIGHT_BYTES", "Remote", "remote"]

# of one message of weights, unless a server or site says otherwise
MAX_WEIGHT_BYTES = 200_000_000
_FAMILIES = {
    "memory": ("remote_memories", "MemoryRemote"),
    "student": ("remote_students", "StudentRemote"),
}


class Remote(Protocol):
    """A family of methods, of which each site and the server have a part.

    config: the federation's, with a site's own ways where it is a site's.
    """

    config: TrainConfig

    @property
    def max_bytes(self) -> int:
        """Length of the longest upload that a server should read before it knows any."""
        ...

    def exchange_for(self, upload: Payload) -> Exchange[Any]:
        """The server's exchange, from an upload; raises `PayloadError` for one of other kind."""
        ...

    def check(self, merged: Payload) -> None:
        """Raise `PayloadError` when a global message does not hold what sites take."""
        ...

    def member(
        self, site: Site, index: int, extractor: FeatureExtractor, round_: int, progress: Progress
    ) -> AbstractContextManager[tuple[Exchange[Any], Any]]:
        """A site's exchange and its `Member` before a round, with its images read."""
        ...

    def own_rows(self, sent: Payload, merged: Payload) -> int | None:
        """How many rows of an upload are in a global memory; None where nothing is kept apart."""
        ...

    def run(
        self,
        state: SiteState,
        site: Site,
        merged: Payload,
        extractor: FeatureExtractor,
        data: str,
        progress: Progress,
    ) -> tuple[Run, Calibration]:
        """The site's run from the final message, with thresholds from its own normal images, and
        what those said. state: the site's, after its last round. data: the images' fingerprint.
        """
        ...


def remote(
    config: TrainConfig,
    *,
    allow_weights: bool,
    consent: str,
    max_weight_bytes: int = MAX_WEIGHT_BYTES,
) -> Remote:
    """The part of a method that sites and servers on machines of their own need.

    allow_weights: whether weights of a network trained on images may travel. consent: how to say
    so, for the error. max_weight_bytes: of one message with weights.

    Raises `ConfigError` for a method that does not travel, or may not.
    """
    if method_class(config.method).sends == "weights" and not allow_weights:
        raise ConfigError(
            f"{config.method} trains a student at each site and sends its weights, which were "
            "made from the site's images and can hold more of them than a memory's rows do.\n"
            f"If that may leave the site, say so: {consent}"
        )
    module, name = _FAMILIES[family_of(config.method)]
    made: Remote = getattr(import_module(f"{__package__}.{module}"), name)(config, max_weight_bytes)
    return made
