"""Numbers on the command line, with an answer for those who write percent."""

from __future__ import annotations

from typing import Any

import click


class _Number(click.types.FloatParamType):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter:
            share = str(value).strip().removesuffix("%")
            if share == str(value).strip():
                raise
            try:
                given = f"{float(share) / 100:g}"
            except ValueError:
                given = "0.01"
            self.fail(f"{value!r} is no number: give a share, {given} for {value}", param, ctx)


NUMBER = _Number()
