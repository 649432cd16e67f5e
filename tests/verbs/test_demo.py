"""demo(): an ordinary run folder, drawn again on demand, and nobody else's files touched."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import fedvad
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError, StorageError
from tests.helpers import OPTIONS


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = partial(write_demo, plants=2, train=4, test_normal=2, test_defect=2)
    monkeypatch.setattr("fedvad.verbs.demo.write_demo", tiny)
    monkeypatch.setattr("fedvad.verbs.demo.IMAGE_SIZE", 64)
    monkeypatch.setattr(
        "fedvad.verbs.demo.DEMO_CONFIG",
        OPTIONS | {"compare": ("local", "pooled")},
    )


def test_it_leaves_an_ordinary_run_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    stages: set[str] = set()
    results = fedvad.demo(out, progress=lambda stage, done, total: stages.add(stage))
    assert set(results["image_auroc"]["sites"]) == {"alder", "birch"}
    assert results["ledger"]["images_computed"] == 2 * (4 + 2 + 2)
    assert {"images of the demo", "features", "rounds"} <= stages
    assert (out / "heatmaps.png").is_file()
    again = fedvad.evaluate(out, out / "data", cache=tmp_path / "cache")
    assert again["image_auroc"] == results["image_auroc"]
    assert fedvad.inspect(out)["kind"] == "run"
    before = (out / "detector.safetensors").read_bytes()
    (out / "results.json").unlink()
    fedvad.demo(out)
    assert (out / "results.json").is_file()
    assert (out / "detector.safetensors").read_bytes() == before


def test_a_folder_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an earlier demo"):
        fedvad.demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="not an earlier demo"):
        fedvad.demo(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_wrong_seed_is_reported_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed"):
        fedvad.demo(tmp_path / "demo", seed=-1)
    assert not (tmp_path / "demo").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        fedvad.demo(tmp_path / "file" / "demo")
