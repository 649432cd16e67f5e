"""`spectral --classes`: the class of every pixel of a scene, from some labelled ones."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fedvad.data.arrays import npy
from fedvad.data.cubes.reading import read_classes, read_scene
from fedvad.data.files import write_atomically
from fedvad.data.output_folder import OutputFolder
from fedvad.data.outputs import holding_folders, real
from fedvad.errors import check_values
from fedvad.report.overlay import save_png
from fedvad.spectral.classify import Classified, classify

_COLOURS = 7  # steps through the colours between one class and the next: neighbours differ


def classify_scene(
    scene: Path, classes: Path, *, out: Path | None = None, **options: Any
) -> tuple[Classified, dict[str, Any]]:
    """Find the class of every pixel of a scene, and measure how many agree with the labels.

    Parameters
    ----------
    scene, classes : Path
        See `fedvad.data.cubes.reading`: a scene, and classes of its pixels, 0 where unknown.
    out : Path, default=None
        Folder for a picture of the classes and the classes as an array.
    options
        Of `fedvad.spectral.classify.classify`; None stands for its default.

    Returns
    -------
    Classified, dict
        And JSON values: overall accuracy, mean of the classes and kappa on labelled pixels that
        were not learned from.

    Raises
    ------
    ConfigError, DataError, StorageError
    """
    given = {name: value for name, value in options.items() if value is not None}
    check_values(classify, given)
    folder = None
    if out is not None:
        folder = OutputFolder(out, "--out", inputs=holding_folders([], [scene, classes]))
    cube, labels = read_scene(scene).cube, read_classes(classes)
    found = classify(cube, labels, **given)
    overall, average, kappa = found.agreement
    values: dict[str, Any] = {
        "name": scene.stem,
        "classes": np.unique(found.classes).tolist(),
        "learned_from": int(found.trained.sum()),
        "accuracy": overall,
        "mean_accuracy": average,
        "kappa": kappa,
        "picture": None,
        "map": None,
    }
    if folder is not None:
        stem = folder.claim(str(real(scene)), PurePath(scene.stem), (".png", ".npy"))
        picture, array = (stem.with_name(stem.name + end) for end in (".png", ".npy"))
        save_png(picture, _drawn(found))
        write_atomically(array, npy(found.classes))
        values |= {"picture": str(picture), "map": str(array)}
    return found, values


def _drawn(found: Classified) -> np.ndarray:
    """Each class in a colour of its own."""
    from PIL import Image

    known, place = np.unique(found.classes, return_inverse=True)
    hue = (place.reshape(found.classes.shape) * _COLOURS % max(1, len(known))) * 255 // len(known)
    full = np.full(hue.shape, 220)
    planes = np.stack([hue, full, full], axis=2).astype(np.uint8)
    return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))
