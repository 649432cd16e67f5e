"""What a single upload may claim: checks that need no other site, so order cannot matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError, PayloadError
from fedvad.federation.payload import Manifest, Payload, bank_from
from fedvad.memory.bank import FloatArray, MemoryBank

# of a message besides its arrays: manifest, names and shapes
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What the server expects of one upload; None sets no limit.

    rows: per upload, so a site's memory after t rounds holds t times as many at most; half as many
    patches of defects may come along.
    patches_per_image: cells of the patch grid; a site weighs no more than its images have.
    upload_bytes: of the arrays of one upload; `max_bytes` is what to refuse before parsing.

    Raises `ConfigError` for a limit below 1.
    """

    rows: int | None = None
    patches_per_image: int | None = None
    upload_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "patches_per_image", "upload_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"the limit {name} must be at least 1, got {value}")

    @property
    def max_bytes(self) -> int:
        """Length of the longest message to parse, for `Payload.from_bytes`."""
        return 1 << 30 if self.upload_bytes is None else self.upload_bytes + _HEADER_BYTES


def most_defects(rows: int) -> int:
    """How many patches of defects may come with as many rows as this."""
    return max(1, rows // 2)


def check_upload(
    manifest: Manifest,
    rows: MemoryBank,
    defects: MemoryBank | None,
    before: Payload | None,
    limits: Limits,
) -> None:
    """Refuse an upload that claims more than it can have, or repeats what its site sent before.

    rows, defects: what the upload holds. before: what the server holds of the site. Raises
    `PayloadError` that names the site, the value and its limit. Source: ours.
    """
    site = manifest.site
    if limits.rows is not None:
        if defects is not None and len(defects) > most_defects(limits.rows):
            raise PayloadError(
                f"site {site} sent {len(defects)} patches of defects, the limit is "
                f"{most_defects(limits.rows)}"
            )
        if len(rows) > limits.rows:
            raise PayloadError(
                f"site {site} sent {len(rows)} rows, the limit is {limits.rows} per round"
            )
        held = 0 if before is None or manifest.mode == "replace" else len(before.arrays["vectors"])
        if held + len(rows) > limits.rows * manifest.round:
            raise PayloadError(
                f"site {site} would hold {held + len(rows)} rows, the limit is "
                f"{limits.rows * manifest.round} after round {manifest.round}"
            )
    if limits.patches_per_image is not None:
        possible = manifest.n_images * limits.patches_per_image
        if manifest.n_patches > possible:
            raise PayloadError(
                f"site {site} claims {manifest.n_patches} patches, the limit is {possible}: "
                f"{manifest.n_images} images of {limits.patches_per_image}"
            )
    if before is not None and manifest.mode == "append":
        known = _known(rows.vectors, bank_from(before).vectors)
        # a round's rows are chosen because the memory lacks them; who found none sends one again
        if known.mean() > 0.5 and len(rows) > 1:
            raise PayloadError(
                f"site {site} sent {known.sum()} of {len(rows)} rows again that it sent before, "
                f"the limit is half: a replay of round {before.manifest.round}"
            )


def _known(rows: FloatArray, before: FloatArray) -> npt.NDArray[np.bool_]:
    """Which of the (n, d) rows are, value by value, among those sent before."""
    if rows.shape[1] != before.shape[1]:
        return np.zeros(len(rows), np.bool_)
    kept = {row.tobytes() for row in before.astype(np.float16)}
    return np.array([row.tobytes() in kept for row in rows.astype(np.float16)], np.bool_)
