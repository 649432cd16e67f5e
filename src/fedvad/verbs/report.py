"""`report`: one file about a run, HTML or PDF, made from its folder without the data."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

from fedvad.data.files import write_atomically
from fedvad.data.sealed import read_sealed
from fedvad.detectors.artefact import feature_identity, read_arrays
from fedvad.errors import ArtefactError, ConfigError, StorageError
from fedvad.evaluation.results import Results
from fedvad.evaluation.sites import SiteResult
from fedvad.federation.ledger import Ledger
from fedvad.report.audit_sheet import TITLE, audit_sheet
from fedvad.report.html.gallery import GALLERY_FOLDER, write_gallery
from fedvad.report.html.page import Contents, render
from fedvad.report.html.record import (
    GALLERY_FILE,
    SCORES_FILE,
    Gallery,
    Scores,
    SiteScores,
    printable,
)
from fedvad.report.panels import Panel
from fedvad.runs.arguments import AnyPath
from fedvad.runs.config import as_path
from fedvad.runs.families import DEFAULT_METHOD, method_class
from fedvad.runs.guards import guard_output_file
from fedvad.runs.run import check_folder
from fedvad.runs.run_folder import (
    CONFIG_FILE,
    DETECTOR_FILE,
    LEDGER_FILE,
    RESULTS_FILE,
    read_ledger,
    read_results,
)

__all__ = ["AUDIT_FILE", "REPORT_FILE", "Written", "keep_record", "write_report"]

REPORT_FILE, AUDIT_FILE = "report.html", "audit.pdf"
_HASHED = (DETECTOR_FILE, CONFIG_FILE, RESULTS_FILE, LEDGER_FILE, SCORES_FILE)
_LARGEST_PICTURE = 300_000  # bytes; ours are about 6 kB

_OTHERS = (
    "{} is of another run or of other thresholds than the results, so this page does without it."
)

log = logging.getLogger(__name__)

_Read = TypeVar("_Read", Scores, Gallery)


class Written(TypedDict):
    """What `report` wrote: path, size, and how many pictures it shows or leaves out."""

    path: str
    bytes: int
    pictures: int
    pictures_left_out: int


def write_report(
    run: AnyPath, out: AnyPath | None = None, *, pictures: bool = True, pdf: bool = False
) -> Written:
    """Write the report of a run as an HTML file, or one page to print, without the data.

    Parameters
    ----------
    run : path
    out : path, optional
        File to write; by default report.html, or audit.pdf, in `run`.
    pictures : bool, default=True
        Whether to show test images. Without them the report holds no picture of a site.
    pdf : bool, default=False
        Write one page for a review board instead of the HTML report.

    Returns
    -------
    Written
        path, bytes, pictures (their number) and pictures_left_out.

    Raises
    ------
    ArtefactError, ConfigError, StorageError
        See `fedvad.errors`.

    Examples
    --------
    >>> import fedvad
    >>> fedvad.write_report("run", "page.html", pictures=False)["path"]
    'page.html'
    """
    folder = as_path(run, "run")
    target = folder / (AUDIT_FILE if pdf else REPORT_FILE) if out is None else as_path(out, "out")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: give the page a file name, like report.html")
    if not pdf and target.suffix.lower() == ".pdf":
        raise ConfigError(f"{target} would hold HTML: end it in .html, or add --pdf (pdf=True)")
    contents = _contents(folder, pictures)
    option = "the default --out" if out is None else "--out"
    guard_output_file(target, option, run=folder, own=b"%PDF" if pdf else b"fedvad")
    shown = left_out = 0
    if pdf:
        if target.is_file() and TITLE.encode() not in target.read_bytes():
            raise ConfigError(
                f"{option} {target} exists, and fedvad did not write it: choose another "
                "file, or remove it"
            )
        data = audit_sheet(contents)
    else:
        page = render(contents)
        data, shown, left_out = page.html, page.shown, page.left_out
    write_atomically(target, data)
    return {
        "path": str(target),
        "bytes": len(data),
        "pictures": shown,
        "pictures_left_out": left_out,
    }


def _contents(run: Path, pictures: bool) -> Contents:
    results = _results(run)
    missing: list[str] = []
    config = _config(run, missing)
    ledger = read_ledger(run)
    if ledger == Ledger():
        missing.append("The ledger of this run is missing: rounds and costs are unknown.")
    scores = _kept(Scores, run, missing)
    if scores is None:
        missing.append("This run keeps no scores of its test images: there are no curves.")
    elif not _of_these(results, [(name, site.threshold) for name, site in scores.sites.items()]):
        missing.append(_OTHERS.format(SCORES_FILE))
        scores = None
    gallery = _kept(Gallery, run, missing) if pictures else None
    if gallery is not None and not _of_these(
        results, [(picture.site, picture.threshold) for picture in gallery.pictures]
    ):
        missing.append(_OTHERS.format(GALLERY_FILE))
        gallery = None
    if gallery is None and pictures:
        missing.append(
            "This run keeps no pictures; `fedvad evaluate --heatmaps` draws some from the data."
        )
    identity, dim = _identity(run / DETECTOR_FILE)
    method = method_class(results.method or DEFAULT_METHOD)
    config = {key: value for key, value in config.items() if key in method.options}
    return Contents(
        name=printable(run.resolve().name),
        results=results,
        ledger=ledger,
        config=config,
        scores=scores,
        gallery=gallery,
        picture=lambda name: _picture(run / GALLERY_FOLDER / name),
        hashes=_hashes(run),
        identity=identity,
        dim=dim,
        missing=missing,
        sends=(
            "weights"
            if method.sends_weights
            else "rows"
            if "memory_rows" in method.options
            else "sums"
        ),
    )


def keep_record(
    run: Path,
    results: Sequence[SiteResult],
    comparisons: Mapping[str, Sequence[SiteResult]],
    panels: Sequence[Panel],
) -> None:
    """Store in a run folder what its page needs of the test images: scores and small pictures.

    panels: every scored test image of `results`. Raises `StorageError`.
    """
    sites = {}
    for result in results:
        compared = {
            name: other.scores.tolist()
            for name, others in comparisons.items()
            for other in others
            if other.name == result.name and other.test.paths == result.test.paths
        }
        limit = None if result.threshold is None else result.threshold.value
        sites[printable(result.name)] = SiteScores(
            files=[printable(item.path.name) for item in result.test],
            defects=[printable(item.defect) for item in result.test],
            labels=[item.label for item in result.test],
            scores=result.scores.tolist(),
            threshold=None if limit is None or not math.isfinite(limit) else limit,
            compared=compared,
        )
    Scores(sites=sites).write(run)
    write_gallery(panels, run)


def _results(run: Path) -> Results:
    check_folder(run)
    path = run / RESULTS_FILE
    if not path.is_file():
        unfinished, run_is_there = (run / "state").is_dir(), (run / DETECTOR_FILE).is_file()
        raise ArtefactError(
            f"{run} holds no {RESULTS_FILE}"
            + ("; its training was interrupted: finish it with --resume" if unfinished else
               f": measure it first, `fedvad evaluate {run} DATA`" if run_is_there else
               ": give the folder that `fedvad train --out` wrote")
        )  # fmt: skip
    return read_results(run)


def _config(run: Path, missing: list[str]) -> dict[str, object]:
    """The options of a run; damaged ones are named on the page, which is made without them."""
    try:
        return read_sealed(run / CONFIG_FILE, editable=True)
    except ArtefactError as error:
        log.warning("%s", error)
        missing.append("The configuration of this run is missing or damaged.")
        return {}


def _kept(kind: type[_Read], run: Path, missing: list[str]) -> _Read | None:
    """A stored record; a damaged one is named on the page, which is made without it."""
    try:
        return kind.read(run)
    except ArtefactError as error:
        log.warning("%s", error)
        name = SCORES_FILE if kind is Scores else GALLERY_FILE
        missing.append(f"{name} is damaged, so this page does without it.")
        return None


def _of_these(results: Results, limits: Sequence[tuple[str, float | None]]) -> bool:
    """Whether a record with these sites and thresholds was kept with the results."""
    known = {printable(name): site.threshold for name, site in results.threshold.sites.items()}
    # results of the first versions name none
    return not known or all(known.get(name, ...) == limit for name, limit in limits)


def _picture(path: Path) -> bytes | None:
    """A stored picture, None where it is gone or no WebP file of a sane size."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_PICTURE:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _identity(path: Path) -> tuple[dict[str, str], int | None]:
    """What the detector says about itself, and the numbers per row; nothing when it is gone."""
    if not path.exists():
        return {}, None
    try:
        arrays, values = read_arrays(path)
        memory = arrays.get("global/vectors")
        dim = None if memory is None else int(memory.shape[1])
        features = feature_identity(values, path)
        tiles = "" if features.tiles is None else f", in tiles of {features.tiles}"
        facts = {
            "trained by": f"fedvad {values.get('version')}",
            "method": values["method"],
            "backbone": features.backbone,
            "image size": f"{features.image_size} pixels{tiles}",
            "hash of the backbone's weights": features.weights_hash,
            "feature configuration": features.key(),
            "fingerprint of the data": values["data"],
        }
    except (KeyError, IndexError, ArtefactError) as error:
        log.warning("%s", error)
        return {}, None
    return {name: str(value) for name, value in facts.items() if value}, dim


def _hashes(run: Path) -> dict[str, str]:
    hashes = {}
    for name in _HASHED:
        try:
            with (run / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot read {run / name}: {error.strerror or error}") from error
    return hashes
