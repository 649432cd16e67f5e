"""Methods against one another over sets: gains, ranks, the Pareto front, and a sentence of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedvad.evaluation.bootstrap import Interval, mean_paired_gain_of_runs

__all__ = ["gain_over", "mean_ranks", "pareto_front", "statement"]

# one run's scores: {site: {"scores": [...], "labels": [...]}}
RunScores = Mapping[str, Mapping[str, Sequence[float]]]


def gain_over(runs: Sequence[RunScores], baseline: Sequence[RunScores]) -> Interval | None:
    """Paired bootstrap of the site-mean image AUROC gained, run by run (same seed, same images).

    None where no site has both classes, or the two did not score the same images.
    """
    pairs = []
    for ours, theirs in zip(runs, baseline, strict=True):
        sites = [
            (ours[s]["scores"], theirs[s]["scores"], ours[s]["labels"])
            for s in sorted(ours)
            if s in theirs
            and list(ours[s]["labels"]) == list(theirs[s]["labels"])
            and len(set(ours[s]["labels"])) == 2
        ]
        if not sites:
            return None
        pairs.append(sites)
    return mean_paired_gain_of_runs(pairs) if pairs else None


def mean_ranks(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean rank (1 is best) of each method over the sets that all methods share.

    `values` holds, by method and set, a figure of which more is better; ties share their ranks.
    Empty when no set is shared.
    """
    from scipy.stats import rankdata

    shared = sorted(set.intersection(*(set(v) for v in values.values()))) if values else []
    if not shared:
        return {}
    methods = sorted(values)
    table = np.array([[-values[m][s] for m in methods] for s in shared])
    ranks = rankdata(table, axis=1).mean(axis=0)
    return dict(zip(methods, ranks.tolist(), strict=True))


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Methods of which no other costs at most as much and is at least as good, one of it strictly.

    `points` holds (cost, quality) by method. Of equal points all are on the front.
    """
    return {
        name
        for name, (cost, quality) in points.items()
        if not any(
            c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values()
        )
    }


def statement(method: str, other: str, gains: Mapping[str, Interval | None]) -> str:
    """What the intervals say about two methods, in words; `gains` by set, of method over other."""
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if not known:
        return f"{method} and {other} share no set with labels."
    better = [name for name, gain in known.items() if gain.low > 0]
    worse = [name for name, gain in known.items() if gain.high < 0]
    level = [name for name in known if name not in better and name not in worse]
    parts = []
    if better:
        parts.append(f"beats {other} on {len(better)} of {len(known)} ({'; '.join(better)})")
    if worse:
        parts.append(f"loses to {other} on {len(worse)} of {len(known)} ({'; '.join(worse)})")
    if level:
        parts.append(
            f"cannot be told from {other} on {len(level)} of {len(known)} ({'; '.join(level)})"
        )
    return f"{method} {'; '.join(parts)}."
