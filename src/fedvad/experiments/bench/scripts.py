"""`fedvad bench speed` and `robustness`: the scripts of `benchmarks/`, run one after another."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fedvad._version import __version__
from fedvad.data.files import write_atomically
from fedvad.errors import ConfigError
from fedvad.runs.progress import Progress, Stage, no_progress
from fedvad.runs.run_folder import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Script:
    """A script and its arguments, in which {data} and {weights} stand for what the user gave.

    needs: modules without which there is nothing to compare with.
    """

    name: str
    file: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def filled(self, given: Mapping[str, str]) -> list[str]:
        """Arguments with the user's folders; raises `ConfigError` for what was not given."""
        try:
            return [argument.format_map(given) for argument in self.arguments]
        except KeyError as error:
            raise ConfigError(f"{self.name} needs --{error.args[0]}") from error


_WEIGHTS = ("--weights", "{weights}")
# which sites lie together: those of the tables in docs/lab/robustness.md
_PAIRS = ("--pairs", "exposure1,exposure4;exposure2,exposure6;exposure3,exposure5")
COLLECTIONS: dict[str, tuple[Script, ...]] = {
    "speed": (
        Script("budgets", "speed.py", ("{data}/mtd", *_WEIGHTS)),
        Script("engines", "engines.py", ("resnet18={weights}",)),
        Script("backbones", "backbones.py", ("resnet18={weights}", "--data", "{data}/mtd")),
        Script(
            "anomalib-patchcore",
            "anomalib_patchcore.py",
            ("{data}/mtd/exposure1", *_WEIGHTS),
            ("anomalib",),
        ),
        Script("k-center", "kcenter.py", ("--data", "{data}/mtd/exposure1", *_WEIGHTS)),
        Script("k-means", "kmeans.py"),
        Script("merge-kmeans", "merge.py", ("--sites", "10,100,1000", "--tree", "100")),
        Script("merge-concat", "merge.py", ("--mode", "concat", "--size", "32768")),
        Script("serving", "serve.py", ("latency", "{data}/mtd/exposure1/test", *_WEIGHTS)),
    ),
    "robustness": (
        Script("robustness", "robustness.py", ("{data}/mtd", *_WEIGHTS, "--every", "1", *_PAIRS)),
    ),
}


def run_scripts(
    collection: str,
    out: Path,
    *,
    data: Path | None = None,
    weights: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Run a collection; each table goes to `out`/NAME.md as soon as it is there.

    A script that lacks something, or fails, is listed under `skipped` or `failed`, and the others
    continue; one whose table is there already is not run again. Raises `ConfigError` where the
    scripts are not installed.
    """
    folder = _folder()
    given = {
        name: str(path.resolve())
        for name, path in (("data", data), ("weights", weights))
        if path is not None
    }
    summary: dict[str, Any] = {"name": collection, "tables": {}, "skipped": {}, "failed": {}}
    scripts = COLLECTIONS[collection]
    stage = Stage(progress, f"bench {collection}", len(scripts))
    for script in scripts:
        page = out / f"{script.name}.md"
        if not page.is_file():
            _run(script, folder, given, page, summary)
        if page.is_file():
            summary["tables"][script.name] = _rows(page.read_text(encoding="utf-8"))
        stage()
    write_json(out / f"{collection}.json", summary)
    return summary


def _run(
    script: Script, folder: Path, given: Mapping[str, str], page: Path, summary: dict[str, Any]
) -> None:
    missing = [name for name in script.needs if importlib.util.find_spec(name) is None]
    try:
        if missing:
            raise ConfigError(f"{', '.join(missing)} is not installed")
        arguments = script.filled(given)
    except ConfigError as error:
        summary["skipped"][script.name] = str(error)
        return
    command = [sys.executable, str(folder / script.file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        summary["failed"][script.name] = done.stderr.strip()[-1000:] or f"exit {done.returncode}"
        log.warning("%s failed: %s", script.name, summary["failed"][script.name])
        return
    shown = " ".join(["python", f"benchmarks/{script.file}", *_short(arguments)])
    text = f"```\n{shown}\n```\n\n{date.today().isoformat()}, fedvad {__version__}, "
    text += f"{os.cpu_count()} processors.\n\n{done.stdout.strip()}\n"
    write_atomically(page, text.encode())


def _short(arguments: Sequence[str]) -> list[str]:
    """Without the folders of whoever ran it: the name of a file says enough."""
    out = []
    for argument in arguments:
        head, mark, value = argument.rpartition("=")
        out.append(head + mark + (Path(value).name if os.sep in value else value))
    return out


def _rows(page: str) -> list[dict[str, str]]:
    """The rows of the Markdown tables of a page, by column."""
    rows: list[dict[str, str]] = []
    head: list[str] | None = None
    for line in page.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = cells
        elif not set(line) <= set("|-: "):
            rows.append(dict(zip(head, cells, strict=False)))
    return rows


def _folder() -> Path:
    package = Path(__file__).parents[2]
    for folder in (package / "_benchmarks", package.parents[1] / "benchmarks"):
        if (folder / "common.py").is_file():
            return folder
    raise ConfigError("this installation has no benchmarks: install the wheel or a checkout")
