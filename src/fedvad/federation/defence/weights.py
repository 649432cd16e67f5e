"""Averaging when some sites lie: no site moves the mean much further than the others do.

Source: norm bounding (Sun et al. 2019, "Can you really backdoor federated learning?"); that the
distance is measured from the sites' median, and bounded relative to the others', is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.federation.defence.robust import RobustConfig

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Bounded:
    """What is left to average: weights and shares in the order given, and reasons by site."""

    weights: list[Arrays]
    shares: npt.NDArray[np.float64]
    reasons: dict[str, str]


def bound_weights(
    sites: Sequence[str],
    weights: Sequence[Arrays],
    shares: npt.NDArray[np.float64],
    config: RobustConfig,
) -> Bounded:
    """Draw weights that lie far out back towards the others, and bound shares of the mean.

    The distance of a site's weights is that from the median of all sites, value by value. One that
    is `config.norm` times the median site's is shortened to that; a share that is `config.weight`
    times the median site's likewise. Of one or two sites nobody can say who lies: they pass, with
    a reason. Weights of sites within the limits are not changed, to the bit.

    sites: names, as many as weights (by parameter name, of equal shapes) and shares (n,), > 0.
    """
    kept, shares = list(weights), shares.copy()
    if len(sites) < 3:
        note = f"not defended: {len(sites)} sites answered, at least 3 are needed to compare"
        return Bounded(kept, shares, dict.fromkeys(sites, note))
    reasons: dict[str, list[str]] = {name: [] for name in sites}
    most = config.weight * float(np.median(shares))
    for i in np.flatnonzero(shares > most).tolist():
        reasons[sites[i]].append(
            f"claims {shares[i]:.3g} images, the limit is {most:.3g}: weighs less"
        )
        shares[i] = most
    centre = {
        name: np.median([own[name].astype(np.float64) for own in weights], axis=0)
        for name in weights[0]
    }
    distances = np.array([_distance(own, centre) for own in weights])
    limit = config.norm * float(np.median(distances))
    for i in np.flatnonzero(distances > limit).tolist():
        reasons[sites[i]].append(
            f"its weights lie {distances[i]:.3g} from the sites' median, the limit is "
            f"{limit:.3g}: drawn back to it"
        )
        part = limit / distances[i]
        kept[i] = {
            name: (centre[name] + part * (array - centre[name])).astype(np.float32)
            for name, array in weights[i].items()
        }
    by_site = {name: "; ".join(whys) for name, whys in reasons.items() if whys}
    return Bounded(kept, shares, by_site)


def _distance(weights: Arrays, centre: Arrays) -> float:
    squares = sum(float(np.square(a - centre[name]).sum()) for name, a in weights.items())
    return float(np.sqrt(squares))
