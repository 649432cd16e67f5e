"""What the curves of a student's training say in words."""

from __future__ import annotations

from collections.abc import Mapping

from fedvad.evaluation.learning import still_falling
from fedvad.evaluation.results import LearningCurve


def unfinished(curves: Mapping[str, LearningCurve]) -> list[str]:
    """One sentence where the held-out loss of a site is still falling; [] where all have settled.

    Curves by site; test images have no part in it.
    """
    falls = {name: still_falling(curve.at, curve.held_out) for name, curve in curves.items()}
    found = {name: fall for name, fall in falls.items() if fall is not None}
    if not found:
        return []
    most = max(found, key=lambda name: found[name])
    where = most if len(found) == 1 else f"{len(found)} sites, most at {most}"
    return [
        f"Unfinished: the held-out loss is still falling at {where} (by {100 * found[most]:.0f} % "
        "over the second half of the training). Train longer (--student-steps)."
    ]
