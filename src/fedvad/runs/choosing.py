"""From the fingerprints of sites to options of `train`, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvad.data.fingerprint import Fingerprint
from fedvad.data.view_choice import Sizes, choose_size
from fedvad.data.views import View
from fedvad.runs.train_config import LARGEST_MEMORY, TrainConfig

_TILE = 512
_USUAL = 256 * 256  # pixels of which a backbone's time is known
_LEAST_ROWS = 100
_DEAD = 0.05  # share of an image, from which a border is worth leaving out
_TURNED, _DARKER, _REPEATED = 0.5, 30.0, 0.05


@dataclass(frozen=True)
class Choice:
    """An option of `train`, its value and why."""

    key: str
    value: Any
    why: str


def middle(sites: Mapping[str, Fingerprint]) -> Fingerprint:
    """One fingerprint of all sites: medians, the extremes of proportions, and the widest border."""
    found = list(sites.values())
    corners = np.array([one.border for one in found])
    left, top = corners[:, :2].min(0).tolist()
    right, bottom = corners[:, 2:].max(0).tolist()
    directed = [one.alignment for one in found if one.alignment is not None]

    def median(name: str) -> float:
        return float(np.median([getattr(one, name) for one in found]))

    return Fingerprint(
        images=sum(one.images for one in found),
        seen=sum(one.seen for one in found),
        shortest=min(one.shortest for one in found),
        longest=max(one.longest for one in found),
        border=(left, top, right, bottom),
        alignment=float(np.median(directed)) if directed else None,
        **{
            name: median(name)
            for name in (
                "height", "width", "foreground", "brightness", "brightness_spread", "near_copies",
            )
        },
    )  # fmt: skip


def choose_options(
    sites: Mapping[str, Fingerprint],
    config: TrainConfig,
    *,
    seconds: float | None = None,
    budget: float | None = None,
) -> list[Choice]:
    """Options for these sites.

    Parameters
    ----------
    sites : mapping of str to Fingerprint
        By name, at least one.
    config : TrainConfig
        Whose view, rounds and bounds of messages hold.
    seconds : float, default=None
        Time of the backbone for 256 x 256 pixels; without, nothing is said of time.
    budget : float, default=None
        Time that an image may take. Without, what `image_size = "auto"` means; needs `seconds`.

    Source: ours.
    """
    whole = middle(sites)
    return [
        *_view(whole, config, seconds, budget),
        *_region(whole),
        _rows(len(sites), config),
        Choice("rounds", config.rounds, "a second round sends what the first left uncovered"),
    ]


def _view(
    whole: Fingerprint, config: TrainConfig, seconds: float | None, budget: float | None
) -> list[Choice]:
    sizes = Sizes(int(whole.height), int(whole.width), whole.longest / whole.shortest)
    size = choose_size(config.image_size, sizes, tiled=config.tiles is not None)
    view = View.of(size, config.tiles, config.overlap)
    usual = [Choice("image_size", size, _cost(sizes, view, seconds))]
    if budget is None or seconds is None:
        return usual
    affordable = budget / seconds * _USUAL
    if affordable < _pixels(view):
        smaller = [View(side, side) for side in (384, 256)]
        fits = (one for one in smaller if _pixels(one) <= min(affordable, _pixels(view)))
        view = next(fits, smaller[-1])
        return [Choice("image_size", view.size, _cost(sizes, view, seconds))]
    for scale in np.arange(1.0, 0.05, -0.05):
        tiled = View(int(scale * sizes.height), int(scale * sizes.width), True, _TILE)
        if tiled.height * tiled.width <= _pixels(view) or min(tiled.height, tiled.width) < _TILE:
            break
        if _pixels(tiled) <= affordable:
            why = "every pixel of that size, in overlapping squares"
            return [
                Choice("image_size", tiled.size, _cost(sizes, tiled, seconds)),
                Choice("tiles", _TILE, why),
            ]
    return usual


def _pixels(view: View) -> int:
    """Pixels of one image that pass the backbone."""
    if view.tile is None:
        return view.height * view.width
    cells = view.tile // 8, view.tile // 8
    return len(view.tiling((view.height, view.width), cells)) * view.tile**2


def _cost(sizes: Sizes, view: View, seconds: float | None) -> str:
    if seconds is None:
        return sizes.words()
    return f"{sizes.words()}; about {seconds * _pixels(view) / _USUAL:.2g} s per image here"


def _region(whole: Fingerprint) -> list[Choice]:
    left, top, right, bottom = whole.border
    kept = (right - left) * (bottom - top) / 1e4
    if kept > 1 - _DEAD:
        return []
    text = ",".join(f"{value:.4g}" for value in whole.border)
    why = f"the other {1 - kept:.0%} of every normal image seen is one flat colour"
    return [Choice("region", text, why)]


def _rows(sites: int, config: TrainConfig) -> Choice:
    """Rows a site sends per round: as many as the global memory can keep."""
    room = (config.memory_rows or LARGEST_MEMORY) // (sites * config.rounds)
    rows = max(_LEAST_ROWS, min(config.upload_rows, room))
    if rows == config.upload_rows:
        return Choice("upload_rows", rows, "the default: the memory of these sites has room for it")
    why = f"{sites} sites share a memory of {config.memory_rows or LARGEST_MEMORY} rows"
    return Choice("upload_rows", rows, why)


def remarks(sites: Mapping[str, Fingerprint]) -> list[str]:
    """What somebody should look at before training, a sentence each."""
    whole, said = middle(sites), []
    levels = {name: one.brightness for name, one in sites.items()}
    low, high = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
    if levels[high] - levels[low] > _DARKER:
        said.append(
            f"sites are lit differently (mean grey {levels[low]:.0f} of 255 at {low}, "
            f"{levels[high]:.0f} at {high}): train with --compare local, to see what each gains"
        )
    if whole.alignment is not None and whole.alignment < _TURNED:
        said.append("objects lie at any angle: each site needs more normal images than usual")
    said += [
        f"{name}: {one.near_copies:.0%} of the normal images nearly equal another, so they count "
        "for fewer; thresholds from them are too low"
        for name, one in sites.items()
        if one.near_copies > _REPEATED
    ]
    return said
