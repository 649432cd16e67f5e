"""Text files that people write: as editors, shells and spreadsheets of every system save them."""

from __future__ import annotations

import codecs
from importlib.resources.abc import Traversable
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path | Traversable) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first bytes say so.

    Windows writes such a mark in front of either, and it is no part of the text. Raises `OSError`,
    and `ValueError` with the way to mend it for other encodings.
    """
    data = file.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not in UTF-8: save the file as UTF-8") from error
