"""The documentation does what it says: its commands run, its tables are complete."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.data.synthesis import KINDS
from fedvad.drawing.demo import write_demo
from fedvad.experiments.bench.suite import Suite, load_suite
from fedvad.experiments.continual.stream import load_stream
from fedvad.experiments.distill.recipe import StageOptions, load_recipe
from fedvad.experiments.experiment import shipped
from fedvad.report.contact_sheet import contact_sheet
from fedvad.runs.config import resolve_config
from tests.contract import test_exchanges
from tests.contract.exchanges import EXCHANGES, Case
from tests.helpers import run_main, sheets

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXECUTED = "<!-- executed by tests/test_docs.py -->"


def _blocks(language: str, *, marked: bool, page: str = README) -> list[str]:
    prefix = re.escape(EXECUTED) + r"\n" if marked else ""
    return re.findall(prefix + rf"```{language}\n(.*?)```", page, re.DOTALL)


def _environment() -> dict[str, str]:
    """This process's, where `python` and `fedvad` are those that run the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path}


def _draw(folder: Path) -> None:
    """What the command would draw there, with fewer images."""
    write_demo(folder, train=6, test_normal=3, test_defect=3)
    (folder / ".done").touch()


def _page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def _files(pattern: str) -> list[str]:
    return sorted(map(str, Path().glob(pattern)))


def _play(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block of a page in a folder, its `fedvad` commands in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEDVAD_CACHE", str(folder / "cache"))
    for line in script.replace("\\\n", " ").splitlines():
        if line.startswith("fedvad "):
            words = shlex.split(line, comments=True)[1:]
            # as a shell would
            words = [w for word in words for w in (_files(word) if "*" in word else [word])]
            assert run_main(monkeypatch, *words) == 0, line
        elif line and not line.startswith("#"):
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=_environment(), check=True)


# pages whose blocks have a test of their own below, since they draw something first
ALONE = {"own-data", "bench", "continual", "distill", "methods/synthesis"}
PAGES = sorted(
    name
    for path in DOCS.rglob("*.md")
    if (name := path.relative_to(DOCS).with_suffix("").as_posix()) not in ALONE
    and _blocks("bash", marked=True, page=path.read_text(encoding="utf-8"))
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the README's commands leave, with fewer images: `fedvad-demo` and `run`."""
    folder = tmp_path_factory.mktemp("workshop")
    write_demo(folder / "fedvad-demo/data", plants=3, train=6, test_normal=3, test_defect=3)
    (script,) = _blocks("bash", marked=True)
    with pytest.MonkeyPatch.context() as patch, sheets(contact_sheet):
        _play(script, folder, patch)
    return folder


@pytest.mark.slow
def test_the_five_minute_path_and_the_python_example_run_as_written(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = _blocks("bash", marked=True)
    assert _blocks("bash", marked=True, page=_page("own-data")) == [script]  # once more
    (example,) = _blocks("python", marked=True)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(workshop)
    exec(example, {})
    assert "False" in capsys.readouterr().out
    images = list((workshop / "fedvad-demo/data/alder/test").rglob("*.png"))
    for folder in ("overlays", "overlays2"):
        assert len(list((workshop / folder).rglob("*.png"))) == len(images)
    assert (workshop / "run/heatmaps.png").stat().st_size > 10_000


MADE = {
    "plan": "planned/report.html",
    "howto/hyperspectral": "odd/field.png",
    "export": "run/export/model.onnx",
    "howto/at-the-line": "run/export/model.xml",
    "howto/hairline-cracks": "closer/predict.csv",
    "howto/false-alarms": "fewer",
    "howto/two-hospitals": "shared/report.html",
    "howto/a-liar": "guarded/report.html",
    "howto/plant": "trial/report.html",
    "howto/a-false-alarm": "answered",
    "howto/new-normals": "grown",
    "howto/a-site-leaves": "without-image",
    "howto/watch": "week.pdf",
    "howto/no-network": "birch/run/detector.safetensors",
    "glossary": "run",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_as_written(name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = _page(name)
    for file, content in re.findall(r"`(\w+\.toml)`:\n\n```toml\n(.*?)```", page, re.DOTALL):
        (workshop / file).write_text(content)
    for script in _blocks("bash", marked=True, page=page):
        _play(script, workshop, monkeypatch)
    assert (workshop / MADE[name]).exists()


def test_the_exchange_of_the_tutorial_prints_what_it_says_and_keeps_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _page("howto/write-an-exchange")
    (program,) = _blocks("python", marked=True, page=page)
    (tmp_path / "moments.py").write_text(program)
    names = runpy.run_path(str(tmp_path / "moments.py"))
    (printed,) = _blocks("text", marked=False, page=page)
    assert capsys.readouterr().out == printed
    # added to the list of exchanges, it keeps the contract of all
    make, patches = names["MomentsExchange"], np.random.default_rng(1).normal(size=(3, 40, 4))
    case = Case(
        lambda: make("x", size=4),
        lambda: {
            n: names["Site"](n, own, n_images=5) for n, own in zip("abc", patches, strict=True)
        },
        lambda upload: make(upload.manifest.features, size=len(upload.arrays["sum"])),
    )
    monkeypatch.setitem(EXCHANGES, "moments", case)
    for name, check in vars(test_exchanges).items():
        if name.startswith("test_"):
            check("moments", case)


@pytest.mark.slow
def test_what_a_researcher_adds_passes_the_contract(tmp_path: Path) -> None:
    page = _page("researcher")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = re.findall(r"New file `([^`]+)`:\n\n```python\n(.*?)```", page, re.DOTALL)
    for name, text in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    lines = re.findall(
        r"[Ll]ine in `([^`]+)`, below `([^`]+)`:\n\n```text\n(.*?)```", page, re.DOTALL
    )
    assert (len(files), len(lines)) == (5, 9)
    for name, above, text in lines:
        before = (tmp_path / name).read_text()
        assert before.count(f"{above}\n") == 1
        (tmp_path / name).write_text(before.replace(f"{above}\n", f"{above}\n{text}"))
    (command,) = re.findall(r"```\n(python -m pytest .*?)\n```", page)
    env = _environment() | {"PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [*shlex.split(command), "-n", "0", "-q"], cwd=tmp_path, env=env, capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(re.findall(r"(\d+) passed", done.stdout)[0])
    assert passed > 40


@pytest.mark.slow
def test_the_bench_runs_as_written_and_every_suite_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/bench.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _draw(tmp_path / "bench-quick/demo-data")
    _play(script, tmp_path, monkeypatch)
    assert "| pooled | 1 |" in (tmp_path / "bench-quick/bench.md").read_text()
    assert all(f"| `{name}` |" in page for name in shipped(Suite))
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert load_suite(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.slow
def test_the_stream_runs_as_written_and_mine_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/continual.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _draw(tmp_path / "continual-demo/data/demo")
    _play(script, tmp_path, monkeypatch)
    assert (tmp_path / "continual-demo/report.html").stat().st_size > 20_000
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert len(load_stream(str(tmp_path / "mine.toml")).methods) == 2


@pytest.mark.slow
def test_the_recipe_runs_as_written_and_every_key_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/distill.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    _play(script, tmp_path, monkeypatch)
    assert (tmp_path / "distilled/backbone.safetensors").stat().st_size > 10_000
    (mine,) = _blocks("toml", marked=False, page=page)
    (tmp_path / "mine.toml").write_text(mine)
    assert len(load_recipe(str(tmp_path / "mine.toml")).stages) == 2
    documented = set(re.findall(r"`([a-z_]+)`", page))
    assert {field.name for field in fields(StageOptions)} <= documented


def test_the_gallery_is_drawn_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/methods/synthesis.md").read_text(encoding="utf-8")
    (script,) = _blocks("bash", marked=True, page=page)
    write_demo(tmp_path / "fedvad-demo/data", plants=2, train=3, test_normal=0, test_defect=0)
    _play(script, tmp_path, monkeypatch)
    assert "12 defects" in capsys.readouterr().out
    assert (tmp_path / "gallery.png").stat().st_size > 100_000
    assert all(f"| `{kind}` |" in page for kind in KINDS)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Jupyter: its cells of code one after another."""
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert "Federation lifted mean image AUROC" in capsys.readouterr().out
    assert names["rows"][0]["threshold"] > 0
    assert len(list((tmp_path / "quickstart-overlays").rglob("*.png"))) == 16
    assert (tmp_path / "quickstart-report.html").stat().st_size > 20_000


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


def _anchors(page: str) -> set[str]:
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in kept}


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^(<<<<<<<|>>>>>>>) ", text, re.MULTILINE), f"{page.name}: a merge"
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
            if target.startswith("http"):
                continue
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name} links to {target}"
            if anchor:
                known = _anchors(other.read_text(encoding="utf-8"))
                assert anchor in known, f"{page.name} links to {target}#{anchor}"
