"""Doubtful normal images of a data folder, as a picture and a list for a person."""

from __future__ import annotations

from pathlib import Path

from fedvad.data.folders import read_data
from fedvad.data.outputs import OWN_PNG
from fedvad.data.sets import ImageSet, Site
from fedvad.data.split import parse_split, split_site
from fedvad.detectors.memory.doubts import doubts
from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.report.doubt_sheet import DoubtfulImage, doubt_sheet
from fedvad.runs.data import warm_up
from fedvad.runs.guards import guard_output_file
from fedvad.runs.plan import site_seed
from fedvad.runs.progress import Progress, Stage
from fedvad.runs.train_config import TrainConfig

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
    return split_site(sites[0], parse_split(config.split), config.seed)


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
