"""predict(): one result per image, decisions, overlays, and what cannot be read."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.detectors.memory.feddymem import MemoryDetector
from fedvad.errors import ConfigError, DataError
from fedvad.runs import opening as runs
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.run_folder import read_config, write_config
from fedvad.serving.predictor import Predictor
from tests.helpers import SIZE

Run = tuple[Path, dict[str, Any]]
KEYS = {"path", "site", "score", "threshold", "anomalous", "overlay", "error", "reason", "files"}


def test_one_result_per_image_in_order(trained: Run, plants: Path) -> None:
    folder = plants / "birch/test"
    rows = list(fedvad.predict(trained[0], folder, site="birch"))
    assert [row["path"] for row in rows] == [str(p) for p in sorted(folder.rglob("*.png"))]
    limit = trained[1]["threshold"]["sites"]["birch"]["threshold"]
    for row in rows:
        assert set(row) == KEYS
        assert row["site"] == "birch"
        assert row["error"] is row["overlay"] is row["reason"] is None
        assert row["files"] == {}
        assert row["threshold"] == limit
        assert row["anomalous"] == (row["score"] > limit)


def test_scores_are_those_of_evaluation(trained: Run, plants: Path, shared_cache: Path) -> None:
    run, config, extractor = _open(trained[0])
    folder = plants / "cedar/test/good"
    rows = list(fedvad.predict(trained[0], folder, site="cedar"))
    scores = run.detector("cedar", extractor).score([Path(r["path"]) for r in rows])
    assert [row["score"] for row in rows] == scores.image.tolist()
    assert config.backbone == "filterbank"


def _open(folder: Path) -> Any:
    from fedvad.runs.opening import open_memory_run as open_run

    return open_run(folder)


def test_without_a_site_the_median_threshold_decides(
    trained: Run, plants: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = next(fedvad.predict(trained[0], plants / "alder/test/good/000.png"))
    known = sorted(v["threshold"] for v in trained[1]["threshold"]["sites"].values())
    assert row["site"] is None
    assert row["threshold"] == known[1]
    assert f"deciding by {known[1]:.4g}, the median of alder, birch, cedar" in caplog.text
    assert "can promise" not in caplog.text


def test_a_rate_that_the_good_images_cannot_promise_is_a_warning(
    trained: Run, plants: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = plants / "alder/test/good/000.png"
    fedvad.predict(trained[0], image, site="alder", target_fpr=0.002)
    assert "alder has 6 good images, which can promise at most 39.3 % false alarms" in caplog.text
    assert "not 0.2 %: that takes 1497 good images" in caplog.text
    caplog.clear()
    fedvad.predict(trained[0], image, site="alder", target_fpr=0.45)
    assert caplog.text == ""


def test_pictures_never_go_into_a_run_folder(trained: Run, plants: Path) -> None:
    before = sorted(trained[0].rglob("*"))
    with pytest.raises(ConfigError, match="is a run folder: choose a folder for the pictures"):
        fedvad.predict(trained[0], plants / "alder/test/good", out=trained[0])
    assert sorted(trained[0].rglob("*")) == before


def test_files_that_cannot_be_read_are_among_the_results(
    trained: Run, plants: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    shutil.copy(plants / "alder/test/good/000.png", tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no image")
    rows = list(fedvad.predict(trained[0], tmp_path, site="alder", out=tmp_path / "out"))
    assert [row["error"] is None for row in rows] == [False, True, False]
    for row in (rows[0], rows[2]):
        assert Path(row["path"]).name in row["error"]
        assert row["score"] is row["anomalous"] is row["overlay"] is None
    assert _visible(tmp_path / "out") == {"b.png"}


def test_overlays_show_photograph_and_heat_map_and_never_overwrite_each_other(
    trained: Run, plants: Path, tmp_path: Path
) -> None:
    source = plants / "alder/test/good/000.png"
    for name in ("x/a.png", "y/a.png", "y/a-1.png", "z/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "in" / name)
    shutil.copy(source, tmp_path / "in" / "z" / "ä b.png")
    rows = list(fedvad.predict(trained[0], tmp_path / "in", out=tmp_path / "out"))
    overlays = [row["overlay"] for row in rows]
    assert len(set(overlays)) == len(rows) == 5
    assert overlays == [
        str(tmp_path / "out" / name)
        for name in ("x/a.png", "y/a-1.png", "y/a.png", "z/a.png", "z/ä b.png")
    ]
    for overlay in overlays:
        with Image.open(overlay) as picture:
            assert picture.width > 2 * 320  # photograph and heat map, small ones enlarged


def test_several_paths_and_no_image_twice(trained: Run, plants: Path) -> None:
    good = plants / "alder/test/good"
    rows = list(fedvad.predict(trained[0], [good / "001.png", good, good / "001.png"]))
    assert [Path(r["path"]).name for r in rows] == ["001.png", "000.png", "002.png"]


@pytest.mark.parametrize("reference", ["global", "local", "union"])
def test_every_reference_of_a_site(reference: Any, trained: Run, plants: Path) -> None:
    row = next(
        fedvad.predict(trained[0], plants / "alder/test/good", site="alder", reference=reference)
    )
    assert row["score"] > 0


def test_what_cannot_be_done_is_reported(trained: Run, plants: Path, tmp_path: Path) -> None:
    image = plants / "alder/test/good/000.png"
    with pytest.raises(ConfigError, match="oak"):
        next(fedvad.predict(trained[0], image, site="oak"))
    with pytest.raises(ConfigError, match="local"):
        next(fedvad.predict(trained[0], image, reference="local"))
    with pytest.raises(DataError, match=r"none\.png"):
        next(fedvad.predict(trained[0], tmp_path / "none.png"))
    with pytest.raises(DataError, match="no image"):
        next(fedvad.predict(trained[0], tmp_path))


def _visible(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def _photographs(plants: Path, folder: Path, *names: str) -> dict[Path, bytes]:
    """Copies of different images under these names, and what they hold."""
    sources = sorted((plants / "alder/test").rglob("*.png"))
    for name, source in zip(names, sources, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    return {folder / name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("way", ["same", "relative", "link", "linked images", "above", "below"])
def test_images_are_never_written_over(
    way: str, trained: Run, plants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _photographs(plants, tmp_path / "in", "a/000.png", "a/001.png")
    given, out = tmp_path / "in/a", tmp_path / "in/a"
    if way == "relative":
        monkeypatch.chdir(tmp_path / "in/a")
        given, out = Path(), Path("../a/../a")
    elif way == "link":
        out = tmp_path / "link"
        out.symlink_to(tmp_path / "in/a", target_is_directory=True)
    elif way == "linked images":
        given = tmp_path / "links"
        given.mkdir()
        for path in before:
            (given / path.name).symlink_to(path)
    elif way == "above":
        given = out = tmp_path / "in"
    elif way == "below":  # what is mirrored there would lie among the images
        given = tmp_path / "in"
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a").symlink_to(tmp_path / "in/a", target_is_directory=True)
        out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--out"):
        list(fedvad.predict(trained[0], given, out=out))
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.name for p in (tmp_path / "in/a").iterdir()) == ["000.png", "001.png"]


def test_a_second_call_neither_scores_outputs_nor_replaces_those_of_others(
    trained: Run, plants: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _photographs(plants, tmp_path / "in", "good/000.png", "hole/000.png", "gt/000.png")
    out = tmp_path / "in/overlays"
    first = list(fedvad.predict(trained[0], tmp_path / "in", out=out))
    assert [row["overlay"] for row in first] == [
        str(out / "good/000.png"), str(out / "hole/000.png")
    ]  # fmt: skip
    kept = (out / "hole/000.png").read_bytes()
    again = list(fedvad.predict(trained[0], tmp_path / "in", out=out))
    assert again == first
    assert "2 outputs of fedvad, 1 ground-truth mask" in caplog.text
    # another image of that name, and the user's own file
    _photographs(plants, tmp_path / "other", "x", "y", "z", "hole/000.png")
    (out / "hole/000-1.png").write_text("mine")
    other = list(fedvad.predict(trained[0], tmp_path / "other", out=out))
    assert [row["overlay"] for row in other] == [str(out / "hole/000-2.png")]
    assert (out / "hole/000.png").read_bytes() == kept
    assert (out / "hole/000-1.png").read_text() == "mine"


def test_pictures_of_one_name_do_not_replace_each_other(
    trained: Run, plants: Path, tmp_path: Path
) -> None:
    files = sorted((plants / "alder/test").rglob("*.png"))[:2]
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    saved: dict[str, Any] = {"out": tmp_path / "out", "save": "overlays,csv"}
    rows = [
        next(fedvad.predict(trained[0], array, site="alder", **saved))
        for array in (*arrays, arrays[0])
    ]
    assert len({row["overlay"] for row in rows}) == 2
    assert rows[0] == rows[2]
    assert len(list((tmp_path / "out").glob("*.csv"))) == 2


def test_everything_is_saved_as_stated(trained: Run, plants: Path, tmp_path: Path) -> None:
    _photographs(plants, tmp_path / "in", *(f"n/{i}.png" for i in range(3)), "=b.png")
    limit = 0.5 * trained[1]["threshold"]["sites"]["alder"]["threshold"]
    rows = list(
        fedvad.predict(
            trained[0],
            tmp_path / "in",
            site="alder",
            threshold=limit,
            out=tmp_path / "out",
            save="overlays,maps,maps16,masks,boxes,csv",
        )
    )
    coco = json.loads((tmp_path / "out/predict.coco.json").read_bytes())
    found = 0
    for number, row in enumerate(rows, start=1):
        files = {kind: Path(path) for kind, path in row["files"].items()}
        assert set(files) == {"overlays", "maps", "maps16", "masks"}
        map_ = np.load(files["maps"])
        assert map_.dtype == np.float32
        with Image.open(files["maps16"]) as deep:
            low, step = (float(deep.info[key]) for key in ("low", "step"))
            np.testing.assert_allclose(low + step * np.asarray(deep), map_, atol=step)
        with Image.open(files["masks"]) as picture:
            mask = np.asarray(picture) == 255
        assert mask.shape == (SIZE, SIZE)
        large = np.asarray(Image.fromarray(map_).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        assert (mask == (large > limit)).all()
        regions = [one for one in coco["annotations"] if one["image_id"] == number]
        assert sum(one["area"] for one in regions) == mask.sum()
        found += len(regions)
        for one in regions:
            x, y, width, height = one["bbox"]
            assert mask[y : y + height, x : x + width].any(axis=0).all()
            assert len(one["segmentation"][0]) >= 8
    assert found
    table = list(csv.DictReader((tmp_path / "out/predict.csv").open(newline="")))
    assert [line["path"] for line in table] == [row["path"] for row in rows]
    assert [float(line["score"]) for line in table] == [row["score"] for row in rows]
    # the same call again replaces its own table, another one's has another name
    list(fedvad.predict(trained[0], tmp_path / "in", out=tmp_path / "out", save=["csv"]))
    list(fedvad.predict(trained[0], tmp_path / "in/n", out=tmp_path / "out", save=["csv"]))
    assert {p.name for p in (tmp_path / "out").glob("*.csv")} == {"predict.csv", "predict-1.csv"}


def test_rows_are_in_the_table_before_the_next_image(
    trained: Run, plants: Path, tmp_path: Path
) -> None:
    _photographs(plants, tmp_path / "in", "a.png", "b.png")
    rows = fedvad.predict(trained[0], tmp_path / "in", out=tmp_path / "out", save="csv,boxes")
    next(rows)
    assert len((tmp_path / "out/predict.csv").read_text().splitlines()) == 2
    rows.close()  # as an interruption does
    assert len(json.loads((tmp_path / "out/predict.coco.json").read_bytes())["images"]) == 1


def test_another_threshold_without_training(trained: Run, plants: Path) -> None:
    image = plants / "alder/test/good/000.png"

    def decided(**options: Any) -> Any:
        return next(fedvad.predict(trained[0], image, site="alder", **options))

    known = decided()
    above, below = (decided(threshold=known["score"] + d) for d in (0.01, -0.01))
    assert (above["anomalous"], below["anomalous"]) == (False, True)
    assert decided(target_fpr=0.5)["threshold"] < known["threshold"]
    assert decided(threshold=np.float32(0.5))["threshold"] == 0.5
    assert decided(target_fpr=0.01)["threshold"] == known["threshold"]
    with Predictor.load(trained[0], site="alder", target_fpr=0.5) as predictor:
        assert predictor.threshold.value == decided(target_fpr=0.5)["threshold"]
    for options in (
        {"threshold": 1.0, "target_fpr": 0.1}, {"threshold": math.nan}, {"target_fpr": math.inf},
        {"target_fpr": 0.7}, {"threshold": "1"},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"threshold|target"):
            fedvad.predict(trained[0], image, **options)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("reference", "Global", "global, local or union"),
        ("engine", "onnx", "openvino-bf16 or torch"),
        ("device", "gpu", "not available"),
        ("save", "pictures", "overlays, maps"),
        ("save", "maps", "needs --out"),
        ("weights", 3, "give a path"),
        ("site", ["alder"], "no site"),
        ("max_pixels", "100", "whole number"),
        ("max_pixels", 0, "at least 1"),
        ("threshold", "2", "must be a number"),
    ],
)
def test_options_are_checked_at_the_call(
    option: str, value: Any, said: str, trained: Run, plants: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        fedvad.predict(trained[0], plants, **{option: value})
    assert str(raised.value).count("\n") < 3


def test_a_run_keeps_its_layers_when_the_default_changes(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(trained[0])
    assert config.layers is None
    changed = config.model_copy(update={"layers": (0, 1)})
    monkeypatch.setattr(runs, "read_config", lambda folder: changed)
    run, _, extractor = runs.open_run(trained[0])
    assert extractor.config.layers == run.features.layers == (0, 1, 2)


def test_a_run_of_another_device_works_on_this_one(
    trained: Run, plants: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    config = json.loads((run / "config.json").read_bytes())
    (run / "config.json").write_text(json.dumps(config | {"device": "cuda:77"}))
    image = plants / "alder/test/good/000.png"
    row = next(fedvad.predict(run, image))
    assert row == next(fedvad.predict(trained[0], image))
    assert "'cuda:77'" in caplog.text
    assert "runs on the CPU" in caplog.text
    caplog.clear()
    assert next(fedvad.predict(run, image, device="cpu")) == row
    assert "runs on the CPU" not in caplog.text
    with pytest.raises(ConfigError, match="not available"):
        fedvad.predict(run, image, device="cuda:77")


def test_a_run_of_another_precision_scores_here_and_is_changed_only_there(
    trained: Run,
    plants: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("fedvad.runs.opening", "fedvad.features.engine"):
        monkeypatch.setattr(f"{module}.has_bf16", lambda: False)
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    config = json.loads((run / "config.json").read_bytes())
    (run / "config.json").write_text(json.dumps(config | {"engine": "openvino-bf16"}))
    image = plants / "alder/test/good/000.png"
    assert next(fedvad.predict(run, image)) == next(fedvad.predict(trained[0], image))
    assert "runs in float32" in caplog.text
    with pytest.raises(ConfigError, match=r"--engine openvino$"):
        fedvad.predict(run, image, engine="openvino-bf16")
    # a memory knows its rows by their values
    with pytest.raises(ConfigError, match="not with openvino, because in another precision"):
        fedvad.update(run, plants / "alder/train", site="alder", engine="openvino")
    with pytest.raises(ConfigError, match="no instructions for bfloat16"):
        fedvad.update(run, plants / "alder/train", site="alder")
    with pytest.raises(ConfigError, match="not with openvino-bf16, because in another precision"):
        fedvad.update(trained[0], plants / "alder/train", site="alder", engine="openvino-bf16")


def test_without_a_threshold_the_row_says_why(trained: Run, plants: Path, tmp_path: Path) -> None:
    run = TrainedRun.load(trained[0])
    one = replace(run.sites["alder"], thresholds={}, n_images=2)
    replace(run, sites={"alder": one}).save(tmp_path)
    shutil.copy(trained[0] / "config.json", tmp_path)
    image = plants / "alder/test/good/000.png"
    row = next(fedvad.predict(tmp_path, image))
    assert row["anomalous"] is None
    assert "2 normal images" in row["reason"]
    assert "--threshold" in row["reason"]
    assert next(fedvad.predict(tmp_path, image, threshold=0))["anomalous"] is True
    with pytest.raises(ConfigError, match="masks cannot be saved"):
        fedvad.predict(tmp_path, image, out=tmp_path / "out", save="masks")


def test_no_decision_from_a_score_that_is_not_finite(
    trained: Run, plants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = MemoryDetector.score

    def broken(self: MemoryDetector, *arguments: Any) -> Any:
        found = score(self, *arguments)
        found.image[0] = np.nan
        return found

    monkeypatch.setattr(MemoryDetector, "score", broken)
    rows = list(fedvad.predict(trained[0], plants / "alder/test/good"))
    assert rows[0]["score"] is rows[0]["anomalous"] is None
    assert "no finite number" in rows[0]["error"]
    assert rows[1]["error"] is None


def test_images_in_memory_are_bound_by_the_limit_of_the_run(trained: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "run")
    write_config(folder, read_config(folder).model_copy(update={"max_pixels": 99}))
    pixels = np.full((10, 10, 3), 90, np.uint8)
    (refused,) = fedvad.predict(folder, pixels)
    assert "over the limit of 99" in refused["error"]
    (scored,) = fedvad.predict(folder, pixels, max_pixels=100)
    assert scored["error"] is None
