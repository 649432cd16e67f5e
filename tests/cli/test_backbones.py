"""`fedvad backbones`: families at once, single models by a part of their name."""

from __future__ import annotations

import json

import pytest

import fedvad
from tests.helpers import run_main

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def test_families(monkeypatch: Patch, capsys: Capture) -> None:
    assert run_main(monkeypatch, "backbones") == 0
    out = capsys.readouterr().out
    assert "Swin (v1, v2): swin_*" in out
    assert "multiples of 14" in out
    assert run_main(monkeypatch, "backbones", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(fedvad.backbones()))
    assert {"name", "example", "layers", "strides", "dim", "sizes", "weights"} <= set(found[0])


def test_models(monkeypatch: Patch, capsys: Capture) -> None:
    assert run_main(monkeypatch, "backbones", "levit_128s") == 0
    out = capsys.readouterr().out
    assert "layers 0 of stride 16, 128 channels; image size 224\n" in out
    assert "timm/levit_128s" in out
    assert run_main(monkeypatch, "backbones", "resnet") == 0
    assert "models: give a longer name" in capsys.readouterr().out
    assert run_main(monkeypatch, "backbones", "nosuch") == 2
    assert "no timm model's name matches 'nosuch'" in capsys.readouterr().err
