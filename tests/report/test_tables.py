from __future__ import annotations

import copy
import csv
import io
from dataclasses import asdict

import pytest
from rich.console import Console

from fedvad.errors import StorageError
from fedvad.evaluation.thresholds import promise
from fedvad.report.tables import (
    results_table,
    rich_tables,
    sites_table,
    to_markdown,
    verdict,
    write_csv,
)


def metric(**sites):
    known = [x for x in sites.values() if x is not None]
    return {"mean": sum(known) / len(known), "worst": min(known), "pooled": 0.9, "sites": sites}


def gain(value, low, high):
    return {"gain": value, "low": low, "high": high}


def operation(fpr, recall, method="conformal"):
    return {"threshold": 1.23456, "fpr": fpr, "recall": recall, "n": 30, "method": method}


RESULTS = {
    "image_auroc": metric(a=0.96, b=0.94, c=0.98),
    "pixel_auroc": None,
    "aupro": {"mean": 0.8, "worst": 0.7, "pooled": None, "sites": {"a": 0.8, "b": None}},
    "average_precision": None,
    "oracle_f1": None,
    "threshold": {
        "target_fpr": 0.01,
        "sites": {
            "a": operation(0.02, 0.9),
            "b": operation(0.0, 0.7, "log-normal-tail"),
            "c": operation(None, None),
        },
    },
    "compare": {
        "local": {"image_auroc": metric(a=0.86, b=0.90, c=0.78), "threshold": None},
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
    "ledger": {},
}


def test_results_table():
    rows = results_table(RESULTS, name="ours")
    assert [row[0] for row in rows] == ["method", "ours", "local", "pooled"]
    assert rows[0][-1] == "gain of ours over it [low, high]"
    assert rows[1][1:] == ["0.960", "0.940", "0.900", "–", "0.800", "1.0 %", "80.0 %", "–"]
    assert rows[2][1:4] == ["0.847", "0.780", "0.900"]
    assert rows[2][4:] == ["–", "–", "–", "–", "+0.113 [+0.090, +0.130]"]
    assert rows[3][-1] == "-0.007 [-0.020, +0.010]"


def test_sites_table():
    rows = sites_table(RESULTS)
    assert rows[0] == [
        "site", "image AUROC federated", "image AUROC local", "image AUROC pooled",
        "gain over local [low, high]", "threshold", "false alarms", "recall",
    ]  # fmt: skip
    assert rows[1] == [
        "a", "0.960", "0.860", "0.970", "+0.100 [+0.050, +0.150]", "1.235", "2.0 %", "90.0 %",
    ]  # fmt: skip
    assert rows[2][5:] == ["1.235 (log-normal-tail)", "0.0 %", "70.0 %"]
    assert rows[3][6:] == ["–", "–"]


def test_what_is_promised_stands_in_table_and_verdict():
    results = copy.deepcopy(RESULTS)
    results["threshold"]["target_fpr"] = 0.01
    for site, above in (("a", 0), ("b", 0), ("c", 1)):
        found = asdict(promise(24, above))
        results["threshold"]["sites"][site] |= {"promise": found, "method": "federated-tail"}
    rows = sites_table(results)
    assert rows[0][5:7] == ["threshold", "promised"]
    assert [row[5:7] for row in rows[1:]] == [["1.235", "≤ 11.7 %"]] * 2 + [["1.235", "≤ 18.3 %"]]
    assert verdict(results).endswith(
        "a, b: 24 normal images promise at most 11.7 % false alarms with 95 % confidence; to "
        "promise 1 % takes 99 images on average, 299 with 95 % confidence. c: 24 normal images "
        "promise at most 18.3 % false alarms with 95 % confidence; to promise 1 % takes 99 images "
        "on average, 299 with 95 % confidence."
    )
    results["threshold"]["sites"]["c"]["promise"] = None  # of an earlier version
    assert sites_table(results)[3][5:7] == ["1.235 (federated-tail)", "–"]


@pytest.mark.parametrize("results", [{}, dict.fromkeys(RESULTS), {"image_auroc": {"mean": None}}])
def test_nothing_known(results):
    assert results_table(results)[1] == ["federated", *["–"] * 8]
    assert sites_table(results) == [
        ["site", "image AUROC federated", "threshold", "false alarms", "recall"]
    ]
    assert len(rich_tables(results)) == 2
    assert verdict(results).startswith("Image AUROC is unknown")


def test_a_site_known_only_to_one_method_has_a_row():
    results = copy.deepcopy(RESULTS)
    results["compare"]["local"]["image_auroc"]["sites"]["d"] = 0.5
    results["image_auroc"]["sites"]["a"] = float("nan")
    rows = sites_table(results)
    assert rows[4][:4] == ["d", "–", "0.500", "–"]
    assert rows[1][1] == "–"


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
def test_rich(width):
    results = copy.deepcopy(RESULTS)
    results["image_auroc"]["sites"]["[red]x[/]"] = 0.5
    console = Console(file=io.StringIO(), width=width)
    for table in rich_tables(results):
        console.print(table)
    shown = console.file.getvalue()
    assert "[red]x[/]" in shown
    for text in ("federated", "0.960", "80.0 %", "[+0.090,", "1.235", "–"):
        assert text in shown  # whole: no figure is broken over two lines
    assert max(map(len, shown.splitlines())) <= width


def changed(mean, sites, interval=(0.01, 0.2)):
    """Results with these AUROCs per site (before, after) and this gain of the mean."""
    results = copy.deepcopy(RESULTS)
    before, after = ({site: pair[i] for site, pair in sites.items()} for i in (0, 1))
    results["image_auroc"], results["compare"]["local"]["image_auroc"] = (
        metric(**after), metric(**before),
    )  # fmt: skip
    results["gain"]["local"] = {"mean": gain(mean, *interval), "sites": {}}
    return results


def test_verdict_gain():
    assert verdict(RESULTS) == (
        "Federation lifted mean image AUROC from 0.847 (each site alone) to 0.960; worst site "
        "0.780 to 0.940; every site gained; c gained most (+0.200)."
    )


def test_verdict_doubtful_sites():
    results = copy.deepcopy(RESULTS)
    results["gain"]["local"]["sites"]["b"]["low"] = -0.01
    assert "every site gained, the interval includes zero at 1 of 3;" in verdict(results)
    for found in results["gain"]["local"]["sites"].values():
        found["low"] = -0.01
    assert "every site gained, the interval includes zero at all of them;" in verdict(results)


def test_verdict_mixed():
    results = changed(0.02, {"a": (0.8, 0.9), "b": (0.9, 0.84), "c": (0.8, 0.8)}, (-0.01, 0.05))
    assert verdict(results) == (
        "Federation lifted mean image AUROC from 0.833 (each site alone) to 0.847, but the "
        "interval [-0.010, +0.050] includes zero; worst site 0.800 to 0.800; 1 of 3 sites gained, "
        "1 lost; a gained most (+0.100), b lost most (-0.060)."
    )


def test_verdict_loss():
    results = changed(-0.1, {"a": (0.9, 0.8), "b": (0.9, 0.85)}, (-0.2, -0.05))
    assert verdict(results) == (
        "Federation lowered mean image AUROC from 0.900 (each site alone) to 0.825; worst site "
        "0.900 to 0.800; every site lost; a lost most (-0.100)."
    )


def test_verdict_no_difference():
    results = changed(0.0, {"a": (0.9, 0.9), "b": (0.9, 0.9)}, (0.0, 0.0))
    text = verdict(results)
    assert text.startswith("Mean image AUROC is 0.900, as good as 0.900 with each site alone")
    assert "0 of 2 sites gained, 0 lost" not in text
    assert "no site gained or lost" in text


def test_verdict_one_site():
    results = changed(0.1, {"a": (0.8, 0.9)})
    assert verdict(results).endswith("; the only site gained.")


def test_verdict_other_baseline():
    results = copy.deepcopy(RESULTS)
    del results["compare"]["local"]
    assert verdict(results).startswith(
        "Mean image AUROC is 0.960, 0.007 below pooled (0.967), but the interval [-0.020, +0.010] "
        "includes zero; worst site 0.950 to 0.940"
    )


def test_verdict_without_comparison():
    results = {"image_auroc": RESULTS["image_auroc"], "compare": None, "gain": None}
    assert verdict(results) == (
        "Mean image AUROC is 0.960, 0.940 at the worst site, with nothing to compare it with."
    )
