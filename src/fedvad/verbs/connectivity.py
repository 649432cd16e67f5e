"""`connectivity`: loss and AUROC on the straight line between the weights of two trained students.

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"; batch statistics
are estimated again at every point, as Jordan et al. 2023 (REPAIR) recommend.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.files import write_atomically
from fedvad.data.folders import Site
from fedvad.detectors.student.parameters import load_buffers, load_parameters, under
from fedvad.detectors.student.site import StudentSite
from fedvad.errors import ConfigError, DataError, join_names
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.extractor import FeatureExtractor
from fedvad.report.html.connectivity import render_connectivity
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import TrainConfig, as_path
from fedvad.runs.data import load_sites
from fedvad.runs.guards import guard_output_file
from fedvad.runs.opening import open_run
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run import Run
from fedvad.runs.run_folder import read_config
from fedvad.runs.student_run import StudentRun
from fedvad.runs.students import make_student, prepare_sites, student_class

__all__ = ["Curve", "connectivity"]

POINTS = 21


@dataclass(frozen=True)
class Curve:
    """Figures on the straight line from the weights of one run to those of another.

    Attributes
    ----------
    name : str
        Of both runs, and of the strength of their weight-scope alignment.
    at : list of float
        Share of the second run in the weights, from 0 to 1.
    loss : list of float
        Mean over the sites of the mean cosine loss of their normal training images.
    auroc : list of float or None
        Mean over the sites of the image AUROC of their test images; None where no site has test
        images of both kinds.
    barrier : float
        How far the loss rises above the straight line between its ends, at most.
    """

    name: str
    at: list[float]
    loss: list[float]
    auroc: list[float | None]
    barrier: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def connectivity(
    run_a: AnyPath,
    run_b: AnyPath,
    data: AnyPath,
    *,
    beside: tuple[AnyPath, AnyPath] | None = None,
    out: AnyPath | None = None,
    points: int = POINTS,
    cache: AnyCache | None = None,
    progress: Progress | None = None,
) -> list[Curve]:
    """Measure loss and AUROC along the straight line between the weights of two trained students.

    At both ends a site uses the batch statistics of that run. In between they are estimated again,
    from the training images of the first run.

    Parameters
    ----------
    run_a, run_b : path
        Run folders of one method and backbone.
    data : path
        Folder of the sites that both trained on, with test images.
    beside : (path, path), optional
        A second pair of runs, drawn into the same plot.
    out : path, optional
        HTML page with the curves.
    points : int, default=21
        Points of a curve, including both ends; at least 2.
    cache, progress
        As those of `bench`.

    Returns
    -------
    list of Curve
        One per pair: `at`, `loss`, `auroc` and `barrier`.

    Raises
    ------
    ConfigError, DataError, ArtefactError, MismatchError
        If the runs cannot be mixed, or `data` lacks their sites.

    Examples
    --------
    >>> import fedvad
    >>> (curve,) = fedvad.connectivity("A", "B", "DATA")  # doctest: +SKIP
    """
    progress = progress or no_progress
    pairs = [(run_a, run_b), *([] if beside is None else [beside])]
    data, out, cache = as_path(data, "data"), maybe(out, "out"), cache_at(cache)
    if points < 2:
        raise ConfigError(f"a curve needs 2 points or more, got {points}")
    guard_output_file(out, "--out", data=data, own=b"<title>fedvad")
    stage = Stage(progress, "points", points * len(pairs))
    curves = []
    for one, two in pairs:
        first, other = as_path(one, "run_a"), as_path(two, "run_b")
        trained, config, extractor = open_run(first, cache=cache)
        a, b = _students(trained, Run.load(other), first, other)
        name = f"{first.name} to {other.name}{_alignment(config, read_config(other))}"
        curves.append(_curve(name, a, b, data, config, extractor, points, stage))
    if out is not None:
        write_atomically(out, render_connectivity([curve.to_dict() for curve in curves]))
    return curves


def mixed(
    first: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]], share: float
) -> dict[str, npt.NDArray[np.float32]]:
    """(1 - share) * first + share * other, array by array."""
    return {
        name: ((1 - share) * array.astype(np.float64) + share * other[name]).astype(np.float32)
        for name, array in first.items()
    }


def _students(run_a: Run, run_b: Run, first: Path, other: Path) -> tuple[StudentRun, StudentRun]:
    if not (isinstance(run_a, StudentRun) and isinstance(run_b, StudentRun)):
        bare = first if not isinstance(run_a, StudentRun) else other
        raise ConfigError(f"{bare} has no student whose weights could be mixed")
    run_a.features.check_same(run_b.features, f"run {first.name}")
    shapes = [{n: array.shape for n, array in run.shared.items()} for run in (run_a, run_b)]
    if run_a.method != run_b.method or shapes[0] != shapes[1]:
        raise ConfigError(
            f"{first.name} ({run_a.method}) and {other.name} ({run_b.method}) have students of "
            "different shapes: train both with one method and the same options"
        )
    return run_a, run_b


def _alignment(first: TrainConfig, other: TrainConfig) -> str:
    strengths = first.student.wsa, other.student.wsa
    if not any(strengths):
        return ", without WSA"
    return f", WSA {' and '.join(f'{value:g}' for value in dict.fromkeys(strengths))}"


def _curve(
    name: str,
    a: StudentRun,
    b: StudentRun,
    data: Path,
    config: TrainConfig,
    extractor: FeatureExtractor,
    points: int,
    stage: Stage,
) -> Curve:
    if student_class(config).parts != ("student",):
        raise ConfigError(f"{config.method} has more weights than its student's to mix")
    known = a.sites.keys() & b.sites.keys()
    names = config.label_names()
    found = load_sites(
        data, config.split, config.seed, names, image_size=config.features().side,
        max_pixels=config.max_pixels,
    )  # fmt: skip
    sites = {site.name: site for site in found if site.name in known}
    if not sites:
        raise DataError(
            f"{data} has none of the sites {join_names(known)} that both runs trained on"
        )
    first, other = (under("student/", run.shared) for run in (a, b))
    shares = np.linspace(0, 1, points).tolist()
    losses, aurocs = [], []
    with ExitStack() as stack:
        images = {name: site.train for name, site in sites.items()}
        members = prepare_sites(images, config, extractor)
        for member in members.values():
            stack.callback(member.close)
        for share in shares:
            ends = {0.0: a, 1.0: b}.get(share)
            for site, member in members.items():
                load_parameters(member.net.student, mixed(first, other, share))
                if ends is None:
                    member.recalibrate_batch_norm()
                else:
                    load_buffers(member.net.student, ends.sites[site].buffers)
            losses.append(float(np.mean([member.mean_loss() for member in members.values()])))
            aurocs.append(_auroc(members, sites, config, extractor))
            stage()
    straight = (1 - np.array(shares)) * losses[0] + np.array(shares) * losses[-1]
    return Curve(name, shares, losses, aurocs, float(np.max(np.array(losses) - straight)))


def _auroc(
    members: Mapping[str, StudentSite],
    sites: Mapping[str, Site],
    config: TrainConfig,
    extractor: FeatureExtractor,
) -> float | None:
    found = []
    for name, member in members.items():
        test = sites[name].test
        if len(test):
            detector = make_student(config, extractor).with_net(member.net, member.unseen)
            scores = detector.score(test.paths)
            found.append(image_auroc(scores.image, test.subset(scores.kept.tolist()).labels))
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None
