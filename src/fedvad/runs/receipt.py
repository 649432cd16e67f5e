"""What proves that rows left a run: a signed statement that a second machine can check."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedvad.data.checked import Stored, parse_values
from fedvad.data.files import write_atomically
from fedvad.data.sealed import parse_json, sha256_of
from fedvad.errors import ArtefactError, PayloadError
from fedvad.federation.signed import SignedMessage, SigningKey
from fedvad.runs.run import run_file

PENDING = "forgetting.fedvad"  # in the run folder, until it is handed out
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


def finished(
    folder: Path, site: str | None, image: str | None, receipt: Path | None
) -> dict[str, Any] | None:
    """What a killed call had done, but for handing out the receipt; None if there is none.

    site, image, receipt: what is to be forgotten now, and where the receipt goes. One of something
    else is handed out as well, at its `place_of`. Raises `ArtefactError` for a damaged one.
    """
    pending = folder / PENDING
    if not pending.is_file():
        return None
    try:
        signed = read_receipt(pending.read_bytes())
    except PayloadError as error:
        raise ArtefactError(
            f"{pending}, the receipt of a forgetting that was interrupted, is damaged: {error}; "
            "remove it, and forget again"
        ) from error
    if signed is None or signed.after != sha256_of(run_file(folder).read_bytes()):
        pending.unlink()
        return None
    target = place_of(folder, signed.site, signed.image)
    if site not in (None, signed.site) or image != signed.image:
        hand_out(folder, target)
        return None
    target = receipt or target
    hand_out(folder, target)
    then = {"site_thresholds": {}, "removed": [], "receipt": str(target)}
    return {"run": str(folder), **signed.model_dump(), **then}


def place_of(folder: Path, site: str, image: str | None) -> Path:
    """Where the receipt goes unless said otherwise."""
    return folder / f"forgot-{site}{'' if image is None else f'-{image}'}.fedvad"


def hand_out(folder: Path, target: Path) -> None:
    """Put the pending receipt in its place; raises `StorageError`."""
    pending = folder / PENDING
    write_atomically(target, pending.read_bytes())
    pending.unlink()
