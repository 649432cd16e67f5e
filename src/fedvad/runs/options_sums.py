"""Declarations of the options of sums, which are all that leaves a site with method `sums`."""

from __future__ import annotations

from functools import partial

from fedvad.detectors.sums.site import SumsConfig
from fedvad.runs.option import option
from fedvad.runs.options_sites import SiteOptions

_sums = partial(option, group="Sums")


class SumsOptions(SiteOptions):
    """Options of the detector from sums."""

    dimensions: int = _sums(
        SumsConfig.dimensions,
        "Random directions in which a patch is described. Fewer bear more noise and see less.",
        ge=2,
        le=512,
    )
    grid: int = _sums(
        SumsConfig.grid,
        "Parts along each side of an image with sums of their own, for parts that always lie at "
        "the same place; 1 is the image as a whole.",
        ge=1,
        le=8,
    )
    epsilon: float | None = _sums(
        SumsConfig.epsilon,
        "Privacy loss of one image over the whole training, at delta: noise of that strength is "
        "added to the sums. None is added by default.",
        gt=0,
        example=4.0,
    )
    masks: bool = _sums(
        SumsConfig.secure,
        "Hide each site's sums under masks that cancel in the total. Then every site must answer "
        "every round; without, each site needs the whole noise for itself.",
    )


SUMS_OPTIONS = frozenset(SumsOptions.model_fields) - frozenset(SiteOptions.model_fields)
