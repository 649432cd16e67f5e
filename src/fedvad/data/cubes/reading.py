"""Scenes from files: MATLAB (v5 and 7.3), ENVI, NumPy, pages of a TIFF, a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.envi import read_envi
from fedvad.data.cubes.names import files_of
from fedvad.data.cubes.scene import Mask, Scene
from fedvad.data.formats import image_suffix
from fedvad.data.frames import split_frame
from fedvad.data.images import read_bands, reason_of
from fedvad.errors import DataError

MAX_VALUES = 1 << 30  # 4 GB in float32
_Arrays = dict[str, NDArray[Any]]


def read_scene(path: Path, *, mask: Path | None = None) -> Scene:
    """The scene in a file or a folder.

    Parameters
    ----------
    path : Path
        One of: `.mat` (MATLAB v5, or 7.3 with the extra `hyperspectral`) and `.npz`, with one
        array of three axes and, as ground truth, at most one of the same height and width;
        `.npy` (h, w, bands); an ENVI header `.hdr` beside its values; `.tif` with a band on each
        page; a folder of images of one size, for example one part under several lights, which in
        the order of their names are the bands. A picture in colour is three bands.
    mask : Path, default=None
        File of the ground truth in place of that in the file: see `read_truth`.

    Returns
    -------
    Scene
        Named by the file, without its suffix.

    Raises
    ------
    DataError
        For a file that cannot be read, that is of another kind, or in which it is not clear which
        array is the cube.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from fedvad.data.cubes.reading import read_scene
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/field.npy", np.zeros((4, 5, 30)))
    ...     scene = read_scene(Path(folder, "field.npy"))
    >>> scene.name, scene.cube.shape
    ('field', (4, 5, 30))
    """
    truth, wavelengths = None, None
    path = split_frame(path)[0]
    suffix = path.suffix.lower()
    if path.is_dir():
        files = files_of(path)
        if not files:
            raise DataError(f"{path}: holds no images to take as bands")
        cube = _stacked([band for file in files for band in read_bands(file)], path)
    elif suffix in (".mat", ".npz"):
        arrays = _arrays(path)
        cube, truth = _cube_and_truth(arrays, path)
    elif suffix == ".npy":
        cube = _numpy(path)[""]
    elif suffix == ".hdr":
        cube, wavelengths = read_envi(path, max_values=MAX_VALUES)
    elif suffix in (".tif", ".tiff"):
        cube = _stacked(read_bands(path), path)
    else:
        raise DataError(
            f"{path}: is no scene that is read: .mat, .npz, .npy, an ENVI .hdr, .tif with a band "
            "on each page, or a folder of images as bands"
        )
    if cube.dtype.kind not in "buif" or cube.ndim != 3:
        raise DataError(
            f"{path}: holds {cube.dtype} of shape {cube.shape}, not (height, width, bands) numbers"
        )
    scene = Scene(path.stem, np.ascontiguousarray(cube, np.float32), truth, wavelengths)
    return scene if mask is None else scene.with_mask(read_truth(mask))


def read_truth(path: Path) -> Mask:
    """A ground truth (h, w) bool: an image, or the one array of two axes in .mat, .npz or .npy.

    In an image every value but 0 is anomalous, in an array 1 (or 255). Raises `DataError`.
    """
    if image_suffix(path):
        bands = read_bands(path)
        return np.asarray(np.stack(bands).any(axis=0))
    return _truth(*_flat(path))


def read_classes(path: Path) -> NDArray[np.int64]:
    """Classes (h, w) of pixels, 0 where unknown: a grey image, or the one array of two axes.

    Raises `DataError` for anything else, and for values that are no whole numbers from 0.
    """
    if image_suffix(path):
        values, *more = read_bands(path)
        if more:
            raise DataError(f"{path}: has colours: save a grey image whose values are classes")
        name = str(path)
    else:
        values, name = _flat(path)
    if (
        values.dtype.kind not in "buif"
        or not (np.equal(np.mod(values, 1), 0) & (values >= 0)).all()
    ):
        raise DataError(f"{name} holds more than whole numbers from 0, which classes are")
    return values.astype(np.int64)


def _flat(path: Path) -> tuple[NDArray[Any], str]:
    """The one array of two axes in a file, and its name for messages."""
    arrays = _numpy(path) if path.suffix.lower() == ".npy" else _arrays(path)
    flat = {name: array for name, array in arrays.items() if min(array.shape) > 1}
    flat = {name: array for name, array in flat.items() if array.ndim == 2}
    if len(flat) != 1:
        raise DataError(f"{path}: holds {_listed(flat) or 'no array'} of two axes: give one mask")
    ((name, array),) = flat.items()
    return array, f"{path}: {name}"


def _cube_and_truth(arrays: _Arrays, path: Path) -> tuple[NDArray[Any], Mask | None]:
    cubes = {name: array for name, array in arrays.items() if array.ndim == 3}
    if len(cubes) != 1:
        raise DataError(
            f"{path}: holds {_listed(cubes) or 'no array'} of three axes, among "
            f"{_listed(arrays) or 'nothing'}: save one cube (height, width, bands)"
        )
    ((name, cube),) = cubes.items()
    flat = {n: a for n, a in arrays.items() if a.ndim == 2 and min(a.shape) > 1}
    fitting = {n: a for n, a in flat.items() if a.shape == cube.shape[:2]}
    if len(fitting) > 1 or (flat and not fitting):
        raise DataError(
            f"{path}: beside the cube {name} {cube.shape} lies {_listed(flat)}: which is its "
            "mask? Save the cube alone, and give the mask as a file of its own (--mask)"
        )
    for name, array in fitting.items():
        return cube, _truth(array, f"{path}: {name}")
    return cube, None


def _truth(array: NDArray[Any], name: str) -> Mask:
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} holds {array.dtype}, which is no mask: 0 and 1")
    values = np.unique(array)
    if len(values) > 2 or not np.isin(values, (0, 1, 255)).all():
        shown = ", ".join(f"{value:g}" for value in values[:4].astype(float))
        raise DataError(
            f"{name} holds {shown}, ...: a mask is 0 and 1; of a map of classes say which are "
            "anomalies: np.isin(classes, [3, 5])"
        )
    return np.asarray(array != 0)


def _arrays(path: Path) -> _Arrays:
    return _numpy(path) if path.suffix.lower() == ".npz" else _matlab(path)


def _numpy(path: Path) -> _Arrays:
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return _bounded({"": loaded}, path)
        with loaded:
            return _bounded({name: loaded[name] for name in loaded.files}, path)
    except DataError:
        raise
    except Exception as error:  # np.load and zipfile have no common error
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error


def _matlab(path: Path) -> _Arrays:
    from scipy.io import loadmat, whosmat

    try:
        with path.open("rb") as file:
            head = file.read(520)
        if b"\x89HDF\r\n\x1a\n" in head:
            return _matlab_of_hdf5(path)
        for name, shape, _ in whosmat(str(path)):
            _check_size(shape, f"{path}: {name}")
        found = loadmat(str(path))
    except DataError:
        raise
    except Exception as error:  # scipy's readers raise whatever damaged bytes lead to
        raise DataError(f"{path}: cannot be read as MATLAB's: {reason_of(error)}") from error
    return {name: array for name, array in found.items() if not name.startswith("__")}


def _matlab_of_hdf5(path: Path) -> _Arrays:
    try:
        import h5py
    except ImportError:
        raise DataError(
            f"{path}: is of MATLAB 7.3, whose reader is not installed: "
            "pip install 'fedvad[hyperspectral]'"
        ) from None
    found = {}
    with h5py.File(path, "r") as file:
        for name, entry in file.items():
            if isinstance(entry, h5py.Dataset) and entry.dtype.kind in "buif":
                _check_size(entry.shape, f"{path}: {name}")
                found[name] = np.asarray(entry).T  # MATLAB's axes come the other way round
    return found


def _stacked(bands: list[NDArray[Any]], path: Path) -> NDArray[Any]:
    shapes = sorted({band.shape for band in bands})
    if len(shapes) > 1:
        raise DataError(f"{path}: has bands of sizes {shapes[0]} and {shapes[1]}: make them one")
    _check_size((*shapes[0], len(bands)), str(path))
    return np.stack(bands, axis=2)


def _bounded(arrays: _Arrays, path: Path) -> _Arrays:
    for name, array in arrays.items():
        _check_size(array.shape, f"{path}: {name}")
    return arrays


def _check_size(shape: tuple[int, ...], name: str) -> None:
    count = int(np.prod(shape, dtype=np.float64))
    if count > MAX_VALUES:
        raise DataError(f"{name} has {count} values, over the limit of {MAX_VALUES}: crop it")


def _listed(arrays: _Arrays) -> str:
    return ", ".join(f"{name or 'array'} {array.shape}" for name, array in arrays.items())
