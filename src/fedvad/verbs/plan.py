"""`plan`: from the normal images of sites, or their fingerprints, to options for `train`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from fedvad.data.checked import strictly
from fedvad.data.contents import normals
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.files import write_atomically
from fedvad.data.fingerprint import Fingerprint, fingerprint_of
from fedvad.data.folders import read_data
from fedvad.data.outputs import OWN_PNG
from fedvad.data.sets import ImageSet, Site
from fedvad.data.split import parse_split, split_site
from fedvad.data.texts import read_text
from fedvad.data.views import is_plain
from fedvad.detectors.memory.doubts import doubts
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.report.doubt_sheet import DoubtfulImage, doubt_sheet
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe, paths_of
from fedvad.runs.choosing import Choice, choose_options, remarks
from fedvad.runs.config import at_size, given_values, resolve_config
from fedvad.runs.data import warm_up
from fedvad.runs.families import method_class
from fedvad.runs.guards import guard_output_file
from fedvad.runs.plan import site_seed
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.template import as_toml
from fedvad.runs.train_config import TrainConfig
from fedvad.runs.typed_options import TrainOptions

__all__ = ["Plan", "plan"]

_HEAD = "# A plan for `fedvad train --plan`"  # by which a file of ours is known


@dataclass(frozen=True)
class Plan:
    """What `plan` found.

    sites: fingerprints by site. choices: options for `train`, each with its reason. given: options
    that you gave, which win. remarks: sentences on the data. doubtful: normal images that differ
    from the others of their site, the least likely first, each with its score in multiples of the
    usual one; None without `suspects`.
    """

    sites: Mapping[str, Fingerprint]
    choices: tuple[Choice, ...]
    given: Mapping[str, Any]
    remarks: tuple[str, ...]
    doubtful: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints; as a file, `plan` reads its sites."""
        return {
            "sites": {name: asdict(one) for name, one in self.sites.items()},
            "options": {one.key: one.value for one in self.choices} | dict(self.given),
            "why": {one.key: one.why for one in self.choices if one.key not in self.given},
            "remarks": list(self.remarks),
            **({} if self.doubtful is None else {"doubtful": dict(self.doubtful)}),
        }

    def to_toml(self) -> str:
        """A file for `train --plan`, to be read and changed by people."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"{_HEAD}: change what you know better. Flags win over it."
        for name, value in self.given.items():
            yield f"\n# given\n{name} = {as_toml(value)}"
        for choice in self.choices:
            if choice.key not in self.given:
                yield f"\n# {choice.why}\n{choice.key} = {as_toml(choice.value)}"
        if self.doubtful is not None and "leave_out" not in self.given:
            yield "\n# Doubtful normal images; remove the # before each that shows no good part."
            yield "leave_out = ["
            for file, times in self.doubtful.items():
                yield f"#   {as_toml(file)},  # {times:.2g} times the usual score"
            yield "]"
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
    data: AnyPath | Iterable[AnyPath],
    out: AnyPath | None = None,
    *,
    budget: float | None = None,
    suspects: AnyPath | None = None,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
    **options: Unpack[TrainOptions],
) -> Plan:
    """Plan a training from the normal images of each site; no test image is read.

    Parameters
    ----------
    data : path, or several
        A folder of sites as `train` takes it, or a file of a plan's `to_json`.
    out : path, optional
        File to write the plan into, for `train`.
    budget : float, optional
        Seconds that one image may take in the backbone on this machine, above 0. The more time,
        the larger the images that the plan chooses. None chooses as `image_size = "auto"` does.
    suspects : path, optional
        PNG file to write with the normal images that differ most from the others of their site;
        the plan then lists them. Needs one folder; all its normal images pass the backbone.
    cache, progress, **options
        As those of `train`.

    Returns
    -------
    Plan
        The options, each with its reason; see `fedvad.verbs.plan`.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.plan("plants", backbone="filterbank").to_json()["options"]["image_size"]
    256
    """
    progress = progress or no_progress
    places = paths_of(data, "data")
    out, suspects = maybe(out, "out"), maybe(suspects, "suspects")
    config = resolve_config(**options)
    if "memory_rows" not in method_class(config.method).options:
        raise ConfigError(f"plan is for methods with a memory, and {config.method} has none")
    if budget is not None and not budget > 0:
        raise ConfigError(f"budget is {budget} s per image; it must be above 0")
    if budget is not None and (config.tiles is not None or config.image_size != "auto"):
        raise ConfigError("--budget chooses size and tiles: give it, or --image-size and --tiles")
    read = [config.weights, *(place for place in places if place.is_file())]
    guard_output_file(out, "--out", others=read, own=_HEAD.encode())
    if suspects is not None and (len(places) != 1 or places[0].is_file()):
        raise ConfigError("--suspects looks at images: give it one folder of sites")
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
    if not is_plain(config.image_size):  # what it stands for is known now
        kept.pop("image_size", None)
    doubtful = None
    if suspects is not None:
        planned = resolve_config(**({one.key: one.value for one in choices} | kept))
        doubtful = find_doubtful(places[0], suspects, planned, cache_at(cache), progress)
    made = Plan(sites, tuple(choices), kept, tuple(remarks(sites)), doubtful)
    if out is not None:
        write_atomically(out, made.to_toml().encode())
    return made


def _read(folder: Path, config: TrainConfig, progress: Progress) -> dict[str, Fingerprint]:
    sites = training_sites(folder, config)
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
        values = json.loads(read_text(file))
        sites = values["sites"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{file} is no output of `fedvad plan DATA --json`") from error
    return {name: strictly(Fingerprint, one, f"{file}, site {name}") for name, one in sites}


_SHOWN = 48


def training_sites(folder: Path, config: TrainConfig) -> list[Site]:
    """The sites of a folder with their training images; no test image is opened."""
    sites = [
        Site(site.name, site.train, ImageSet(()))
        for site in read_data(folder, config.label_names()).sites
    ]
    if config.split is None:
        return sites
    if len(sites) != 1:
        raise ConfigError(f"--split divides one set into sites, but {folder} holds {len(sites)}")
    loader = partial(read_picture, max_pixels=config.max_pixels)  # as `load_data` does
    return split_site(sites[0], parse_split(config.split), config.seed, loader=loader)


def find_doubtful(
    data: Path,
    out: Path,
    config: TrainConfig,
    cache: DescriptorCache | None,
    progress: Progress,
) -> dict[str, float]:
    """Doubtful normal images of all sites, by their paths in `data`, the least likely first.

    Each is compared with the others of its own site. The values are scores in multiples of the
    site's median. out: a picture of the first 48, not written where there is none. Raises
    `ConfigError` when `out` lies among the images or memory rows are no real patches.
    """
    if not config.keeps_patches:
        raise ConfigError("--suspects needs a memory of real patches, as --method feddymem has")
    sites = training_sites(data, config)
    guard_output_file(out, "--suspects", data=data, sites=sites, own=OWN_PNG)
    extractor = FeatureExtractor(config.features(), cache)
    features = warm_up(sites, extractor, config.max_bad, progress)
    stage = Stage(progress, "suspects", sum(map(len, features.values())))
    memory = config.memory(extractor.grid[2])
    found = []
    for i, (_, own) in enumerate(sorted(features.items())):
        for doubt in doubts(own, memory, seed=site_seed(config.seed, i), on_image=stage):
            path = own.paths[doubt.index]
            file = path.relative_to(data) if path.is_relative_to(data) else path
            found.append(DoubtfulImage(path, file.as_posix(), doubt.times, doubt.map))
    found.sort(key=lambda one: -one.times)
    if found:
        title = f"{len(found)} doubtful of {sum(map(len, features.values()))} normal images"
        doubt_sheet(found[:_SHOWN], out, title=title)
    return {one.file: one.times for one in found}
