"""Runs on images that are read in tiles, with their proportions, or in a region of interest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import fedvad
from fedvad.data.images import read_rgb
from fedvad.errors import ConfigError, MismatchError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.runs.config import resolve_config
from fedvad.runs.opening import open_memory_run
from fedvad.runs.run_folder import read_config
from fedvad.serving.predictor import Predictor
from fedvad.verbs.train import train

OPTIONS: dict[str, Any] = {"backbone": "filterbank", "engine": "torch"}
HEIGHT, WIDTH = 160, 224
SPECK = 6


def _draw(path: Path, rng: np.random.Generator, shape: tuple[int, int], speck: bool) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    grey = 140 + 25 * np.sin(x / 5 + rng.uniform(0, 6)) + 15 * np.sin(y / 7 + rng.uniform(0, 6))
    grey += rng.normal(0, 6, shape)
    mask = np.zeros(shape, np.uint8)
    if speck:
        top, left = rng.integers(20, 60), rng.integers(20, 80)
        mask[top : top + SPECK, left : left + SPECK] = 255
        grey[mask > 0] = 20
        target = path.parents[2] / "ground_truth" / "speck" / f"{path.stem}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of images of 160 x 224 pixels, one of each smaller, with specks of 6 pixels."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for site in ("alder", "birch"):
        for part, count in (("train/good", 5), ("test/good", 3), ("test/speck", 3)):
            for i in range(count):
                shape = (HEIGHT, WIDTH) if i else (150, 200)
                _draw(root / site / part / f"{i}.png", rng, shape, part == "test/speck")
    return root


@pytest.fixture(scope="module")
def run(sites: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Trained in tiles, on the left two thirds of images."""
    out = tmp_path_factory.mktemp("run") / "run"
    mask = np.zeros((30, 30), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(out.parent / "mask.png")
    results = fedvad.train(
        sites, out, tiles=64, overlap=32, region=str(out.parent / "mask.png"), **OPTIONS
    )
    (out.parent / "mask.png").unlink()
    return out, results


def test_specks_are_found_in_tiles_at_full_size(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["image_auroc"]["mean"] == 1
    assert run[1]["aupro"]["mean"] > 0.9


def test_the_run_keeps_what_it_found_for_its_images(run: tuple[Path, dict[str, Any]]) -> None:
    config = read_config(run[0])
    assert (config.image_size, config.tiles, config.overlap) == (f"fit:{HEIGHT}x{WIDTH}", 64, 32)
    assert json.loads((run[0] / "config.json").read_text())["region"] == "region.png"
    assert config.region == str(run[0] / "region.png")
    assert any(
        note.startswith(f"images are {HEIGHT} x {WIDTH} pixels: read at")
        for note in run[1]["data"]["notes"]
    )


def test_nothing_outside_the_region_scores(
    run: tuple[Path, dict[str, Any]], sites: Path, tmp_path: Path
) -> None:
    image = np.asarray(Image.open(sites / "alder/test/good/1.png")).copy()
    image[50:60, 190:200] = 20
    Image.fromarray(image).save(tmp_path / "outside.png")
    (row,) = fedvad.predict(
        run[0], tmp_path / "outside.png", site="alder", save="maps", out=tmp_path / "o"
    )
    map_ = np.load(row["files"]["maps"])
    assert map_.shape == (HEIGHT // 4, WIDTH // 4)  # cells of four pixels, no padding
    assert (map_[:, 38:] == 0).all()
    assert (map_[:, :37] > 0).all()
    (before,) = fedvad.predict(run[0], sites / "alder/test/good/1.png", site="alder")
    assert row["score"] == pytest.approx(before["score"], rel=1e-3)


def test_heat_maps_show_the_speck_where_it_is(
    run: tuple[Path, dict[str, Any]], sites: Path, tmp_path: Path
) -> None:
    for stem in ("0", "1"):
        (row,) = fedvad.predict(
            run[0], sites / f"alder/test/speck/{stem}.png", site="alder",
            save="maps,overlays", out=tmp_path / stem,
        )  # fmt: skip
        map_ = np.load(row["files"]["maps"])
        mask = np.asarray(Image.open(sites / f"alder/ground_truth/speck/{stem}_mask.png"))
        cell = np.unravel_index(map_.argmax(), map_.shape)
        scale = np.array(mask.shape) / map_.shape
        middle = np.argwhere(mask).mean(0)
        assert np.abs((np.array(cell) + 0.5) * scale - middle).max() < 6
        # photograph and map, 320 pixels wide in the photograph's proportions, in their frame
        height = round(320 * mask.shape[0] / mask.shape[1])
        assert Image.open(row["overlay"]).size == (2 * 320 + 40, height + 106)


def test_live_images_score_as_files_do(run: tuple[Path, dict[str, Any]], sites: Path) -> None:
    paths = sorted((sites / "birch/test").rglob("*.png"))
    rows = fedvad.predict(run[0], sites / "birch/test", site="birch")
    with Predictor.load(run[0], site="birch") as predictor:
        predictor.warm_up()
        found = predictor.predict([read_rgb(path) for path in paths])
    by_path = {row["path"]: row["score"] for row in rows}
    assert [p.score for p in found] == pytest.approx([by_path[str(p)] for p in paths], rel=1e-5)


def test_resume_knows_the_size_and_the_mask_of_before(
    run: tuple[Path, dict[str, Any]], sites: Path, tmp_path: Path
) -> None:
    shutil.copy(run[0] / "region.png", tmp_path / "again.png")
    options = OPTIONS | {"tiles": 64, "overlap": 32, "resume": True}
    again = fedvad.train(sites, run[0], region=str(tmp_path / "again.png"), **options)
    assert again["image_auroc"] == run[1]["image_auroc"]
    with pytest.raises(ConfigError, match="region"):
        fedvad.train(sites, run[0], region="0,0,50,50", **options)


def test_a_run_moves_with_its_mask(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(run[0], tmp_path / "moved")
    _, config, extractor = open_memory_run(tmp_path / "moved")
    assert config.region == str(tmp_path / "moved" / "region.png")
    assert extractor.inside((40, 56)) is not None


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_is_for_images_of_one_size(
    run: tuple[Path, dict[str, Any]], sites: Path, tmp_path: Path, format: str
) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    whole = tmp_path / "whole"
    for site in ("alder", "birch"):
        shutil.copytree(sites / site / "test", whole / site / "test")
        for path in (whole / site).rglob("0.png"):
            path.unlink()
    manifest = fedvad.export(run[0], format=format, site="alder", out=tmp_path, verify=whole)
    assert manifest["input"]["shape"] == ["batch", HEIGHT, WIDTH, 3]
    assert manifest["verified"]["images"] == 4
    assert manifest["verified"]["score"] < 1e-3
    assert manifest["verified"]["decisions"] == 0
    import runpy

    read = runpy.run_path(str(tmp_path / "example.py"))["read"]
    good = sites / "alder/test/good/1.png"
    size = manifest["input"]["height"], manifest["input"]["width"]
    assert manifest["input"]["keeps_proportions"]
    np.testing.assert_array_equal(read(str(good), size, True), read_rgb(good))


def test_students_and_position_means_refuse_other_views(sites: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole images squashed to a square"):
        train(
            sites, tmp_path / "a", resolve_config(method="stfpm", image_size="fit:64x96", **OPTIONS)
        )
    with pytest.raises(ConfigError, match="all of them need the same cells"):
        train(
            sites, tmp_path / "b",
            resolve_config(method="feddymem-position", image_size="fit:64x96", **OPTIONS),
        )  # fmt: skip


def test_where_images_are_not_seen_the_size_must_be_given() -> None:
    assert resolve_config(**OPTIONS).features().image_size == 256
    with pytest.raises(ConfigError, match="same at every site"):
        resolve_config(**OPTIONS, tiles=512).features()
    with pytest.raises(ConfigError, match="same at every site"):
        resolve_config(**OPTIONS, image_size="short:512").features()


def test_other_tiles_are_other_features() -> None:
    plain = FeatureConfig("filterbank", image_size="fit:512x512")
    tiled = FeatureConfig("filterbank", image_size="fit:512x512", tiles=256)
    with pytest.raises(MismatchError, match=r"tiles: .*256"):
        plain.check_same(tiled, "this run")
    masked = FeatureConfig("filterbank", image_size="fit:512x512", region="0,0,50,50")
    assert masked.key() == plain.key()


def test_squares_keep_the_keys_of_before() -> None:
    assert FeatureConfig("filterbank", image_size=64).key() == "bc929c98eba1d9dc"


def _texture(shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1]))


def test_seams_do_not_show() -> None:
    image = _texture((160, 192))
    whole = FeatureExtractor(FeatureConfig("filterbank", image_size="160x192", engine="torch"))
    tiled = FeatureExtractor(
        FeatureConfig("filterbank", image_size="160x192", tiles=96, overlap=32, engine="torch")
    )
    assert tiled.grid == whole.grid
    (expected,), (found,) = whole.describe([image]), tiled.describe([image])
    gap = np.abs(found.astype(np.float32) - expected.astype(np.float32)).mean(2)
    assert gap.mean() < 0.05 * np.abs(expected.astype(np.float32)).mean()
    seam = gap[:, 20:28].mean()  # columns of the overlap
    assert seam < 2 * gap.mean()


def test_padding_does_not_light_up() -> None:
    noise = np.random.default_rng(0).normal(140, 6, (192, 192, 3)).astype(np.uint8)
    black = noise.copy()
    black[96:] = 0
    fitted = FeatureExtractor(FeatureConfig("filterbank", image_size="fit:192x192", engine="torch"))

    def edge(image: npt.NDArray[np.uint8]) -> float:
        """How far the lower edge of the image lies from cells within."""
        (found,) = fitted.describe([image])
        cells = found[:24].astype(np.float32)
        middle = cells[8:16].mean((0, 1))
        return float(np.linalg.norm(cells[-1] - middle, axis=1).mean())

    (grid,) = (found.shape for found in fitted.describe([noise[:96]]))
    assert grid == (24, 48, 72)
    assert edge(noise[:96]) < 0.2 * edge(black)


def test_the_size_found_is_shown(
    sites: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(
            sites, tmp_path / "r",
            resolve_config(image_size="short:64", calibration="none", rounds=1, **OPTIONS),
        )  # fmt: skip
    assert f"images are {HEIGHT} x {WIDTH} pixels: read at fit:64x90, about " in caplog.text
    assert " s per image (--image-size chooses, --tiles 512 reads every pixel)" in caplog.text
