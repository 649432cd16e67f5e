"""The Python API's verbs of research: benches, streams of tasks, small backbones, drawn defects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from os import PathLike
from typing import Any, Unpack

from fedvad.api_arguments import AnyPath, by_backbone, cache_at, listed, maybe
from fedvad.errors import ConfigError
from fedvad.experiments.bench.run import bench as _bench
from fedvad.experiments.bench.suite import load_suite
from fedvad.experiments.continual.run import continual as _continual
from fedvad.experiments.continual.stream import load_stream
from fedvad.runs.config import as_path, resolve_config
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.typed_options import TrainOptions
from fedvad.spectral.moments import Moments
from fedvad.spectral.scene import Scene
from fedvad.verbs.gallery import gallery as _gallery
from fedvad.verbs.group import Grouping, train_groups
from fedvad.verbs.group import group as _group
from fedvad.verbs.spectral import ScoredScene
from fedvad.verbs.spectral import score_scenes as _score_scenes

__all__ = [
    "backbones",
    "bench",
    "distill_backbone",
    "gallery",
    "group",
    "run_stream",
    "score_scenes",
]


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
    """Compare the methods of a suite (shipped name or TOML file); tables and plots in `out`."""
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
    """`fedvad continual`: learn the tasks of a stream (shipped name or TOML file) one by one.

    weights: a file by backbone name.
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


def distill_backbone(
    recipe: str,
    out: AnyPath,
    *,
    data: AnyPath | Iterable[AnyPath] = (),
    weights: Mapping[str, AnyPath] | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """`fedvad distill`: teach a small backbone by a recipe (shipped name or TOML file).

    weights: a file by the teacher's name.
    """
    from fedvad.experiments.distill.recipe import load_recipe  # loads torch, with the next one
    from fedvad.experiments.distill.run import distill

    return distill(
        load_recipe(recipe),
        as_path(out, "out"),
        data=[
            as_path(folder, "folder")
            for folder in ([data] if isinstance(data, str | PathLike) else data)
        ],
        weights=by_backbone(weights),
        resume=resume,
        progress=progress,
    )


def gallery(data: AnyPath, out: AnyPath, **options: Any) -> dict[str, Any]:
    """Draw synthetic defects on normal images of `data` into the PNG file `out`; options are those
    of `fedvad gallery`.
    """
    known = [name for name in signature(_gallery).parameters if name not in ("data", "out")]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r} of gallery; known: {', '.join(known)}")
    return _gallery(as_path(data, "data"), as_path(out, "out"), **options)


def score_scenes(
    scenes: AnyPath | Scene | Iterable[AnyPath | Scene],
    *,
    method: str = "rx",
    masks: AnyPath | Iterable[AnyPath] = (),
    moments: Iterable[AnyPath | Moments] = (),
    save_moments: AnyPath | None = None,
    out: AnyPath | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> list[ScoredScene]:
    """`fedvad spectral`: a map of odd pixels of each hyperspectral scene, and its figures.

    scenes: a file or several, or `fedvad.spectral.scene.Scene` objects. masks: ground truths, one
    per scene. moments: of all sites. options: of the detector, such as `windows=(17, 15)`. See
    `fedvad.verbs.spectral.score_scenes`.
    """
    several = [scenes] if isinstance(scenes, str | PathLike | Scene) else listed(scenes, "scenes")
    truths = [masks] if isinstance(masks, str | PathLike) else listed(masks, "masks")
    return _score_scenes(
        [one if isinstance(one, Scene) else as_path(one, "scenes") for one in several],
        method=method,
        masks=[as_path(path, "masks") for path in truths],
        moments=[
            one if isinstance(one, Moments) else as_path(one, "moments")
            for one in listed(moments, "moments")
        ],
        save_moments=maybe(save_moments, "save_moments"),
        out=maybe(out, "out"),
        progress=progress,
        **options,
    )


def backbones(pattern: str | None = None) -> list[dict[str, Any]]:
    """Families of backbones that are known to work, or the models whose name holds `pattern`."""
    from fedvad.features.listing import families, models  # models loads torch

    return families() if pattern is None else models(pattern)
