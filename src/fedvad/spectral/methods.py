"""The detectors of odd pixels by name; each is loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvad.data.cubes.scene import Cube
from fedvad.errors import ConfigError, DataError, check_values

__all__ = ["METHODS", "score_cube"]

# file and function, and what of its options the name stands for
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rx": ("rx", "rx", {}),
    "line-rx": ("rx", "line_rx", {}),
    "lrx": ("local_rx", "local_rx", {}),
    "crd": ("crd", "crd", {}),
    "rpca": ("rpca", "rpca", {}),
    "rpca-rx": ("rpca", "rpca", {"score": "rx"}),
    "lrasr": ("lrasr", "lrasr", {}),
    "auto-ad": ("auto_ad", "auto_ad", {}),
    "dsformer": ("refine", "dsformer", {}),
    "hypersigma": ("hypersigma", "hypersigma", {}),
}


def score_cube(cube: Cube, /, method: str = "rx", **options: Any) -> NDArray[np.float64]:
    """Anomaly map of a cube by the name of a detector.

    Parameters
    ----------
    cube : (h, w, b) float array
    method : str, default="rx"
        One of `METHODS`.
    options
        Those of the detector's function; None stands for its default. `coarse` may also be the name
        of a detector, whose map is refined.

    Returns
    -------
    (h, w) float64 array
        Higher is more anomalous; the unit is the detector's.

    Raises
    ------
    ConfigError
        For a name that is not known, an option that the detector does not have, or a value that it
        does not take.
    DataError
        For an array that is no cube, or a map that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from fedvad.spectral.methods import score_cube
    >>> score_cube(np.random.default_rng(0).random((8, 9, 5)), "rx", ridge=1e-4).shape
    (8, 9)
    """
    function, preset = _detector(method)
    given = preset | {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in _options(method):
            having = [other for other in METHODS if name in _options(other)]
            raise ConfigError(
                f"{name} is no option of {method}"
                + (f": it goes with {', '.join(having)}" if having else "")
            )
    check_values(function, given)
    if isinstance(given.get("coarse"), str):
        given["coarse"] = score_cube(cube, given["coarse"])
    found = np.asarray(function(cube, **given), np.float64)
    if not np.isfinite(found).all():
        raise DataError(f"{method} gave NaN or infinity for this cube: try norm='band_minmax'")
    return found


@cache
def _options(method: str) -> frozenset[str]:
    return frozenset(signature(_detector(method)[0]).parameters) - {"cube"}


def _detector(method: str) -> tuple[Callable[..., NDArray[np.floating[Any]]], dict[str, Any]]:
    if method not in METHODS:
        raise ConfigError(f"no detector is called {method!r}; choose from {', '.join(METHODS)}")
    file, name, preset = METHODS[method]
    return getattr(import_module(f"fedvad.spectral.{file}"), name), preset
