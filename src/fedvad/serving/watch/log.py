"""The log of a watch: a row per image, on the disk before anybody hears of it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import IO, Any

from fedvad.data.files import write_atomically
from fedvad.data.sealed import parse_json
from fedvad.errors import ArtefactError, StorageError
from fedvad.report.tables import neutral_cell

LOG_FILE, TABLE_FILE = "results.jsonl", "results.csv"
_INNER = ("thumbnail", "looks", "file")
_COLUMNS = (
    "number",
    "time",
    "path",
    "site",
    "score",
    "threshold",
    "anomalous",
    "reason",
    "error",
    "changed",
)
_NUMBER, _NONE = (int, float), type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    "time": (str,), "path": (str,), "size": (int,), "modified": (int,), "site": (str, _NONE),
    "score": (*_NUMBER, _NONE), "threshold": (*_NUMBER, _NONE), "anomalous": (bool, _NONE),
    "error": (str, _NONE),
}  # fmt: skip


class WatchLog:
    """Appends rows to `results.jsonl`, which is what counts, and to `results.csv`, its copy.

    A line that a kill cut off is removed at the next start, as if its image had not been scored
    yet; the copy is written again then. size: bytes of the log that are safely on the disk.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `ArtefactError` for a damaged log or one that lost rows, `StorageError` when the
        disk refuses.
        """
        self._path, self._table_path = folder / LOG_FILE, folder / TABLE_FILE
        try:
            self._path.touch()
            self._log: IO[bytes] = self._path.open("r+b")
            self.size = _whole(self._log)
            torn = self._path.stat().st_size > self.size
        except OSError as error:
            raise _refused(self._path, error) from error
        self._check_copy(1 if torn else 0)
        self._log.truncate(self.size)
        self._log.seek(self.size)
        cells = (row.values() for row in _cells(read_log(folder)))
        write_atomically(self._table_path, _csv([_COLUMNS, *cells]))
        try:
            self._table: IO[bytes] = self._table_path.open("ab")
        except OSError as error:
            raise _refused(self._table_path, error) from error

    def _check_copy(self, torn: int) -> None:
        """Raise `ArtefactError` where the copy has more rows than the log, which is written first.

        torn: lines of the log that a kill cut off.
        """
        known = sum(1 for _ in read_log(self._path.parent))
        try:
            with self._table_path.open(encoding="utf-8", errors="replace", newline="") as file:
                copied = sum(1 for _ in csv.reader(file)) - 1
        except (OSError, csv.Error):  # there is none, or it is broken: it is written again
            return
        if copied > known + torn:
            self._log.close()
            raise ArtefactError(
                f"{self._path} has {known} rows and {self._table_path.name}, its copy, {copied}: "
                f"restore it from a copy, or watch into another folder; if you changed "
                f"{self._table_path.name} yourself, remove that"
            )

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; when this returns, no kill and no loss of power loses them."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode("ascii")
        table = _csv(row.values() for row in _cells(rows))
        for path, file, data in (
            (self._path, self._log, lines), (self._table_path, self._table, table),
        ):  # fmt: skip
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise _refused(path, error) from error
        self.size += len(lines)

    def close(self) -> None:
        """Let go of the files."""
        self._log.close()
        self._table.close()


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a watch folder, oldest first; one that is being written is left out.

    Raises `ArtefactError` for a folder without a log, or a damaged line.
    """
    return (row for row, _ in follow_log(folder))


def follow_log(
    folder: Path, after: tuple[int, int] = (0, 0)
) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows after `after`, a number of bytes and of rows, each with the bytes up to its end.

    Otherwise as `read_log`.
    """
    path, (end, known) = folder / LOG_FILE, after
    try:
        with path.open("rb") as file:
            file.seek(end)
            for number, line in enumerate(file, start=known + 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = _checked(parse_json(line), number)
                except ValueError as error:
                    raise ArtefactError(
                        f"line {number} of {path} is damaged ({error}): restore the file from a "
                        "copy, or watch into another folder"
                    ) from error
                end += len(line)
                yield row, end
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{folder} holds no {LOG_FILE}: give the folder that `fedvad watch --out` wrote"
        ) from error
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror or error}") from error


def _checked(row: Any, number: int) -> dict[str, Any]:
    """The row with this number; raises `ValueError` for anything else."""
    if not isinstance(row, dict) or row.get("number") != number:
        raise ValueError("a row is missing")
    for name, kinds in _KINDS.items():
        if type(row.get(name, ...)) not in kinds:  # True is no number
            raise ValueError(f"{name} is missing or of another kind")
    changed = row.get("changed", [])  # rows of earlier versions have none
    if not isinstance(changed, list) or not all(isinstance(what, str) for what in changed):
        raise ValueError("changed is of another kind")
    datetime.fromisoformat(row["time"])
    return row


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what only the watch itself has a use for."""
    return {key: value for key, value in row.items() if key not in _INNER}


def _whole(file: IO[bytes]) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        cells = {**row, "changed": " and ".join(row.get("changed", ()))}
        yield {column: neutral_cell(cells.get(column)) for column in _COLUMNS}


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    buffer = StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode(errors="backslashreplace")


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; free some space and start again: "
        "nothing that was written is lost"
    )
