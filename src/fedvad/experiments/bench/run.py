"""`bench`: every cell of a suite once, resumable, then tables and plots of all of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache as kept
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedvad._version import __version__
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.files import write_atomically
from fedvad.data.folders import Site, read_set
from fedvad.data.images import resize_rgb
from fedvad.data.labels import LabelNames
from fedvad.data.locks import only_one
from fedvad.detectors.student.cost import descriptor_macs
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError, FedvadError, ImageError
from fedvad.evaluation.trivial import STATISTICS, trivial_aurocs, trivial_statistics
from fedvad.experiments.bench.cells import Prepared, run_cell
from fedvad.experiments.bench.suite import BenchMethod, BenchSet, Suite, load_suite
from fedvad.experiments.bench.summary import summarise_bench
from fedvad.experiments.store import Cell, cell_path
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import is_backbone_file
from fedvad.report.bench_tables import bench_markdown, bench_rows
from fedvad.report.plots import plot_bench
from fedvad.report.tables import write_csv
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import TrainConfig, as_path
from fedvad.runs.data import digest_of, fingerprint, load_set, load_sites, warm_up
from fedvad.runs.guards import guard_plain_folder
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run_bands import keep_bands
from fedvad.runs.run_folder import write_json

__all__ = ["bench"]

log = logging.getLogger(__name__)
_SCHEMA = 2
_TRIVIAL_SIZE = 256
_Key = tuple[str, str, int]


def bench(
    suite: AnyPath | Suite,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
    cache: AnyCache | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare methods over sets and seeds under one protocol; tables and plots in `out`.

    An interrupted bench continues where it stopped: a finished cell (one method, set and seed) is
    kept in `out`/cells and used again as long as options, seed and fedvad version are the same.
    Missing sets and failed cells are named in the summary and in the tables; the others continue.

    Parameters
    ----------
    suite : str, path or Suite
        Shipped name, TOML file, or what `load_suite` read.
    out : path
        Folder; what is finished in it is not computed again.
    data, weights, cache : path, optional
        Folder of the suite's sets, file of the backbone's weights, folder of descriptors.
    seeds : ints, optional
        Instead of the suite's.
    methods : str, several, optional
        Some of the suite's.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        The summary, as it is written into `out`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    Some minutes:

    >>> import fedvad
    >>> summary = fedvad.bench("demo", "bench", seeds=[0])  # doctest: +SKIP
    """
    progress = progress or no_progress
    chosen = suite if isinstance(suite, Suite) else load_suite(suite)
    chosen = chosen.only(seeds=seeds, methods=methods)
    out, data, weights = as_path(out, "out"), maybe(data, "data"), maybe(weights, "weights")
    cache = cache_at(cache)
    guard_plain_folder(out, "--out", [] if data is None else [data])
    with only_one(out):
        cells: dict[_Key, dict[str, Any]] = {}
        trivial: dict[str, Any] = {}
        missing: dict[str, str] = {}
        failed: dict[str, str] = {}
        backbones: set[str] = set()
        stage = Stage(progress, "cells", len(chosen.sets) * len(chosen.seeds) * len(chosen.methods))
        for item in chosen.sets:
            reason = _missing(item, data)
            if reason:
                log.warning("skipping set %s: %s", item.name, reason)
                missing[item.name] = reason
                continue
            source = _source(item, data, out, chosen)
            try:
                trivial[item.name] = _trivial(item, source, chosen, out, weights)
            except FedvadError as error:
                failed[f"{item.name} / trivial statistics"] = str(error)
            for seed in chosen.seeds:
                shared: dict[str, Prepared] = {}
                for method in chosen.methods:
                    key = (item.name, method.name, seed)
                    config = chosen.config(method, item.split, seed, weights)
                    try:
                        cells[key] = _cell(key, config, source, method, chosen, out, cache, shared)
                        backbones.add(config.backbone)
                    except FedvadError as error:
                        log.warning("cell %s failed: %s", " / ".join(map(str, key)), error)
                        failed[" / ".join(map(str, key))] = str(error)
                    stage()
        if not cells:
            reasons = "; ".join([f"{k}: {v}" for k, v in (missing | failed).items()][:3])
            raise ConfigError(f"suite {chosen.name}: nothing could be run ({reasons})")
        summary = summarise_bench(chosen, cells) | {
            "version": __version__,
            "backbones": sorted(backbones),
            "trivial": trivial,
            "skipped": missing,
            "failed": failed,
        }
        _write(out, summary)
        return summary


@dataclass(frozen=True)
class _Source:
    """Where a set's images are: one folder, or one for each site."""

    name: str
    root: Path
    sites: Mapping[str, Path]
    names: LabelNames

    def read(self, config: TrainConfig) -> list[Site]:
        if self.sites:
            return [read_set(folder, name, self.names) for name, folder in self.sites.items()]
        return load_sites(
            self.root, config.split, config.seed, self.names, max_pixels=config.max_pixels
        )

    @cached_property
    def images(self) -> str:
        """`digest_of` all images, looked at once; how they are split is in the configuration."""
        if not self.sites:
            return fingerprint(self.root, self.names)
        sites = [load_set(folder, name, self.names) for name, folder in self.sites.items()]
        return digest_of([item for site in sites for item in (*site.train, *site.test)])


def _missing(item: BenchSet, data: Path | None) -> str:
    if item.folders and data is None:
        return "needs --data, the folder that holds the sets"
    absent = [str(data / f) for f in item.folders if data and not (data / f).is_dir()]
    return f"no folder {', '.join(absent)}" if absent else ""


def _source(item: BenchSet, data: Path | None, out: Path, suite: Suite) -> _Source:
    good, defect = (_several(suite.options.get(key, ())) for key in ("good", "defect"))
    # a set is of pictures or of cubes, as the suite's methods take one or the other
    configs = [suite.config(method, item.split, suite.seeds[0]) for method in suite.methods]
    names = LabelNames(good, defect, cubes=any(c.label_names().cubes for c in configs))
    if item.sites and data is not None:
        return _Source(item.name, data, {name: data / f for name, f in item.sites.items()}, names)
    if item.path is not None and data is not None:
        return _Source((data / item.path).name, data / item.path, {}, names)
    drawn = out / "demo-data"
    if not (drawn / ".done").is_file():
        write_demo(drawn, size=128, seed=0)
        (drawn / ".done").touch()
    return _Source(drawn.name, drawn, {}, names)


def _several(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _cell(
    key: _Key,
    config: TrainConfig,
    source: _Source,
    method: BenchMethod,
    suite: Suite,
    out: Path,
    cache: DescriptorCache | None,
    shared: dict[str, Prepared],
) -> dict[str, Any]:
    identity = _identity(config, method, source, suite.convergence)
    cell = Cell(cell_path(out / "cells", *key), identity)
    if (stored := cell.load()) is not None:
        return stored.record
    config = _with_bands(config, source, out)
    prepared = _prepared(config, source, cache, shared)
    result = run_cell(method, config, prepared, convergence=suite.convergence, progress=no_progress)
    log.info("%s: image AUROC %s", key, result["image_auroc"]["mean"])
    return cell.keep(result).record


def _identity(
    config: TrainConfig, method: BenchMethod, source: _Source, convergence: bool
) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude={"jobs", "weights", "engine", "device"})
    files = [config.weights, Path(config.backbone) if is_backbone_file(config.backbone) else None]
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "kind": method.kind,
        "config": values,
        "files": [_content(file) for file in files],
        "data": source.name,
        "images": source.images,
        "convergence": convergence,
        **({"parts": {n: f.name for n, f in source.sites.items()}} if source.sites else {}),
    }


def _content(file: Path | None) -> str | None:
    # what is missing is reported when the cell is run
    return _digest(file, file.stat().st_mtime_ns) if file is not None and file.is_file() else None


@kept
def _digest(file: Path, changed: int) -> str:
    """SHA-256 of a file, read once for as long as it stays as it is."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _trivial(
    item: BenchSet, source: _Source, suite: Suite, out: Path, weights: Path | None
) -> dict[str, Any]:
    """AUROC of trivial statistics on the test images, split as for the first seed."""
    seed = suite.seeds[0]
    config = suite.config(suite.methods[0], item.split, seed, weights)
    identity = {"schema": _SCHEMA, "images": source.images, "split": item.split, "seed": seed}
    cell = Cell(cell_path(out / "trivial", item.name, seed), identity)
    if (stored := cell.load()) is not None:
        return stored.record
    sites = {}
    for site in source.read(config):
        values, labels = [], []
        for image in site.test:
            try:
                pixels = read_picture(image.path, max_pixels=config.max_pixels)
            except ImageError:
                continue  # the cells of this set report it
            values.append(trivial_statistics(resize_rgb(pixels, _TRIVIAL_SIZE)))
            labels.append(bool(image.label))
        sites[site.name] = (np.array(values).reshape(-1, len(STATISTICS)), np.array(labels, bool))
    return cell.keep(trivial_aurocs(sites)).record


def _with_bands(config: TrainConfig, source: _Source, out: Path) -> TrainConfig:
    """With the weights of a spectral backbone, from the set's own normal images."""
    if not config.label_names().cubes:
        return config
    folder = out / "bands" / source.images[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return keep_bands(folder, config, source.read(config), no_progress, resume=True)


def _prepared(
    config: TrainConfig, source: _Source, cache: DescriptorCache | None, shared: dict[str, Prepared]
) -> Prepared:
    name = config.features().key()
    if name not in shared:
        sites = source.read(config)
        extractor = FeatureExtractor(config.features(), cache)
        features = warm_up(sites, extractor, config.max_bad, no_progress)
        if cache is not None:  # or the first method's scoring would pay for all others'
            for site in sites:
                for _ in extractor.stream(site.test.paths):
                    pass
        count = descriptor_macs(
            extractor.network, extractor.config.view.input, channels=extractor.bands or 3
        )
        shared[name] = Prepared(sites, features, extractor, float(count))
    return shared[name]


def _write(out: Path, summary: Mapping[str, Any]) -> None:
    write_json(out / "bench.json", dict(summary))
    write_csv(bench_rows(summary), out / "bench.csv")
    write_atomically(out / "bench.md", bench_markdown(summary).encode())
    plot_bench(summary, out / "bench.png")
