"""What answers to alarms do: false alarms and recall against their number, some of them wrong.

    python benchmarks/feedback.py SITES --weights F [--seeds 3] [--rows 500] [--target-fpr 0.1]

SITES is a folder of sites in MVTec's layout. Of each site's test images a random half comes along
one by one, scored by the run as it was trained; who looks at an alarm says whether it was false
("normal") or not ("defect"). The other half is what is measured, with the threshold of the
training, after the numbers of answers in the table. wrong: the share of answers that say the
opposite.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fedvad
from fedvad.data.folders import read_sites
from fedvad.detectors.memory.feddymem import MemoryDetector
from fedvad.features.cache import DescriptorCache, default_cache_root
from fedvad.features.extractor import FeatureExtractor
from fedvad.half import to_float
from fedvad.runs.answers import AnswerValues
from fedvad.runs.config import TrainConfig
from fedvad.runs.feedback import answered, chosen_patches
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.opening import open_memory_run

NUMBERS = (0, 5, 10, 20)
CACHE = DescriptorCache(default_cache_root())


@dataclass(frozen=True, eq=False)
class Case:
    """One site and what happens there."""

    run: TrainedRun
    config: TrainConfig
    extractor: FeatureExtractor
    site: str
    paths: Sequence[Path]
    labels: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_]


def curve(case: Case) -> list[tuple[float, float]]:
    """False-alarm rate and recall on the second half after each number of answers."""
    comes, measured = np.array_split(case.order, 2)
    limit = case.run.threshold(case.site)
    assert limit is not None
    run, given, waiting, found = case.run, 0, list(comes), []
    before = case.run.detector(case.site, case.extractor)
    for number in NUMBERS:
        while given < number and waiting:
            at = waiting.pop(0)
            run, counts = answer(case, before, run, int(at), given, limit.value)
            given += counts
        scores = run.detector(case.site, case.extractor).score([case.paths[i] for i in measured])
        alarms = scores.image > limit.value
        defective = case.labels[measured] == 1
        found.append((float(alarms[~defective].mean()), float(alarms[defective].mean())))
    return found


def answer(
    case: Case, detector: MemoryDetector, run: TrainedRun, at: int, given: int, limit: float
) -> tuple[TrainedRun, bool]:
    """The run after the next image, and whether that was an alarm that was answered."""
    model = run.sites[case.site]
    (image,) = case.extractor.stream([case.paths[at]])
    assert image.descriptors is not None
    score, map_ = detector.scorer.score(to_float(image.descriptors))
    if score <= limit:
        return run, False
    defect = bool(case.labels[at]) != bool(case.wrong[at])
    verdict: Any = "defect" if defect else "normal"
    try:
        patches = chosen_patches(
            image.descriptors, map_, verdict, limit, np.ones(map_.shape, np.bool_), model,
            detector.scorer.bank.vectors, case.config,
        )  # fmt: skip
    except fedvad.FedvadError:  # nothing of it may be normal, or it is known
        return run, True
    reported = AnswerValues(
        number=given + 1, date="", verdict=verdict, image=f"{at}", name="", region=None,
        score=score, rows=len(patches),
    )  # fmt: skip
    return answered(run, case.site, reported, patches), True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--target-fpr", type=float, default=0.1)
    given = parser.parse_args()
    print("| seed | wrong | answers | false alarms | worst | recall | worst |\n|" + " --- |" * 7)
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as work:
            fedvad.train(
                given.data, Path(work, "run"), seed=seed, backbone=given.backbone,
                weights=given.weights, image_size=256, upload_rows=given.rows,
                target_fpr=given.target_fpr,
            )  # fmt: skip
            run, config, extractor = open_memory_run(
                Path(work, "run"), weights=given.weights, cache=CACHE
            )
            for share in (0.0, 0.1):
                curves: list[list[tuple[float, float]]] = []
                for site in read_sites(given.data):
                    rng = np.random.default_rng([seed, len(curves)])
                    order = rng.permutation(len(site.test))
                    wrong = rng.random(len(site.test)) < share
                    labels = np.asarray(site.test.labels)
                    case = Case(
                        run, config, extractor, site.name, site.test.paths, labels, order, wrong
                    )
                    curves.append(curve(case))
                table = np.array(curves)  # sites, numbers, (false alarms, recall)
                for i, number in enumerate(NUMBERS):
                    fpr, recall = table[:, i, 0], table[:, i, 1]
                    print(
                        f"| {seed} | {share:.0%} | {number} | {fpr.mean():.3f} | {fpr.max():.3f} | "
                        f"{recall.mean():.3f} | {recall.min():.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
