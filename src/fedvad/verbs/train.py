"""`train`: from a folder of sites to a run folder, with everything measured on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from fedvad.data.contents import described
from fedvad.data.cubes.pixels import size_of_cubes
from fedvad.data.locks import only_one
from fedvad.data.region import Region
from fedvad.data.sealed import read_sealed, sha256_of
from fedvad.data.sets import Site
from fedvad.data.view_choice import USUAL_SIZE, Sizes, choose_size, sizes_of
from fedvad.data.views import is_plain
from fedvad.errors import ConfigError, join_names
from fedvad.evaluation.results import Results
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import SPECTRAL
from fedvad.federation.ledger import Ledger
from fedvad.federation.mailboxes.state import clear_state, has_state
from fedvad.runs.config import FREE_ON_RESUME, TrainConfig, at_size
from fedvad.runs.data import data_of, digest_of, fingerprint, load_data
from fedvad.runs.families import method_class
from fedvad.runs.guards import guard_output_folder
from fedvad.runs.method import compare, make_method
from fedvad.runs.plan import check_join
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.run_bands import keep_bands
from fedvad.runs.run_folder import (
    BEFORE,
    DETECTOR_FILE,
    EARLIER_THRESHOLDS_FILE,
    RESULTS_FILE,
    check_configuration,
    keep_region,
    read_config,
    read_ledger,
    read_results,
    write_config,
)
from fedvad.runs.scoring import ANY_SHARE, score_sites
from fedvad.verbs.outputs import Fitted, write_outputs

log = logging.getLogger(__name__)


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    cache: DescriptorCache | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Results:
    """Train a federated detector on the sites of `data`, write the run folder, return results.

    The returned results are what `--json` prints and `results.json` holds. State is kept after
    every round, so that an interrupted run continues with `resume`; of a finished one, `resume`
    returns the results that it has, unless more comparisons are asked for. Raises `ConfigError`
    (also when another process works on `out`), `DataError`, `FederationError` (see
    `fedvad.errors`).
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose another --out")
    with only_one(out):  # before looking at what is there: nobody else writes it from now on
        return _train(data, out, config, cache, resume, progress)


def _train(
    data: Path,
    out: Path,
    config: TrainConfig,
    cache: DescriptorCache | None,
    resume: bool,
    progress: Progress,
) -> Results:
    config = _as_before(out, config) if resume else config
    config = method_class(config.method).viewed(config)
    _prepare(out, config, resume)
    names = config.label_names()
    reading, sites = load_data(
        data, config.split, config.seed, names, image_size=config.image_size,
        max_pixels=config.max_pixels, region=config.region,
    )  # fmt: skip
    config, sizes = _settled(config, reading.sites)
    config = keep_region(out, config)
    guard_output_folder(out, "--out", data=data, sites=sites)
    check_join(config, [site.name for site in sites])
    config = keep_bands(out, config, sites, progress, resume=resume)
    ledger = Ledger(
        images={site.name: digest_of(site.train) for site in sites}, options=_options(config)
    )
    if resume and (done := _finished(out, config, ledger.images)) is not None:
        clear_state(out / "state")  # a kill may have left a part of it
        log.info("%s is complete already: nothing was run", out)
        return done
    extractor = FeatureExtractor(config.features(), cache)
    if sizes:
        reading = reading.noted([_size_note(sizes, extractor)])
    reading = reading.noted(_tiles_note(extractor))
    with closing(make_method(config, extractor)) as method:
        with ledger.phase("features"):
            method.read(sites, progress)
        ledger.images_computed, before = method.images_read, extractor.computed
        write_config(out, config)
        run = method.train(
            ledger,
            data=fingerprint(data, names),
            state_dir=out / "state",
            resume=resume,
            progress=progress,
        )
        with ledger.phase("calibrate"):
            own_normals = method.calibrate(run, progress)
        run.save(out)
        with ledger.phase("score"):
            results = score_sites(run, sites, extractor, max_bad=ANY_SHARE, progress=progress)
            comparisons = compare(method, sites, results, progress)
        copies = method.copies
        fitted = Fitted(run, method.n_images, method.unreadable, own_normals)
    ledger.images_computed += extractor.computed - before
    least = "and three that clearly differ are the least"
    if method_class(config.method).sends_weights:
        least = "a fifth of which set it, three that clearly differ at least: give 15 or more"
    reading = reading.noted(
        f"{site.name}: no threshold, so no decisions: training has {described(site.train.paths)}, "
        f"{least}"
        for site in sites
        if run.threshold(site.name) is None and config.calibration_mode != "none"
    )
    reading = reading.noted(
        f"{name}: {count} training image{'s are near copies' * (count != 1)}"
        f"{' is a near copy' * (count == 1)} of others (saved again, moved by a pixel): learned "
        "from, but not counted in what the threshold promises"
        for name, count in copies.items()
    )
    if unread := fitted.unreadable:
        reading = reading.noted(
            [f"{len(unread)} training image{'s' * (len(unread) != 1)} cannot be read: {unread[0]}"]
        )
    summary = write_outputs(
        out, config, fitted, results, comparisons, ledger, data_of(reading, results)
    )
    clear_state(out / "state")
    return summary


def _as_before(out: Path, config: TrainConfig) -> TrainConfig:
    """With the size that the run to continue found for its images, and its copy of the mask."""
    if not (out / "config.json").is_file():
        return config
    before = read_config(out)
    if not is_plain(config.image_size):
        config = at_size(config, before.image_size)
    if config.region and before.region and Region.of(config.region) == Region.of(before.region):
        config = config.model_copy(update={"region": before.region})
    return config


def at_settled_size(config: TrainConfig, sites: Sequence[Site]) -> TrainConfig:
    """With the size at which `train` would read the images of these sites."""
    return _settled(method_class(config.method).viewed(config), sites)[0]


def _settled(config: TrainConfig, sites: Sequence[Site]) -> tuple[TrainConfig, Sizes | None]:
    """With the size at which images are read, and theirs where it followed from them."""
    if is_plain(config.image_size):
        return config, None
    if config.backbone == SPECTRAL and config.image_size == "auto":
        return at_size(config, size_of_cubes(sites)), None
    sizes = sizes_of(sites)
    size = choose_size(config.image_size, sizes, tiled=config.tiles is not None)
    return at_size(config, size), None if size == USUAL_SIZE else sizes


def _size_note(sizes: Sizes, extractor: FeatureExtractor) -> str:
    """At which size images are read, and what that costs; also logged."""
    config, view = extractor.config, extractor.config.view
    tiles = "" if config.tiles is None else f" in tiles of {config.tiles}"
    whole = view.height >= sizes.height and view.width >= sizes.width
    note = (
        f"{sizes.words()}: read at {config.image_size}{tiles}, about {extractor.seconds():.2g} s "
        f"per image (--image-size chooses{'' if whole else ', --tiles 512 reads every pixel'})"
    )
    log.warning("%s", note)
    return note


def _tiles_note(extractor: FeatureExtractor) -> list[str]:
    """That tiles change nothing, where one covers an image; also logged."""
    tiles, view = extractor.config.tiles, extractor.config.view
    if tiles is None or tiles < max(view.height, view.width):
        return []
    note = (
        f"tiles of {tiles} pixels are no smaller than the images as they are read ({view.height} x "
        f"{view.width} pixels) and have no effect: omit --tiles, or raise --image-size"
    )
    log.warning("%s", note)
    return [note]


def _finished(out: Path, config: TrainConfig, images: Mapping[str, str]) -> Results | None:
    """Results of a run that is over, if it is.

    Raises `ConfigError` when it was one of other images, and where training again for further
    comparisons would undo what changed since; `ArtefactError` when it is damaged.
    """
    there = [(out / name).is_file() for name in (DETECTOR_FILE, RESULTS_FILE)]
    if has_state(out / "state") or not any(there):
        return None
    run = Run.load(out)
    if not all(there):
        raise ConfigError(
            f"{out} holds a run without {RESULTS_FILE}, which fedvad forget removes: measure it "
            f"with fedvad evaluate {out} DATA, or choose another --out"
        )
    before = read_ledger(out).images
    changed = sorted(
        name for name in {*before, *images} if before and images.get(name) != before.get(name)
    )
    if changed:
        raise ConfigError(
            f"{out} is a finished run of other training images (sites {join_names(changed)}): let "
            f"the new ones join it with fedvad update {out} DATA, or choose another --out"
        )
    results = read_results(out)
    # as the results say: a run that was killed while it made more has them in its configuration
    if not set(config.compare) - set(results.compare):
        return results
    if results.of_evaluate or _was_changed(out, run):
        raise ConfigError(
            f"{out} was changed after its training (calibrate, feedback, update or forget), and "
            "to compare more it would be trained again without that: choose another --out"
        )
    return None


def _was_changed(out: Path, run: Run) -> bool:
    """Whether thresholds, answers or images came into a finished run."""
    earlier = out / EARLIER_THRESHOLDS_FILE
    return bool(
        (earlier.is_file() and read_sealed(earlier).get("calibrations"))
        or any(getattr(site, "answers", ()) for site in run.sites.values())
        or any(out.glob(BEFORE.format("*")))
    )


def _options(config: TrainConfig) -> str:
    """Digest of all that an interrupted run and its --resume must share."""
    # without defaults: an option that a later version adds must not end a run begun before
    if config.image_size == USUAL_SIZE:  # the default before it followed from the images
        config = at_size(config, "auto")
    options = config.model_dump_json(exclude=set(FREE_ON_RESUME), exclude_defaults=True)
    return sha256_of(options.encode())


def _prepare(out: Path, config: TrainConfig, resume: bool) -> None:
    if resume:
        if (out / "config.json").is_file():
            before, now = read_config(out).model_dump(), config.model_dump()
            changed = [k for k in now if k not in FREE_ON_RESUME and before[k] != now[k]]
            if changed:
                raise ConfigError(
                    f"--resume needs the configuration that {out} was started with; different: "
                    + ", ".join(f"{k} ({before[k]!r}, now {now[k]!r})" for k in changed)
                )
        return
    check_configuration(out)
    if (out / DETECTOR_FILE).exists() or (out / "state").exists():
        raise ConfigError(
            f"{out} already holds a run: choose another --out, remove it, or continue with --resume"
        )
