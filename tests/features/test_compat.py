"""Imports: timm beside a CUDA torchvision, and nothing slow before it is needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedvad.features import compat

SLOW = ("torch", "torchvision", "timm", "openvino", "sklearn", "scipy", "matplotlib")


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '0.28.0+cu130'\ngit_version = 'x'\n", True),
        ('__version__="0.21.0+cu118"\n', True),
        ("__version__ = '0.28.0+cpu'\n", False),
        ("__version__ = '0.28.0'\n", False),
        ("__version__ = '0.28.0'\n# built beside 0.28.0+cu130\n", False),
        ("git_version = '+cu130'\n", False),
        ("", False),
    ],
)
def test_version_text(
    text: str, cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(text)
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert compat._torchvision_is_cuda() is cuda


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_no_torchvision(spec: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert not compat._torchvision_is_cuda()


def test_no_version_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert not compat._torchvision_is_cuda()


def test_timm_imports_again_and_again() -> None:
    timm = compat.import_timm()
    assert compat.import_timm() is timm
    assert len(compat._declared) <= 1
    assert timm.is_model("resnet18")


def test_import_loads_nothing_slow() -> None:
    """Of what starts often: commands, and a process for each message of a federation."""
    names = (
        "cli.main",
        "features.extractor",
        "features.cache",
        "runs.method",
        "runs.method_sums",
        "deploy.site",
    )
    modules = ", ".join(f"fedvad.{name}" for name in names)
    code = f"import sys, fedvad, {modules}; print(*[m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_exits_0() -> None:
    code = "from fedvad.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "train", "evaluate", "predict", "inspect", "cache"):
        assert verb in done.stdout
