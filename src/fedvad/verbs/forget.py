"""`forget`: a site, or one image of it, leaves every memory of a run, with a receipt."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.data.locks import only_one
from fedvad.data.sealed import sha256_of
from fedvad.errors import ConfigError, join_names
from fedvad.features.config import Engine
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.ledger import Ledger
from fedvad.federation.signed import read_private_key
from fedvad.memory.bank import MemoryBank
from fedvad.memory.distances import nearest
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import TrainConfig, as_path
from fedvad.runs.data import load_sites
from fedvad.runs.guards import guard_output_file
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.method_memory import MemoryMethod
from fedvad.runs.opening import open_memory_run
from fedvad.runs.progress import Progress, no_progress
from fedvad.runs.receipt import (
    PENDING,
    ForgetReceipt,
    finished,
    hand_out,
    now,
    place_of,
    receipt_bytes,
)
from fedvad.runs.renewal import (
    check_growing,
    check_origin,
    last_round,
    merge_again,
    renew_thresholds,
    replace_run,
)
from fedvad.runs.repair import leave_out, repaired
from fedvad.runs.run_folder import (
    DETECTOR_FILE,
    read_config,
    read_ledger,
    write_config,
    write_ledger,
)
from fedvad.runs.sharing import without_shared
from fedvad.runs.shown import remove_shown

__all__ = ["forget"]

log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{16}(#\d+)?")


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
    cache: AnyCache | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Remove a site, or one of its images, from every memory of a run.

    The memories of the other sites are merged again. After a single round the result equals, to
    the bit, a federation that never had the site (with the same seeds). After several rounds there
    are gaps: the others did not send what the leaving site had sent already. With `data` they fill
    these gaps, see `runs.repair`.

    Parameters
    ----------
    run : path
        Run folder.
    site : str, optional
        Site to forget, or whose image to forget; not needed with `image` if the run has only one.
    image : path or str, optional
        Forget only this image: its file, or its digest if the file is gone.
    data : path, optional
        Folder of the remaining sites. They then fill the gaps that the leaving site left, and get
        exact thresholds.
    key : path, optional
        Private key that signs a receipt.
    receipt : path, optional
        File of the receipt; `forgot-SITE.fedvad` in the run folder by default.
    no_receipt : bool, default=False
        Write no receipt; then no `key` is needed.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    progress : callable, optional
        Called with a stage, the steps done and their number.

    Returns
    -------
    dict
        What the receipt says. Results, reports and pictures of the run are removed.

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
    progress = progress or no_progress
    run_folder, image = as_path(run, "run"), maybe(image, "image")
    data, key, receipt = maybe(data, "data"), maybe(key, "key"), maybe(receipt, "receipt")
    if (key is None) != no_receipt:
        raise ConfigError("give key, which signs a receipt of what leaves, or no_receipt=True")
    if no_receipt and receipt is not None:
        raise ConfigError("receipt needs key, which signs it")
    with only_one(run_folder):
        signing = None if key is None else read_private_key(key)
        if signing is not None:
            guard_output_file(receipt, "--receipt", others=[key], own=signing.beginning)
        trained, config, extractor = open_memory_run(
            run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
            cache=cache_at(cache),
        )  # fmt: skip
        digest = None if image is None else _digest(extractor, image)
        if (done := finished(run_folder, site, digest, receipt)) is not None:
            return done
        check_origin(trained, run_folder)
        ledger = read_ledger(run_folder)  # before anything is removed: it may be damaged
        if config.train_generator:
            raise ConfigError(
                f"{run_folder} has generators that were trained against rows of all sites: what "
                "they learned cannot be taken out; train again"
            )
        name = _site(trained, site, image)
        if digest is not None:
            check_growing(config, run_folder)
        left = _without(trained, config, name, digest)
        again = False
        if data is not None:
            left, again = _with_images(left, config, data, name, digest, extractor, progress)
        else:
            renew_thresholds(left, config, {})
            log.warning(
                "thresholds rest on scores against the memory before, and false alarms may rise: "
                "give --data, or find each site's again with fedvad calibrate"
            )
        before = sha256_of((run_folder / DETECTOR_FILE).read_bytes())
        statement: dict[str, Any] = {
            "date": now(),
            "file": DETECTOR_FILE,
            "site": name,
            "image": digest,
            "sites_left": sorted(left.sites),
            "rows_removed": _removed(trained, name, digest),
            "rows_now": _rows(left),
            "repaired": again,
            "thresholds": "of the memory before" if data is None else "found again",
            "before": before,
            "version": __version__,
        }
        limits = _limits(trained, left)
        removed = _clean(run_folder, config, ledger, None if digest else name)

        def sign(after: bytes) -> None:
            if signing is not None:
                signed = ForgetReceipt(**statement, after=sha256_of(after))
                write_atomically(run_folder / PENDING, receipt_bytes(signed, signing))

        replace_run(run_folder, left, keep=False, first=sign)
        target = receipt or place_of(run_folder, name, digest)
        if signing is not None:
            hand_out(run_folder, target)
    return {
        "run": str(run_folder),
        **statement,
        "site_thresholds": limits,
        "removed": removed,
        "receipt": None if signing is None else str(target),
    }


def _site(run: TrainedRun, site: str | None, image: object) -> str:
    if image is not None and site is None and len(run.sites) == 1:
        return next(iter(run.sites))
    known = set(run.sites)
    if image is None:  # also one of whose memory the run has the shared rows only, or its defects
        origins = [part.origin for part in (run.memory, run.negatives) if part is not None]
        known |= {source.site for origin in origins if origin for source in origin.sources}
    if site not in known:
        raise ConfigError(f"--site names who leaves, one of {join_names(known)}, not {site!r}")
    return str(site)


def _digest(extractor: FeatureExtractor, image: Path | str) -> str:
    if not Path(image).exists() and _DIGEST.fullmatch(str(image)):
        return str(image)
    (found,) = extractor.stream([Path(image)])
    if not found.digest:
        raise ConfigError(
            f"{found.error or image}\n--image takes an image of the site, or the digest of one"
        )
    return found.digest


def _without(run: TrainedRun, config: TrainConfig, name: str, image: str | None) -> TrainedRun:
    """The run whose sites' memories, merged again, hold nothing of a site or of its image."""
    sites = {n: replace(s, thresholds=dict(s.thresholds)) for n, s in run.sites.items()}
    if image is None:
        sites.pop(name, None)
        if not sites:
            raise ConfigError(f"{name} is the run's only site: remove the run folder instead")
        left = merge_again(run, config, without=[name])
        return replace(left, sites=sites)
    answers = tuple(a for a in sites[name].answers if a.values.image != image)
    gone = [a.values for a in sites[name].answers if a.values.image == image]
    bank = run.sites[name].bank
    for given in gone:  # what came with an answer is of no image of the training
        bank = without_shared(bank, given)
    rows = _of_image(bank, name, image)
    if gone and not rows.any():  # it was answered only
        sites[name] = replace(sites[name], bank=bank, answers=answers)
        left = replace(run, sites=sites)
        return merge_again(left, config) if any(given.shared for given in gone) else left
    if not rows.any():
        raise ConfigError(
            f"no row of {name}'s memory is of image {image}: it did not train the run, or other "
            "images cover all of it, so nothing has to be forgotten"
        )
    count = sites[name].n_images - 1
    if count < 1 or rows.all():
        raise ConfigError(f"{name} has rows of this image only: forget the site")
    patches = bank.total_weight / sites[name].n_images
    kept = bank.take(~rows).rescaled(count * patches)
    sites[name] = replace(sites[name], bank=kept, n_images=count, answers=answers)
    return merge_again(replace(run, sites=sites), config)


def _of_image(bank: MemoryBank, site: str, image: str) -> Any:
    assert bank.origin is not None
    return bank.origin.share_of(site, image) > 0


def _with_images(
    run: TrainedRun,
    config: TrainConfig,
    data: Path,
    left: str,
    digest: str | None,
    extractor: FeatureExtractor,
    progress: Progress,
) -> tuple[TrainedRun, bool]:
    """With other rows where sites relied on what left, and thresholds from the images."""
    found = load_sites(
        data, config.split, config.seed, config.label_names(), image_size=config.features().view,
        max_pixels=config.max_pixels,
    )  # fmt: skip
    sites = {site.name: site for site in found if site.name in run.sites}
    if missing := sorted(set(run.sites) - set(sites)):
        raise ConfigError(
            f"{data} lacks the images of {join_names(missing)}: thresholds need those of all"
        )
    with closing(MemoryMethod(config, extractor)) as method:
        method.read(list(sites.values()), progress)
        if digest is not None:
            leave_out(method, left, digest)
        relied = config.update == "grow" and last_round(run) > 1
        if relied:
            run = repaired(run, config, method, left)
        method.calibrate(run, progress)
    return run, relied


def _limits(run: TrainedRun, left: TrainedRun) -> dict[str, dict[str, float | None]]:
    """The threshold of each site that stays, before and now."""
    return {
        name: {"before": run.limit(name), "now": left.limit(name)} for name in sorted(left.sites)
    }


def _rows(run: TrainedRun) -> dict[str, int]:
    return {"global": len(run.memory)} | {n: len(s.bank) for n, s in sorted(run.sites.items())}


def _removed(run: TrainedRun, name: str, image: str | None) -> dict[str, int]:
    """Rows of what leaves, by memory.

    The global memory does not know images: of the site's rows in it, those count that come
    nearest to rows of the image in its own memory, as they are the same patches.
    """
    assert run.memory.origin is not None
    if image is not None:
        import torch

        bank = run.sites[name].bank
        own = _of_image(bank, name, image)
        sent = run.memory.vectors[run.memory.origin.share_of(name) > 0]
        _, index = nearest(torch.from_numpy(sent), torch.from_numpy(bank.vectors))
        return {"global": int(own[index.numpy()].sum()), name: int(own.sum())}
    found = {"global": int((run.memory.origin.share_of(name) > 0).sum())}
    return found | ({name: len(run.sites[name].bank)} if name in run.sites else {})


def _clean(folder: Path, config: TrainConfig, ledger: Ledger, site: str | None) -> list[str]:
    """Remove what shows images, and the site's name from the record of the rounds."""
    removed = remove_shown(folder)
    if site is not None:
        ledger.forget(site)
        if site in config.join:
            stored = read_config(folder)
            join = {name: r for name, r in stored.join.items() if name != site}
            write_config(folder, stored.model_copy(update={"join": join}))
    write_ledger(folder, ledger)
    return removed
