"""`feedback`: what people say of single images, kept in a run, listed and undoable."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.cubes.pixels import read_picture
from fedvad.data.locks import only_one
from fedvad.errors import ConfigError, join_names
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine
from fedvad.half import to_float
from fedvad.runs.answers import AnswerValues, Verdict
from fedvad.runs.feedback import Box, answered, chosen_patches, next_number, undone
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.opening import known_site, open_memory_run
from fedvad.runs.receipt import now
from fedvad.runs.renewal import check_origin
from fedvad.runs.run_folder import read_config
from fedvad.runs.sharing import check_sharing, shared, unshared

__all__ = ["feedback", "list_feedback", "share_feedback", "undo_feedback"]

log = logging.getLogger(__name__)


def feedback(
    run_folder: Path,
    image: Path,
    verdict: Verdict,
    *,
    site: str | None = None,
    region: Box | None = None,
    weights: Path | str | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    cache: DescriptorCache | None = None,
    file_name: str | None = None,
) -> dict[str, Any]:
    """Keep what somebody says of an image of a site: a false alarm is normal, a defect is one.

    normal: the patches of the image that the memory covers worst join what is normal at the site.
    defect: its highest patches raise the score of patches that are nearer to them than to
    anything normal, and are never taken as normal at the site. Other sites, and the threshold,
    stay as they are. site: may be omitted where the run has one. region: x, y, width, height in
    pixels of the image, if the answer is about a part of it. file_name: what the list calls the
    image, if not by its path.

    Returns the answer with the score of the image before and now. Raises `ConfigError` (also
    while another process works on the run, and for an image answered before), `DataError`, and
    what `open_memory_run` raises.
    """
    if verdict not in ("normal", "defect"):
        raise ConfigError(f"unknown verdict {verdict!r}; choose normal or defect")
    with only_one(run_folder):
        run, config, extractor = open_memory_run(
            run_folder, weights=weights, engine=engine, device=device, cache=cache
        )
        name = known_site(run, site)
        if name is None:
            raise ConfigError(
                f"site is missing: name whose image this is, of {join_names(run.sites)}"
            )
        model, limit = run.sites[name], run.threshold(name)
        (found,) = extractor.stream([image])
        if found.descriptors is None:
            raise ConfigError(f"{found.error}")
        scorer = run.detector(name, extractor).scorer
        score, map_ = scorer.score(model.generator(to_float(found.descriptors)))
        cells = np.ones(map_.shape, np.bool_)
        if region is not None:
            height, width = read_picture(image, max_pixels=config.max_pixels).shape[:2]
            cells = _cells(region, (height, width), map_.shape)
        patches = chosen_patches(
            found.descriptors, map_, verdict, None if limit is None else limit.value, cells,
            model, scorer.bank.vectors, config,
        )  # fmt: skip
        given = AnswerValues(
            number=next_number(run), date=now(), verdict=verdict, image=found.digest,
            name=file_name or str(image), region=region, score=score, rows=len(patches),
        )  # fmt: skip
        changed = answered(run, name, given, patches)
        _check_room(changed, name, config.rows(run.memory.dim) * config.rounds)
        after = changed.detector(name, extractor).scorer
        rescored, _ = after.score(model.generator(to_float(found.descriptors)))
        if limit is not None and verdict == "normal" and score <= limit.value:
            log.warning("%s was no alarm: its score is %.4g, the threshold %.4g",
                        image, score, limit.value)  # fmt: skip
        changed.save(run_folder)
    return {
        **_row(name, given),
        "threshold": None if limit is None else limit.value,
        "score_now": rescored,
    }


def list_feedback(run_folder: Path) -> list[dict[str, Any]]:
    """All answers of a run in their order, those undone as well; raises `ArtefactError`."""
    run = TrainedRun.load(run_folder)
    rows = [_row(name, a.values) for name, site in run.sites.items() for a in site.answers]
    return sorted(rows, key=lambda row: int(row["number"]))


def undo_feedback(run_folder: Path, number: int) -> dict[str, Any]:
    """Let an answer count no longer, at sites that it was shared with neither.

    Raises `ConfigError` for one that does not count.
    """
    with only_one(run_folder):
        run, site, given = undone(TrainedRun.load(run_folder), number, now())
        unshared(run, read_config(run_folder), site, given).save(run_folder)
    return _row(site, given)


def share_feedback(run_folder: Path, *, with_defects: bool = False) -> dict[str, Any]:
    """Let false alarms that were answered at one site count at all sites of a run.

    Their patches become rows of the site's memory, and all memories are merged again with the
    defence of the training, as after one more round. Thresholds stay. with_defects: confirmed
    defects raise scores at all sites, too, but at none where their patches lie among the site's own
    normal rows. Returns the number of patches that count at all sites now, by site. Raises
    `ConfigError` where there is nothing to share, where the defence refuses all of it, and for a
    run to whose memories no rows can be added.
    """
    with only_one(run_folder):
        run, config = TrainedRun.load(run_folder), read_config(run_folder)
        check_sharing(config, run_folder)
        check_origin(run, run_folder)
        run, done = shared(run, config, with_defects=with_defects)
        run.save(run_folder)
    return {
        "run": str(run_folder),
        "rows": done.normals,
        "defects": done.defects,
        "refused": done.refused,
        "memory_rows": len(run.memory),
    }


def _row(site: str, given: AnswerValues) -> dict[str, Any]:
    values = given.model_dump()
    return {"number": values.pop("number"), "site": site, **values}


def _cells(region: Box, size: tuple[int, int], grid: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The (h, w) cells that a box of an image of (H, W) pixels touches."""
    x, y, width, height = region
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:
        raise ConfigError(
            f"region {x},{y},{width},{height} does not lie in an image of {size[1]} x {size[0]} "
            "pixels; give x, y, width, height"
        )
    cells = np.zeros(grid, np.bool_)
    top, left = y * grid[0] // size[0], x * grid[1] // size[1]
    bottom, right = -(-(y + height) * grid[0] // size[0]), -(-(x + width) * grid[1] // size[1])
    cells[top:bottom, left:right] = True
    return cells


def _check_room(run: TrainedRun, site: str, most: int) -> None:
    rows = sum(len(answer.vectors) for answer in run.sites[site].answers)
    if rows > most:
        raise ConfigError(
            f"{site} would keep {rows} patches of answers, its memory allows {most}: let the "
            "normal images join with fedvad update, and undo their answers"
        )
