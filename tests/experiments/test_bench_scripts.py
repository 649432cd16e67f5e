"""`bench speed` and `robustness`: tables kept as they come, reasons for what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedvad.experiments.bench import scripts
from fedvad.experiments.bench.scripts import COLLECTIONS, Script, run_scripts

ROOT = Path(__file__).resolve().parents[2]
# every number of sites is one more process that imports everything, and a tree is none
SMALL = Script(
    "merge",
    "merge.py",
    ("--sites", "2", "--tree", "2", "--rows", "20", "--dim", "8", "--size", "9"),
)


@pytest.mark.slow
def test_tables_are_kept_and_what_is_left_out_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = (
        SMALL,
        Script("absent", "merge.py", needs=("a_module_that_is_not_there",)),
        Script("without data", "engines.py", ("{data}/set",)),
        Script("broken", "merge.py", ("--sites", "nonsense")),
    )
    monkeypatch.setitem(COLLECTIONS, "speed", chosen)
    summary = run_scripts("speed", tmp_path)
    assert [row["what"] for row in summary["tables"]["merge"]][:2] == [
        "2 sites of 20, kmeans: time",
        "2 sites of 20, kmeans: memory",
    ]
    tree = summary["tables"]["merge"][2]
    assert tree["what"] == "tree of two halves, 2 sites of 20, kmeans: time"
    assert float(tree["theirs / ours"]) > 0
    assert summary["skipped"] == {
        "absent": "a_module_that_is_not_there is not installed",
        "without data": "without data needs --data",
    }
    assert "nonsense" in summary["failed"]["broken"]
    assert json.loads((tmp_path / "speed.json").read_text()) == summary
    page = (tmp_path / "merge.md").read_text()
    assert page.startswith("```\npython benchmarks/merge.py --sites 2 --tree 2")
    monkeypatch.setattr(scripts, "_run", lambda *_: pytest.fail("ran again"))
    monkeypatch.setitem(COLLECTIONS, "speed", (SMALL,))
    assert run_scripts("speed", tmp_path)["tables"] == {"merge": summary["tables"]["merge"]}


def test_rows_are_read_by_the_header_of_their_own_table() -> None:
    one = "| what | ours | theirs / ours |\n| --- | --- | --- |\n| k | 2 | 1.50 |\n| l | 3 | – |\n"
    other = "| figure | value |\n| :--- | ---: |\n| m | 4 |\n"
    assert scripts._rows(f"# Title\n\n{one}\nof which:\n\n{other}") == [
        {"what": "k", "ours": "2", "theirs / ours": "1.50"},
        {"what": "l", "ours": "3", "theirs / ours": "–"},
        {"figure": "m", "value": "4"},
    ]


def test_every_script_is_there_and_names_no_folder_of_whoever_ran_it() -> None:
    for script in (s for several in COLLECTIONS.values() for s in several):
        assert (ROOT / "benchmarks" / script.file).is_file()
        given = script.filled({"data": "/secret/data", "weights": "/secret/w.safetensors"})
        assert not any("secret" in word for word in scripts._short(given))
