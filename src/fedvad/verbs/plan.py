"""`plan`: from the normal images of sites, or their fingerprints, to options for `train`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedvad.data.checked import strictly
from fedvad.data.contents import normals
from fedvad.data.files import write_atomically
from fedvad.data.fingerprint import Fingerprint, fingerprint_of
from fedvad.data.folders import read_data
from fedvad.data.sets import ImageSet, Site
from fedvad.data.split import parse_split, split_site
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.choosing import Choice, choose_options, remarks
from fedvad.runs.config import at_size, given_values, resolve_config
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.template import as_toml
from fedvad.runs.train_config import TrainConfig

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What `plan` found.

    sites: fingerprints by site. choices: options for `train`, each with its reason; given: those
    that somebody gave, which win. remarks: sentences on the data.
    """

    sites: Mapping[str, Fingerprint]
    choices: tuple[Choice, ...]
    given: Mapping[str, Any]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints; as a file, `plan` reads its sites."""
        return {
            "sites": {name: asdict(one) for name, one in self.sites.items()},
            "options": {one.key: one.value for one in self.choices} | dict(self.given),
            "why": {one.key: one.why for one in self.choices if one.key not in self.given},
            "remarks": list(self.remarks),
        }

    def to_toml(self) -> str:
        """A file for `train --plan`, to be read and changed by people."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# A plan for `fedvad train --plan`: change what you know better. Flags win over it."
        for name, value in self.given.items():
            yield f"\n# given\n{name} = {as_toml(value)}"
        for choice in self.choices:
            if choice.key not in self.given:
                yield f"\n# {choice.why}\n{choice.key} = {as_toml(choice.value)}"
        yield "\n# The normal images of each site:"
        for name, one in self.sites.items():
            plain = "" if one.foreground == 1 else f"; the object covers {one.foreground:.0%}"
            copies = f"; {one.near_copies:.0%} near copies" * bool(one.near_copies)
            yield (
                f"# {json.dumps(name, ensure_ascii=False)}: {one.images} of {one.height:g} x "
                f"{one.width:g} pixels; mean grey {one.brightness:.0f}, spread "
                f"{one.brightness_spread:.0f}{plain}{copies}"
            )
        yield from (f"# LOOK: {said}" for said in self.remarks)


def plan(
    places: Sequence[Path],
    out: Path | None = None,
    *,
    budget: float | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> Plan:
    """Plan a training from normal training images alone; no test image is opened.

    Parameters
    ----------
    places : sequence of Path
        Folders of sites as `train` takes them, and files of what `Plan.to_json` gave elsewhere.
    out : Path, default=None
        The plan to write, a TOML file.
    budget : float, default=None
        Seconds that an image may take in the backbone on this machine, above 0; more of an image
        is read where there is time. Without, images are read as `image_size = "auto"` does.
    progress : Progress, default=no_progress
        Called with a stage, the images done and their number.
    options
        Of `train`, which the plan then holds as given.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        For no places, a site twice, a method without a memory, or a budget of 0.
    DataError
        For a folder without normal images, or none that can be read.

    Source: ours, after nnU-Net's fingerprint and plan (Isensee et al. 2021).
    """
    config = resolve_config(**options)
    if config.has_student:
        raise ConfigError(f"plan is for methods with a memory, and {config.method} has none")
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget is {budget} s per image; it must be above 0")
    sites: dict[str, Fingerprint] = {}
    for place in places:
        found = _stored(place) if place.is_file() else _read(place, config, progress)
        if twice := sorted(sites.keys() & found):
            raise ConfigError(f"site {twice[0]} is in {place} and in another of the places given")
        sites |= found
    if not sites:
        raise ConfigError("plan needs a folder of images, or files of `fedvad plan DATA --json`")
    seconds = (
        None if budget is None else FeatureExtractor(at_size(config, 256).features()).seconds()
    )
    choices = choose_options(sites, config, seconds=seconds, budget=budget)
    # as text, number and list: what a configuration file can hold
    kept = config.model_dump(mode="json", include=set(given_values(**options)))
    made = Plan(sites, tuple(choices), kept, tuple(remarks(sites)))
    if out is not None:
        write_atomically(out, made.to_toml().encode())
    return made


def _read(folder: Path, config: TrainConfig, progress: Progress) -> dict[str, Fingerprint]:
    sites = read_data(folder, config.label_names()).sites
    if config.split is not None:
        if len(sites) != 1:
            raise ConfigError(
                f"--split divides one set into sites, but {folder} holds {len(sites)}"
            )
        bare = Site(sites[0].name, sites[0].train, ImageSet(()))  # no look at what is tested
        sites = split_site(bare, parse_split(config.split), config.seed)
    stage = Stage(progress, "fingerprints", len(sites))
    found = {}
    for site in sites:
        try:
            paths = normals(site.train)
            found[site.name] = fingerprint_of(paths, max_pixels=config.max_pixels)
        except DataError as error:
            raise DataError(f"site {site.name}: {error}") from error
        stage()
    return found


def _stored(file: Path) -> dict[str, Fingerprint]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        sites = values["sites"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{file} is no output of `fedvad plan DATA --json`") from error
    return {name: strictly(Fingerprint, one, f"{file}, site {name}") for name, one in sites}
