"""Merging when some sites lie: a site counts while the other sites' rows back its own.

A site can teach a federation that a defect is normal by sending the defect's features. What the
server can see is that nobody else's normals lie near them. So each site's rows name, among the
rows of all other sites, those nearest to them; a site with many rows that too few sites name is
left out as a whole. Single rows are not: honest rows that nobody names are the rare modes that a
memory needs most (leaving 1.5 % of rows out cost 0.012 of AUROC, docs/lab/robustness.md).

Source: ours; being named by others is the in-degree of ODIN (Hautamäki et al. 2004), counted by
site so that no site can name its own rows and no few sites can outvote the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.memory.bank import LazyBanks, MemoryBank

_BLOCK = 512  # rows whose neighbours are sought at a time
_MOST = 4.0  # times as many rows named by a small site as by one like the others


@dataclass(frozen=True)
class RobustConfig:
    """How much distrust.

    malicious: share of the sites that may lie, together; a row is backed when more sites name it
        than can lie for it, and no more sites than these are left out.
    nearest: how often a row of another site is named by a site, on average; of sites of one size
        each row names this many times the number of other sites. The larger, the more rare but
        honest rows are backed, and the more poison.
    distrust: a site is left out when its share of backed rows is this much below the sites'
        median, the worst first.
    norm: a row is left out when it is this many times longer or shorter than the longest or
        shortest rows of the median site.
    weight: a site weighs at most this many times as much as the median site.
    group: sites compared with one another; more are divided into random groups, so that the time
        grows linearly. The bound on liars then holds in each group only on average.

    Raises `ConfigError` for values out of range.
    """

    malicious: float = 1 / 3
    nearest: float = 6.0
    distrust: float = 0.05
    norm: float = 2.0
    weight: float = 10.0
    group: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.malicious < 0.5:
            raise ConfigError(f"malicious must lie in (0, 0.5), got {self.malicious}")
        if self.nearest <= 0 or not 0 < self.distrust <= 1 or self.norm < 1 or self.weight < 1:
            raise ConfigError("nearest > 0, distrust in (0, 1], norm and weight >= 1 are needed")
        if self.group < 3:
            raise ConfigError(f"a group needs at least 3 sites, got {self.group}")

    def backers(self, sites: int) -> int:
        """Other sites that must name a row: those of `sites` that may lie, its own site included.

        One more than can lie for it, as the site that sent it does not count.
        """
        return max(1, self.liars(sites))

    def liars(self, sites: int) -> int:
        """How many of `sites` may lie. A share is meant to two digits: 0.33 of six are two."""
        return int((self.malicious + 0.005) * sites)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is left to merge.

    banks: by site; untouched where nothing was left out. reasons: by site, for the ledger.
    trust: by site, the share of its rows that others back, whether it was left out or not.
    """

    banks: Mapping[str, MemoryBank]
    reasons: dict[str, str] = field(default_factory=dict)
    trust: dict[str, float] = field(default_factory=dict)


def defend(banks: Mapping[str, MemoryBank], config: RobustConfig, *, seed: int) -> Verdict:
    """Leave out of the sites' banks (by name) what only liars may want in a global memory.

    Judges everything that a site has sent so far, so trust is earned and lost over the rounds. Of
    one or two sites nobody can say who lies: they pass, with a reason. Neither the order of sites
    nor of rows matters. Total weight falls by that of what is left out.
    """
    names = sorted(name for name in banks if len(banks[name]))
    reasons: dict[str, list[str]] = {name: [] for name in sorted(banks)}
    if len(names) < 3:
        note = f"not defended: {len(names)} sites have rows, at least 3 are needed to compare"
        return Verdict(banks, dict.fromkeys(names, note), dict.fromkeys(names, 1.0))
    given = LazyBanks(names, banks.__getitem__)
    heavy, odd = _overweight(given, config), _of_usual_norm(given, config)

    def left_of(name: str) -> MemoryBank:
        bank = banks[name]
        if name in heavy:
            bank = bank.rescaled(heavy[name][0])
        return bank.take(odd[name][0]) if name in odd else bank

    trust = dict.fromkeys(names, 0.0)
    for name, rows in supported_rows(LazyBanks(names, left_of), config, seed=seed).items():
        trust[name] = float(rows.mean()) if len(rows) else 0.0
    out = _distrusted(trust, config)
    for whys in (heavy, odd):
        for name, (_, why) in whys.items():
            reasons[name].append(why)
    for name, why in out.items():
        reasons[name].append(why)
    kept = [name for name in names if name not in out and (name not in odd or odd[name][0].any())]
    by_site = {name: "; ".join(whys) for name, whys in reasons.items() if whys}
    return Verdict(LazyBanks(kept, left_of), by_site, trust)


def supported_rows(
    banks: Mapping[str, MemoryBank], config: RobustConfig, *, seed: int
) -> dict[str, npt.NDArray[np.bool_]]:
    """For each site which of its rows enough other sites name; all of them below three sites.

    Each row of a site names the rows nearest to it among those of all other sites, in the number
    that `config.nearest` says. All rows compete, so a site gains nothing by sending few.
    """
    names = sorted(name for name in banks if len(banks[name]))
    backed: dict[str, npt.NDArray[np.bool_]] = {
        name: np.ones(len(bank), np.bool_) for name, bank in banks.items()
    }
    if len(names) < 3:
        return backed
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    groups = np.array_split(shuffled, -(-len(names) // config.group))
    for members in groups:
        group = {name: banks[name] for name in sorted(members.tolist())}
        votes = _votes(group, config)
        for name, count in votes.items():
            backed[name] = count >= config.backers(len(group))
    return backed


def _votes(
    group: Mapping[str, MemoryBank], config: RobustConfig
) -> dict[str, npt.NDArray[np.int64]]:
    """How many other sites of the group name each row."""
    import torch

    votes = {name: np.zeros(len(bank), np.int64) for name, bank in group.items()}
    for judge, bank in group.items():
        others = [name for name in group if name != judge]
        rows = torch.from_numpy(np.concatenate([group[name].vectors for name in others]))
        named = np.zeros(len(rows), np.bool_)
        # as many namings for each row to be judged, however few rows the judge has itself
        share = min(max(len(rows) / len(bank), 1.0), _MOST * len(others))
        count = min(len(rows), round(config.nearest * share))
        norms = torch.linalg.vecdot(rows, rows)
        points = torch.from_numpy(bank.vectors)
        for start in range(0, len(points), _BLOCK):
            squared = torch.addmm(norms[None], points[start : start + _BLOCK], rows.T, alpha=-2)
            nearest = squared.topk(count, dim=1, largest=False, sorted=False).indices
            named[nearest.numpy().reshape(-1)] = True
        ends = np.cumsum([len(group[name]) for name in others])[:-1]
        for name, part in zip(others, np.split(named, ends), strict=True):
            votes[name] += part
    return votes


def _distrusted(trust: Mapping[str, float], config: RobustConfig) -> dict[str, str]:
    """Sites to leave out, with reasons, by the share of their rows that others back."""
    limit = float(np.median(list(trust.values()))) - config.distrust
    worst = sorted((share, name) for name, share in trust.items() if share < limit)
    return {
        name: f"only {share:.1%} of its rows are backed by enough other sites, the limit is "
        f"{limit:.1%}: all left out"
        for share, name in worst[: config.liars(len(trust))]
    }


def _of_usual_norm(
    banks: Mapping[str, MemoryBank], config: RobustConfig
) -> dict[str, tuple[npt.NDArray[np.bool_], str]]:
    """Sites with rows far longer or shorter than anybody's: which rows to keep, and why."""
    norms = {name: np.linalg.norm(bank.vectors, axis=1) for name, bank in banks.items()}
    shortest = float(np.median([n.min() for n in norms.values()])) / config.norm
    longest = float(np.median([n.max() for n in norms.values()])) * config.norm
    odd = {}
    for name, values in norms.items():
        rows = (values >= shortest) & (values <= longest)
        if not rows.all():
            value = values[~rows][np.abs(values[~rows] - longest).argmax()]
            odd[name] = (
                rows,
                (
                    f"{(~rows).sum()} of {len(rows)} rows have lengths such as {value:.3g}, the "
                    f"limits are {shortest:.3g} and {longest:.3g}: left out"
                ),
            )
    return odd


def _overweight(
    banks: Mapping[str, MemoryBank], config: RobustConfig
) -> dict[str, tuple[float, str]]:
    """Sites that weigh too much: the weight that they are brought to, and why."""
    totals = {name: bank.total_weight for name, bank in banks.items()}
    limit = config.weight * float(np.median(list(totals.values())))
    return {
        name: (limit, f"stands for {total:.3g} patches, the limit is {limit:.3g}: weighs less")
        for name, total in totals.items()
        if total > limit
    }
