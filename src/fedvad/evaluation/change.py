"""What changed at a site that is watched: its scores, and how its pictures look."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from fedvad.evaluation.appearance import (
    KINDS,
    appearance,
    mean_picture,
    placement,
    thumbnail,
)
from fedvad.evaluation.drift import ALPHA, SHIFT, RankTest, ShareTest

__all__ = ["FIRST", "MOST_STOPPED", "Change", "ChangeWatch", "Normals", "normals_from"]

FIRST = 50  # images that are compared with, where there are no others
MOST_STOPPED = 0.1
_RECENT = 20
_NOW = 6  # latest images: after an alarm most of the last 20 may be from before
_SCORES = {"score": "scores", "stopped": "scores"}
# Smaller moves are certain after many images and of no use to anybody. Of the score: a share.
_LEAST = {
    "brightness": 2.0,
    "contrast": 0.01,
    "sharpness": 0.02,
    "red": 0.003,
    "blue": 0.003,
    "across": 1 / 64,
    "down": 1 / 64,
    "likeness": 0.05,
    "score": SHIFT - 1,
    "stopped": 0.0,
}

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Normals:
    """How normal images of a site look.

    Attributes
    ----------
    looks : dict of str to list of float
        Values of `appearance` over images.
    mean : (64, 64) float array
        Of `mean_picture`, of none of the images whose position is in `looks`.
    """

    looks: dict[str, list[float]]
    mean: npt.NDArray[np.float64]


class Figure(TypedDict):
    """One figure: its median before and over the last images; wealth of the bets against it."""

    name: str
    kind: str
    before: float | None
    now: float | None
    peak: float
    since: str | None


class Change(TypedDict):
    """What changed. needed: the peak that is an alarm; missing: images before figures are known."""

    images: int
    alpha: float
    needed: float
    missing: int
    changed: list[str]
    since: str | None
    says: str
    figures: list[Figure]


@dataclass
class _Series:
    test: RankTest | ShareTest
    before: float
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    since: str | None = None

    def middle(self, values: Iterable[float]) -> float:
        """The median, or the share of those that have a property."""
        return fmean(values) if isinstance(self.test, ShareTest) else median(values)

    def now(self) -> float | None:
        """What it is now; None before the first image."""
        recent = list(self.recent)
        if not isinstance(self.test, ShareTest):
            recent = recent[-_NOW:]
        return float(self.middle(recent)) if recent else None


class ChangeWatch:
    """Compares the images of a stream with normal ones, figure by figure.

    An image that is stopped says nothing about normal scores: those let through are compared with
    the reference scores below the threshold, and the share of those stopped with `most_stopped`.
    How pictures look is compared for all of them. Each of the tests is an alarm at their number
    over alpha, where the median of the last 20 images moved by more than a trifle, too; so the
    chance that any ever is a false one is alpha at most.

    Parameters
    ----------
    limit : float or None
        The threshold of the scores.
    scores : sequence of float
        Of held-out normal images; without any, those of the first 50 images count.
    normals : Normals, optional
        What pictures are compared with; None takes the first 50 images.
    alpha : float in (0, 1), default=0.01
        Probability of any false alarm, ever.
    most_stopped : float in (0, 1), default=0.1
        Share of stopped images that is no change.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.change import ChangeWatch, normals_from
    >>> rng = np.random.default_rng(0)
    >>> def photograph(light):
    ...     return (light * rng.uniform(0.6, 0.8, (64, 64, 3))).astype(np.uint8)
    >>> watch = ChangeWatch(2.0, normals=normals_from(photograph(200) for _ in range(40)))
    >>> for i in range(20):
    ...     watch.add(1.0, watch.look(photograph(150)), when=f"image {i + 1}")
    >>> watch.change()["changed"], watch.change()["since"]
    (['light'], 'image 5')
    """

    def __init__(
        self,
        limit: float | None,
        scores: Sequence[float] = (),
        normals: Normals | None = None,
        *,
        alpha: float = ALPHA,
        most_stopped: float = MOST_STOPPED,
    ) -> None:
        self._limit, self._alpha = limit, alpha
        self._needed = (len(KINDS) + 1 + (limit is not None)) / alpha
        self._mean: npt.NDArray[np.float64] | None = None
        self._first: list[tuple[float, dict[str, float], Pixels]] = []
        self._series: dict[str, _Series] = {}
        self._alarms: list[str] = []
        self._images = 0
        if limit is not None:
            self._series["stopped"] = _Series(ShareTest(most_stopped), most_stopped)
        self._begin_scores(scores)
        if normals is not None:
            self._begin_looks(normals)

    def look(self, pixels: Pixels) -> dict[str, Any]:
        """What `add` needs to know of a photograph uint8 (H, W, 3), as values of JSON."""
        small, looks = thumbnail(pixels), appearance(pixels)
        if self._mean is not None:
            looks |= placement(small, self._mean)
        found: dict[str, Any] = {"looks": {name: round(look, 6) for name, look in looks.items()}}
        if self._mean is None:
            found["thumbnail"] = base64.b64encode(small.tobytes()).decode("ascii")
        return found

    def add(self, score: float, looked: Mapping[str, Any], when: str) -> None:
        """Take in an image: its score, what `look` gave, and when it came."""
        self._images += 1
        stopped = self._limit is not None and score > self._limit
        values = dict(looked["looks"])
        if self._limit is not None:
            values["stopped"] = float(stopped)
        if not stopped:
            values["score"] = score
        for name, value in values.items():
            if name in self._series:
                self._compare(name, value, when)
        if self._mean is None:
            grey = np.frombuffer(base64.b64decode(looked["thumbnail"]), np.uint8).reshape(64, 64)
            self._first.append((score, looked["looks"], grey))
            if len(self._first) == FIRST:
                scores, looks, thumbnails = zip(*self._first, strict=True)
                self._first.clear()
                if "score" not in self._series:
                    self._begin_scores(scores)
                self._begin_looks(_normals(looks, thumbnails))

    def change(self) -> Change:
        """What was found so far."""
        figures = [
            Figure(
                name=name,
                kind=(KINDS | _SCORES)[name],
                before=one.before,
                now=one.now(),
                peak=one.test.peak,
                since=one.since,
            )
            for name, one in self._series.items()
        ]
        kinds = list(dict.fromkeys((KINDS | _SCORES)[name] for name in self._alarms))
        # another product changes much else as well; scores alone may be a new material
        if "product" in kinds or kinds == ["scores"]:
            kinds = ["product"]
        changed = [kind for kind in kinds if kind != "scores"]
        since = self._series[self._alarms[0]].since if self._alarms else None
        return Change(
            images=self._images,
            alpha=self._alpha,
            needed=self._needed,
            missing=0 if self._mean is not None else FIRST - len(self._first),
            changed=changed,
            since=since,
            says=self._words(changed, since, figures),
            figures=figures,
        )

    def _begin_scores(self, scores: Sequence[float]) -> None:
        usual = [score for score in scores if self._limit is None or score < self._limit]
        if usual:
            self._series["score"] = _Series(RankTest(usual), median(usual))

    def _begin_looks(self, normals: Normals) -> None:
        self._mean = normals.mean
        for seed, (name, values) in enumerate(normals.looks.items(), start=1):
            self._series[name] = _Series(RankTest(values, seed=seed), median(values))

    def _compare(self, name: str, value: float, when: str) -> None:
        one = self._series[name]
        one.recent.append(value)
        one.test.add(value)
        least = _LEAST[name] * (one.before if name == "score" else 1)
        moved = abs(one.middle(one.recent) - one.before) >= least
        if one.since is None and one.test.peak >= self._needed and moved:
            one.since = when
            self._alarms.append(name)

    def _words(self, changed: Sequence[str], since: str | None, figures: Sequence[Figure]) -> str:
        if not changed:
            return f"No change in {self._images} images."
        found = [f for f in figures if f["since"] and f["now"] is not None]
        moved = ", ".join(f"{f['name']} {f['now']:.4g}, before {f['before']:.4g}" for f in found)
        return f"Changed since {since}: {' and '.join(changed)} ({moved})."


def normals_from(pictures: Iterable[Pixels]) -> Normals:
    """How pictures (H, W, 3) look; every other one goes into the mean picture.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.evaluation.change import normals_from
    >>> drawn = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    >>> looks = normals_from(drawn).looks
    >>> len(looks["brightness"]), len(looks["across"])
    (6, 3)
    """
    seen = [(appearance(pixels), thumbnail(pixels)) for pixels in pictures]
    return _normals([looks for looks, _ in seen], [small for _, small in seen])


def _normals(looks: Sequence[dict[str, float]], thumbnails: Sequence[Pixels]) -> Normals:
    mean = mean_picture(thumbnails[::2])
    placed = [placement(small, mean) for small in thumbnails[1::2]]
    rows = (looks, placed)
    return Normals({name: [row[name] for row in each] for each in rows for name in each[0]}, mean)
