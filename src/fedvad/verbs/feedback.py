"""`feedback`: what people say of single images, kept in a run, listed and undoable."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.data.cubes.pixels import read_picture
from fedvad.data.locks import only_one
from fedvad.errors import ConfigError, join_names
from fedvad.features.config import Engine
from fedvad.half import to_float
from fedvad.runs.answers import AnswerValues, Verdict
from fedvad.runs.arguments import AnyCache, AnyPath, cache_at, maybe
from fedvad.runs.config import as_path
from fedvad.runs.feedback import Box, answered, chosen_patches, next_number, undone
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.opening import known_site, open_memory_run
from fedvad.runs.receipt import now
from fedvad.runs.renewal import check_origin
from fedvad.runs.run_folder import read_config
from fedvad.runs.sharing import check_sharing, shared, unshared

log = logging.getLogger(__name__)


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
    cache: AnyCache | None = None,
    file_name: str | None = None,
) -> dict[str, Any]:
    """Tell a run that an image of a site is normal, or shows a defect.

    From a normal image, the patches that the memory represents worst are added to the site's
    memory. From a defect, the patches with the highest scores are kept: they raise the score of
    patches that are nearer to them than to anything normal, and are never learned as normal.

    Parameters
    ----------
    run : path
        Run folder.
    image : path
        File of the image.
    verdict : {"normal", "defect"}
        What the image shows. The verdict takes effect at this site from the next image on.
        Thresholds and other sites stay as they are.
    site : str, optional
        Site that the image belongs to; not needed if the run has only one.
    region : four ints, optional
        x, y, width and height in pixels, if the verdict is about a part of the image.
    weights, engine, device, cache : optional
        As those of `fedvad.evaluate`.
    file_name : str, optional
        What the list calls the image; its path by default.

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
    run_folder, image = as_path(run, "run"), as_path(image, "image")
    if verdict not in ("normal", "defect"):
        raise ConfigError(f"unknown verdict {verdict!r}; choose normal or defect")
    with only_one(run_folder):
        trained, config, extractor = open_memory_run(
            run_folder, weights=maybe(weights, "weights"), engine=engine, device=device,
            cache=cache_at(cache),
        )  # fmt: skip
        name = known_site(trained, site)
        if name is None:
            raise ConfigError(
                f"site is missing: name whose image this is, of {join_names(trained.sites)}"
            )
        model, limit = trained.sites[name], trained.threshold(name)
        (found,) = extractor.stream([image])
        if found.descriptors is None:
            raise ConfigError(f"{found.error}")
        scorer = trained.detector(name, extractor).scorer
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
            number=next_number(trained), date=now(), verdict=verdict, image=found.digest,
            name=file_name or str(image), region=region, score=score, rows=len(patches),
        )  # fmt: skip
        changed = answered(trained, name, given, patches)
        _check_room(changed, name, config.rows(trained.memory.dim) * config.rounds)
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
    run_folder = as_path(run, "run")
    trained = TrainedRun.load(run_folder)
    rows = [_row(name, a.values) for name, site in trained.sites.items() for a in site.answers]
    return sorted(rows, key=lambda row: int(row["number"]))


def undo_feedback(run: AnyPath, number: int) -> dict[str, Any]:
    """Take an answer back, also at the sites that it was shared with.

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
    run_folder = as_path(run, "run")
    with only_one(run_folder):
        trained, site, given = undone(TrainedRun.load(run_folder), number, now())
        unshared(trained, read_config(run_folder), site, given).save(run_folder)
    return _row(site, given)


def share_feedback(run: AnyPath, *, with_defects: bool = False) -> dict[str, Any]:
    """Share the answered false alarms of each site of a run with all its sites.

    Parameters
    ----------
    run : path
        Run folder.
    with_defects : bool, default=False
        Also let confirmed defects raise scores at all sites, except where their patches lie among
        a site's own normal rows.

    Returns
    -------
    dict
        By site: `rows` added, patches of `defects`, and the reason if the defence `refused` it.
        Also `memory_rows` of all sites together.

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
    run_folder = as_path(run, "run")
    with only_one(run_folder):
        trained, config = TrainedRun.load(run_folder), read_config(run_folder)
        check_sharing(config, run_folder)
        check_origin(trained, run_folder)
        trained, done = shared(trained, config, with_defects=with_defects)
        trained.save(run_folder)
    return {
        "run": str(run_folder),
        "rows": done.normals,
        "defects": done.defects,
        "refused": done.refused,
        "memory_rows": len(trained.memory),
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
