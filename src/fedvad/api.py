"""The verbs of the Python API that take more than their files of `verbs`; see `fedvad`."""

from __future__ import annotations

from typing import Any, Unpack

from fedvad.evaluation.results import Results
from fedvad.features.config import Engine
from fedvad.runs.arguments import AnyPath, cache_at, maybe
from fedvad.runs.config import as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.run import Run
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.forget import forget as _forget
from fedvad.verbs.group import Grouping, train_groups
from fedvad.verbs.group import group as _group
from fedvad.verbs.train import train as _train

__all__ = ["forget", "group", "load", "train"]


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


def group(
    data: AnyPath,
    out: AnyPath | None = None,
    *,
    tolerance: float = 0.25,
    config: AnyPath | None = None,
    cache: AnyPath | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
    **options: Unpack[TrainOptions],
) -> Grouping:
    """Find which sites of `data` look at the same kind of product, from their normal images.

    Parameters
    ----------
    data : path
        Folder with one folder per site, two at least, with 8 normal images each.
    out : path, optional
        Also train a federation within each group, into `out`/group1, `out`/group2, ...
    tolerance : float in [0, 1), default=0.25
        Share of a site's normal images that may look odd to another site of its group.
    config, cache, resume, progress, options
        As those of `fedvad.train`.

    Returns
    -------
    Grouping
        `groups` of names, and the `shares` that they follow from.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.group("DATA").groups  # doctest: +SKIP
    """
    resolved = resolve_config(maybe(config, "config"), **options)
    folder, opened = as_path(data, "data"), cache_at(cache)
    if out is None:
        return _group(folder, resolved, tolerance=tolerance, cache=opened, progress=progress)
    return train_groups(
        folder, as_path(out, "out"), resolved, tolerance=tolerance, cache=opened, resume=resume,
        progress=progress,
    )[0]  # fmt: skip


def forget(
    run: AnyPath,
    *,
    site: str | None = None,
    image: AnyPath | None = None,
    data: AnyPath | None = None,
    key: AnyPath | None = None,
    receipt: AnyPath | None = None,
    no_receipt: bool = False,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Take a site, or one image of it, out of every memory of a run.

    Parameters
    ----------
    run : path
        Run folder.
    site : str, optional
        Who leaves; not needed with `image` where the run has only one.
    image : path or str, optional
        File of the site, or the digest of one that is gone, to forget instead of the site.
    data : path, optional
        Folder of the sites that stay, which then fill in what they relied on the leaving site
        for, and get exact thresholds.
    key : path, optional
        Private key that signs a receipt.
    receipt : path, optional
        File of the receipt; `forgot-SITE.fedvad` in the run folder by default.
    no_receipt : bool, default=False
        Do without one, in place of `key`.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What the receipt says. Results, pages and pictures made of the run are removed.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> left = shutil.copytree("run", "left")
    >>> result = fedvad.forget(left, site="birch", no_receipt=True)
    >>> "birch" in result["sites_left"]
    False
    """
    return _forget(
        as_path(run, "run"),
        site=site,
        image=maybe(image, "image"),
        data=maybe(data, "data"),
        key=maybe(key, "key"),
        receipt=maybe(receipt, "receipt"),
        no_receipt=no_receipt,
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        cache=cache_at(cache),
        progress=progress,
    )
