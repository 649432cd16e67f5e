"""The documentation does what it says: its commands run, its tables are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedvad.data.demo import write_demo
from fedvad.data.synthesis import KINDS
from fedvad.pipeline.bench.suite import load_suite, shipped_suites
from fedvad.pipeline.config import resolve_config
from fedvad.pipeline.continual.stream import load_stream
from fedvad.pipeline.distill.recipe import StageOptions, load_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXECUTED = "<!-- executed by tests/test_docs.py -->"


def _blocks(language: str, *, marked: bool, page: str = README) -> list[str]:
    prefix = re.escape(EXECUTED) + r"\n" if marked else ""
    return re.findall(prefix + rf"```{language}\n(.*?)```", page, re.DOTALL)


def _run(commands: list[list[str]], folder: Path) -> str:
    # the commands of the environment that runs the tests
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "FEDVAD_CACHE": str(folder / "cache")}
    output = ""
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr
        output = done.stdout
    return output


def _draw(folder: Path) -> None:
    """What the command would draw there, with fewer images."""
    write_demo(folder, size=128, train=6, test_normal=3, test_defect=3)
    (folder / ".done").touch()


@pytest.mark.slow
def test_the_five_minute_path_and_the_python_example_run_as_written(tmp_path: Path) -> None:
    (script,) = _blocks("bash", marked=True)
    (example,) = _blocks("python", marked=True)
    own_data, export = (
        _blocks("bash", marked=True, page=(ROOT / f"docs/{page}.md").read_text(encoding="utf-8"))
        for page in ("own-data", "export")
    )
    assert own_data == [script]  # the README's path once more
    script += "".join(export)
    # as the README's first command leaves it, with fewer images
    write_demo(tmp_path / "fedvad-demo/data", train=12, test_normal=6, test_defect=6)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    printed = _run(
        [["bash", "-euo", "pipefail", "-c", script], [sys.executable, "-c", example]], tmp_path
    )
    assert "True" in printed
    assert (tmp_path / "run/export/model.xml").stat().st_size > 10_000
    images = list((tmp_path / "fedvad-demo/data/alder/test").rglob("*.png"))
    for folder in ("overlays", "overlays2"):
        assert len(list((tmp_path / folder).rglob("*.png"))) == len(images)
    assert (tmp_path / "run/heatmaps.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_bench_runs_as_written_and_every_suite_is_documented(tmp_path: Path) -> None:
    page = (ROOT / "docs/bench.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _draw(tmp_path / "bench-quick/demo-data")
    _run([["bash", "-euo", "pipefail", "-c", script]], tmp_path)
    assert "| pooled | 1 |" in (tmp_path / "bench-quick/bench.md").read_text()
    assert all(f"| `{name}` |" in page for name in shipped_suites())
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert load_suite(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.slow
def test_the_stream_runs_as_written_and_mine_can_be_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/continual.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _draw(tmp_path / "continual-demo/data/demo")
    _run([["bash", "-euo", "pipefail", "-c", script]], tmp_path)
    assert (tmp_path / "continual-demo/report.html").stat().st_size > 20_000
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert len(load_stream(str(tmp_path / "mine.toml")).methods) == 2


@pytest.mark.slow
def test_the_recipe_runs_as_written_and_every_key_is_documented(tmp_path: Path) -> None:
    page = (ROOT / "docs/distill.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _run([["bash", "-euo", "pipefail", "-c", script]], tmp_path)
    assert (tmp_path / "distilled/backbone.safetensors").stat().st_size > 10_000
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert len(load_recipe(str(tmp_path / "mine.toml")).stages) == 2
    documented = set(re.findall(r"`([a-z_]+)`", page))
    assert set(StageOptions.model_fields) <= documented


def test_the_gallery_is_drawn_as_written(tmp_path: Path) -> None:
    page = (ROOT / "docs/methods/synthesis.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    write_demo(tmp_path / "fedvad-demo/data", plants=2, train=3, test_normal=0, test_defect=0)
    assert "12 defects" in _run([["bash", "-euo", "pipefail", "-c", script]], tmp_path)
    assert (tmp_path / "gallery.png").stat().st_size > 100_000
    assert all(f"| `{kind}` |" in page for kind in KINDS)


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    install_and_demo, install_and_test = (b.strip() for b in _blocks("bash", marked=False)[:2])
    assert "fedvad demo" in install_and_demo
    assert "pytest" in install_and_test
    assert install_and_demo in ci
    assert install_and_test in ci


def test_the_configuration_of_a_student_can_be_read() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    (table,) = _blocks("toml", marked=False, page=text)
    assert resolve_config(**tomllib.loads(table)).student.bootstrap == 5


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
