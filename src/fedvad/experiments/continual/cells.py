"""One cell: a method learns a stream with one seed, task by task, and can continue later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from fedvad._version import __version__
from fedvad.continual.banks import BankKind, BankLearner
from fedvad.continual.base import Learner, Task
from fedvad.continual.memory import ReplayMemory
from fedvad.continual.students import StudentLearner
from fedvad.data.folders import Site
from fedvad.detectors.base import Scores
from fedvad.detectors.registry import create
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.training import TrainConfig
from fedvad.errors import ArtefactError, ConfigError
from fedvad.evaluation.metrics import f1_max_oracle, image_auroc
from fedvad.evaluation.pixels import pixel_figures
from fedvad.evaluation.sites import evaluate_site
from fedvad.experiments.continual.stream import Method
from fedvad.experiments.store import Cell
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.names import brings_weights
from fedvad.runs.data import digest_of

log = logging.getLogger(__name__)
# changes where what is kept of a finished cell would be another one now
_SCHEMA = 2

FIGURES = ("image_auroc", "image_f1", "pixel_auroc", "pixel_f1", "pixel_ap", "aupro")


@dataclass(frozen=True)
class CellContext:
    """Where a cell keeps its work, and what it needs from outside."""

    path: Path
    weights: Mapping[str, Path]
    cache: DescriptorCache | None

    @property
    def detector_path(self) -> Path:
        """The file of the finished detector, next to the cell."""
        return self.path.with_suffix(".detector.safetensors")

    def weights_of(self, backbone: str) -> Path | None:
        """A backbone's own weights file, or the one for any that needs one."""
        own = self.weights.get(backbone)
        return own if own is not None or brings_weights(backbone) else self.weights.get("")


def run_cell(
    method: Method,
    sites: Sequence[Site],
    seed: int,
    where: CellContext,
    on_task: Callable[[], None],
) -> dict[str, Any]:
    """Learn the tasks in order; `on_task` is called after each. What was learned is checkpointed
    after every task, and a cell begun earlier with the same options continues from there.

    rows[t][j]: figures of task j after task t. costs[t]: bytes kept after task t.
    """
    learner = make_learner(method, seed, where)
    cell = Cell(where.path, _identity(method, sites, seed, learner))
    record = _resume(cell, learner)
    if record is None:
        learner = make_learner(method, seed, where)  # a damaged checkpoint may have left traces
        record = {"rows": [], "pooled": [], "costs": [], "logs": []}
    groups = [[site] for site in sites]
    if method.strategy == "joint" and not method.is_bank:
        groups = [list(sites)]
    for t, group in enumerate(groups):
        if t < len(record["rows"]):
            on_task()
            continue
        start = perf_counter()
        facts = learner.learn([Task(site.name, site.train) for site in group])
        learned = perf_counter()
        seen = [site for earlier in groups[: t + 1] for site in earlier]
        row, pooled = _evaluate(method, learner, seen, record["rows"])
        record["rows"].append(row)
        record["pooled"].append(pooled)
        record["costs"].append(learner.cost().as_dict())
        record["logs"].append(
            facts | {"seconds": learned - start, "evaluation_seconds": perf_counter() - learned}
        )
        if t == len(groups) - 1 and method.strategy != "single":  # one detector for all tasks
            learner.detector(group[-1].name).save(where.detector_path)
        arrays, values = learner.state()
        cell.keep(record | {"learner": values}, arrays)
        on_task()
    return record


def make_extractor(method: Method, where: CellContext) -> FeatureExtractor:
    """The features of a method."""
    features = method.features
    config = FeatureConfig(
        features.backbone,
        weights=where.weights_of(features.backbone),
        image_size=features.image_size,
        layers=features.layers,
        engine=features.engine,
        device=features.device,
    )
    return FeatureExtractor(config, where.cache)


def make_learner(method: Method, seed: int, where: CellContext) -> Learner:
    """The untrained learner of a method; raises `ConfigError` for options that do not fit it."""
    features, extractor = method.features, make_extractor(method, where)
    try:
        if method.is_bank:
            budget: dict[str, Any] = {} if method.budget is None else {"budget": method.budget}
            kind = cast(BankKind, method.detector)
            return BankLearner(extractor, kind=kind, seed=seed, **budget, **method.options)
        settings = method.train.model_dump(exclude={"held_out", "carry_optimiser"})
        detector = create(
            method.detector,
            extractor=extractor,
            layers=features.layers,
            train=TrainConfig(patience=None, **settings),
            held_out=method.train.held_out,
            # as the streams were measured: the highest cell of the map as it is
            **{"smooth": 1, "top": 0.0, "seed": seed, **method.options},
        )
    except TypeError as error:
        raise ConfigError(f"method {method.name!r}: {error}") from error
    assert isinstance(detector, StudentDetector)
    memory = None
    if method.codec is not None:
        memory = ReplayMemory(
            method.codec,
            slots=method.slots,
            budget=method.budget,
            remainder=method.remainder,
            seed=seed,
        )
    return StudentLearner(
        detector,
        strategy=method.strategy,
        memory=memory,
        carry_optimiser=method.train.carry_optimiser,
        top_features=method.top_features,
    )


def _evaluate(
    method: Method, learner: Learner, seen: Sequence[Site], before: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures by task, and over the images of all tasks under one threshold."""
    row: dict[str, Any] = {}
    scores, labels = [], []
    for site in seen:
        alone = method.strategy == "single" and not method.is_bank
        if alone and site is not seen[-1]:
            row[site.name] = before[-1][site.name]  # its own student has not changed
            continue
        found = learner.detector(site.name).score(site.test.paths)
        row[site.name] = _figures(site, found, method.features.image_size)
        scores.append(found.image)
        labels.append(site.test.subset(found.kept.tolist()).labels)
    values, marks = np.concatenate(scores), np.concatenate(labels)
    if len(scores) < len(seen):
        return row, {}
    f1 = f1_max_oracle(values, marks)
    return row, {
        "image_auroc": image_auroc(values, marks),
        "image_f1": None if f1 is None else f1[0],
    }


def _figures(site: Site, scores: Scores, image_size: int) -> dict[str, float | None]:
    result = evaluate_site(site.name, site.test, scores, None, image_size=image_size)
    pixel = None
    if result.truth is not None and result.truth.usable:
        pixel = pixel_figures(result.truth.pairs(scores.maps))
    return {
        "image_auroc": result.image_auroc,
        "image_f1": result.oracle_f1,
        "pixel_auroc": result.pixel_auroc,
        "pixel_f1": None if pixel is None else pixel.oracle_f1,
        "pixel_ap": None if pixel is None else pixel.average_precision,
        "aupro": result.aupro,
    }


def _identity(method: Method, sites: Sequence[Site], seed: int, learner: Learner) -> dict[str, Any]:
    values = method.model_dump(mode="json", exclude={"codec"})
    values["codec"] = None if method.codec is None else asdict(method.codec)
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "method": values,
        "seed": seed,
        "tasks": [site.name for site in sites],
        "images": digest_of([item for site in sites for item in (*site.train, *site.test)]),
        "features": learner.extractor.config.identity(),
    }


def _resume(cell: Cell, learner: Learner) -> dict[str, Any] | None:
    """The record up to the last task, with the learner restored to it; None to start over."""
    stored = cell.load()
    if stored is None:
        return None
    try:
        learner.restore(stored.arrays, stored.record["learner"])
        return {key: stored.record[key] for key in ("rows", "pooled", "costs", "logs")}
    except (ValueError, KeyError, TypeError, ArtefactError) as error:
        log.warning("%s is damaged, starting from the beginning: %s", cell.path, error)
        return None
