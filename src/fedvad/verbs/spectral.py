"""`spectral`: maps of odd pixels in hyperspectral scenes, their pictures and figures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.arrays import npy
from fedvad.data.cubes.reading import read_scene
from fedvad.data.cubes.scene import Mask, Scene, false_colour
from fedvad.data.files import write_atomically
from fedvad.data.output_folder import OutputFolder
from fedvad.data.outputs import holding_folders, real
from fedvad.errors import ConfigError
from fedvad.features.bands import write_bands_file
from fedvad.mergeable import merge_states
from fedvad.report.overlay import draw_outline, heatmap_overlay, save_png
from fedvad.report.tables import UNKNOWN, Rows, write_csv
from fedvad.runs.arguments import AnyPath, listed, maybe, paths_of
from fedvad.runs.config import as_path
from fedvad.runs.guards import guard_output_file
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.spectral.areas import Areas, areas
from fedvad.spectral.methods import score_cube
from fedvad.spectral.moments import Moments

__all__ = ["ScoredScene", "score_scenes", "spectral_rows"]

_SIDE = 480  # pixels that a scene's longer side is enlarged to, in whole steps
_TABLE = "spectral.csv"


@dataclass(frozen=True, eq=False)
class ScoredScene:
    """What a detector found in one scene.

    Attributes
    ----------
    name : str
    map : (h, w) float64 array
        Higher is more anomalous.
    bands : int
    anomalous : int or None
        Pixels of the ground truth; None where there is none.
    areas : Areas or None
        Figures; None without a ground truth of both classes.
    seconds : float
        Processor time of the detector.
    picture, saved : Path or None
        False colours beside the map (.png), and the map (.npy), where a folder was given.
    """

    name: str
    map: NDArray[np.float64]
    bands: int
    anomalous: int | None
    areas: Areas | None
    seconds: float
    picture: Path | None = None
    saved: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the map itself."""
        found = self.areas
        figures = {} if found is None else asdict(found) | {"auc4": found.auc4, "auc5": found.auc5}
        return {
            "name": self.name,
            "height": self.map.shape[0],
            "width": self.map.shape[1],
            "bands": self.bands,
            "anomalous": self.anomalous,
            **{key: figures.get(key) for key in ("auc1", "auc2", "auc3", "auc4", "auc5", "ap")},
            "seconds": self.seconds,
            "picture": None if self.picture is None else str(self.picture),
            "map": None if self.saved is None else str(self.saved),
        }


def score_scenes(
    scenes: AnyPath | Scene | Iterable[AnyPath | Scene],
    *,
    method: str = "rx",
    masks: AnyPath | Iterable[AnyPath] = (),
    moments: Iterable[AnyPath | Moments] = (),
    save_moments: AnyPath | None = None,
    save_backbone: AnyPath | None = None,
    out: AnyPath | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[ScoredScene]:
    """`fedvad spectral`: map the anomalous pixels of hyperspectral scenes, and measure the maps.

    Parameters
    ----------
    scenes : path or Scene, or several
        Files, or `fedvad.data.cubes.scene.Scene` objects.
    method : str, default="rx"
        Detector; see `fedvad.spectral.methods`.
    masks : path, or several, default=()
        Ground truths, one per scene.
    moments : paths or Moments, default=()
        For "rx": moments of all sites, used instead of the scene's own.
    save_moments : path, optional
        File to write the scenes' moments into.
    save_backbone : path, optional
        File to write the weights of the backbone "spectral" into. They come from `moments` or,
        without these, from the scenes, which must then hold normal pixels only.
    out : path, optional
        Folder for the maps.
    progress : callable, optional
        Called with a stage, the steps done and their number.
    **options
        Options of the detector, such as `windows=(17, 15)`.

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
    progress = progress or no_progress
    several = [scenes] if isinstance(scenes, str | PathLike | Scene) else listed(scenes, "scenes")
    wanted = [one if isinstance(one, Scene) else as_path(one, "scenes") for one in several]
    truths = paths_of(masks, "masks")
    given = listed(moments, "moments")
    if not wanted and not (given and save_backbone):
        raise ConfigError("no scene is given: name at least one file")
    if not wanted and save_moments is not None:
        raise ConfigError("--save-moments writes those of scenes: name at least one, or omit it")
    if truths and len(truths) != len(wanted):
        raise ConfigError(f"{len(truths)} masks for {len(wanted)} scenes: give one for each")
    paths = [scene for scene in wanted if isinstance(scene, Path)] + truths
    files = [as_path(part, "moments") for part in given if not isinstance(part, Moments)]
    save_moments = maybe(save_moments, "save_moments")
    save_backbone, out = maybe(save_backbone, "save_backbone"), maybe(out, "out")
    guard_output_file(save_moments, "--save-moments", others=paths, own=b'"scatter":')
    guard_output_file(save_backbone, "--save-backbone", others=[*paths, *files], own=b'"axes":')
    folder = None
    if out is not None:
        folder = OutputFolder(out, "--out", inputs=holding_folders([], paths))
    merged: Moments | None = None
    if given:
        parts = [p if isinstance(p, Moments) else Moments.load(Path(p)) for p in given]
        options["moments"] = merged = merge_states(parts)
    stage = Stage(progress, "scoring", len(wanted))
    found: list[ScoredScene] = []
    total: Moments | None = None
    for number, one in enumerate(wanted):
        mask = truths[number] if truths else None
        scene = one if isinstance(one, Scene) else read_scene(one, mask=mask)
        start = time.process_time()
        scores = score_cube(scene.cube, method, **options)
        seconds = time.process_time() - start
        if save_moments is not None or (save_backbone is not None and merged is None):
            own = Moments.of(scene.cube)
            total = own if total is None else total + own
        place = None
        if folder is not None:
            owner = scene.name if isinstance(one, Scene) else str(real(one))
            place = folder.claim(owner, PurePath(scene.name), (".png", ".npy"))
        found.append(_scored(scene, scores, seconds, place))
        stage()
    if total is not None and save_moments is not None:
        total.save(save_moments)
    if save_backbone is not None and (known := merged or total) is not None:
        write_bands_file(save_backbone, known.mean, known.covariance)
    if out is not None:
        write_csv(spectral_rows(found), out / _TABLE)
    return found


def spectral_rows(found: Sequence[ScoredScene]) -> Rows:
    """A table: pixels of the truth of each scene, figures and seconds."""
    header = ["scene", "truth", *(f"AUC{n}" for n in range(1, 6)), "AP", "seconds"]
    rows = [header]
    for one in found:
        values = one.to_dict()
        figures = [values[key] for key in ("auc1", "auc2", "auc3", "auc4", "auc5", "ap")]
        rows.append(
            [
                one.name,
                UNKNOWN if one.anomalous is None else str(one.anomalous),
                *(UNKNOWN if figure is None else f"{figure:.4f}" for figure in figures),
                f"{one.seconds:.1f}",
            ]
        )
    return rows


def _scored(
    scene: Scene, scores: NDArray[np.float64], seconds: float, place: Path | None
) -> ScoredScene:
    picture = saved = None
    if place is not None:
        picture, saved = (place.with_name(place.name + end) for end in (".png", ".npy"))
        save_png(picture, _picture(false_colour(scene), scores, scene.mask))
        write_atomically(saved, npy(scores.astype(np.float32)))
    return ScoredScene(
        name=scene.name,
        map=scores,
        bands=scene.cube.shape[2],
        anomalous=None if scene.mask is None else int(scene.mask.sum()),
        areas=None if scene.mask is None else areas(scores, scene.mask),
        seconds=seconds,
        picture=picture,
        saved=saved,
    )


def _picture(
    colours: NDArray[np.uint8], scores: NDArray[np.float64], mask: Mask | None
) -> NDArray[np.uint8]:
    """False colours with the outlines of the truth, beside them the map from its median upwards."""
    step = max(1, _SIDE // max(scores.shape))
    large = colours.repeat(step, 0).repeat(step, 1)
    low, high = np.quantile(scores, [0.5, 0.995])
    heat = heatmap_overlay(np.zeros_like(large), scores, low=low, high=high, strength=1.0)
    if mask is not None:
        large = draw_outline(large, mask.repeat(step, 0).repeat(step, 1))
    gap = np.full((large.shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([large, gap, heat], axis=1)
