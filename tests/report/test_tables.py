from __future__ import annotations

import copy
import csv
import io
from dataclasses import asdict

import pytest
from rich.console import Console

from fedvad.errors import StorageError
from fedvad.evaluation.results import Results
from fedvad.evaluation.thresholds import promise
from fedvad.report.results_tables import results_table, rich_tables, sites_table
from fedvad.report.tables import to_markdown, without_empty, write_csv


def metric(**sites):
    known = [x for x in sites.values() if x is not None]
    return {"mean": sum(known) / len(known), "worst": min(known), "pooled": 0.9, "sites": sites}


def gain(value, low, high):
    return {"gain": value, "low": low, "high": high}


def parsed(values):
    return Results.parse(values, "results")


def operation(fpr, recall, method="conformal"):
    return {"threshold": 1.23456, "fpr": fpr, "recall": recall, "n": 30, "method": method}


RESULTS = {
    "image_auroc": metric(a=0.96, b=0.94, c=0.98),
    "aupro": {"mean": 0.8, "worst": 0.7, "pooled": None, "sites": {"a": 0.8, "b": None}},
    "threshold": {
        "target_fpr": 0.01,
        "sites": {
            "a": operation(0.02, 0.9),
            "b": operation(0.0, 0.7, "log-normal-tail"),
            "c": operation(None, None),
        },
    },
    "compare": {
        "local": {"image_auroc": metric(a=0.86, b=0.90, c=0.78)},
        "pooled": {"image_auroc": metric(a=0.97, b=0.95, c=0.98)},
    },
    "gain": {
        "local": {
            "mean": gain(0.1133, 0.09, 0.13),
            "sites": {
                "a": gain(0.10, 0.05, 0.15),
                "b": gain(0.04, 0.01, 0.07),
                "c": gain(0.20, 0.1, 0.3),
            },
        },
        "pooled": {"mean": gain(-0.0067, -0.02, 0.01), "sites": {}},
    },
}


def test_results_table():
    rows = results_table(parsed(RESULTS), name="ours")
    assert [row[0] for row in rows] == ["method", "ours", "local", "pooled"]
    assert rows[0][-1] == "gain of ours over this method (95 % interval)"
    assert rows[1][1:] == ["0.960", "0.940", "0.900", "–", "0.800", "1.0 %", "80.0 %", "–"]
    assert rows[2][1:4] == ["0.847", "0.780", "0.900"]
    assert rows[2][4:] == ["–", "–", "–", "–", "+0.113 (0.090 to 0.130)"]
    assert rows[3][-1] == "-0.007 (-0.020 to 0.010)"


def test_sites_table():
    rows = sites_table(parsed(RESULTS))
    assert rows[0] == [
        "site", "good stopped", "defects caught", "threshold", "image AUROC federated",
        "image AUROC local", "image AUROC pooled", "gain over local (95 % interval)",
    ]  # fmt: skip
    assert rows[1] == [
        "a", "2.0 %", "90.0 %", "1.235", "0.960", "0.860", "0.970", "+0.100 (0.050 to 0.150)",
    ]  # fmt: skip
    assert rows[2][1:4] == ["0.0 %", "70.0 %", "1.235 (log-normal-tail)"]
    assert rows[3][1:3] == ["–", "–"]


def test_what_is_promised_stands_in_the_table():
    results = copy.deepcopy(RESULTS)
    for site, above in (("a", 0), ("b", 0), ("c", 1)):
        found = asdict(promise(24, above))
        results["threshold"]["sites"][site] |= {"promise": found, "method": "federated-tail"}
    rows = sites_table(parsed(results))
    assert rows[0][3:5] == ["threshold", "false alarms, at most (95 % sure)"]
    assert [row[3:5] for row in rows[1:]] == [["1.235", "≤ 11.7 %"]] * 2 + [["1.235", "≤ 18.3 %"]]
    results["threshold"]["sites"]["c"]["promise"] = None  # of an earlier version
    assert sites_table(parsed(results))[3][3:5] == ["1.235 (federated-tail)", "–"]


def test_images_are_counted_where_the_results_know_them():
    results = copy.deepcopy(RESULTS)
    results["threshold"]["sites"]["a"]["counts"] = {
        "good": 50, "stopped": 1, "defects": 10, "caught": 9,
    }  # fmt: skip
    assert [row[1:3] for row in sites_table(parsed(results))[1:3]] == [
        ["1 of 50", "9 of 10"], ["0.0 %", "70.0 %"],
    ]  # fmt: skip


@pytest.mark.parametrize("results", [{}, {"image_auroc": {"mean": None}}])
def test_nothing_known(results):
    results = parsed(results)
    assert results_table(results)[1] == ["federated", *["–"] * 8]
    assert without_empty(results_table(results)) == [["method"], ["federated"]]
    assert sites_table(results) == [
        ["site", "good stopped", "defects caught", "threshold", "image AUROC federated"]
    ]
    assert len(rich_tables(results)) == 1


def test_a_site_known_only_to_one_method_has_a_row():
    results = copy.deepcopy(RESULTS)
    results["compare"]["local"]["image_auroc"]["sites"]["d"] = 0.5
    results["image_auroc"]["sites"]["a"] = None
    rows = sites_table(parsed(results))
    assert rows[4] == ["d", "–", "–", "–", "–", "0.500", "–", "–"]
    assert rows[1][4] == "–"


def test_columns_in_which_nothing_is_known_are_dropped_from_what_is_shown():
    results = copy.deepcopy(RESULTS)
    results["compare"], results["gain"] = {}, {}
    shown = without_empty(results_table(parsed(results)))
    assert [*shown[0][1:4], shown[0][-1]] == [
        "image AUROC mean", "image AUROC worst", "image AUROC all images together", "recall mean",
    ]  # fmt: skip
    gain = "gain of federated over this method (95 % interval)"
    assert not {"pixel AUROC mean", gain} & set(shown[0])
    assert [table.title for table in rich_tables(parsed(results))] == ["Sites", "Methods"]


def test_csv(tmp_path):
    rows = [["site", "x"], ['Werk "Süd", 2', "–"], ["a\nb", "1"]]
    write_csv(rows, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_bytes().decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    with pytest.raises(StorageError):
        write_csv(rows, tmp_path / "t.csv" / "below.csv")


def test_markdown():
    text = to_markdown([["site", "x"], ["a|b\nc\\", "0.9"]])
    assert text == "| site | x |\n| --- | ---: |\n| a\\|b c\\\\ | 0.9 |\n"
    assert to_markdown([]) == ""


@pytest.mark.parametrize("width", [80, 160])
def test_rich(width):  # no figure is broken, an interval stands below its gain
    results = copy.deepcopy(RESULTS)
    results["image_auroc"]["sites"]["[red]x[/]"] = 0.5
    console = Console(file=io.StringIO(), width=width)
    for table in rich_tables(parsed(results)):
        console.print(table)
    shown = console.file.getvalue()
    assert "[red]x[/]" in shown
    for text in ("federated", "0.960", "80.0 %", "(0.090 to 0.130)", "1.235", "–"):
        assert text in shown  # whole: no figure is broken over two lines
    sites = shown[: shown.index("Methods")]  # that table has the others and the intervals
    assert "pooled" not in sites
    assert "to 0.150" not in sites
    assert max(map(len, shown.splitlines())) <= width
