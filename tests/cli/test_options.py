"""Flags of `train` made of the declarations, the help in panels, and the printed file."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer
from click.testing import CliRunner

from fedvad.cli.main import app
from fedvad.errors import ConfigError
from fedvad.runs.config import TrainConfig, resolve_config
from fedvad.runs.families import METHODS, method_class
from fedvad.runs.option import Option, declared
from fedvad.runs.template import template

COMMAND = typer.main.get_command(app)
OPTIONS = {option.name: option for option in declared(TrainConfig)}
# a value of each kind that is not the default
OTHER = {"bool": "", "int": "3", "float": "0.25", "text": "", "path": "f", "ints": "1,2"}


def _said(*arguments: str) -> str:
    result = CliRunner().invoke(COMMAND, list(arguments), env={"COLUMNS": "200"})
    return result.output


def _train_flags() -> list[click.Option]:
    assert isinstance(COMMAND, click.Group)
    train = COMMAND.commands["train"]
    found = train.get_params(click.Context(train))
    return [flag for flag in found if isinstance(flag, click.Option)]


def test_every_option_has_a_flag_and_the_everyday_ones_are_in_the_help() -> None:
    flags = {flag.opts[0]: flag for flag in _train_flags()}
    for option in OPTIONS.values():
        assert flags[option.flag].hidden is not option.everyday
    text = _said("train", "--help")
    assert "--target-fpr" in text
    assert "[from 1e-06 to 0.5; default: 0.01]" in text
    assert "--candidate-bytes" not in text
    assert all(option.everyday == (f"{option.flag} " in text) for option in OPTIONS.values())


def test_all_options_are_shown_with_range_choices_and_default() -> None:
    text = " ".join(_said("train", "--help-all").split())
    for option in OPTIONS.values():
        shown = text[text.index(f" {option.flag}") :]
        assert option.help in shown
        assert option.allowed in shown
    assert "[at least 4096 bytes; default: 1000000]" in text
    assert "[one of none, robust]" in text
    assert "--train-generator/--no-train-generator" in text


def _given(tmp_path: Path, *flags: str) -> TrainConfig:
    """What a command makes of flags: the printed file holds them."""
    result = CliRunner().invoke(COMMAND, ["config", *flags])
    assert result.exit_code == 0, result.output
    file = tmp_path / "given.toml"
    file.write_text(result.output, encoding="utf-8")
    return resolve_config(file)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--layers", "1,2"], {"layers": (1, 2)}),
        (["--join", "a:b:2", "--join", "c:3"], {"join": {"a:b": 2, "c": 3}}),
        (["--good", "OK", "--good", "fine"], {"good": ("OK", "fine")}),
        (["--compare", "local, pooled"], {"compare": ("local", "pooled")}),
        (["--no-shared-threshold", "--pool", "5"], {"shared_threshold": False, "pool": 5}),
        (["--map", "cfa", "--noise", "0"], {"map": "cfa", "noise": 0.0}),
        (
            ["--method", "dmdd", "--student-options", "dual.pairs=9", "--student-steps", "7"],
            {"method": "dmdd", "student": {"options": {"dual": {"pairs": 9}}, "steps": 7}},
        ),
        (["--defence", "robust"], {"defence": "robust"}),
    ],
)
def test_flags_mean_what_python_means(
    tmp_path: Path, flags: list[str], options: dict[str, object]
) -> None:
    assert _given(tmp_path, *flags) == resolve_config(**options)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_flag_reaches_the_configuration(option: Option) -> None:
    if option.choices and option.kind != "texts":
        value = next(one for one in option.choices if one != str(option.default))
    elif option.kind == "table":
        value = "site:2" if option.name == "join" else "width=0.5"
    else:
        value = OTHER.get(option.kind, "") or (option.choices or ("some",))[0]
    flags = [option.flag] if option.kind == "bool" else [option.flag, value]
    result = CliRunner().invoke(COMMAND, ["config", *flags])
    # some options mean nothing without others: an error then names the option
    said = str(result.exception) if result.exit_code else result.output
    key = option.name.rpartition(".")[2]
    set_ = re.search(rf"^{key} = (.*)$", said, flags=re.MULTILINE)
    assert set_ or (isinstance(result.exception, ConfigError) and _names(option, said)), said


def _names(option: Option, said: str) -> bool:
    return any(word in said for word in (option.name, *option.name.split("."), "generator"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--layers", "a"), "--layers takes numbers like 1,2, not 'a'"),
        (("--join", "site"), "--join takes SITE:ROUND, not 'site'"),
        (("--student-options", "width"), "--student-options takes KEY=VALUE"),
        (("--rounds", "many"), "'many' is not a valid int"),
    ],
)
def test_flags_that_cannot_be_read_are_usage_errors(flags: tuple[str, str], said: str) -> None:
    result = CliRunner().invoke(COMMAND, ["config", *flags], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_file_changes_nothing_with_or_without_its_comment_signs(
    method: str, tmp_path: Path
) -> None:
    file = tmp_path / "printed.toml"
    text = template(method=method)
    file.write_text(text, encoding="utf-8")
    assert resolve_config(file) == resolve_config(method=method)
    set_ = re.sub(r"^# (?=[a-z_]+ = )(?!.*# an example)", "", text, flags=re.MULTILINE)
    assert set_.count("\n# ") < text.count("\n# ")
    file.write_text(set_, encoding="utf-8")
    before = resolve_config(method=method).model_dump()
    assert resolve_config(file).model_dump() == before
    keys = set(re.findall(r"^#? ?([a-z_]+) = ", text, flags=re.MULTILINE))
    takes = method_class(method).options
    wanted = [
        one
        for one in OPTIONS.values()
        if one.name.partition(".")[0] in takes and one.only in ("", method)
    ]
    assert keys == {one.name.rpartition(".")[2] for one in wanted}


def test_examples_of_the_printed_file_can_be_set(tmp_path: Path) -> None:
    text = re.sub(r"^# (?=[a-z_]+ = .*# an example)", "", template(), flags=re.MULTILINE)
    text = text.replace("clip =", "reduce = 'position'\nupdate = 'ema'\nclip =")
    (tmp_path / "examples.toml").write_text(text, encoding="utf-8")
    config = resolve_config(tmp_path / "examples.toml")
    assert (config.split, config.clip, config.join) == ("iid:4", 1.0, {"site3": 2})


def test_commands_stand_in_panels_and_help_shows_what_it_says() -> None:
    text = _said("--help")
    assert [
        panel for panel in re.findall(r"─ (\w+) ─", text) if panel != "Options"
    ] == ["Start", "Use", "Federation", "Research"]  # fmt: skip
    assert text.index("demo") < text.index(" train ") < text.index(" predict ")
    # with markup of rich, text in square brackets is lost
    assert "[default: the run's]" in _said("predict", "--help")
    assert "Folder with one folder per site" in _said("train", "--help")
    for name in ("server", "site", "launch"):
        assert f"fedvad {name}" in " ".join(_said("deploy", "--help").split())


def test_a_mistyped_command_is_corrected_once() -> None:
    assert _said("trian").count("Did you mean") == 1
