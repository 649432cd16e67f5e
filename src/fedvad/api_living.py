"""The verbs that change a trained run, with plain arguments; see `fedvad.api`."""

from __future__ import annotations

from typing import Any

from fedvad.features.config import Engine
from fedvad.runs.answers import Verdict
from fedvad.runs.arguments import AnyPath, cache_at, maybe
from fedvad.runs.config import as_path
from fedvad.runs.feedback import Box
from fedvad.runs.progress import Progress, no_progress
from fedvad.verbs.feedback import feedback as _feedback
from fedvad.verbs.feedback import list_feedback as _list_feedback
from fedvad.verbs.feedback import share_feedback as _share_feedback
from fedvad.verbs.feedback import undo_feedback as _undo_feedback
from fedvad.verbs.forget import forget as _forget
from fedvad.verbs.update import undo_update as _undo_update
from fedvad.verbs.update import update as _update

__all__ = [
    "feedback",
    "forget",
    "list_feedback",
    "share_feedback",
    "undo_feedback",
    "undo_update",
    "update",
]


def update(
    run: AnyPath,
    data: AnyPath,
    *,
    site: str | None = None,
    dry_run: bool = False,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyPath | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let new normal images join a run, without reading the old ones.

    Parameters
    ----------
    run : path
        Run folder.
    data : path
        Folder of normal images of one site, or of sites as `train` reads them.
    site : str, optional
        Whose images these are, of the run or a new one; not needed where `data` has sites, or the
        run has only one.
    dry_run : bool, default=False
        Change nothing.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What changed: rows, thresholds and alarms on the new images, before and now. `undo_update`
        takes it back.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> result = fedvad.update("run", "plants/birch/test/good", site="birch", dry_run=True)
    >>> result["sites"]["birch"]["images"], result["dry_run"]
    (3, True)
    """
    return _update(
        as_path(run, "run"),
        as_path(data, "data"),
        site=site,
        dry_run=dry_run,
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        cache=cache_at(cache),
        progress=progress,
    )


def undo_update(run: AnyPath) -> dict[str, Any]:
    """Put a run back as it was before the last `update`.

    Parameters
    ----------
    run : path
        Run folder.

    Returns
    -------
    dict
        `run` and `undone`.

    Raises
    ------
    ConfigError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> grown = shutil.copytree("run", "grown")
    >>> result = fedvad.update(grown, "plants/birch/test/good", site="birch")
    >>> fedvad.undo_update(grown)["undone"]
    True
    """
    return _undo_update(as_path(run, "run"))


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


def feedback(
    run: AnyPath,
    image: AnyPath,
    verdict: Verdict,
    *,
    site: str | None = None,
    region: Box | None = None,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: AnyPath | None = None,
) -> dict[str, Any]:
    """Tell a run that an image of a site is normal, or shows a defect.

    Parameters
    ----------
    run : path
        Run folder.
    image : path
        File of the image.
    verdict : {"normal", "defect"}
        What it shows. It counts at this site from the next image on; thresholds and other sites
        stay as they are.
    site : str, optional
        Whose image it is; not needed where the run has only one.
    region : four ints, optional
        x, y, width and height in pixels, where a part of the image is meant.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.

    Returns
    -------
    dict
        The answer, with its number for `undo_feedback` and the score of the image before and now.

    Raises
    ------
    ConfigError, DataError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> run = shutil.copytree("run", "answered")
    >>> result = fedvad.feedback(run, "plants/birch/test/good/000.png", "normal", site="birch")
    >>> result["number"], result["verdict"], result["score_now"] < result["score"]
    (1, 'normal', True)
    """
    return _feedback(
        as_path(run, "run"),
        as_path(image, "image"),
        verdict,
        site=site,
        region=region,
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        cache=cache_at(cache),
    )


def list_feedback(run: AnyPath) -> list[dict[str, Any]]:
    """List all answers in a run, those undone as well.

    Parameters
    ----------
    run : path
        Run folder.

    Returns
    -------
    list of dict
        Number, site, verdict, date, name and digest of the image, and more of each answer.

    Raises
    ------
    ArtefactError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.list_feedback("run")
    []
    """
    return _list_feedback(as_path(run, "run"))


def share_feedback(run: AnyPath, *, with_defects: bool = False) -> dict[str, Any]:
    """Let the answered false alarms of each site of a run count at all its sites.

    Parameters
    ----------
    run : path
        Run folder.
    with_defects : bool, default=False
        Let confirmed defects raise scores at all sites, too; at no site where their patches lie
        among its own normal rows.

    Returns
    -------
    dict
        `rows` that joined and patches of `defects` by site, `memory_rows` of all sites together,
        and why sites were `refused` by the defence of merges.

    Raises
    ------
    ConfigError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> run = shutil.copytree("run", "shared")
    >>> result = fedvad.feedback(run, "plants/birch/test/good/000.png", "normal", site="birch")
    >>> fedvad.share_feedback(run)["rows"] == {"birch": result["rows"]}
    True
    """
    return _share_feedback(as_path(run, "run"), with_defects=with_defects)


def undo_feedback(run: AnyPath, number: int) -> dict[str, Any]:
    """Let an answer count no longer, at sites that it was shared with neither.

    Parameters
    ----------
    run : path
        Run folder.
    number : int
        Of the answer, as `list_feedback` shows it.

    Returns
    -------
    dict
        The answer, with the date in `undone`.

    Raises
    ------
    ConfigError
        See `fedvad.errors`.

    Examples
    --------
    >>> import shutil
    >>> import fedvad
    >>> run = shutil.copytree("run", "undone")
    >>> result = fedvad.feedback(run, "plants/birch/test/good/000.png", "normal", site="birch")
    >>> bool(fedvad.undo_feedback(run, result["number"])["undone"])
    True
    """
    return _undo_feedback(as_path(run, "run"), number)
