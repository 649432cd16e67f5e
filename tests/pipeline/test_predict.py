"""predict(): one result per image, decisions, overlays, and what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fedvad
from fedvad.errors import ConfigError, DataError
from tests.helpers import SIZE

Run = tuple[Path, dict[str, Any]]
KEYS = {"path", "site", "score", "threshold", "anomalous", "overlay", "error"}


def test_one_result_per_image_in_order(trained: Run, plants: Path) -> None:
    folder = plants / "birch/test"
    rows = list(fedvad.predict(trained[0], folder, site="birch"))
    assert [row["path"] for row in rows] == [str(p) for p in sorted(folder.rglob("*.png"))]
    limit = trained[1]["threshold"]["sites"]["birch"]["threshold"]
    for row in rows:
        assert set(row) == KEYS
        assert row["site"] == "birch"
        assert row["error"] is row["overlay"] is None
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
    from fedvad.pipeline.runs import open_memory_run as open_run

    return open_run(folder)


def test_without_a_site_the_median_threshold_decides(trained: Run, plants: Path) -> None:
    row = next(fedvad.predict(trained[0], plants / "alder/test/good/000.png"))
    known = sorted(v["threshold"] for v in trained[1]["threshold"]["sites"].values())
    assert row["site"] is None
    assert row["threshold"] == known[1]


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
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]


def test_overlays_have_the_size_of_their_images_and_never_overwrite_each_other(
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
    assert {str(p) for p in (tmp_path / "out").iterdir()} == set(overlays)
    for overlay in overlays:
        with Image.open(overlay) as picture:
            assert picture.size == (SIZE, SIZE)


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


def test_what_cannot_be_done_is_told(trained: Run, plants: Path, tmp_path: Path) -> None:
    image = plants / "alder/test/good/000.png"
    with pytest.raises(ConfigError, match="oak"):
        next(fedvad.predict(trained[0], image, site="oak"))
    with pytest.raises(ConfigError, match="local"):
        next(fedvad.predict(trained[0], image, reference="local"))
    with pytest.raises(DataError, match=r"none\.png"):
        next(fedvad.predict(trained[0], tmp_path / "none.png"))
    with pytest.raises(DataError, match="no image"):
        next(fedvad.predict(trained[0], tmp_path))
