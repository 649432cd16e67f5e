"""One reading of a data folder, shown by train, evaluate, inspect and the report alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.errors import DataError
from fedvad.runs.data import load_sites
from tests.helpers import FLAGS, OPTIONS, run_main

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Made = tuple[Path, Path, dict[str, Any]]


def draw(root: Path, *, seed: int = 0, good: str = "good") -> Path:
    """One set: six normal images, three of test/good, four defects with masks; 64 pixels."""
    rng = np.random.default_rng(seed)

    def save(name: str, *, bad: bool = False) -> None:
        pixels = rng.normal(128, 8, (64, 64, 3))
        if bad:
            pixels[20:40, 20:40] = 20
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)

    for index in range(6):
        save(f"train/{good}/{index}.png")
    for index in range(3):
        save(f"test/{good}/{index}.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    for index in range(4):
        save(f"test/hole/{index}.png", bad=True)
        path = root / f"ground_truth/hole/{index}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run on data with a nested folder, a missing and an empty mask, and a broken test image."""
    folder = tmp_path_factory.mktemp("odd")
    data = draw(folder / "plant")
    (data / "train/good/monday").mkdir()
    (data / "train/good/0.png").rename(data / "train/good/monday/0.png")
    (data / "test/stray.png").touch()
    (data / "ground_truth/hole/3_mask.png").unlink()
    Image.new("L", (64, 64)).save(data / "ground_truth/hole/2_mask.png")
    (data / "test/good/1.png").write_bytes(b"")
    run = folder / "run"
    return data, run, fedvad.train(data, run, cache=folder / "cache", **OPTIONS)


def test_a_bad_test_image_costs_no_training(odd: Made) -> None:
    _, run, results = odd
    assert (run / "detector.safetensors").is_file()
    assert len(results["unreadable"]) == 1
    assert results["image_auroc"]["mean"] == 1.0
    notes = results["data"]["notes"]
    assert notes[0] == ("plant: 1 of 7 test images cannot be read; all figures rest on the others")
    assert notes[1] == (
        "plant: pixel figures on 2 of 4 defective images: 1 with an empty mask (2.png); "
        "1 without a mask (3.png)"
    )


def test_results_page_and_files_hold_the_reading(odd: Made) -> None:
    _, run, results = odd
    data = results["data"]
    assert not data["complete"]
    (site,) = data["sites"].values()
    assert site["layout"] == "MVTec AD"
    assert [(r["folder"], r["images"], r["label"]) for r in site["read"]] == [
        ("train/good", 6, "normal"), ("test/good", 3, "normal"), ("test/hole", 4, "defect hole"),
    ]  # fmt: skip
    assert [(s["folder"], s["example"]) for s in site["not_read"]] == [("test", "stray.png")]
    assert results["pixel_images"]["plant"]["masked"] == 2
    assert json.loads((run / "results.json").read_bytes())["data"] == data
    page = (run / "report.html").read_text()
    assert "How the data were read" in page
    assert "loose in test/: move it to test/&lt;defect&gt;" in page
    assert "pixel figures on 2 of 4 defective images" in page


def test_the_terminal_shows_one_table(odd: Made, monkeypatch: Patch, capsys: Capture) -> None:
    data, run, _ = odd
    monkeypatch.setenv("COLUMNS", "220")
    assert run_main(monkeypatch, "inspect", data) == 0
    shown = capsys.readouterr().out
    for words in ("also from sub-folders (monday)", "loose in test/", "1 with an empty mask"):
        assert words in shown
    assert run_main(monkeypatch, "inspect", data, "--json") == 0
    inspected = json.loads(capsys.readouterr().out)
    assert inspected["kind"] == "folder of images"
    assert inspected["data"] == fedvad.inspect(data)["data"]
    # training reads masks with the test images, and says what they are worth
    sites = {
        n: {k: v for k, v in site.items() if k != "masks"}
        for n, site in inspected["data"]["sites"].items()
    }
    assert sites == odd[2]["data"]["sites"]
    assert run_main(monkeypatch, "train", data, "--out", run, "--resume", *FLAGS) == 0
    reported = capsys.readouterr()
    assert "move it to test/<defect>, for example stray.png" in reported.out
    assert "files not read: 1 in test (loose in test/" in reported.err


def test_a_word_for_good_stops_both_doors_until_it_is_named(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    data = draw(tmp_path / "plant", good="OK")
    for call in (
        lambda: fedvad.train(data, tmp_path / "run", cache=tmp_path / "c", **OPTIONS),
        lambda: fedvad.inspect(data),
    ):
        with pytest.raises(DataError, match="--good OK"):
            call()
    assert run_main(monkeypatch, "train", data, "--out", tmp_path / "run", *FLAGS) == 3
    assert "--good OK" in capsys.readouterr().err
    named = fedvad.train(data, tmp_path / "run", cache=tmp_path / "c", good="ok", **OPTIONS)
    assert named["image_auroc"]["mean"] == 1.0
    # the run remembers the name, so that its own data need no naming again
    again = fedvad.evaluate(tmp_path / "run", data, cache=tmp_path / "c")
    assert again["image_auroc"] == named["image_auroc"]
    other = draw(tmp_path / "other", good="pass", seed=1)
    with pytest.raises(DataError, match="--good pass"):
        fedvad.evaluate(tmp_path / "run", other, cache=tmp_path / "c")
    reported = fedvad.evaluate(tmp_path / "run", other, good=["pass"], cache=tmp_path / "c")
    assert reported["image_auroc"]["mean"] == 1.0
    assert reported["data"]["complete"]  # that the training's own name is missing here is no news


def test_equal_normals_say_why_there_is_no_threshold(tmp_path: Path) -> None:
    data = draw(tmp_path / "plant")
    for index in range(1, 6):
        shutil.copy(data / "train/good/0.png", data / f"train/good/{index}.png")
    results = fedvad.train(data, tmp_path / "run", cache=tmp_path / "c", **OPTIONS)
    notes = " / ".join(results["data"]["notes"])
    assert results["threshold"]["sites"]["plant"]["threshold"] is None
    assert "no threshold, so no decisions: training has 1 distinct image of 6" in notes


def test_images_over_the_pixel_limit_are_not_advised_to_be_tolerated(tmp_path: Path) -> None:
    for index in range(3):
        path = tmp_path / f"train/good/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", (10_100, 10_000 + index)).save(path)
    with pytest.raises(DataError, match=r"3 of 3 images are too large .*--max-pixels") as caught:
        fedvad.train(tmp_path, tmp_path / "run", cache=tmp_path / "c", **OPTIONS)
    assert "max-bad" not in str(caught.value)


def test_no_readable_test_image_costs_no_training_either(tmp_path: Path) -> None:
    data = draw(tmp_path / "plant")
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"")
    (data / "train/good/0.png").write_bytes(b"<html>")
    results = fedvad.train(data, tmp_path / "run", cache=tmp_path / "c", max_bad=0.5, **OPTIONS)
    assert results["image_auroc"]["mean"] is None
    notes = " / ".join(results["data"]["notes"])
    assert "7 of 7 test images cannot be read" in notes
    assert "1 training image cannot be read" in notes


def test_a_split_by_style_looks_at_images_under_the_limit_that_was_given(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / f"train/good/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        values = rng.integers(0, 30, (16, 16, 3)) + 200 * (number % 4 < 2)
        Image.fromarray(values.astype(np.uint8)).save(path)

    def parts(max_pixels: int) -> list[set[str]]:
        sites = load_sites(tmp_path, "style:2", 0, max_pixels=max_pixels)
        return [{path.stem for path in site.train.paths} for site in sites]

    assert parts(256) == [{"2", "3", "6", "7"}, {"0", "1", "4", "5"}]  # darker ones first
    assert parts(255) != parts(256)  # nothing can be seen: dealt in turn
    with pytest.raises(DataError, match="--max-pixels"):
        fedvad.gallery(tmp_path, tmp_path / "out/sheet.png", max_pixels=255, image_size=16)


def test_copies_of_images_neither_move_a_threshold_nor_lift_its_promise(
    trained: tuple[Path, dict[str, Any]], plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(plants, tmp_path / "plants")
    for site in ("alder", "birch"):
        for path in sorted((data / site / "train/good").glob("*.png")):
            shutil.copy(path, path.with_name(f"{path.stem}-again.png"))
    results = fedvad.train(data, tmp_path / "run", cache=shared_cache, **OPTIONS)
    found, known = (r["threshold"]["sites"] for r in (results, trained[1]))
    for site in known:
        assert found[site]["threshold"] == known[site]["threshold"]
        assert found[site]["promise"] == known[site]["promise"]
    notes = "\n".join(results["data"]["notes"])
    assert "alder: 6 images repeat the content of others; training has 6 distinct images" in notes
