"""What people said of images of a site, and what a site makes of it in its rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedvad.memory.bank import FloatArray, MemoryBank
from fedvad.memory.negatives import more_like
from fedvad.memory.origin import Origin, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AnsweredPatches:
    """Answers of a site.

    normals: patches of images that are normal, by digest. defects: (k, d) patches of confirmed
    defects, oldest first. share_defects: whether those may leave the site.
    """

    normals: Mapping[str, FloatArray] = field(default_factory=dict)
    defects: FloatArray | None = None
    share_defects: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing was answered that counts."""
        return not self.normals and (self.defects is None or not len(self.defects))

    def sent_defects(self, most: int, site: str, dim: int) -> FloatArray:
        """The newest patches of defects that may leave the site, (k, dim) with k <= most."""
        if self.defects is None or not self.share_defects:
            return np.zeros((0, dim), np.float32)
        if len(self.defects) > most:
            log.warning(
                "%s: of %d patches of defects the %d newest go out: a round holds no more",
                site, len(self.defects), most,
            )  # fmt: skip
        return self.defects[max(0, len(self.defects) - most) :]

    def like_defects(
        self, patches: FloatArray, bank: MemoryBank, known: MemoryBank | None
    ) -> npt.NDArray[np.bool_]:
        """Which (n, d) patches are more like a defect than like anything normal.

        bank: of the site; known: the memory of all sites.
        """
        if self.defects is None or not len(self.defects):
            return np.zeros(len(patches), np.bool_)
        normal = [*self.normals.values(), bank.vectors, *(() if known is None else [known.vectors])]
        return more_like(self.defects, np.concatenate(normal), patches)

    def rows(self, bank: MemoryBank, site: str, round_: int, most: int) -> MemoryBank:
        """Patches of normal images that a memory lacks, as rows of a round, no more than `most`."""
        held = {row.tobytes() for row in bank.vectors}
        new = [
            (row, Source(site, round_, digest))
            for digest, rows in sorted(self.normals.items())
            for row in rows.astype(np.float32)
            if row.tobytes() not in held
        ][:most]
        if not new:
            return MemoryBank.empty(bank.dim)
        origin = Origin.of([source for _, source in new], np.arange(len(new)))
        return replace(MemoryBank.of_patches(np.stack([row for row, _ in new])), origin=origin)
