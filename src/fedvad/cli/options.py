"""Flags made of the declared options of `train`, when a command that takes them runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from inspect import unwrap
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import click
import typer
from typer.core import TyperCommand, TyperOption

from fedvad.cli.flags import NUMBER, plainer_number

if TYPE_CHECKING:
    from fedvad.runs.option import Option

_GIVEN = "fedvad.options"
_METAVARS = {"texts": "TEXT", "ints": "N,N,...", "table": "NAME=VALUE"}
_WRAPPED: Any = {
    "initial_indent": " " * 6, "subsequent_indent": " " * 6, "break_on_hyphens": False
}  # fmt: skip
_TYPES = {"bool": bool, "int": int, "float": NUMBER, "path": click.Path(path_type=Path)}


class Verb(TyperCommand):
    """A command whose help texts are shown as they are: `[default: 2]` is no markup of rich."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and say how to mend frequent mistakes."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.lstrip("-")
            if any(isinstance(p, click.Argument) and p.name == name for p in self.params):
                raise click.UsageError(
                    f"{name.upper()} is given without an option: {ctx.command_path} {name.upper()}",
                    ctx,
                ) from error
            raise
        except click.BadParameter as error:
            raise click.BadParameter(
                plainer_number(error.message), error.ctx, error.param, error.param_hint
            ) from error
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            raise click.UsageError(
                f"{error.message}; several values of one option are separated by commas, such as "
                "--compare local,pooled", ctx,
            ) from error  # fmt: skip

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, with the texts of arguments, too, which typer loses with click 8.5."""
        assert self.callback is not None
        declarations = get_type_hints(unwrap(self.callback), include_extras=True)
        for param in self.params:
            info = next(iter(getattr(declarations.get(param.name or ""), "__metadata__", ())), None)
            if text := getattr(info, "help", None):
                vars(param)["help"] = _plain(text)
        super().format_help(ctx, formatter)


class OptionsCommand(Verb):
    """A command that takes every option of `train`, besides its own parameters.

    `--help` shows the everyday ones, `--help-all` the others, too. The declarations take long to
    import, so that the flags are made only when the command is used.
    """

    names: ClassVar[tuple[str, ...]] = ()  # of the options that it takes; empty for all

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then those of the declarations."""
        *own, help_ = super().get_params(ctx)
        if self.names:
            return [*own, *(_flag(one, hidden=False) for one in self._options()), help_]
        everything = TyperOption(
            param_decls=["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_help_all,
            help="Show all options and exit.",
        )
        return [*own, help_, everything, *(_flag(one) for one in self._options())]

    def invoke(self, ctx: click.Context) -> Any:
        """Set the declared options apart from the command's own."""
        ctx.meta[_GIVEN] = [(one, ctx.params.pop(_key(one))) for one in self._options()]
        return super().invoke(ctx)

    def _options(self) -> list[Option]:
        return [one for one in _declared() if not self.names or one.name in self.names]


def taking(*names: str) -> type[OptionsCommand]:
    """A command that takes these options of `train`, besides its own parameters."""

    class Command(OptionsCommand):
        pass

    Command.names = names
    return Command


def given_options(context: click.Context) -> dict[str, Any]:
    """The options that were given on the command line, as `resolve_config` takes them."""
    values: dict[str, Any] = {}
    for one, text in context.meta[_GIVEN]:
        if (value := _read(one, text)) is None:
            continue
        table, _, key = one.name.rpartition(".")
        (values.setdefault(table, {}) if table else values)[key] = value
    return values


def _plain(text: str) -> str:
    return re.sub(r"(?<!\\)\[(?=[a-z])", r"\\[", text)


@cache
def _declared() -> tuple[Option, ...]:
    from fedvad.runs.option import declared
    from fedvad.runs.options import DeclaredOptions

    return tuple(declared(DeclaredOptions))


def _key(one: Option) -> str:
    return one.name.replace(".", "__")


def _flag(one: Option, *, hidden: bool = True) -> TyperOption:
    return TyperOption(
        param_decls=[_key(one), _names(one)],
        type=_TYPES.get(one.kind, str),
        is_flag=True if one.kind == "bool" else None,
        multiple=_repeats(one),
        default=None,
        help=_plain(_help(one)),
        hidden=hidden and not one.everyday,
        rich_help_panel=one.group,
    )


def _names(one: Option) -> str:
    return f"{one.flag}/--no-{one.flag[2:]}" if one.kind == "bool" else one.flag


def _help(one: Option) -> str:
    default = "" if one.default_text == "none" else f"default: {one.default_text}"
    facts = "; ".join(part for part in (one.allowed, default) if part)
    return f"{one.help} [{facts}]" if facts else one.help


def _repeats(one: Option) -> bool:
    return one.kind == "table" or (one.kind == "texts" and not one.choices)


def _help_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    lines = [context.get_usage(), "", "Its own options stand in --help. Those of the training:"]
    for group, members in groupby(_declared(), key=lambda one: one.group):
        lines += ["", group]
        for one in sorted(members, key=lambda one: not one.everyday):
            metavar = "" if one.kind == "bool" else f" {_METAVARS.get(one.kind, one.kind.upper())}"
            lines += [f"  {_names(one)}{metavar}", *wrap(_help(one), 80, **_WRAPPED)]
    typer.echo("\n".join(lines))
    context.exit()


def _read(one: Option, value: Any) -> Any:
    """A flag's text as the option's value; None where the flag was not given."""
    if value is None or value == ():
        return None
    if one.kind == "ints":
        return _numbers(value, one.flag)
    if one.name == "join":
        return dict(_join(item, one.flag) for item in value)
    if one.kind == "table":
        return key_values(value, one.flag)
    return value


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{flag} takes numbers like 1,2, not {text!r}") from None


def _join(text: str, flag: str) -> tuple[str, int]:
    name, _, round_ = text.rpartition(":")
    if not name or not round_.isdecimal():
        raise typer.BadParameter(f"{flag} takes SITE:ROUND, not {text!r}")
    return name, int(round_)


def key_values(items: Iterable[str], flag: str) -> dict[str, Any]:
    """Values by name of KEY=VALUE, dotted keys as tables; a usage error for what is none."""
    try:
        return tomllib.loads("\n".join(items))
    except tomllib.TOMLDecodeError:
        said = " ".join(items)
        raise typer.BadParameter(
            f"{flag} takes KEY=VALUE with text in quotes, like width=0.5, not {said!r}"
        ) from None
