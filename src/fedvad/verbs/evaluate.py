"""`evaluate`: a trained run on any sites, also ones that took no part in its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fedvad.data.contents import normals
from fedvad.data.folders import Site
from fedvad.data.labels import LabelNames, Names
from fedvad.data.outputs import OWN_PNG
from fedvad.data.reading import DataReading
from fedvad.detectors.base import Detector
from fedvad.detectors.calibration import choose_images
from fedvad.errors import DataError, FedvadError
from fedvad.evaluation.drift import drift
from fedvad.evaluation.results import Costs, DriftFigures, Results
from fedvad.evaluation.sites import SiteResult, summarise
from fedvad.evaluation.thresholds import Threshold
from fedvad.features.config import Engine
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.report.contact_sheet import contact_sheet
from fedvad.report.verdict import verdict
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import Reference, TrainConfig, as_path, check_reference, check_share
from fedvad.runs.data import data_of, digest_of, fingerprint, load_data
from fedvad.runs.guards import check_order, guard_output_file, guard_output_folder
from fedvad.runs.method import make_method
from fedvad.runs.opening import open_run
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_ledger
from fedvad.runs.scoring import score_with
from fedvad.runs.tradeoff import tradeoff
from fedvad.verbs.outputs import keep_evaluation, keeps_evaluation, panels

__all__ = ["evaluate"]

log = logging.getLogger(__name__)


def evaluate(
    run: AnyPath,
    data: AnyPath,
    *,
    reference: Reference | None = None,
    weights: AnyPath | None = None,
    max_pixels: int | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    max_bad: float | None = None,
    cache: AnyCache | None = None,
    heatmaps: AnyPath | None = None,
    out: AnyPath | None = None,
    good: Names = (),
    defect: Names = (),
    progress: Progress | None = None,
) -> Results:
    """Measure a run on labelled images, including those of sites that never trained.

    A site of the run uses its own memory and threshold. A site that never trained uses what all
    sites share. Its threshold is, in this order: that of a site of the run which trained on exactly
    the same images; one found from the normal training images in its folder; the median of the
    run's thresholds. If `data` holds the images of the training, they are split as they were then.

    The report and what it needs go to `out`. Without `out` they go to the run folder, unless that
    holds the results of a training.

    Parameters
    ----------
    run : path
        Run folder.
    data : path
        Folder of sites, or one set, with test images.
    reference : {"global", "local", "union"}, optional
        Memory to compare with: that of all sites, the site's own, or both. None takes the run's.
    weights : path, optional
        File of the backbone's weights, if it was moved since the training.
    engine : {"openvino", "openvino-bf16", "torch"}, optional
        What computes the backbone; None takes that of the training.
    device : {"cpu", "cuda", "mps"}, optional
        None takes that of the training.
    max_pixels : int, optional
        An image of more pixels counts as unreadable; None takes the limit of the training.
    max_bad : float in [0, 1], optional
        Share of unreadable images tolerated per site; None takes that of the training.
    cache, progress : optional
        As those of `train`.
    heatmaps : path, optional
        PNG file to write with a contact sheet.
    out : path, optional
        Folder for the results and their report.
    good, defect : str or list of str, default=()
        Names of folders with normal images and with defects, beyond `good`.

    Returns
    -------
    Results
        As `train` returns them, without comparisons.

    Raises
    ------
    ConfigError, ArtefactError, DataError, MismatchError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> results = fedvad.evaluate("run", "plants")
    >>> results.threshold.sites["alder"].counts.defects
    4
    """
    progress = progress or no_progress
    run_folder, data = as_path(run, "run"), as_path(data, "data")
    heatmaps, out = maybe(heatmaps, "heatmaps"), maybe(out, "out")
    check_reference(reference)
    check_order(run_folder, [data], "evaluate RUN DATA")
    trained, config, extractor = open_run(
        run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
        cache=cache_at(cache), max_pixels=max_pixels,
    )  # fmt: skip
    if max_bad is not None:
        config = config.model_copy(update={"max_bad": check_share(max_bad, "max_bad")})
    names = LabelNames.of(good, defect, before=config.label_names())
    reading, sites = _sites(data, trained, config, names)
    guard_output_file(
        heatmaps, "--heatmaps", run=run_folder, data=data, sites=sites,
        others=[extractor.config.weights], own=OWN_PNG,
    )  # fmt: skip
    if out is not None:
        guard_output_folder(out, "--out", data=data, sites=sites)
    keeping = keeps_evaluation(run_folder, out)
    new = [site for site in sites if site.name not in trained.sites]
    if new:
        log.info("never trained on: %s", ", ".join(site.name for site in new))
    before = read_ledger(run_folder)
    ledger = Ledger(rounds=before.rounds, images=before.images)
    with ledger.phase("calibrate"):
        thresholds = {
            site.name: _known_threshold(site, trained, ledger.images)
            or _new_threshold(site, trained, config, extractor)
            for site in new
        }

    def for_site(name: str) -> tuple[Detector, Threshold | None]:
        wanted = None if name in thresholds else reference
        return (
            trained.detector(name, extractor, wanted),
            thresholds.get(name) or trained.threshold(name, wanted),
        )

    with ledger.phase("score"):
        results = score_with(for_site, sites, extractor, "scoring", config.max_bad, progress)
    ledger.images_computed = extractor.computed
    if not results:
        raise DataError(f"{data} has no test images: expected test/good and test/<defect> folders")
    ours = summarise(results, target_fpr=config.target_fpr)
    # thresholds may learn from the scores of sites that have no test images here
    limits = {name: trained.threshold(name, reference) for name in trained.sites}
    limits |= {result.name: result.threshold for result in results}
    found = Results.of(
        ours,
        compare={},
        method=trained.method,
        backbone=trained.features.backbone,
        unreadable=[reason for r in results for reason in r.bad],
        data=data_of(reading, results),
        ledger=Costs.model_validate(ledger.summary()),
        reference=reference or trained.reference,
        sites_never_trained_on=[site.name for site in new],
        tradeoff=tradeoff(results, limits),
        drift=_drifts(results),
    )
    found = found.model_copy(update={"verdict": verdict(found)})
    if heatmaps is not None:
        contact_sheet(
            panels(results),
            heatmaps,
            title=f"{run_folder.name} on {data.name}",
            image_size=trained.features.view,
        )
    if keeping is not None:
        try:
            keep_evaluation(run_folder, keeping, found, results)
        except FedvadError as error:  # the figures are worth more than a page about them
            if out is not None:
                raise
            log.warning("the results are not kept for `fedvad report`: %s", error)
    return found


def _drifts(results: Sequence[SiteResult]) -> dict[str, DriftFigures]:
    """By site how normal test images score against the calibration; warns where they drifted."""
    found = {}
    for result in results:
        if result.threshold is None:
            continue
        moved = drift(result.threshold.scores, result.scores[result.test.labels == 0])
        if moved is None:
            continue
        found[result.name] = DriftFigures(**asdict(moved))
        if moved.drifted:
            log.warning(
                "%s: its normal images score %.2f times as high as when its threshold was found "
                "(p = %.1g): something changed, its threshold no longer holds; train again",
                result.name, moved.ratio, moved.p,
            )  # fmt: skip
    return found


def _sites(
    data: Path, run: Run, config: TrainConfig, names: LabelNames
) -> tuple[DataReading, list[Site]]:
    size = run.features.view
    if config.split is not None:
        if fingerprint(data, names) == run.data:
            return load_data(
                data, config.split, config.seed, names, image_size=size,
                max_pixels=config.max_pixels,
            )  # fmt: skip
        log.warning(
            "%s does not hold the images that were split into sites for training: its sites count "
            "as new ones", data,
        )  # fmt: skip
    return load_data(data, None, config.seed, names, image_size=size, allow_empty_train=True)


def _known_threshold(site: Site, run: Run, images: Mapping[str, str]) -> Threshold | None:
    """Of the site of the run, under another name, whose training images these are."""
    digest = digest_of(site.train)
    for name in sorted(run.sites):
        if len(site.train) and images.get(name) == digest:
            log.warning(
                "%s holds the images that %s of this run trained on: its threshold serves",
                site.name, name,
            )  # fmt: skip
            return run.threshold(name, "global")
    return None


def _new_threshold(
    site: Site, run: Run, config: TrainConfig, extractor: FeatureExtractor
) -> Threshold | None:
    known = normals(site.train)
    if not known:
        return None
    chosen = choose_images(len(known), config.calibration_images, config.seed)
    return make_method(config, extractor).new_threshold(
        run.detector(None, extractor), [known[i] for i in chosen], site.name
    )
