"""Methods against one another over sets: gains, ranks, the Pareto front, and a sentence of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedvad.evaluation.bootstrap import Interval, mean_paired_gain_of_runs

__all__ = ["gain_over", "mean_ranks", "pareto_front", "statement"]

# one run's scores: {site: {"scores": [...], "labels": [...]}}
RunScores = Mapping[str, Mapping[str, Sequence[float]]]


def gain_over(runs: Sequence[RunScores], baseline: Sequence[RunScores]) -> Interval | None:
    """Paired bootstrap of the site-mean image AUROC gained over a baseline, run by run.

    Parameters
    ----------
    runs, baseline : sequences of mappings
        For each run (same seed, same images) {site: {"scores": (n,), "labels": (n,)}}.

    Returns
    -------
    Interval or None
        None where no site has both classes, or the two did not score the same images.

    Examples
    --------
    >>> from fedvad.evaluation.ranking import gain_over
    >>> labels = [0, 0, 1, 1]
    >>> ours = {"alder": {"scores": [1, 2, 3, 4], "labels": labels}}
    >>> theirs = {"alder": {"scores": [4, 3, 2, 1], "labels": labels}}
    >>> gain_over([ours], [theirs])
    Interval(gain=1.0, low=1.0, high=1.0)
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

    Parameters
    ----------
    values : mapping of method to mapping of set to float
        A figure of which more is better; ties share their ranks.

    Returns
    -------
    dict of str to float
        Empty when no set is shared.

    Examples
    --------
    >>> from fedvad.evaluation.ranking import mean_ranks
    >>> mean_ranks({"memory": {"tiles": 0.98, "screws": 0.9}, "student": {"tiles": 0.8}})
    {'memory': 1.0, 'student': 2.0}
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
    """Methods that no other method beats on cost and quality together.

    Another beats it when it costs at most as much and is at least as good, one of them strictly.

    Parameters
    ----------
    points : mapping of method to (cost, quality)
        Of equal points all are on the front.

    Examples
    --------
    >>> from fedvad.evaluation.ranking import pareto_front
    >>> sorted(pareto_front({"small": (1, 0.9), "large": (2, 0.95), "wasteful": (3, 0.9)}))
    ['large', 'small']
    """
    return {
        name
        for name, (cost, quality) in points.items()
        if not any(
            c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values()
        )
    }


def statement(method: str, other: str, gains: Mapping[str, Interval | None]) -> str:
    """What the intervals say about two methods, in a sentence.

    Parameters
    ----------
    method, other : str
        Their names.
    gains : mapping of set to Interval or None
        Gain of `method` over `other`.

    Examples
    --------
    >>> from fedvad.evaluation.bootstrap import Interval
    >>> from fedvad.evaluation.ranking import statement
    >>> statement("memory", "student", {"tiles": Interval(0.1, 0.05, 0.15), "nuts": None})
    'memory beats student on 1 of 1 (tiles).'
    """
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
        where = f"{len(level)} of {len(known)} ({'; '.join(level)})"
        parts.append(f"is not distinguishable from {other} on {where}")
    return f"{method} {'; '.join(parts)}."
