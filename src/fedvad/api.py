"""The Python API: the verbs of the command line with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any, Unpack

from fedvad.api_arguments import AnyPath, cache_at, listed, maybe
from fedvad.api_living import (
    feedback,
    forget,
    list_feedback,
    share_feedback,
    undo_feedback,
    undo_update,
    update,
)
from fedvad.api_research import bench, connectivity, group, run_stream, train_signals
from fedvad.api_tools import backbones, distill_backbone, doctor, gallery, score_scenes
from fedvad.api_use import calibrate, evaluate, export, predict
from fedvad.api_watch import drift_state, watch, week
from fedvad.data.labels import Names
from fedvad.evaluation.results import Results
from fedvad.runs.config import as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.demo import demo as _demo
from fedvad.verbs.inspect import inspect as _inspect
from fedvad.verbs.plan import Plan
from fedvad.verbs.plan import plan as _plan
from fedvad.verbs.report import Written
from fedvad.verbs.report import report as _report
from fedvad.verbs.train import train as _train

__all__ = [
    "TrainOptions",
    "backbones",
    "bench",
    "calibrate",
    "connectivity",
    "demo",
    "distill_backbone",
    "doctor",
    "drift_state",
    "evaluate",
    "export",
    "feedback",
    "forget",
    "gallery",
    "group",
    "inspect",
    "list_feedback",
    "load",
    "plan",
    "predict",
    "run_stream",
    "score_scenes",
    "share_feedback",
    "train",
    "train_signals",
    "undo_feedback",
    "undo_update",
    "update",
    "watch",
    "week",
    "write_report",
]


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    plan: AnyPath | None = None,
    cache: AnyPath | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
    **options: Unpack[TrainOptions],
) -> Results:
    """Train one detector per site of `data`, write the run folder `out`, return the results.

    Parameters
    ----------
    data : path
        Folder with one folder per site, or one image set with the option `split`.
    out : path
        A new folder, or with `resume` that of the interrupted run.
    config : path, optional
        TOML file of options, as `fedvad config` prints one; `plan` gives way to it, and it to
        `options`.
    plan : path, optional
        TOML file of `fedvad.plan`.
    cache : path, default=FEDVAD_CACHE or the user's cache folder
        Folder of descriptors.
    resume : bool, default=False
        Continue the interrupted run in `out`.
    progress : callable, optional
        Called with a stage, the steps done and their number.
    **options
        See `fedvad.TrainOptions`.

    Returns
    -------
    Results
        What `results.json` holds.

    Raises
    ------
    ConfigError, DataError, FederationError, WeightsError, StorageError
        See `fedvad.errors`; each message says how to mend it.

    Examples
    --------
    >>> import fedvad
    >>> results = fedvad.train("plants", "new", backbone="filterbank", image_size=64)
    >>> sorted(results.training_images.items())
    [('alder', 6), ('birch', 6), ('cedar', 6)]
    """
    resolved = resolve_config(maybe(config, "config"), plan=maybe(plan, "plan"), **options)
    return _train(
        as_path(data, "data"),
        as_path(out, "out"),
        resolved,
        cache=cache_at(cache),
        resume=resume,
        progress=progress,
    )


if train.__doc__ and TrainOptions.__doc__:  # for help(fedvad.train)
    train.__doc__ += "\n    " + TrainOptions.__doc__


def plan(
    data: AnyPath | Iterable[AnyPath],
    out: AnyPath | None = None,
    *,
    budget: float | None = None,
    suspects: AnyPath | None = None,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
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
        Seconds that one image may take; None keeps the size chosen without it.
    suspects : path, optional
        PNG file to write with doubtful normal images.
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
    several = [data] if isinstance(data, str | PathLike) else listed(data, "data")
    return _plan(
        [as_path(place, "data") for place in several],
        maybe(out, "out"),
        budget=budget,
        suspects=maybe(suspects, "suspects"),
        cache=cache_at(cache),
        progress=progress,
        **options,
    )


def inspect(
    path: AnyPath, *, trust: AnyPath | None = None, good: Names = (), defect: Names = ()
) -> dict[str, Any]:
    """What is in a run folder, a detector file or a message, or how a data folder will be read.

    Parameters
    ----------
    path : path
    trust : path, optional
        Public key, or folder of them, that a message or receipt must be signed with: `trusted` in
        the result says whether it is.
    good, defect : str or list of str, default=()
        Names of folders with normal images and with defects, beyond `good`.

    Returns
    -------
    dict
        JSON values; see `fedvad.verbs.inspect.inspect`.

    Raises
    ------
    ArtefactError, DataError
        For a file or folder that is none of these.
    ConfigError
        For `trust` with what carries no signature.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.inspect("run")["summary"][:56]
    'Run of 3 sites with feddymem, trained on 18 images; thre'
    >>> fedvad.inspect("plants")["data"]["sites"]["alder"]["train"]
    6
    """
    return _inspect(as_path(path, "path"), trust=maybe(trust, "trust"), good=good, defect=defect)


def write_report(
    run: AnyPath, out: AnyPath | None = None, *, pictures: bool = True, pdf: bool = False
) -> Written:
    """Write the HTML page of a run folder, or one page to print; the data is not needed.

    Parameters
    ----------
    run : path
    out : path, optional
        File to write; by default report.html, or audit.pdf, in `run`.
    pictures : bool, default=True
        Whether to show test images; without them the page may leave the sites.
    pdf : bool, default=False
        One page for a review board, in place of the HTML page.

    Returns
    -------
    Written
        path, bytes, pictures (their number) and pictures_left_out.

    Raises
    ------
    ArtefactError, ConfigError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.write_report("run", "page.html", pictures=False)["path"]
    'page.html'
    """
    return _report(as_path(run, "run"), out=maybe(out, "out"), pictures=pictures, pdf=pdf)


def load(run: AnyPath) -> Run:
    """A run as an object: memories and generators, or students; and the thresholds.

    Parameters
    ----------
    run : path
        Run folder.

    Returns
    -------
    Run
        Its `detector(site, extractor)` scores images.

    Raises
    ------
    ArtefactError
        For a folder without a run, and for a damaged one.

    Examples
    --------
    >>> import fedvad
    >>> run = fedvad.load("run")
    >>> sorted(run.sites), run.threshold("alder").n
    (['alder', 'birch', 'cedar'], 6)
    """
    return Run.load(as_path(run, "run"))


def demo(
    out: AnyPath = "fedvad-demo", *, seed: int = 0, progress: Progress = no_progress
) -> Results:
    """Draw the demo plants into `out`/data, train on them, and return the results.

    Parameters
    ----------
    out : path, default="fedvad-demo"
        A new folder, or that of an earlier demo, which is replaced.
    seed : int, default=0
        Of the drawn images and of the run.
    progress : callable, optional
        As that of `train`.

    Returns
    -------
    Results
        As those of `train`.

    Raises
    ------
    ConfigError, StorageError
        For an `out` that exists and is no earlier demo; when the disk refuses.

    Examples
    --------
    About a minute:

    >>> import fedvad
    >>> fedvad.demo("fedvad-demo").verdict  # doctest: +SKIP
    """
    return _demo(as_path(out, "out"), seed=seed, progress=progress)
