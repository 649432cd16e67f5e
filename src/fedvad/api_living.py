"""The verbs that change a trained run, or examine it, with plain arguments; see `fedvad.api`."""

from __future__ import annotations

from typing import Any

from fedvad.api_arguments import AnyPath, cache_at, maybe
from fedvad.features.config import Engine
from fedvad.runs.answers import Verdict
from fedvad.runs.config import as_path
from fedvad.runs.feedback import Box
from fedvad.runs.progress import Progress, no_progress
from fedvad.verbs.doctor import PORT
from fedvad.verbs.doctor import doctor as _doctor
from fedvad.verbs.feedback import feedback as _feedback
from fedvad.verbs.feedback import list_feedback as _list_feedback
from fedvad.verbs.feedback import share_feedback as _share_feedback
from fedvad.verbs.feedback import undo_feedback as _undo_feedback
from fedvad.verbs.forget import forget as _forget
from fedvad.verbs.update import undo_update as _undo_update
from fedvad.verbs.update import update as _update

__all__ = [
    "doctor",
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
    """Let new normal images join run folder `run`, without reading the old ones.

    data: folder of normal images of one site, or of sites as `train` reads them. site: whose
    images these are, of the run or a new one; may be omitted where `data` has sites, or the run
    has only one. dry_run: change nothing. Returns what changed: rows, thresholds and alarms on
    the new images, before and now. `undo_update` takes it back.

    Raises `ConfigError` (also while another process works on the run), `DataError`.
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
    """Put run folder `run` back as it was before the last `update`; raises `ConfigError`."""
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
    """Take a site, or one image of it, out of every memory of run folder `run`.

    site: who leaves. image: file of the site, or the digest of one that is gone, to forget
    instead of the site. data: folder of the sites that stay, which then fill in what they relied
    on the leaving site for, and get exact thresholds. key: private key that signs a receipt;
    receipt: its file, `forgot-SITE.fedvad` in the run folder by default. no_receipt: do without
    one, in place of `key`.

    Results, pages and pictures made of the run are removed. Returns what the receipt says.
    Raises `ConfigError` (also while another process works on the run), `DataError`.
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
    """Tell run folder `run` that an image of a site is "normal", or shows a "defect".

    It counts at this site from the next image on; thresholds and other sites stay as they are.
    site: may be omitted where the run has only one. region: x, y, width and height in pixels,
    where a part of the image is meant. Returns the answer, with its number for `undo_feedback`
    and the score of the image before and now.

    Raises `ConfigError` (also for an image answered before), `DataError`.
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
    """All answers in run folder `run`, those undone as well."""
    return _list_feedback(as_path(run, "run"))


def share_feedback(run: AnyPath) -> dict[str, Any]:
    """Let the answered false alarms of each site of run folder `run` count at all its sites.

    Returns the rows that joined, by site; raises `ConfigError`.
    """
    return _share_feedback(as_path(run, "run"))


def undo_feedback(run: AnyPath, number: int) -> dict[str, Any]:
    """Let answer `number` of run folder `run` count no longer; raises `ConfigError`."""
    return _undo_feedback(as_path(run, "run"), number)


def doctor(
    path: AnyPath | None = None,
    *,
    weights: AnyPath | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    port: int = PORT,
    cache: AnyPath | None = None,
) -> dict[str, Any]:
    """Examine this installation, and the run, images or deployment in folder `path`.

    port: on which `fedvad serve` would listen. Returns `ok` and `checks`, each with name, state
    ("ok", "warning" or "wrong"), what is there and how to mend it. Nothing is changed.
    """
    return _doctor(
        maybe(path, "path"),
        cache=cache_at(cache),
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        port=port,
    )
