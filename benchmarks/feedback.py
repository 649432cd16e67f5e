"""What answers to alarms do: false alarms and recall against their number, some of them wrong.

    python benchmarks/feedback.py SITES --weights F [--seeds 0 1 2] [--rows 500] [--target-fpr 0.1]
    python benchmarks/feedback.py SITES --weights F --share

SITES is a folder of sites in MVTec's layout. Of each site's test images a random half comes along
one by one, scored by the run as it was trained; who looks at an alarm says whether it was false
("normal") or not ("defect"). The other half is what is measured, with the threshold of the
training, after the numbers of answers in the table. wrong: the share of answers that say the
opposite.

--share: each site confirms the defects among ten alarms, and they count at all sites. A liar is
the first site, which in place of its own calls ten normal images of the others defective, those
that come along there. Measured at the other sites.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from fedvad.runs.sharing import shared

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
        number=given + 1, date="", verdict=verdict, image=str(case.paths[at])[-64:], name="",
        region=None, score=score, rows=len(patches),
    )  # fmt: skip
    return answered(run, case.site, reported, patches), True


def share(cases: Sequence[Case], seed: int) -> None:
    """Rows of the table for what sites send to one another."""
    alone, liar = cases[0].run, cases[0].run
    for case in cases:
        before, given = case.run.detector(case.site, case.extractor), 0
        limit = case.run.threshold(case.site)
        assert limit is not None
        for at in np.array_split(case.order, 2)[0]:
            if given < 10 and case.labels[at]:
                alone, counts = answer(case, before, alone, int(at), given, limit.value)
                given += counts
    first, others = cases[0], cases[1:]
    before = first.run.detector(first.site, first.extractor)
    for case in others:
        normal = [at for at in np.array_split(case.order, 2)[0] if not case.labels[at]]
        as_defects = replace(case, site=first.site, labels=np.ones_like(case.labels))
        for given, at in enumerate(normal[:5]):
            liar, _ = answer(as_defects, before, liar, int(at), given, -1.0)
    for name, run in (
        ("nobody answers", first.run), ("own defects", alone),
        ("defects of all", shared(alone, first.config, with_defects=True)[0]),
        ("a liar", shared(liar, first.config, with_defects=True)[0]),
    ):  # fmt: skip
        found = []
        for case in others:
            limit = run.threshold(case.site)
            assert limit is not None
            measured = np.array_split(case.order, 2)[1]
            detector = run.detector(case.site, case.extractor)
            alarms = detector.score([case.paths[i] for i in measured]).image > limit.value
            defective = case.labels[measured] == 1
            found.append((float(alarms[~defective].mean()), float(alarms[defective].mean())))
        fpr, recall = np.array(found).T
        shared_rows = 0 if run.negatives is None else len(run.negatives)
        counts = [len(run.defects_at(case.site)) for case in others]
        print(
            f"| {seed} | {name} | {shared_rows} | {np.mean(counts):.0f} | {fpr.mean():.3f} | "
            f"{fpr.max():.3f} | {recall.mean():.3f} | {recall.min():.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", action="store_true")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--target-fpr", type=float, default=0.1)
    given = parser.parse_args()
    heads = ["seed", "wrong", "answers", "false alarms", "worst", "recall", "worst"]
    if given.share:
        heads = ["seed", "run", "sent", "count at a site", *heads[3:]]
    print(f"| {' | '.join(heads)} |\n|" + " --- |" * len(heads))
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as work:
            fedvad.train(
                given.data, Path(work, "run"), seed=seed, backbone=given.backbone,
                weights=given.weights, image_size=256, upload_rows=given.rows,
                target_fpr=given.target_fpr,
            )  # fmt: skip
            run, config, extractor = open_memory_run(
                Path(work, "run"), weights=given.weights, cache=CACHE
            )
            for wrongly in (0.0,) if given.share else (0.0, 0.1):
                cases = []
                for site in read_sites(given.data):
                    rng = np.random.default_rng([seed, len(cases)])
                    order = rng.permutation(len(site.test))
                    wrong = rng.random(len(site.test)) < wrongly
                    labels = np.asarray(site.test.labels)
                    paths = site.test.paths
                    cases.append(
                        Case(run, config, extractor, site.name, paths, labels, order, wrong)
                    )
                if given.share:
                    share(cases, seed)
                    continue
                curves = [curve(case) for case in cases]
                table = np.array(curves)  # sites, numbers, (false alarms, recall)
                for i, number in enumerate(NUMBERS):
                    fpr, recall = table[:, i, 0], table[:, i, 1]
                    print(
                        f"| {seed} | {wrongly:.0%} | {number} | {fpr.mean():.3f} | {fpr.max():.3f} "
                        f"| {recall.mean():.3f} | {recall.min():.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
