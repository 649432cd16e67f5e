"""Configuration: presets, file and flags in that order, and errors that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvad.errors import ConfigError
from fedvad.runs.config import (
    COMMON_OPTIONS,
    FREE_ON_RESUME,
    OWN_OF_SITE,
    TrainConfig,
    resolve_config,
)
from fedvad.runs.families import METHODS
from fedvad.runs.option import Option, declared


def _toml(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = _toml(tmp_path, 'method = "patchcore"\nmemory_rows = 300\nseed = 4\nlayers = [0, 1]\n')
    config = resolve_config(file, seed=9, rounds=None)
    assert config.method == "patchcore"
    assert config.merge == "kcenter"  # preset
    assert config.rounds == 1  # preset: a flag that was not given changes nothing
    assert config.memory_rows == 300  # file
    assert config.seed == 9  # flag
    assert config.layers == (0, 1)
    assert resolve_config(file, method="feddymem").merge == "concat"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_sound_configuration(method: str) -> None:
    config = resolve_config(method=method)
    assert config.method == method
    assert config.memory(384).rows >= 1
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epoch": 3}, "epoch"),
        ({"method": "fedavg"}, "fedavg"),
        ({"method": ["feddymem"]}, "method"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": "many"}, "rounds"),
        ({"participation": 0}, "participation"),
        ({"participation": 1.5}, "participation"),
        ({"seed": -1}, "seed"),
        ({"jobs": 0}, "jobs"),
        ({"max_bad": 2}, "max_bad"),
        ({"target_fpr": 0}, "target_fpr"),
        ({"upload_bytes": 10}, "upload_bytes"),
        ({"pull": 1.5}, "pull"),
        ({"candidates": 0}, "candidates"),
        ({"projection": 0}, "projection"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"image_size": 7}, r"image size must lie in 32\.\.2048 pixels, got 7"),
        ({"pool": 2}, "pool"),
        ({"smooth": 2}, "odd"),
        ({"top": 2}, "top"),
        ({"ema": 1}, "ema"),
        ({"epochs": 0}, "epochs"),
        ({"map": "heat"}, "map"),
        ({"merge": "mean"}, "merge"),
        ({"reference": "all"}, "reference"),
        ({"compare": "local,fedavg"}, "fedavg"),
        ({"method": "feddymem-position", "update": "grow"}, "same means"),
        ({"method": "feddymem-cluster", "calibration": "leave-one-out"}, "holdout"),
        ({"merge": "kmeans", "calibration": "leave-one-out"}, "holdout"),
        ({"memory_rows": 0}, "memory_rows"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"holdout": 1.0}, "holdout"),
        ({"defence": "robust", "shared_threshold": True}, "one that lies"),
        # true is 1 to Python, and a seed of nobody's choice
        ({"seed": True}, "seed is True; it must be a whole number, at least 0"),
        ({"pull": False}, "pull is False; it must be a number, from 0 to 1"),
        ({"method": "stfpm", "student": {"steps": True}}, "student.steps is True; it must be"),
        ({"upload_bytes": "1MB"}, "upload_bytes is '1MB'; it must be a whole number, at least"),
        ({"compare": 5}, "compare is 5; it must be any of local, pooled, identity"),
        ({"image_size": [64]}, r"image_size '\[64\]' is none of the forms 256, 256x512"),
        ({"image_size": 6.5}, "image_size '6.5' is none of the forms"),
        ({"image_size": True}, "image_size 'true' is none of the forms"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolve_config(**options)


def test_a_size_may_be_a_pair_of_numbers(tmp_path: Path) -> None:
    assert resolve_config(image_size=(64, 128)).image_size == "64x128"
    assert resolve_config(_toml(tmp_path, "image_size = [64, 128]")).image_size == "64x128"


def test_lists_of_options_follow_from_the_declarations() -> None:
    own = {"jobs", "compare", "weights", "engine", "device"}
    assert own | {"leave_out"} == OWN_OF_SITE
    assert own | {"max_bad", "max_pixels"} == FREE_ON_RESUME
    assert {
        "method", "backbone", "weights", "image_size", "layers", "engine", "device", "split",
        "good", "defect", "leave_out", "max_bad", "max_pixels", "rounds", "participation", "join",
        "smooth", "top", "target_fpr", "holdout", "shared_threshold", "threshold_rule", "compare",
        "seed", "jobs", "defence", "malicious",
    } == COMMON_OPTIONS  # fmt: skip


@pytest.mark.parametrize("option", list(declared(TrainConfig)), ids=lambda option: option.name)
def test_every_option_is_fully_declared(option: Option) -> None:
    assert option.help[0].isupper()
    assert option.help.endswith(".")
    assert option.group
    assert option.default_text
    if option.kind in ("int", "float") and option.name not in ("student.bootstrap", "pool"):
        assert option.limits


def test_an_unknown_key_is_no_option_without_effect() -> None:
    with pytest.raises(
        ConfigError, match="unknown configuration key 'roundz'; did you mean 'round"
    ):
        resolve_config(method="stfpm", roundz=3)
    with pytest.raises(ConfigError, match=r"'student.stepz'; did you mean 'student.steps'"):
        resolve_config(method="stfpm", student={"stepz": 3})


def test_what_the_command_is_given_is_no_key_of_a_file(tmp_path: Path) -> None:
    for key in ("data", "out", "resume"):
        with pytest.raises(ConfigError, match=f"key '{key}'; it belongs on the command line"):
            resolve_config(_toml(tmp_path, f'{key} = "a"\n'))


def test_flags_replace_single_keys_of_the_students_table(tmp_path: Path) -> None:
    file = _toml(tmp_path, 'method = "stfpm"\n[student]\nsteps = 3\nwarmup = 1\n')
    student = resolve_config(file, student={"steps": 9}).student
    assert (student.steps, student.warmup) == (9, 1)


def test_unknown_keys_of_a_file_are_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration key 'roundz'.*rounds"):
        resolve_config(_toml(tmp_path, "roundz = 3\n"))
    with pytest.raises(ConfigError, match="train"):
        resolve_config(_toml(tmp_path, "[train]\nrounds = 3\n"))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TOML"):
        resolve_config(_toml(tmp_path, "rounds == 3"))
    with pytest.raises(ConfigError, match="cannot read"):
        resolve_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        resolve_config(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="TOML"):
        resolve_config(tmp_path / "b.toml")


@pytest.mark.parametrize("text", ["local,pooled", " local, pooled ", "local,,pooled,"])
def test_comparisons_from_a_comma_separated_list(text: str) -> None:
    assert resolve_config(compare=text).compare == ("local", "pooled")


def test_calibration_follows_from_what_the_memory_keeps() -> None:
    assert resolve_config().calibration_mode == "leave-one-out"
    assert resolve_config(method="patchcore").calibration_mode == "leave-one-out"
    for changed in (
        {"method": "feddymem-trained"}, {"method": "feddymem-cluster"},
        {"method": "feddymem-position"}, {"pull": 0.5}, {"merge": "kmeans"},
    ):  # fmt: skip
        assert resolve_config(**changed).calibration_mode == "holdout"
    assert resolve_config(calibration="none").calibration_mode == "none"


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("dim", [72, 384, 1536])
def test_rows_fit_into_the_bytes(dim: int, precision: Any) -> None:
    config = resolve_config(upload_bytes=200_000, precision=precision, upload_rows=10_000)
    rows = config.rows(dim)
    value = 2 if precision == "float16" else 4
    assert rows * (value * (dim + 1) + 4) + 2048 <= 200_000
    assert (rows + 2) * (value * (dim + 1) + 4) + 2048 > 200_000
    assert resolve_config(upload_rows=5).rows(dim) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_count": 3}, "min_count needs averaged rows"),
        ({"method": "feddymem-position", "noise": 1.0}, "noise needs clip"),
        ({"method": "feddymem-cluster", "clip": 1.0, "noise": 1.0}, "reduce 'position'"),
    ],
)
def test_privacy_options_that_guarantee_nothing_are_refused(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_config(**options)


def test_weights_of_rows_are_for_kmeans_only() -> None:
    assert resolve_config(merge="kmeans", merge_weights=0).merge_weights == 0
    with pytest.raises(ConfigError, match="merge_weights needs merge 'kmeans'; merge is 'kcenter'"):
        resolve_config(merge="kcenter", merge_weights=0.5)
    with pytest.raises(ConfigError, match="merge_weights"):
        resolve_config(merge="kmeans", merge_weights=1.5)


def test_an_overlap_is_of_tiles() -> None:
    assert resolve_config(overlap=32, tiles=256).overlap == 32
    assert resolve_config(**resolve_config().model_dump()).overlap == 64
    with pytest.raises(ConfigError, match="overlap needs tiles: give --tiles too"):
        resolve_config(overlap=32)


def test_without_weights_the_backbone_is_the_bundled_one(tmp_path: Path) -> None:
    assert resolve_config().backbone == "fedvad-tiny"
    assert resolve_config(weights=tmp_path / "w.safetensors").backbone == "resnet18"
    assert resolve_config(weights=tmp_path / "w.safetensors", backbone="x").backbone == "x"
    kept = resolve_config(weights=tmp_path / "w.safetensors").model_dump()
    assert resolve_config(**kept).backbone == "resnet18"
