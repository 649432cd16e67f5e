"""Which images are shown: by rule and not by looks, the same for the page and the contact sheet.

Within every group sites take turns: each site's most telling image comes before any site's second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from fedvad.errors import ConfigError, DataError
from fedvad.evaluation.judgement import Outcome
from fedvad.report.panels import Panel

# The four groups of the contact sheet, in order, by name.
CLEAR, FAINT, NEAR, NORMAL = GROUPS = (
    "clearest defects",
    "missed or faintest defects",
    "borderline",
    "good parts that scored highest",
)
RULE = (
    "A fixed rule chose these pictures. Mistakes come first, the worst at the top, with missed "
    "defects and false alarms in turn. Correct decisions follow; those closest to the threshold "
    "come first, the clearest last. Sites take turns. At most three quarters of the pictures are "
    "mistakes."
)
_MISTAKES = 0.75

_Order = Callable[[Panel], tuple[Any, ...]]


def choose(panels: Iterable[Panel], *, limit: int) -> list[Panel]:
    """At most `limit` images in the order of `RULE`; the order of `panels` does not matter.

    Images without a threshold follow the judged ones: defects with the lowest scores and normals
    with the highest in turn. Raises ConfigError for limit < 1, DataError for a score that is not
    finite.
    """
    if limit < 1:
        raise ConfigError(f"a gallery of {limit} images: ask for at least 1, or leave pictures out")
    groups: dict[Outcome, list[Panel]] = {}
    for panel in _checked(panels):
        groups.setdefault(panel.outcome, []).append(panel)
    missed = _by_turns(groups.get("missed", []), _furthest)
    alarms = _by_turns(groups.get("false alarm", []), _furthest)
    wrong = _alternate(missed, alarms)
    right = _by_turns(groups.get("caught", []) + groups.get("passed", []), _nearest)
    open_ = groups.get("not judged", [])
    doubtful = _alternate(
        _by_turns([p for p in open_ if p.label], lambda p: (p.score,)),
        _by_turns([p for p in open_ if not p.label], lambda p: (-p.score,)),
    )
    rest = right + doubtful
    room = max(limit - len(rest), math.ceil(_MISTAKES * limit))
    return (wrong[:room] + rest)[:limit]


def choose_groups(panels: Iterable[Panel], *, per_group: int = 4) -> dict[str, list[Panel]]:
    """At most `per_group` telling images for each of `GROUPS`; no image appears twice.

    * clearest defects: anomalous images with the highest score / threshold, never a missed one;
    * missed or faintest defects: those with the lowest, missed ones first;
    * good parts that scored highest: normal images with the highest, false alarms first;
    * borderline: of the images left, of either class, those closest to their threshold that are
      borderline (`is_borderline`).

    The first two take turns, so few defects are shared out between them. Images without threshold
    follow those with one, by bare score. The order of `panels` does not matter.
    Raises ConfigError for per_group < 1, DataError for a score that is not finite.
    """
    if per_group < 1:
        raise ConfigError(f"per_group is {per_group}; show at least 1 image per group")
    pool = _checked(panels)
    defects = [panel for panel in pool if panel.label]
    candidates = {
        CLEAR: [panel for panel in defects if panel.outcome != "missed"],
        FAINT: defects,
        NORMAL: [panel for panel in pool if not panel.label],
        NEAR: [panel for panel in pool if panel.borderline],
    }
    orders: dict[str, _Order] = {CLEAR: _highest, FAINT: _lowest, NEAR: _nearest, NORMAL: _highest}
    chosen: dict[str, list[Panel]] = {name: [] for name in GROUPS}
    taken: set[int] = set()  # by identity: panels hold arrays, whose == is not a truth value
    for together in ((CLEAR, FAINT), (NORMAL,), (NEAR,)):
        for name in together * per_group:
            turns = Counter(panel.site for panel in chosen[name])
            ranked = (
                ((turns[panel.site], *orders[name](panel)), index, panel)
                for index, panel in enumerate(candidates[name])
                if id(panel) not in taken
            )
            best = min(ranked, key=lambda item: item[:2], default=None)
            if best is not None:
                taken.add(id(best[2]))
                chosen[name].append(best[2])
    return {name: sorted(group, key=orders[name]) for name, group in chosen.items()}


def _checked(panels: Iterable[Panel]) -> list[Panel]:
    pool = sorted(panels, key=lambda panel: (panel.site, panel.defect, str(panel.path)))
    for panel in pool:
        if not math.isfinite(panel.score):
            raise DataError(f"the score of {panel.path} is {panel.score}; fix the detector")
    return pool


def _by_turns(panels: Sequence[Panel], order: _Order) -> list[Panel]:
    """Sorted by `order`, smallest first, with each site's first before any site's second."""
    seen: dict[str, int] = {}
    ranked = []
    for panel in sorted(panels, key=order):
        turn = seen[panel.site] = seen.get(panel.site, 0) + 1
        ranked.append((turn, order(panel), panel))
    return [panel for _, _, panel in sorted(ranked, key=lambda item: item[:2])]


def _alternate(first: Sequence[Panel], second: Sequence[Panel]) -> list[Panel]:
    return [p for p in chain.from_iterable(zip_longest(first, second)) if p is not None]


def _strength(panel: Panel) -> float:
    return panel.score if panel.ratio is None else panel.ratio


def _highest(panel: Panel) -> tuple[Any, ...]:
    return (panel.outcome != "false alarm", panel.ratio is None, -_strength(panel))


def _lowest(panel: Panel) -> tuple[Any, ...]:
    return (panel.outcome != "missed", panel.ratio is None, _strength(panel))


def _nearest(panel: Panel) -> tuple[float]:
    """How far a score lies from its threshold, in thresholds."""
    assert panel.threshold is not None
    return (abs(panel.score - panel.threshold) / max(abs(panel.threshold), 1e-12),)


def _furthest(panel: Panel) -> tuple[float]:
    return (-_nearest(panel)[0],)
