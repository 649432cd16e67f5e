"""STFPM and PaSTe as detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedvad.detectors.student.detector import StudentDetector


class STFPM(StudentDetector):
    """Student-teacher feature pyramid matching (Wang et al., BMVC 2021)."""

    name: ClassVar[str] = "stfpm"


@dataclass(kw_only=True, eq=False, repr=False)
class PaSTe(StudentDetector):
    """STFPM whose student shares the teacher's first layers (arXiv 2410.11591).

    bootstrap: the last shared layer, by the backbone's count; None takes the one before the first
    tap, -1 shares nothing.
    """

    name: ClassVar[str] = "paste"
    own_options: ClassVar[tuple[str, ...]] = ("bootstrap",)

    bootstrap: int | None = None

    def _bootstrap(self) -> int | None:
        return self.bootstrap
