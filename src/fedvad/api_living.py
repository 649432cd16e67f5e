"""The verbs that change a trained run, with plain arguments; see `fedvad.api`."""

from __future__ import annotations

from typing import Any

from fedvad.api_arguments import AnyPath, cache_at, maybe
from fedvad.features.config import Engine
from fedvad.runs.config import as_path
from fedvad.runs.progress import Progress, no_progress
from fedvad.verbs.forget import forget as _forget
from fedvad.verbs.update import undo_update as _undo_update
from fedvad.verbs.update import update as _update

__all__ = ["forget", "undo_update", "update"]


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
    receipt: its file, `forgot-SITE.fedvad` in the run folder by default.

    Results, report and pictures of the training are removed. Returns what the receipt says.
    Raises `ConfigError` (also while another process works on the run), `DataError`.
    """
    return _forget(
        as_path(run, "run"),
        site=site,
        image=maybe(image, "image"),
        data=maybe(data, "data"),
        key=maybe(key, "key"),
        receipt=maybe(receipt, "receipt"),
        weights=maybe(weights, "weights"),
        engine=engine,
        device=device,
        cache=cache_at(cache),
        progress=progress,
    )
