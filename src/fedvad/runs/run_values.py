"""What the file of a run says of itself, checked value by value before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fedvad.data.checked import Stored, strictly
from fedvad.errors import ArtefactError
from fedvad.evaluation.thresholds import Threshold
from fedvad.runs.config import Reference
from fedvad.runs.families import METHODS


class SiteValues(Stored):
    """What is a site's own, but for its arrays."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    n_images: Annotated[int, Field(ge=0, le=1 << 50)]
    thresholds: dict[Reference, dict[str, Any]]


class RunValues(Stored):
    """Of any run."""

    schema_: int = Field(alias="schema")
    version: str
    method: str
    data: str
    features: dict[str, Any]

    sites: Sequence[SiteValues]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method[:50]!r} is unknown")
        names = [site.name for site in self.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"site {twice[0]!r} occurs twice")
        return self


def threshold_from(values: Mapping[str, Any]) -> Threshold:
    """The threshold whose `asdict` this was; raises `ArtefactError` for one that cannot decide."""
    found = strictly(Threshold, values, "a threshold")
    if found.n < 0 or not 0 < found.target_fpr < 1:
        raise ArtefactError(
            f"a threshold is damaged: it is of {found.n} images for a rate of {found.target_fpr}"
        )
    return found
