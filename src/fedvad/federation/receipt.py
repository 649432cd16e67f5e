"""What a server says of one answer of a site."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedvad.federation.payload import Payload


@dataclass(eq=False)
class Receipt:
    """What became of one answer of a site.

    Attributes
    ----------
    site, label : str
        Who sent it, and what the answer is called in the ledger when it is refused.
    size : int
        Its bytes as they travelled.
    payloads : list of Payload
        What it holds; empty where it could not be parsed.
    refused : str
        Why nothing of it counts, "" if nothing speaks against it; final once the round is closed.
    """

    site: str
    label: str
    size: int
    payloads: list[Payload] = field(default_factory=list)
    refused: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the answer counts, as far as is known."""
        return not self.refused

    @property
    def first_round(self) -> int:
        """The earliest round that the answer speaks of; 0 for none."""
        return min((p.manifest.round for p in self.payloads), default=0)
