"""Runs that earlier versions wrote are read, and score and decide as they did, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedvad.detectors.artefact import read_arrays
from fedvad.runs.opening import open_run
from tests import golden

RUNS = ("run-of-memories", "run-of-students")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.write_teacher(tmp_path_factory.mktemp("golden") / "teacher.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, golden.images(), strict=True):
        Image.fromarray(image).save(path)
    return paths


def _weights(name: str, teacher: Path) -> Path | None:
    return teacher if name == "run-of-students" else None


def _same(found: float, reported: str, exact: bool) -> bool:
    """To the bit with the library and the processor that made the file, closely with others."""
    wanted = float.fromhex(reported)
    return found == (wanted if exact else pytest.approx(wanted, rel=1e-4))


@pytest.mark.parametrize("name", RUNS)
def test_scores_and_thresholds_are_those_of_the_version_that_wrote_it(
    name: str, teacher: Path, files: list[Path]
) -> None:
    reported: dict[str, Any] = json.loads((golden.FOLDER / name / "scores.json").read_text())
    exact = (reported["torch"], reported["cpu"]) == (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
    )
    run, _, extractor = open_run(golden.FOLDER / name, weights=_weights(name, teacher))
    assert len(reported["sites"]) == (9 if name == "run-of-memories" else 3)
    for words, wanted in reported["sites"].items():
        site, reference = (None if word == "None" else word for word in words.split())
        scores = run.detector(site, extractor, reference).score(files)  # type: ignore[arg-type]
        assert all(_same(*pair, exact) for pair in zip(scores.image, wanted["scores"], strict=True))
        cells = scores.maps[0].ravel()[: len(wanted["map"])]
        assert all(_same(*pair, exact) for pair in zip(cells, wanted["map"], strict=True))
        threshold = run.threshold(site, reference)  # type: ignore[arg-type]
        assert threshold is not None
        assert threshold.value == float.fromhex(wanted["threshold"])


@pytest.mark.parametrize("name", RUNS)
def test_saved_again_it_is_the_same_file(name: str, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(golden.FOLDER / name, tmp_path / "before")
    run, _, _ = open_run(tmp_path / "before", weights=_weights(name, teacher))
    run.save(tmp_path)
    before, after = (
        read_arrays(f / "detector.safetensors") for f in (tmp_path / "before", tmp_path)
    )
    if name == "run-of-memories":  # as map and image score were divided alike, by one factor
        before[1]["scoring"] |= {"map_density": 1.0, "finer_map": False}
        before[0]["global/scale"] = before[0]["global/scale"][:, None]
    assert before[1] | {"version": ""} == after[1] | {"version": ""}
    assert before[0].keys() == after[0].keys()
    for key, array in before[0].items():
        np.testing.assert_array_equal(array, after[0][key])
