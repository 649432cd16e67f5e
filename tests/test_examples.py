"""The examples in docstrings print what they say, and no public function is without one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import fedvad
import fedvad.evaluation
import fedvad.federation.exchange.base
import fedvad.federation.payload
import fedvad.federation.server
import fedvad.memory
import fedvad.spectral

MODULES = [
    importlib.import_module(found.name)
    for package in (fedvad.memory, fedvad.evaluation, fedvad.spectral)
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
] + [fedvad.federation.exchange.base, fedvad.federation.payload, fedvad.federation.server]
VERBS = {name: verb for name in fedvad.__all__ if inspect.isfunction(verb := getattr(fedvad, name))}
# inner loops on tensors; checks and readers that serve the other files of their room; site results
INNER = {
    "federation.payload.negatives_from",  # shown with `with_negatives`
    "memory.bank.joined_origin", "memory.merge.merged_parts", "memory.merge.sampled_rows",
    *(f"memory.distances.{name}" for name in (
        "columns_of", "extended", "nearest", "nearest_column", "pairwise", "row_argmin",
        "squared_norms", "without_rounding",
    )),
    *(f"evaluation.metrics.{name}" for name in (
        "check_labelled", "check_scores", "flag_counts", "gather", "pixel_pairs",
    )),
    *(f"evaluation.sites.{name}" for name in (
        "counted", "evaluate_site", "figures_of", "gains", "site_threshold",
        "summarise",
    )),
    "evaluation.thresholds.check_target", "evaluation.thresholds.lifted", "memory.density.holds",
    "memory.cells.principal_axes",
    *(f"spectral.{name}" for name in (
        "classify.logits_of", "classify.train", "hypersigma.mixed", "hypersigma.whitened",
        "lrasr.dictionary", "published.load_branch", "rpca.shrunk", "rpca.shrunk_rank",
    )),
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_print_what_they_say(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("module", sorted({verb.__module__ for verb in VERBS.values()}))
def test_examples_of_verbs_print_what_they_say(
    module: str, trained: tuple[Path, object], plants: Path, shared_cache: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "plants").symlink_to(plants)
    monkeypatch.setenv("FEDVAD_CACHE", str(shared_cache))
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert found.failed == 0


def test_every_verb_documents_its_parameters() -> None:
    assert len(VERBS) == len(fedvad.__all__) - 3  # a version, an error and a type
    assert set(VERBS) <= set(dir(fedvad))  # for completion, before their first use as well
    for name, verb in VERBS.items():
        text = verb.__doc__ or ""
        assert "Examples\n" in text, name
        missing = [
            one for one in inspect.signature(verb).parameters
            if not re.search(rf"^    (\w+, )*(\*\*)?{one}\b(, \**\w+)*( :|$)", text, re.M)
        ]  # fmt: skip
        assert not missing, (name, missing)


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
