"""Declarations of all options of `train`: one per option, from which everything else is made."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from fedvad.detectors.memory.metric_loss import LossMode, MetricLossConfig
from fedvad.detectors.memory.site import ROUNDS, Anchors, FedDyMemConfig, Reduce, Update
from fedvad.detectors.scoring import MapMode, ScoringConfig
from fedvad.evaluation.thresholds import LOWEST_FPR
from fedvad.memory.neighbours import SearchMode
from fedvad.runs.option import names_of, option
from fedvad.runs.options_sums import SumsOptions
from fedvad.runs.student_config import StudentOptions

Reference = Literal["global", "local", "union"]
ThresholdRule = Literal["federated", "own"]
TARGET_FPR = 0.01
CALIBRATION_IMAGES = 128
COMPARISONS = ("local", "pooled", "identity")

_memory = partial(option, group="Memory")
_privacy = partial(option, group="Privacy")
_generator = partial(option, group="Generator")
_scoring = partial(option, group="Scoring")
_thresholds = partial(option, group="Thresholds")
_run = partial(option, group="Run", common=True)


class DeclaredOptions(SumsOptions):
    """Every option of a training run, in the order of a configuration file."""

    reduce: Reduce = _memory(
        FedDyMemConfig.reduce,
        "How a site's patches become memory rows: a representative selection (coreset), averages "
        "of similar patches (cluster), or averages by patch position (position, with update ema).",
    )
    pull: float = _memory(
        FedDyMemConfig.pull,
        "How far a selected patch vector is moved to the average of the patches that it stands "
        "for: 0 sends the patches themselves, 1 the averages.",
        ge=0,
        le=1,
    )
    update: Update = _memory(
        FedDyMemConfig.update,
        "What a site adds in each round: the patches least like anything in the memory (grow), or "
        "moved versions of the rows of round 1 (ema).",
    )
    ema: float = _memory(
        FedDyMemConfig.ema,
        "Share of a row's old value that a round with update ema keeps.",
        ge=0,
        lt=1,
    )
    candidates: float = _memory(
        ROUNDS * FedDyMemConfig.candidates,
        "Share of all patches from which memory rows are chosen, over the whole run; each round "
        "draws an equal part.",
        default_text="0.5; 0.25 for patchcore",
        gt=0,
        le=1,
    )
    candidate_bytes: int = _memory(
        FedDyMemConfig.candidate_bytes,
        "Greatest size of the patches drawn at a site in one round, whatever the number of images.",
        unit="bytes",
        ge=1,
    )
    projection: int | None = _memory(
        FedDyMemConfig.projection,
        "Random dimensions in which memory rows are chosen. As many as a patch vector has, or "
        "more, uses all of them.",
        ge=1,
    )
    min_count: int = _privacy(
        FedDyMemConfig.min_count,
        "Number of different images that every memory row must be an average of. More than 1 "
        "needs reduce cluster or position, or pull 1.",
        unit="images",
        ge=1,
    )
    clip: float | None = _privacy(
        None,
        "Bound of the root-mean-square length of an image's patch vectors, for the Gaussian "
        "mechanism; with reduce position only.",
        gt=0,
        example=1.0,
    )
    noise: float = _privacy(
        FedDyMemConfig.noise,
        "Standard deviation of the added noise, in multiples of the most that one image can "
        "change. Needs clip.",
        ge=0,
    )
    delta: float = _privacy(
        1e-5, "Delta at which the privacy loss epsilon is reported.", gt=0, lt=1
    )
    train_generator: bool = _generator(
        FedDyMemConfig.train,
        "Train at each site a linear map (the memory generator), through which it then sees its "
        "patch vectors and the rows of every memory.",
    )
    anchors: Anchors = _generator(
        FedDyMemConfig.anchors,
        "Memory that the generator pulls normal patches to, from round 2 on.",
    )
    loss: LossMode = _generator(
        MetricLossConfig.loss,
        "Loss function of the generator: attraction to the nearest rows and repulsion from the "
        "next ones (hypersphere), attraction only (attract_only), distance to the nearest row "
        "(center), or InfoNCE on cosine similarities (infonce).",
    )
    epochs: int = _generator(
        MetricLossConfig.epochs, "Epochs of the generator's training in each round.", ge=1
    )
    learning_rate: float = _generator(
        MetricLossConfig.learning_rate, "Learning rate of the generator.", gt=0
    )
    identity_weight: float = _generator(
        MetricLossConfig.identity,
        "Weight of the loss term that keeps the generator close to the identity.",
        ge=0,
    )
    map: MapMode = _scoring(
        ScoringConfig.map,
        "How distances to the memory become an anomaly map: distance to the nearest row (nn1), "
        "weighed by how clearly it is the nearest (cfa), as in PatchCore (patchcore), or in units "
        "of the row's own spread (spread).",
    )
    density: float = _scoring(
        ScoringConfig.density,
        "Strength of the density correction: anomaly distances are divided by the local distance "
        "between memory rows to this power. 0 switches it off. Heat maps take at most 0.5.",
        ge=0,
        le=1,
    )
    density_neighbours: int = _scoring(
        ScoringConfig.density_neighbours,
        "Number of neighbouring memory rows that the local distance is measured on.",
        ge=1,
    )
    smooth: int = _scoring(
        ScoringConfig.smooth,
        "Side of the mean filter over the anomaly map, in cells; an odd number, 1 for no filter.",
        ge=1,
        common=True,
    )
    top: float = _scoring(
        ScoringConfig.top,
        "Share of the cells of the anomaly map that make the image score, which is the mean of "
        "the highest ones. 0 takes the maximum.",
        ge=0,
        le=1,
        common=True,
    )
    top_cells: int = _scoring(
        ScoringConfig.top_cells,
        "Greatest number of cells that top takes, so that a larger image does not dilute a small "
        "defect.",
        unit="cells",
        ge=1,
    )
    search: SearchMode = _scoring(
        ScoringConfig.search, "How nearest memory rows are searched: exactly, or faster."
    )
    reference: Reference = _scoring(
        "global",
        "Memory that scores the images of a site: that of all sites (global), its own (local) or "
        "both together (union).",
        default_text="global; union with defence robust",
    )
    target_fpr: float = _thresholds(
        TARGET_FPR,
        "Wanted false-alarm rate: the share of normal images that may be called anomalous.",
        ge=LOWEST_FPR,
        le=0.5,
        everyday=True,
        common=True,
    )
    calibration: Literal["auto", "leave-one-out", "holdout", "none"] = _thresholds(
        "auto",
        "Normal images whose scores set the threshold: training images scored without their own "
        "rows (leave-one-out), images kept out of the memory (holdout), or none. auto takes "
        "leave-one-out where memory rows are real patches.",
    )
    calibration_images: int = _thresholds(
        CALIBRATION_IMAGES,
        "Greatest number of normal images of a site that leave-one-out scores.",
        unit="images",
        ge=3,
    )
    holdout: float = _thresholds(
        0.2,
        "Share of the normal images that calibration holdout keeps out of the training.",
        gt=0,
        lt=1,
        common=True,
    )
    threshold_rule: ThresholdRule = _thresholds(
        "federated",
        "Whether the upper end of a site's normal scores is estimated from the scores of all "
        "sites (federated) or from its own alone (own).",
        default_text="federated; own with defence robust",
        common=True,
    )
    shared_threshold: bool = _thresholds(
        False,
        "Use one threshold for all sites, from the sum of their histograms of normal scores; for "
        "sites with too few normal images. Not with signed files.",
        common=True,
    )
    student: StudentOptions = Field(
        default_factory=StudentOptions, description="Options of student methods."
    )
    compare: tuple[str, ...] = _run(
        (),
        "Baselines to measure too, separated by commas: each site alone (local), all images in "
        "one place (pooled), no trained generator (identity).",
        choices=COMPARISONS,
        everyday=True,
        free=True,
        own=True,
        example=["local", "pooled"],
    )
    seed: int = _run(0, "Seed of every random choice.", ge=0, lt=2**31, everyday=True)
    jobs: int = _run(
        2,
        "Number of sites that are computed at a time. Results do not depend on it.",
        ge=1,
        everyday=True,
        free=True,
        own=True,
    )


# what may differ between an interrupted run and its --resume: ways to the same numbers
FREE_ON_RESUME = names_of(DeclaredOptions, lambda option: option.free)
# what each site decides for itself in a federation of real machines
OWN_OF_SITE = names_of(DeclaredOptions, lambda option: option.own)
# what means something to every method
COMMON_OPTIONS = names_of(DeclaredOptions, lambda option: option.common)
