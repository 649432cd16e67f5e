"""Templates and style sheet of the pages, as shipped next to this file."""

from __future__ import annotations

import base64
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup


def filled(template: str, **values: object) -> bytes:
    """A page of the template with this name, in the style of all pages."""
    html = _parsed(template).render(**values, style=Markup(shipped("report.css")))
    return html.encode("utf-8", "replace")


@cache
def shipped(name: str) -> str:
    """The text of a file next to this one."""
    text = (files("fedvad.report.html") / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


@cache
def _parsed(template: str) -> Template:
    # the extension decides nothing: names are escaped in every template
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(shipped(f"{template}.html.j2"))


def in_base64(data: bytes) -> str:
    """Bytes as text inside a page."""
    return base64.b64encode(data).decode()
