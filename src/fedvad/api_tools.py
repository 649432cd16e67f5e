"""The Python API's verbs besides runs: small backbones, drawn defects, hyperspectral scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from os import PathLike
from typing import Any

from fedvad.api_arguments import AnyPath, by_backbone, cache_at, listed, maybe
from fedvad.data.cubes.scene import Scene
from fedvad.errors import ConfigError
from fedvad.features.config import Engine
from fedvad.runs.config import as_path
from fedvad.runs.progress import Progress, no_progress
from fedvad.spectral.moments import Moments
from fedvad.verbs.doctor import PORT
from fedvad.verbs.doctor import doctor as _doctor
from fedvad.verbs.gallery import gallery as _gallery
from fedvad.verbs.spectral import ScoredScene
from fedvad.verbs.spectral import score_scenes as _score_scenes

__all__ = ["backbones", "distill_backbone", "doctor", "gallery", "score_scenes"]


def distill_backbone(
    recipe: str,
    out: AnyPath,
    *,
    data: AnyPath | Iterable[AnyPath] = (),
    weights: Mapping[str, AnyPath] | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """`fedvad distill`: teach a small backbone by large ones; the file is a backbone everywhere.

    Parameters
    ----------
    recipe : str
        Shipped name or TOML file.
    out : path
        Folder of the file and its progress.
    data : path, or several, default=()
        Folders of images; a recipe may draw its own.
    weights : mapping of str to path, optional
        A file by the teacher's name.
    resume : bool, default=False
        Continue an interrupted training in `out`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What was trained, and where the file is.

    Raises
    ------
    ConfigError, DataError, WeightsError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    About an hour:

    >>> import fedvad
    >>> fedvad.distill_backbone(
    ...     "tiny", "tiny", weights={"resnet18": "resnet18.safetensors"}
    ... )  # doctest: +SKIP
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
    """Draw synthetic defects on normal images of `data` into one PNG file.

    Parameters
    ----------
    data : path
        Folder of sites or one set.
    out : path
        PNG file to write.
    **options
        Those of `fedvad gallery`.

    Returns
    -------
    dict
        What was drawn.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> drawn = fedvad.gallery("plants", "gallery.png")
    >>> drawn["path"]
    'gallery.png'
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
    save_backbone: AnyPath | None = None,
    out: AnyPath | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> list[ScoredScene]:
    """`fedvad spectral`: a map of odd pixels of each hyperspectral scene, and its figures.

    Parameters
    ----------
    scenes : path or Scene, or several
        Files, or `fedvad.data.cubes.scene.Scene` objects.
    method : str, default="rx"
        Detector; see `fedvad.spectral.methods`.
    masks : path, or several, default=()
        Ground truths, one per scene.
    moments : paths or Moments, default=()
        Of all sites, in place of the scene's own.
    save_moments : path, optional
        File to write the scenes' moments into.
    save_backbone : path, optional
        File to write weights of the backbone "spectral" into, from the moments.
    out : path, optional
        Folder for the maps.
    progress : callable, optional
        Called with a stage, the steps done and their number.
    **options
        Of the detector, such as `windows=(17, 15)`.

    Returns
    -------
    list of ScoredScene
        One per scene, in order.

    Raises
    ------
    ConfigError, DataError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> import numpy as np
    >>> from fedvad.data.cubes.scene import Scene
    >>> cube = np.random.default_rng(0).normal(size=(20, 20, 5)).astype("float32")
    >>> cube[3, 4] += 20
    >>> found = fedvad.score_scenes(Scene("field", cube))[0]
    >>> tuple(int(i) for i in np.unravel_index(found.map.argmax(), found.map.shape))
    (3, 4)
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
        save_backbone=maybe(save_backbone, "save_backbone"),
        out=maybe(out, "out"),
        progress=progress,
        **options,
    )


def backbones(pattern: str | None = None) -> list[dict[str, Any]]:
    """Families of backbones that are known to work, or models by a part of their name.

    Parameters
    ----------
    pattern : str, optional
        Part of a model's name; None lists the families.

    Returns
    -------
    list of dict
        Name, default layers, strides, channels, image sizes and licence of each.

    Raises
    ------
    ConfigError
        When no model has such a name.

    Examples
    --------
    >>> import fedvad
    >>> len(fedvad.backbones()) > 5
    True
    """
    from fedvad.features.listing import families, models  # models loads torch

    return families() if pattern is None else models(pattern)


def doctor(
    path: AnyPath | None = None,
    *,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    port: int = PORT,
    cache: AnyPath | None = None,
) -> dict[str, Any]:
    """Examine this installation, and a run, images or a deployment; nothing is changed.

    Parameters
    ----------
    path : path, optional
        Run folder, folder of images, or folder of a deployment.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    port : int, default=8000
        On which `fedvad serve` would listen.

    Returns
    -------
    dict
        `ok` and `checks`, each with name, state ("ok", "warning" or "wrong"), what is there and
        how to mend it.

    Examples
    --------
    >>> import fedvad
    >>> {check["state"] for check in fedvad.doctor("run")["checks"]} <= {"ok", "warning", "wrong"}
    True
    """
    return _doctor(
        maybe(path, "path"),
        cache=cache_at(cache),
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        port=port,
    )
