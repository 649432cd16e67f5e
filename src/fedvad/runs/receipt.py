"""What proves that rows left a run: a signed statement that a second machine can check."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from fedvad.data.checked import Stored, parse_values
from fedvad.data.sealed import parse_json
from fedvad.errors import ArtefactError, PayloadError
from fedvad.federation.signed import SignedMessage, SigningKey

_LARGEST = 1 << 20
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ForgetReceipt(Stored):
    """Rows of a site, or of one image of it, are in no memory of a run any longer.

    date: in UTC, ISO 8601. file: name of the file with the memory. rows_removed, rows_now: by
    memory, "global" or the name of a site. before, after: SHA-256 of the file.
    """

    kind: Literal["receipt of forgetting"] = "receipt of forgetting"
    date: str
    file: str
    site: str
    image: str | None
    sites_left: list[str]
    rows_removed: dict[str, int]
    rows_now: dict[str, int]
    repaired: bool
    thresholds: Literal["found again", "of the memory before"]
    before: Digest
    after: Digest
    version: str


def now() -> str:
    """The date of a receipt."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def receipt_bytes(receipt: ForgetReceipt, key: SigningKey) -> bytes:
    """The signed file."""
    return key.sign(receipt.model_dump_json().encode())


def read_receipt(data: bytes) -> ForgetReceipt | None:
    """The statement in a signed file, None where it holds none; whether it is to be believed its
    signature says. Raises `PayloadError` for one that is damaged.
    """
    message = SignedMessage.parse(data).message
    if not message.startswith(b'{"kind":"receipt'):
        return None
    try:
        if len(message) > _LARGEST:
            raise ValueError(f"it has {len(message)} bytes")
        return parse_values(ForgetReceipt, parse_json(message), "the receipt")
    except (ValueError, ArtefactError) as error:
        raise PayloadError(f"the receipt cannot be read: {error}") from error
