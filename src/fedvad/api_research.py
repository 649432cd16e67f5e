"""The Python API's verbs of research: benches, groups of sites, streams of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from fedvad.api_arguments import AnyPath, by_backbone, cache_at, maybe
from fedvad.experiments.bench.run import bench as _bench
from fedvad.experiments.bench.suite import load_suite
from fedvad.experiments.continual.run import continual as _continual
from fedvad.experiments.continual.stream import load_stream
from fedvad.runs.config import as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.typed_options import TrainOptions
from fedvad.verbs.connectivity import Curve
from fedvad.verbs.connectivity import connectivity as _connectivity
from fedvad.verbs.group import Grouping, train_groups
from fedvad.verbs.group import group as _group
from fedvad.verbs.signals import SignalResult
from fedvad.verbs.signals import train_signals as _signals

__all__ = ["bench", "connectivity", "group", "run_stream", "train_signals"]


def bench(
    suite: str,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
    cache: AnyPath | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Compare methods over sets and seeds under one protocol; tables and plots in `out`.

    Parameters
    ----------
    suite : str
        Shipped name or TOML file.
    out : path
        Folder; what is finished in it is not computed again.
    data, weights, cache : path, optional
        Folder of the suite's sets, file of the backbone's weights, folder of descriptors.
    seeds : ints, optional
        Instead of the suite's.
    methods : str, several, optional
        Some of the suite's.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        The summary, as it is written into `out`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    Some minutes:

    >>> import fedvad
    >>> summary = fedvad.bench("demo", "bench", seeds=[0])  # doctest: +SKIP
    """
    chosen = load_suite(suite).only(
        seeds=None if seeds is None else list(seeds),
        methods=None if methods is None else list(methods),
    )
    return _bench(
        chosen,
        as_path(out, "out"),
        data=maybe(data, "data"),
        weights=maybe(weights, "weights"),
        cache=cache_at(cache),
        progress=progress,
    )


def connectivity(
    run_a: AnyPath,
    run_b: AnyPath,
    data: AnyPath,
    *,
    beside: tuple[AnyPath, AnyPath] | None = None,
    out: AnyPath | None = None,
    points: int = 21,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
) -> list[Curve]:
    """Follow loss and AUROC on the straight line between the weights of two trained students.

    Parameters
    ----------
    run_a, run_b : path
        Run folders of one method and backbone.
    data : path
        Folder of the sites that both trained on, with test images.
    beside : (path, path), optional
        A second pair of runs, for the same picture.
    out : path, optional
        HTML page with the curves.
    points : int, default=21
        Of a curve, both ends among them.
    cache, progress
        As those of `bench`.

    Returns
    -------
    list of Curve
        One of each pair: `at`, `loss`, `auroc` and `barrier`.

    Raises
    ------
    ConfigError, DataError, ArtefactError, MismatchError
        For runs that cannot be mixed, or whose sites `data` does not have.

    Examples
    --------
    >>> import fedvad
    >>> (curve,) = fedvad.connectivity("A", "B", "DATA")  # doctest: +SKIP
    """
    pairs = [(run_a, run_b), *([] if beside is None else [beside])]
    return _connectivity(
        [(as_path(a, "run_a"), as_path(b, "run_b")) for a, b in pairs],
        as_path(data, "data"),
        out=maybe(out, "out"),
        points=points,
        cache=cache_at(cache),
        progress=progress,
    )


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


def run_stream(
    stream: str,
    out: AnyPath,
    *,
    data: AnyPath | None = None,
    weights: Mapping[str, AnyPath] | None = None,
    cache: AnyPath | None = None,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """`fedvad continual`: learn the tasks of a stream one by one, and report what is forgotten.

    Parameters
    ----------
    stream : str
        Shipped name or TOML file.
    out : path
        Folder; what is finished in it is not computed again.
    weights : mapping of str to path, optional
        A file by backbone name.
    data, cache, seeds, methods, progress
        As those of `bench`.

    Returns
    -------
    dict
        The summary, as it is written into `out`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    Some minutes:

    >>> import fedvad
    >>> summary = fedvad.run_stream("edge", "stream", data="DATA")  # doctest: +SKIP
    """
    chosen = load_stream(stream).only(
        seeds=None if seeds is None else list(seeds),
        methods=None if methods is None else list(methods),
    )
    return _continual(
        chosen,
        as_path(out, "out"),
        data=maybe(data, "data"),
        weights=by_backbone(weights),
        cache=cache_at(cache),
        progress=progress,
    )


def train_signals(
    data: AnyPath,
    out: AnyPath | None = None,
    *,
    rounds: int = 5,
    steps: int = 100,
    seed: int = 0,
    quantile: float = 0.98,
    progress: Progress = no_progress,
) -> list[SignalResult]:
    """`fedvad signals`: find odd windows of multivariate signals, learned by all sites together.

    Parameters
    ----------
    data : path
        Folder with one folder per site: train.npy (n, channels, length) of normal windows, and
        perhaps test.npy and labels.npy (0 normal, 1 anomalous).
    out : path, optional
        Folder for scores and models.
    rounds, steps : int, default=5, 100
        Rounds, and training steps of a site in each.
    seed : int, default=0
        Of all random choices.
    quantile : float in (0, 1), default=0.98
        Of the scores of held-out normal windows: the threshold.
    progress : callable, optional
        As that of `bench`.

    Returns
    -------
    list of SignalResult
        One of each site: `model`, `scores`, `auroc` and `f1`.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.train_signals("DATA")[0].scores  # doctest: +SKIP
    """
    return _signals(
        as_path(data, "data"),
        maybe(out, "out"),
        rounds=rounds,
        steps=steps,
        seed=seed,
        quantile=quantile,
        progress=progress,
    )
