"""`distill`: a recipe becomes a backbone file that the other verbs take; resuming is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.errors import ArtefactError, ConfigError, DataError, WeightsError
from fedvad.experiments.distill.checkpoint import CHECKPOINT_FILE
from fedvad.experiments.distill.images import TrainingImages, _images_of
from fedvad.experiments.distill.recipe import ImageOptions, Recipe, load_recipe
from fedvad.experiments.distill.run import BACKBONE_FILE, distill_backbone
from fedvad.experiments.experiment import shipped
from tests.detectors.student import support
from tests.helpers import run_main

RECIPE = """
name = "toy"
image_size = 64
engine = "torch"
checkpoint = 2

[student]
options = { stem = 4, widths = [4, 6, 8], inner = [4, 4, 4], depths = [1, 1, 1] }

[images]
limit = 12
licences = { plants = "CC0" }

[defaults]
teacher = "filterbank"
layers = [1, 2]
batch = 4
warmup = 1
hidden = 4

[[stages]]
steps = 3
mode = "random"

[[stages]]
steps = 5
teacher = "test_efficientnet"
layers = [2, 3]
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("weights") / "t.safetensors"
    return {support.NAME: support.write_weights(path)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "toy.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def recipe(file: Path) -> Recipe:
    return load_recipe(str(file))


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    file: Path,
    plants: Path,
    weights: dict[str, Path],
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("distilled") / "out"
    return out, fedvad.distill_backbone(str(file), out, data=[plants], weights=weights)


def test_everything_is_written_and_reported(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    names = {p.name for p in out.iterdir()}
    assert names == {BACKBONE_FILE, "loss.csv", "loss.png", "card.md", "distill.json"}
    assert json.loads((out / "distill.json").read_text()) == summary
    lines = (out / "loss.csv").read_text().splitlines()
    assert lines[0] == "stage,step,loss,masked,plain,semantic,rate"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        *(["1", str(i)] for i in range(1, 4)), *(["2", str(i)] for i in range(1, 6))
    ]  # fmt: skip
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "card.md").read_text()
    backbone = summary["backbone"]
    for said in (
        "# toy",
        "CC0",
        "drawn by fedvad",
        "test_efficientnet",
        backbone["hash"][:16],
        f"{backbone['parameters']:,}",
        f"{backbone['bytes']:,} bytes",
        "6 channels at stride 8, 8 channels at stride 16",
        "40% / 15%, random",
    ):
        assert said in card
    assert backbone["bytes"] == (out / BACKBONE_FILE).stat().st_size
    assert [len(stage["levels"]) for stage in summary["stages"]] == [2, 2]


def test_an_interrupted_distillation_goes_on_to_the_same_file(
    made: tuple[Path, dict[str, Any]],
    recipe: Recipe,
    plants: Path,
    weights: dict[str, Path],
    tmp_path: Path,
) -> None:
    for stop in (("stage 1: filterbank", 3), ("stage 2: test_efficientnet", 3)):
        out = tmp_path / str(stop[0][6])

        def interrupt(stage: str, done: int, _: int, stop: tuple[str, int] = stop) -> None:
            if (stage, done) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            distill_backbone(recipe, out, data=[plants], weights=weights, progress=interrupt)
        assert (out / CHECKPOINT_FILE).is_file()
        with pytest.raises(ConfigError, match="--resume"):
            distill_backbone(recipe, out, data=[plants], weights=weights)
        changed = recipe.model_copy(update={"seed": 1})
        with pytest.raises(ConfigError, match="different: seed"):
            distill_backbone(changed, out, data=[plants], weights=weights, resume=True)
        summary = distill_backbone(recipe, out, data=[plants], weights=weights, resume=True)
        assert summary == made[1]
        for name in (BACKBONE_FILE, "loss.csv", "card.md"):
            assert (out / name).read_bytes() == (made[0] / name).read_bytes()
    # once more changes nothing
    assert distill_backbone(recipe, out, data=[plants], weights=weights, resume=True) == made[1]


def test_the_file_is_a_backbone_for_training_and_moves(
    made: tuple[Path, dict[str, Any]],
    plants: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, run = tmp_path / "b.safetensors", tmp_path / "run"
    shutil.copy(made[0] / BACKBONE_FILE, place)
    flags = ("--image-size", 64, "--engine", "torch", "--json")
    assert run_main(monkeypatch, "train", plants, "--out", run, "--backbone", place, *flags) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["backbone"] == "file:toy"
    moved = place.rename(tmp_path / "moved.safetensors")
    evaluate = ("evaluate", run, plants, "--json")
    assert run_main(monkeypatch, *evaluate) == 2
    assert "--weights" in capsys.readouterr().err
    assert run_main(monkeypatch, *evaluate, "--weights", moved) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["image_auroc"] == trained["image_auroc"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = RECIPE.split("[[stages]]")[0] + "[[stages]]\nsteps = 1\n"
    (tmp_path / "r.toml").write_text(short)
    out = tmp_path / "out"
    arguments = ("distill", tmp_path / "r.toml", "--out", out)
    assert run_main(monkeypatch, *arguments) == 0
    assert "Backbone:" in capsys.readouterr().out
    assert run_main(monkeypatch, *arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert run_main(monkeypatch, *arguments, "--resume", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["name"] == "toy"
    assert summary["images"]["procedural"] == 1.0
    (tmp_path / "r.toml").write_text(short.replace("steps = 1", "steps = 0"))
    assert run_main(monkeypatch, *arguments) == 2
    assert "r.toml: stage 1: a stage needs at least one step, got 0" in capsys.readouterr().err


def test_a_student_begins_with_what_fits_of_its_first_teacher(tmp_path: Path) -> None:
    weights = support.write_weights(tmp_path / "resnet18.safetensors", "resnet18")
    text = (
        RECIPE[: RECIPE.index("[defaults]")]
        + """
        [[stages]]
        teacher = "resnet18"
        layers = [2, 3]
        batch = 4
        steps = 1
        learning_rate = 1e-6
        """
    )
    levels = {}
    for start in ("random", "teacher"):
        path = tmp_path / f"{start}.toml"
        path.write_text(text.replace("[student]", f'[student]\nstart = "{start}"'))
        summary = distill_backbone(load_recipe(str(path)), tmp_path / start, weights={"": weights})
        levels[start] = [level["explained"] for level in summary["stages"][0]["levels"]]
    assert min(np.subtract(levels["teacher"], levels["random"])) > 0.05
    assert "with what fits into it of resnet18" in (tmp_path / "teacher/card.md").read_text()
    assert "| begins | at random |" in (tmp_path / "random/card.md").read_text()
    begun = path.read_text()
    path.write_text(begun.replace("resnet18", support.NAME))
    other = support.write_weights(tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match="resnet34"):
        distill_backbone(load_recipe(str(path)), tmp_path / "other", weights={"": other})
    path.write_text(begun.replace("options = {", 'backbone = "mcunet_in3" # {'))
    with pytest.raises(ConfigError, match="is for the student tiny"):
        load_recipe(str(path))


def test_shipped_recipes_can_be_read() -> None:
    assert shipped(Recipe) == ["dfmsd", "quick", "tiny"]
    whole = load_recipe("dfmsd")
    assert all(stage.w_m > 0 and stage.w_sem > 0 and stage.generator for stage in whole.stages)
    assert [stage.enhance for stage in whole.stages] == [0.0, 1.0]
    tiny = load_recipe("tiny")
    assert [stage.teacher for stage in tiny.stages] == ["resnet18"]
    assert tiny.student.start == "teacher"
    with pytest.raises(ConfigError, match="shipped are dfmsd, quick, tiny"):
        load_recipe("large")


def test_a_scale_that_is_not_learned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE + 'distance = "cosine"\n')
    with pytest.raises(ConfigError, match="distance"):
        load_recipe(str(path))
    path.write_text(RECIPE.replace("[student]", '[student]\nhead = "none"') + 'distance = "cosine"')
    assert load_recipe(str(path)).student.head == "none"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("rho_s = 1.0", "rho"),
        ("w_m = nan", "w_m"),
        ("steps = 0", "a stage needs"),
        ("speed = 2", "speed: Unexpected"),
        ("batch = 0", ".*batch"),
    ],
)
def test_options_of_a_stage_are_refused_with_recipe_and_number(
    tmp_path: Path, line: str, named: str
) -> None:
    path = tmp_path / "r.toml"
    stage = '[[stages]]\nteacher = "filterbank"\n'
    path.write_text(f'name = "r"\n{stage}{stage}{line}\n')
    with pytest.raises(ConfigError, match=rf"recipe .*r\.toml: stage 2: {named}"):
        load_recipe(str(path))


def test_missing_weights_and_folders_are_reported_before_any_work(
    recipe: Recipe, tmp_path: Path
) -> None:
    gone = {support.NAME: tmp_path / "gone.safetensors"}
    with pytest.raises(WeightsError, match="does not exist"):
        distill_backbone(recipe, tmp_path / "out", weights=gone)
    with pytest.raises(DataError, match="no such"):
        distill_backbone(recipe, tmp_path / "out", data=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        distill_backbone(recipe, tmp_path / "out", data=[tmp_path / "empty"])
    with pytest.raises(ArtefactError, match="no checkpoint"):
        distill_backbone(load_recipe("quick"), tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_images_by_number(plants: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ImageOptions(procedural=0.5)
    images = TrainingImages(options, [plants], size=32, seed=0)
    assert images.count is None
    once = [images(n) for n in range(8)]
    assert all(np.array_equal(images(n), once[n]) for n in (5, 0, 7))
    assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 for p in once)
    (described,) = images.described()["sets"]
    assert described["images"] == 3 * 6  # training images alone
    assert described["licence"] == "not stated"
    folder = tmp_path / "loose"
    folder.mkdir()
    Image.fromarray(once[0]).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    loose = TrainingImages(ImageOptions(procedural=0.0), [folder], size=32, seed=0)
    assert [loose(n).shape for n in range(6)] == [(32, 32, 3)] * 6
    assert caplog.text.count("bad.png") >= 1
    small = ImageOptions(procedural=0.0, max_pixels=32 * 32 - 1)
    with pytest.raises(DataError, match="in a row cannot be read"):
        TrainingImages(small, [folder], size=32, seed=0)(0)
    (folder / "good.png").unlink()
    with pytest.raises(DataError, match="in a row cannot be read"):
        loose(0)


def test_defects_further_down_are_not_taken_for_images(plants: Path, tmp_path: Path) -> None:
    deep = tmp_path / "all" / "plants"
    shutil.copytree(plants, deep)
    with pytest.raises(DataError, match="further down"):
        _images_of(tmp_path / "all")
    found = _images_of(deep)
    assert found
    assert all(path.parent.parent.name == "train" for path in found)
