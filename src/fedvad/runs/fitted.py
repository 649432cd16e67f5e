"""What a training gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedvad.runs.run import Run


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained run, with calibration done.

    n_images: by site, normal images that could be read. unreadable: why others could not.
    own_normals: see `Calibration`.
    """

    run: Run
    n_images: Mapping[str, int]
    unreadable: Sequence[str]
    own_normals: Mapping[str, Any] = field(default_factory=dict)
