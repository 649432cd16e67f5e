"""`fedvad spectral`: figures, pictures and moments from files, the same in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.cubes.scene import Scene
from fedvad.errors import ConfigError, DataError
from fedvad.spectral.dsformer import DSFormerSize
from fedvad.spectral.local_rx import local_rx
from fedvad.spectral.moments import Moments
from fedvad.spectral.rx import rx
from fedvad.verbs.classify import classify_scene
from fedvad.verbs.spectral import spectral_rows
from tests.helpers import run_main
from tests.spectral.drawn import drawn_scene


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sites' scenes; the second has no truth."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = drawn_scene(seed=0), drawn_scene(seed=1, height=24)
    np.savez(folder / "a.npz", cube=scenes[0].cube, truth=scenes[0].mask)
    np.save(folder / "b.npy", scenes[1].cube)
    return [folder / "a.npz", folder / "b.npy"]


def test_scenes_get_figures_maps_and_pictures(
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    code = run_main(
        monkeypatch, "--quiet", "spectral", *files, "--method", "crd", "--windows", "9,7",
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    first, second = json.loads(capsys.readouterr().out)["scenes"]
    (in_python, _) = fedvad.score_scenes(files, method="crd", windows=(9, 7))
    assert in_python.areas is not None
    assert first["auc1"] == in_python.areas.auc1 > 0.99
    assert (first["anomalous"], second["anomalous"], second["auc1"]) == (4, None, None)
    assert np.allclose(np.load(first["map"]), in_python.map, rtol=1e-6)
    with Image.open(first["picture"]) as picture:
        assert picture.size == (2 * 30 * 16 + 8, 28 * 16)
    table = (out / "spectral.csv").read_text().splitlines()
    assert table[1].startswith(f"a,4,{first['auc1']:.4f},")
    assert table[2].startswith("b,–,–")


def test_sites_that_share_moments_score_as_if_pooled(
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sums = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, target in zip(files, sums, strict=True):
        assert run_main(monkeypatch, "--quiet", "spectral", file, "--save-moments", target) == 0
        assert f"moments of the scenes' pixels: {target}" in capsys.readouterr().out
    assert run_main(
        monkeypatch, "--quiet", "spectral", files[0], "--moments", sums[0], "--moments", sums[1],
        "--out", tmp_path / "out",
    ) == 0  # fmt: skip
    cubes = [np.load(files[0])["cube"], np.load(files[1])]
    pooled = rx(np.concatenate(cubes))[: len(cubes[0])]
    assert np.allclose(np.load(tmp_path / "out/a.npy"), pooled, rtol=1e-5)
    both = tmp_path / "both.safetensors"
    fedvad.score_scenes(files, save_moments=both)
    assert Moments.load(both).count == 28 * 30 + 24 * 30


def test_wrong_calls_are_refused_before_work(
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, words in (
        (["--windows", "9,7"], "windows is no option of rx: it goes with lrx, crd"),
        (["--out", files[0].parent], "is the folder of the images"),
        (["--mask", files[0]], "1 masks for 2 scenes"),
        (["--save-moments", files[0]], "--save-moments"),
        (["--epochs", "3"], "epochs is no option of rx: it goes with dsformer, hypersigma"),
        (["--method", "hypersigma", "--option", 'tile="a"'], "give a whole number, such as 32"),
        (["--method", "hypersigma", "--option", "balance=1"], "give a text, such as 'none'"),
        (["--method", "crd", "--option", 'method="rx"'], "give its flag alone"),
        (["--method", "crd", "--option", "ridge=1", "--ridge", "1"], "give its flag alone"),
        (["--method", "lrasr", "--option", "cube=1"], "cube is no option of lrasr"),
        (["--method", "lrx", "--option", "windows=[17]"], "give a list, such as (17, 9)"),
        (["--method", "lrx", "--option", 'windows=["a", 3]'], "give a list, such as (17, 9)"),
        (["--method", "dsformer", "--option", "coarse=[1, 2]"], "the coarse map is (2,)"),
        (["--classes", files[1]], "--classes takes one scene"),
    ):
        assert run_main(monkeypatch, "--quiet", "spectral", *files, *arguments) in (2, 3)
        assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert run_main(monkeypatch, "--quiet", "spectral", *files, "--windows", "9") == 2
    one = ("--quiet", "spectral", files[0], "--classes", files[1])
    assert run_main(monkeypatch, *one, "--windows", "9,7", "--steps", "3") == 2
    assert "--windows, --steps mean nothing" in capsys.readouterr().err
    assert run_main(monkeypatch, *one, "--option", "labels=3") == 2
    assert "labels is no option here" in capsys.readouterr().err
    assert run_main(monkeypatch, *one, "--method", "crd") == 2
    assert "--method mean nothing" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="at least one file"):
        fedvad.score_scenes([])
    # the command would say that it wrote them
    sums = Moments.of(np.load(files[0])["cube"])
    both = {"save_backbone": tmp_path / "backbone", "save_moments": tmp_path / "moments"}
    with pytest.raises(ConfigError, match="--save-moments writes those of scenes"):
        fedvad.score_scenes([], moments=[sums], **both)


def test_every_option_of_a_detector_is_reached_from_the_command(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "dsformer", "--epochs", "1", "--components", "5", "--option",
             "background=40", "--option", 'coarse="lrx"', "--size", "small"]  # fmt: skip
    large = drawn_scene(height=40)
    np.savez(files[0].with_name("large.npz"), cube=large.cube, truth=large.mask)
    file = files[0].with_name("large.npz")
    assert run_main(monkeypatch, "--quiet", "spectral", file, *words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)["scenes"][0]
    options: dict[str, Any] = {"epochs": 1, "components": 5, "background": 40}
    (same,) = fedvad.score_scenes(file, method="dsformer", coarse="lrx", **options)
    (of_rx,) = fedvad.score_scenes(file, method="dsformer", **options)
    assert same.areas is not None
    assert printed["auc3"] == same.areas.auc3
    # a mixed map has the values of the map that it refines
    np.testing.assert_array_equal(np.sort(same.map, axis=None), np.sort(local_rx(large.cube), None))
    assert not np.allclose(np.sort(same.map, axis=None), np.sort(of_rx.map, axis=None))


def test_scenes_in_memory_are_shown_in_the_colours_of_their_wavelengths(tmp_path: Path) -> None:
    cube = np.zeros((10, 10, 4), np.float32)
    cube[:5, :, 2] = 1  # red in the upper half
    cube[0, 0, 3] = 9
    waves = np.array([0.45, 0.55, 0.64, 0.9])
    (found,) = fedvad.score_scenes(Scene("part", cube, None, waves), method="rx", out=tmp_path)
    assert found.picture is not None
    with Image.open(found.picture) as picture:
        pixels = np.asarray(picture)
    assert pixels[100, 200].tolist() == [255, 0, 0]
    assert pixels[400, 200].tolist() == [0, 0, 0]
    assert spectral_rows([found])[1][1] == "–"


def test_classes_of_a_scene_are_learned_and_drawn(tmp_path: Path) -> None:
    labels = np.repeat([[1, 2]], 30, axis=0).repeat(30, axis=1).astype(np.uint8)
    rng = np.random.default_rng(0)
    spectra = np.stack([np.linspace(0, 1, 12), np.linspace(1, 0, 12)])
    np.save(tmp_path / "field.npy", spectra[labels - 1] + rng.normal(0, 0.1, (30, 60, 12)))
    labels[:3] = 0
    np.save(tmp_path / "classes.npy", labels)
    found, values = classify_scene(
        tmp_path / "field.npy", tmp_path / "classes.npy", out=tmp_path / "named",
        size=DSFormerSize(dim=16, depth=1, heads=2, groups=2), patch=4, epochs=40, rate=5e-3,
    )  # fmt: skip
    assert values["classes"] == [1, 2]
    assert values["accuracy"] > 0.95
    assert found.classes[1, 5] == 1
    assert np.array_equal(np.load(values["map"]), found.classes)
    assert len(np.unique(np.asarray(Image.open(values["picture"])).reshape(-1, 3), axis=0)) == 2
    options = {"size": "small", "patch": 4, "epochs": 1}
    _, apart = classify_scene(
        tmp_path / "field.npy", tmp_path / "classes.npy", per_class=16, apart=True, **options
    )
    assert apart["learned_from"] == 32
    with pytest.raises(DataError, match="is left to measure on"):
        classify_scene(
            tmp_path / "field.npy", tmp_path / "classes.npy", per_class=400, apart=True, **options
        )
    with pytest.raises(ConfigError, match="choose from small, paper"):
        classify_scene(tmp_path / "field.npy", tmp_path / "classes.npy", size="tiny")
    np.save(tmp_path / "classes.npy", labels - 0.5)
    with pytest.raises(DataError, match="whole numbers"):
        classify_scene(tmp_path / "field.npy", tmp_path / "classes.npy")
