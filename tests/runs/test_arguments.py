"""Arguments of the Python API that a hurried user gets wrong end in an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fedvad
from fedvad.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of labels, OK and NG."""
    root = tmp_path_factory.mktemp("labelled")
    for name in ("OK", "NG"):
        (root / name).mkdir()
        for shade in range(5):
            Image.new("L", (8, 8), 10 * shade + len(name)).save(root / name / f"{shade}.png")
    return root


def test_an_experiment_may_be_a_path_object(tmp_path: Path) -> None:
    for call in (fedvad.bench, fedvad.run_stream, fedvad.distill_backbone):
        with pytest.raises(ConfigError, match=r"cannot read \w+ .*mine\.toml: No such file"):
            call(tmp_path / "mine.toml", tmp_path / "out")


def test_one_name_is_as_a_list_of_one(labelled: Path) -> None:
    described = fedvad.inspect(labelled, good="OK")
    assert described == fedvad.inspect(labelled, good=["OK"])
    assert {label["label"] for label in described["data"]["sites"][labelled.name]["read"]} == {
        "normal", "defect NG"
    }  # fmt: skip
    with pytest.raises(DataError, match="hold normal images"):
        fedvad.inspect(labelled, good=None)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda data, out: fedvad.inspect(data, good=3), "good is 3; give the name"),
        (lambda data, out: fedvad.inspect(data, defect=[3]), "give the name of a folder"),
        (lambda data, out: fedvad.gallery(data, out, rows="2"), "rows is '2'"),
        (lambda data, out: fedvad.gallery(data, out, image_size=0), "image_size is 0"),
        (lambda data, out: fedvad.gallery(data, out, max_pixels="x"), "max_pixels is 'x'"),
        (
            lambda data, out: fedvad.gallery(data, out, kinds="blob"),
            "unknown kind of defect 'blob'",
        ),
        (lambda data, out: fedvad.bench("quick", out, seeds="1"), "seed is '1'"),
        (lambda data, out: fedvad.bench(3, out), "suite is 3; give a path"),
        (lambda data, out: fedvad.run_stream(3, out), "stream is 3; give a path"),
        (lambda data, out: fedvad.distill_backbone(3, out), "recipe is 3; give a path"),
    ],
)
def test_wrong_ones_are_refused_in_a_line(
    call: Callable[[Path, Path], Any], said: str, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        call(labelled, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
