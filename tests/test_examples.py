"""The examples in docstrings print what they say, and no public function is without one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import fedvad.evaluation
import fedvad.memory
import fedvad.spectral

MODULES = [
    importlib.import_module(found.name)
    for package in (fedvad.memory, fedvad.evaluation, fedvad.spectral)
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
# inner loops on tensors; checks and readers that serve the other files of their room; site results
INNER = {
    *(f"memory.distances.{name}" for name in (
        "columns_of", "extended", "nearest", "nearest_column", "pairwise", "row_argmin",
        "squared_norms", "without_rounding",
    )),
    *(f"evaluation.metrics.{name}" for name in (
        "check_labelled", "check_scores", "flag_counts", "gather", "pixel_pairs",
    )),
    *(f"evaluation.sites.{name}" for name in (
        "evaluate_site", "figures_of", "gains", "map_mask_pairs", "site_threshold", "summarise",
    )),
    "evaluation.thresholds.check_target", "evaluation.thresholds.lifted", "memory.density.holds",
    "spectral.envi.read_envi", "spectral.reading.read_truth",
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_print_what_they_say(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_every_public_function_shows_an_example() -> None:
    public = {
        f"{module.__name__.removeprefix('fedvad.')}.{name}": getattr(module, name)
        for module in MODULES
        for name in getattr(module, "__all__", ())
    }
    functions = {name for name, value in public.items() if inspect.isfunction(value)}
    without = {name for name in functions if ">>>" not in (public[name].__doc__ or "")}
    assert without <= INNER
    assert len(functions - INNER) > 25
