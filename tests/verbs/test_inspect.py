"""inspect(): runs, detectors and messages described; anything else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fedvad
from fedvad.data.folders import read_set
from fedvad.detectors.registry import create
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.features.cache import content_key
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.signed import generate_keys, key_fingerprint
from tests import golden
from tests.helpers import OPTIONS, upload

Run = tuple[Path, dict[str, Any]]


def test_a_run(trained: Run) -> None:
    reported = fedvad.inspect(trained[0])
    json.dumps(reported, allow_nan=False)
    assert reported["kind"] == "run"
    assert reported["method"] == "feddymem"
    assert reported["version"] == fedvad.__version__
    assert reported["features"]["backbone"] == "filterbank"
    assert [site["name"] for site in reported["sites"]] == ["alder", "birch", "cedar"]
    assert reported["path"] == str(trained[0])
    assert reported["files"]["results.json"] == (trained[0] / "results.json").stat().st_size
    vectors = reported["arrays"]["global/vectors"]
    assert vectors["shape"] == [trained[1]["ledger"]["memory_rows"], 72]
    assert vectors["bytes"] == vectors["shape"][0] * 72 * 4
    assert vectors["min"] < vectors["max"]


def test_a_public_key_says_whose_it_is_and_how_it_verifies(tmp_path: Path) -> None:
    _, path, key = generate_keys(tmp_path, "alder")
    reported = fedvad.inspect(path)
    assert (reported["kind"], reported["name"]) == ("public key", "alder")
    assert reported["fingerprint"] == key_fingerprint(key)
    whose, fingerprint, use = reported["says"]
    assert "'alder'" in whose
    assert key_fingerprint(key) in fingerprint
    assert f"fedvad inspect FILE --trust {path}" in use
    (tmp_path / "site.pub").write_text("ssh-ed25519 AAAA")
    with pytest.raises(ConfigError, match="is not an Ed25519 public key"):
        fedvad.inspect(tmp_path / "site.pub")


def test_a_run_says_which_site_gave_what(trained: Run) -> None:
    reported = fedvad.inspect(trained[0])
    shares = reported["provenance"]
    assert list(shares) == ["alder", "birch", "cedar"]
    rows = reported["arrays"]["global/vectors"]["shape"][0]
    assert sum(site["rows"] for site in shares.values()) == rows
    assert sum(site["share_of_patches"] for site in shares.values()) == pytest.approx(1)
    assert shares["alder"]["rounds"] == [1, 2]
    assert fedvad.inspect(golden.FOLDER / "run-of-memories")["provenance"] is None


def test_a_site_knows_the_images_of_its_rows_and_nobody_else_does(
    trained: Run, plants: Path
) -> None:
    run = fedvad.load(trained[0])
    assert all(not source.image for source in run.memory.origin.sources)
    known = {content_key(p.read_bytes())[:16] for p in (plants / "alder/train/good").iterdir()}
    assert {source.image for source in run.sites["alder"].bank.origin.sources} == known


def test_a_folder_says_at_which_size_training_will_read_it(tmp_path: Path) -> None:
    (tmp_path / "train/good").mkdir(parents=True)
    for i in range(2):
        Image.new("L", (1300, 1024), 9 * i).save(tmp_path / f"train/good/{i}.png")
    notes = fedvad.inspect(tmp_path)["data"]["notes"]
    assert "images are 1024 x 1300 pixels: training reads them at 512" in notes


def test_the_file_of_a_run(trained: Run) -> None:
    file = trained[0] / "detector.safetensors"
    reported = fedvad.inspect(file)
    assert reported["kind"] == "run"
    assert reported["bytes"] == file.stat().st_size
    assert "files" not in reported


def test_a_detector(plants: Path, tmp_path: Path) -> None:
    extractor = FeatureExtractor(FeatureConfig(**OPTIONS))
    detector = create("patchcore", extractor=extractor, rows=20)
    detector.fit(read_set(plants / "alder").train).save(tmp_path / "d.safetensors")
    reported = fedvad.inspect(tmp_path / "d.safetensors")
    assert reported["kind"] == "detector"
    assert reported["detector"] == "patchcore"
    assert reported["arrays"]["bank/vectors"]["shape"] == [20, 72]
    assert "provenance" not in reported


def test_a_message(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(upload("Werk Süd").to_bytes())
    reported = fedvad.inspect(tmp_path / "m")
    assert reported["kind"] == "message"
    assert reported["manifest"]["site"] == "Werk Süd"
    assert reported["manifest"]["n_images"] == 4
    assert "provenance" not in reported
    assert "Rows are all of the site that sent it." in reported["says"]
    assert reported["arrays"]["vectors"]["dtype"] == "float16"
    assert reported["arrays"]["vectors"]["shape"] == [9, 6]


def test_trust_is_not_ignored_where_nothing_is_signed(trained: Run, tmp_path: Path) -> None:
    for path in (trained[0], trained[0] / "detector.safetensors"):
        with pytest.raises(ConfigError, match="carries no signature"):
            fedvad.inspect(path, trust=tmp_path)


def test_anything_else(tmp_path: Path) -> None:
    from numpy import ones
    from safetensors.numpy import save_file

    with pytest.raises(ArtefactError, match="does not exist"):
        fedvad.inspect(tmp_path / "none")
    (tmp_path / "scene.mat").write_bytes(b"x")
    with pytest.raises(DataError, match=r"neither images nor a run; found: 1 files \(\.mat is an"):
        fedvad.inspect(tmp_path)
    save_file({"x": ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtefactError, match="not one of fedvad's"):
        fedvad.inspect(tmp_path / "x.safetensors")
    for data in (b"", b"12345678", b"\xff" * 99, upload().to_bytes()[:-1]):
        (tmp_path / "y").write_bytes(data)
        with pytest.raises(ArtefactError):
            fedvad.inspect(tmp_path / "y")
