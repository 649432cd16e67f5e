"""`bank audit`: what a memory file tells about the images of the site that made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedvad.data.bounds import ANY_SIZE
from fedvad.data.cubes.pixels import read_picture
from fedvad.data.folders import ImageItem
from fedvad.data.images import resize_rgb
from fedvad.data.inputs import list_images
from fedvad.data.outputs import OWN_PNG
from fedvad.detectors.base import NormalFeatures
from fedvad.errors import ConfigError, DataError, PayloadError
from fedvad.evaluation.leaks import Inversion, View, invert, look, membership, retrieve
from fedvad.features.cache import DescriptorCache
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.payload import Payload, bank_from
from fedvad.federation.signed import SignedMessage, is_signed, read_bounded
from fedvad.half import to_float
from fedvad.memory.bank import FloatArray
from fedvad.report.overlay import save_png
from fedvad.runs.config import TrainConfig
from fedvad.runs.families import method_class
from fedvad.runs.guards import guard_output_file
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.verbs.bank import one_site

_ROWS = 2000  # rows that a decoder is tried on; nearest patches of more say nothing new
_KNOWN = 40_000  # patches that it learns from
# what a person calls a leak: half the way from chance to certainty
_CLEAR = 0.75


def audit(
    file: Path,
    data: Path,
    config: TrainConfig,
    *,
    outsiders: Path | None = None,
    others: Path | None = None,
    images: int = 500,
    cache: DescriptorCache | None = None,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measure, on the site's own images, what the message in `file` gives away.

    data: the site's folder; its normal training images are members. outsiders: normal images of
    the same kind that had no part (default: `test/good` of the site). others: another site's
    message, which makes the membership attack stronger. images: of each kind, at most; of more
    than these, copies are missed. out: picture of patches behind rows and
    of what a decoder made of these rows.

    Raises `PayloadError` for a damaged file, `ConfigError` for other features than the file's,
    `DataError` without outsiders.
    """
    method_class(config.method).check_rows(config, "bank audit")
    payload = _payload(file)
    extractor = FeatureExtractor(config.features(), cache)
    if payload.manifest.features != extractor.config.key():
        raise ConfigError(
            f"{file} has features {payload.manifest.features}, these options give "
            f"{extractor.config.key()}: give the backbone, weights and image size it was made with"
        )
    site = one_site(data, config, None, None)
    inside = [item.path for item in site.train if item.label == 0]
    if outsiders is None:
        outside = _normal(site.test)
    else:
        outside = list_images([outsiders], cubes=config.label_names().cubes).paths
    guard_output_file(
        out, "--out", data=data, sites=[site],
        others=[file, others, extractor.config.weights, *outside], own=OWN_PNG,
    )  # fmt: skip
    if not outside:
        raise DataError(
            f"{data} has no test/good: give --outsiders FOLDER, normal images not trained on"
        )
    rng = np.random.default_rng(config.seed)
    chosen = [_readable(_some(p, images, rng), extractor, config) for p in (inside, outside)]
    rows = bank_from(payload).vectors
    measured, inversion = audit_rows(
        rows,
        *chosen,
        others=None if others is None else bank_from(_payload(others)).vectors,
        seed=config.seed,
        progress=progress,
    )
    if out is not None:
        _picture(inversion, out)
    manifest = payload.manifest
    return {
        "path": str(file), "site": manifest.site, "round": manifest.round, "rows": len(rows),
        **measured, "says": judge(measured), "picture": None if out is None else str(out),
    }  # fmt: skip


def audit_rows(
    rows: FloatArray,
    members: NormalFeatures,
    outsiders: NormalFeatures,
    *,
    others: FloatArray | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], Inversion]:
    """All measurements on (m, d) rows: images that had a part in them, and others."""
    stage = Stage(progress, "audit", len(members) + len(outsiders) + 1)
    inside, outside = (
        look(_counted(features, stage), rows, others) for features in (members, outsiders)
    )
    found = membership(inside, outside, seed=seed)
    back = retrieve(inside, outside, rows)
    inversion = _invert(rows, inside, members, outsiders, seed)
    stage()
    measured = {
        "members": len(inside),
        "outsiders": len(outside),
        "membership": asdict(found),
        "retrieval": asdict(back),
        "inversion": {"explained": inversion.explained, "ceiling": inversion.ceiling},
    }
    return measured, inversion


def judge(measured: dict[str, Any]) -> list[str]:
    """The measurements in sentences."""
    auc, back = measured["membership"]["auc"], measured["retrieval"]
    explained, ceiling = measured["inversion"]["explained"], measured["inversion"]["ceiling"]
    clear = "clearly" if auc >= _CLEAR else "hardly" if auc > 0.55 else "not"
    return [
        f"Images that had a part are {clear} distinguishable from others (AUC {auc:.2f}, chance "
        "0.50).",
        f"{back['copies']:.0%} of the rows are a patch of an image here, but for rounding; "
        f"{back['found']:.0%} lie nearer to an image that had a part than to any other (chance "
        f"{back['chance']:.0%}).",
        f"A small decoder restores {max(explained, 0):.0%} of the variance of the pixels behind "
        f"the rows ({max(ceiling, 0):.0%} from untouched descriptors).",
        "A better attacker may learn more than these measurements show.",
    ]


def _invert(
    rows: FloatArray, inside: View, members: NormalFeatures, outsiders: NormalFeatures, seed: int
) -> Inversion:
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(len(rows))[:_ROWS])
    extractor = members.extractor
    share = max(1, _KNOWN // len(outsiders))
    features, pixels = [], []
    for descriptors, path in zip(outsiders, outsiders.paths, strict=True):
        cells = rng.permutation(descriptors.shape[0] * descriptors.shape[1])[:share]
        features.append(to_float(descriptors).reshape(-1, descriptors.shape[-1])[cells])
        pixels.append(_windows(path, cells, extractor))
    own = np.empty((len(picked), rows.shape[1]), np.float32)
    behind = np.empty((len(picked), *pixels[0].shape[1:]), np.uint8)
    for i, (descriptors, path) in enumerate(zip(members, members.paths, strict=True)):
        here = np.flatnonzero(inside.image[picked] == i)
        if len(here):
            cells = inside.patch[picked[here]]
            own[here] = to_float(descriptors).reshape(-1, descriptors.shape[-1])[cells]
            behind[here] = _windows(path, cells, extractor)
    known = np.concatenate(features), np.concatenate(pixels)
    return invert(known, rows[picked], own, behind, seed=seed)


def _windows(
    path: Path, cells: npt.NDArray[np.integer], extractor: FeatureExtractor
) -> npt.NDArray[np.uint8]:
    """(n, s, s, 3) pixels around the cells of the grid, twice their stride wide."""
    height, width, _ = extractor.grid
    size = extractor.config.side
    side = 2 * max(size // height, size // width)
    image = resize_rgb(read_picture(path, max_pixels=ANY_SIZE), size)
    padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="reflect")
    tops = ((cells // width + 0.5) * size / height - side / 2).astype(int) + side
    lefts = ((cells % width + 0.5) * size / width - side / 2).astype(int) + side
    return np.stack([padded[t : t + side, x : x + side] for t, x in zip(tops, lefts, strict=True)])


def _counted(features: NormalFeatures, stage: Stage) -> Iterator[Any]:
    for descriptors in features:
        yield descriptors
        stage()


def _normal(items: Sequence[ImageItem]) -> list[Path]:
    return [item.path for item in items if item.label == 0]


def _some(paths: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    return [paths[i] for i in np.sort(rng.permutation(len(paths))[:count])]


def _readable(
    paths: list[Path], extractor: FeatureExtractor, config: TrainConfig
) -> NormalFeatures:
    features = NormalFeatures(extractor, paths, max_bad=config.max_bad, where="audit")
    features.warm_up()
    return features


def _payload(file: Path) -> Payload:
    try:
        data = read_bounded(file)
        return Payload.from_bytes(SignedMessage.parse(data).message if is_signed(data) else data)
    except PayloadError as error:
        raise PayloadError(f"{file}: {error}") from error


def _picture(inversion: Inversion, out: Path, zoom: int = 4) -> None:
    """Two rows: patches behind memory rows, and what the decoder made of these rows."""
    rows = [
        np.concatenate(list(part), axis=1) for part in (inversion.originals, inversion.restored)
    ]
    image = Image.fromarray(np.concatenate(rows))
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    save_png(out, np.asarray(image))
