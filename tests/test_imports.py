"""No circle between files: each can be read, tested and moved without those that use it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fedvad
from fedvad.detectors.registry import detector_class, list_detectors

SOURCE = Path(fedvad.__file__).parent


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, those inside functions too; not those for type checkers, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)


def graph(source: Path) -> dict[str, set[str]]:
    """Module names to those of the same package that they import."""
    files = {
        ".".join((source.name, *path.relative_to(source).with_suffix("").parts)): path
        for path in source.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in imported(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            else:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [w if w in files else str(node.module) for w in wanted]
            found[name].update(w for w in wanted if w in files)
        found[name].discard(name)
    return found


def circle(source: Path) -> list[str]:
    try:
        TopologicalSorter(graph(source)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle(SOURCE) == []


@pytest.mark.parametrize(
    "text", ["from room.a import x", "import room.a", "def f():\n    from room import a"]
)
def test_circles_are_found(text: str, tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "a.py").write_text("from room.b import y")
    (room / "b.py").write_text("if TYPE_CHECKING:\n    from room.a import x")
    assert circle(room) == []
    (room / "b.py").write_text(text)
    assert set(circle(room)) == {"room.a", "room.b"}


@pytest.mark.parametrize("name", list_detectors())
def test_a_registered_class_has_the_name_it_is_registered_by(name: str) -> None:
    assert detector_class(name).name == name


def test_files_are_short_enough_to_be_read() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > 350] == []
