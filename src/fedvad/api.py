"""The verbs of the Python API that take more than their files of `verbs`; see `fedvad`."""

from __future__ import annotations

from typing import Unpack

from fedvad.evaluation.results import Results
from fedvad.runs.arguments import AnyPath, cache_at, maybe
from fedvad.runs.config import as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.train import train as _train

__all__ = ["load", "train"]


def train(
    data: AnyPath,
    out: AnyPath,
    *,
    config: AnyPath | None = None,
    plan: AnyPath | None = None,
    cache: AnyPath | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Unpack[TrainOptions],
) -> Results:
    """Train the detectors of all sites in `data` together, and write the run folder `out`.

    Parameters
    ----------
    data : path
        Folder with one folder per site, or one image set with the option `split`.
    out : path
        A new folder, or with `resume` that of the interrupted run.
    config : path, optional
        TOML file of options, as `fedvad config` prints it. `options` override it.
    plan : path, optional
        TOML file that `fedvad.plan` wrote. `config` and `options` override it.
    cache : path, default=FEDVAD_CACHE or the user's cache folder
        Folder in which features of images are kept for the next run.
    resume : bool, default=False
        Continue the interrupted run in `out`.
    progress : callable, optional
        Called with a stage, the steps done and their number.
    **options
        See `fedvad.TrainOptions`.

    Returns
    -------
    Results
        The content of `results.json`.

    Raises
    ------
    ConfigError, DataError, FederationError, WeightsError, StorageError
        See `fedvad.errors`; each message says how to fix it.

    Examples
    --------
    >>> import fedvad
    >>> results = fedvad.train("plants", "new", backbone="filterbank", image_size=64)
    >>> sorted(results.training_images.items())
    [('alder', 6), ('birch', 6), ('cedar', 6)]
    """
    progress = progress or no_progress
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
