"""bench(): cells equal to train(), resumable, honest about what is missing or failed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.labels import LabelNames
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.memory.feddymem import PatchCore
from fedvad.errors import ConfigError
from fedvad.experiments.bench.run import _identity, _Source, bench
from fedvad.experiments.bench.scripts import _rows
from fedvad.experiments.bench.suite import Suite, load_suite
from fedvad.experiments.experiment import shipped
from fedvad.experiments.store import Cell, Stored
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.report.bench_tables import confounding, size
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites, warm_up
from fedvad.runs.method import make_method
from fedvad.runs.progress import no_progress
from tests.detectors.student import support
from tests.helpers import OPTIONS, make_bank, run_main

METHODS: list[dict[str, Any]] = [
    {"name": "feddymem"},
    {"name": "averaged", "options": {"method": "feddymem-position", "merge": "average"}},
    {"name": "local", "kind": "local"},
    {"name": "pooled", "kind": "pooled"},
]


def suite_of(**changes: Any) -> Suite:
    values: dict[str, Any] = {
        "name": "tiny",
        "seeds": (0, 1),
        "options": OPTIONS,
        "sets": [{"name": "plants", "path": "plants"}],
        "methods": METHODS,
    }
    return Suite(**(values | changes))


def stored(path: Path) -> Stored:
    """A cell's file as it is."""
    found = Cell(path, {}).read()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def root(plants: Path) -> Path:
    return plants.parent


@pytest.fixture(scope="module")
def cache(shared_cache: Path) -> DescriptorCache:
    return DescriptorCache(shared_cache)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, root: Path, cache: DescriptorCache
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("bench")
    return out, bench(suite_of(), out, data=root, cache=cache)


def test_a_cell_is_what_train_gives(
    finished: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, Any]]
) -> None:
    rows, run = finished[1]["sets"]["plants"], trained[1]
    for name, theirs in (("feddymem", run), ("local", run["compare"]["local"])):
        for metric in ("image_auroc", "pixel_auroc", "aupro"):
            assert rows[name][metric]["values"][0] == pytest.approx(theirs[metric]["mean"])
    assert rows["feddymem"]["costs"]["memory_rows"] == run["ledger"]["memory_rows"]


@pytest.mark.parametrize(("memory_rows", "rows"), [(10_000, 300), (100, 100)])
def test_pooling_keeps_as_many_rows_as_all_sites_may_send(
    memory_rows: int,
    rows: int,
    plants: Path,
    cache: DescriptorCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def fit(self: PatchCore, *sites: NormalFeatures) -> PatchCore:
        asked.append(self.rows)
        return self.with_memory(make_bank(dim=72))

    monkeypatch.setattr(PatchCore, "fit_features", fit)
    config = resolve_config(upload_rows=50, rounds=2, memory_rows=memory_rows, **OPTIONS)
    extractor = FeatureExtractor(config.features(), cache)
    sites = load_sites(plants, None, 0)
    features = warm_up(sites, extractor, 0.05, no_progress)
    method = make_method(config, extractor)
    method.take(features)
    method.baseline("pooled")
    assert asked == [rows]


def test_costs_are_those_of_messages_and_files(
    finished: tuple[Path, dict[str, Any]], trained: tuple[Path, dict[str, Any]], plants: Path
) -> None:
    rows = finished[1]["sets"]["plants"]
    assert rows["local"]["costs"]["bytes_up"] == rows["local"]["costs"]["bytes_down"] == 0
    ledger = json.loads((trained[0] / "ledger.json").read_text())
    costs = rows["feddymem"]["costs"]
    for way in ("bytes_up", "bytes_down"):
        sent = {
            site: sum(entry[way][site] for entry in ledger["rounds"])
            for site in ledger["rounds"][0]["sites"]
        }
        assert costs[way] == max(sent.values())
    assert costs["bytes_up"] != costs["bytes_down"]
    files = max(
        sum(p.stat().st_size for p in (site / "train" / "good").iterdir())
        for site in plants.iterdir()
    )
    assert rows["pooled"]["costs"]["bytes_up"] == files
    assert costs["macs_forward"] > 0
    height, width, dim = FeatureExtractor(FeatureConfig(**OPTIONS)).grid
    assert costs["macs_search"] == height * width * costs["memory_rows"] * dim


def test_figures_over_seeds_are_those_of_the_cells(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    for name in ("feddymem", "local"):
        row = summary["sets"]["plants"][name]
        cells = [stored(p) for p in (out / "cells").glob(f"*--{name}--*")]
        assert len(cells) == row["seeds"] == 2
        for metric in ("image_auroc", "pixel_auroc", "aupro"):
            sites = [cell.record[metric]["sites"].values() for cell in cells]
            means = [np.mean(list(values)) for values in sites]
            assert row[metric]["mean"] == pytest.approx(np.mean(means))
            assert row[metric]["sd"] == pytest.approx(np.std(means, ddof=1))
            assert row[metric]["worst"] == pytest.approx(np.mean([min(v) for v in sites]))
            assert row[metric]["lowest"] == min(min(values) for values in sites)
            assert metric == "image_auroc" or min(sites[0]) != min(sites[1])


def test_gains_convergence_and_sentences(finished: tuple[Path, dict[str, Any]]) -> None:
    summary = finished[1]
    rows = summary["sets"]["plants"]
    gain = rows["feddymem"]["gain"]["local"]
    mean = rows["feddymem"]["image_auroc"]["mean"] - rows["local"]["image_auroc"]["mean"]
    assert gain["gain"] == pytest.approx(mean)
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert "local" not in rows["local"]["gain"]
    curve = rows["feddymem"]["convergence"]
    assert [point["round"] for point in curve] == [1, 2]
    assert curve[-1]["mean"] == pytest.approx(rows["feddymem"]["image_auroc"]["mean"])
    assert len(summary["statements"]) == 3
    assert all(s.startswith("feddymem ") for s in summary["statements"])


def test_leaves_tables_and_a_plot(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    text = (out / "bench.md").read_text()
    assert "Backbone: filterbank." in text
    shown = {row["method"]: row for row in _rows(text) if "seeds" in row}
    for name, row in summary["sets"]["plants"].items():
        figures, costs = row["image_auroc"], row["costs"]
        reported = shown[name]
        assert reported["seeds"] == "2"
        assert reported["image AUROC mean"] == f"{figures['mean']:.4f} ± {figures['sd']:.4f}"
        assert reported["worst site"] == f"{figures['worst']:.4f}"
        assert reported["AUPRO"].startswith(f"{row['aupro']['mean']:.4f} ±")
        assert reported["memory rows"] == str(costs["memory_rows"])
        assert reported["up per site"] == size(costs["bytes_up"])
        assert reported["down per site"] == size(costs["bytes_down"])
        assert reported["ms per image"] == f"{costs['ms_per_test_image']:.0f}"
    with (out / "bench.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {line["method"] for line in table} == {m["name"] for m in METHODS}
    with Image.open(out / "bench.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert json.loads((out / "bench.json").read_text())["sets"].keys() == summary["sets"].keys()


def test_trivial_statistics_stand_below_the_methods(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    found = summary["trivial"]["plants"]["statistics"]
    shown = {
        r["trivial statistic as score"]: r
        for r in _rows((out / "bench.md").read_text())
        if "trivial statistic as score" in r
    }
    assert list(shown) == list(found) == ["brightness", "contrast", "sharpness", "colour"]
    for name, figures in found.items():
        assert figures["mean"] == pytest.approx(np.mean(list(figures["sites"].values())))
        assert shown[name]["image AUROC mean"] == f"{figures['mean']:.4f}"


def test_a_confounded_set_is_named() -> None:
    figures = {"mean": 0.98, "sites": {"alder": 0.98}}
    summary = {
        "trivial": {"plants": {"statistics": {"brightness": figures}, "confounded": ["brightness"]}}
    }
    assert "brightness 0.9800 alone" in confounding(summary, "plants")
    assert confounding(summary, "others") == ""


def test_finished_cells_are_not_run_again(
    finished: tuple[Path, dict[str, Any]],
    root: Path,
    cache: DescriptorCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, first = finished
    ran: list[str] = []
    real = fedvad.experiments.bench.run.run_cell  # type: ignore[attr-defined]

    def counting(method: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(method.name)
        return real(method, *args, **kwargs)

    monkeypatch.setattr("fedvad.experiments.bench.run.run_cell", counting)
    again = bench(suite_of(), out, data=root, cache=cache)
    assert ran == []
    assert again == first
    damaged = next(iter(sorted((out / "cells").glob("*local*"))))
    damaged.write_text("{")
    bench(suite_of(), out, data=root, cache=cache)
    assert ran == ["local"]
    changed = [METHODS[0] | {"options": {"smooth": 1}}, *METHODS[1:]]
    bench(suite_of(methods=changed), out, data=root, cache=cache)
    assert ran == ["local", "feddymem", "feddymem"]
    bench(suite_of(), out, data=root, cache=cache)


def test_other_images_or_weights_under_the_same_name_are_run_again(
    root: Path, cache: DescriptorCache, tmp_path: Path
) -> None:
    method = [{"name": "local", "kind": "local"}]
    for which, source in (("a", "birch"), ("b", "cedar")):
        (tmp_path / which / "plants").mkdir(parents=True)
        (tmp_path / which / "plants" / "alder").symlink_to(root / "plants" / source)
    found = [
        bench(suite_of(methods=method, seeds=(0,)), tmp_path / "out", data=tmp_path / which,
              cache=cache)["sets"]["plants"]["local"]["image_auroc"]
        for which in ("a", "b")
    ]  # fmt: skip
    assert found[0] != found[1]
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    source = _Source("plants", root / "plants", {}, LabelNames())
    config = resolve_config(**OPTIONS)
    reported = [
        _identity(config.model_copy(update={"weights": w}), suite_of().methods[0], source, c)
        for w, c in ((one, False), (other, False), (one, True))
    ]
    assert reported[0] != reported[1]
    assert reported[0] != reported[2]


def test_the_reference_that_is_asked_for_scores(
    root: Path, cache: DescriptorCache, tmp_path: Path
) -> None:
    methods = [
        {"name": "own", "options": {"reference": "local"}},
        {"name": "global"},
        {"name": "local", "kind": "local"},
    ]
    found = bench(suite_of(methods=methods, seeds=(0,)), tmp_path, data=root, cache=cache)
    rows = found["sets"]["plants"]
    assert rows["own"]["image_auroc"] != rows["global"]["image_auroc"]
    with pytest.raises(ConfigError, match="split: a set has its split"):
        suite_of(options=OPTIONS | {"split": "iid:3"}).config(suite_of().methods[0], None, 0)


def test_what_is_missing_is_named(tmp_path: Path, root: Path, cache: DescriptorCache) -> None:
    sets = [{"name": "plants", "path": "plants"}, {"name": "gone", "path": "gone"}]
    methods = [METHODS[2], {"name": "too big", "options": {"layers": [7]}}]
    summary = bench(
        suite_of(sets=sets, methods=methods, seeds=(0,)), tmp_path, data=root, cache=cache
    )
    assert list(summary["skipped"]) == ["gone"]
    assert list(summary["failed"]) == ["plants / too big / 0"]
    assert "too big / 0" in (tmp_path / "bench.md").read_text()
    with pytest.raises(ConfigError, match="needs --data"):
        bench(suite_of(), tmp_path / "none", cache=cache)


@pytest.mark.parametrize("name", shipped(Suite))
def test_shipped_suites_are_valid(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert set(suite.baselines) <= {method.name for method in suite.methods}
    assert len(suite.seeds) >= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"', "sets"),
        ('name = "x"\nsets = [{name = "a"}]\nmethods = [{name = "m", kind = "magic"}]', "kind"),
        (
            'name = "x"\nsets = [{name = "a"}]\nmethods = [{name = "m", options = {ronds = 2}}]',
            "ronds",
        ),
        (
            'name = "x"\nsets = [{name = "a"}]\nmethods = [{name = "m"}, {name = "m"}]',
            "only once",
        ),
    ],
)
def test_bad_suites_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_suite(str(path))


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no suite 'nonsense'"):
        load_suite("nonsense")
    with pytest.raises(ConfigError, match="cannot read suite"):
        load_suite(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="no methods"):
        suite_of().only(methods=["nonsense"])
    with pytest.raises(ConfigError, match="seeds"):
        suite_of().only(seeds=[1, 1])


def test_command_line(
    tmp_path: Path,
    root: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.toml"
    options = ", ".join(f"{k} = {json.dumps(v)}" for k, v in OPTIONS.items())
    path.write_text(
        f'name = "mine"\noptions = {{ {options} }}\n[[sets]]\nname = "p"\npath = "plants"\n'
        '[[methods]]\nname = "feddymem"\n[[methods]]\nname = "local"\nkind = "local"\n'
    )
    arguments = ("bench", path, "--out", tmp_path / "o", "--data", root, "--cache", shared_cache)
    chosen = ("--seeds", "0", "--methods", "local; feddymem")
    assert run_main(monkeypatch, *arguments, *chosen, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["seeds"] == [0]
    assert list(summary["sets"]["p"]) == ["feddymem", "local"]
    assert run_main(monkeypatch, *arguments, *chosen) == 0
    assert "feddymem" in capsys.readouterr().out
    assert run_main(monkeypatch, *arguments, "--seeds", "x") == 2


def test_a_set_may_be_put_together_from_several_folders(
    root: Path, plants: Path, cache: DescriptorCache, tmp_path: Path
) -> None:
    first, second = sorted(p.name for p in plants.iterdir() if p.is_dir())[:2]
    mixed = {"name": "mixed", "sites": {"north": f"plants/{first}", "south": f"plants/{second}"}}
    absent = {"name": "absent", "sites": {"north": f"plants/{first}", "west": "plants/nowhere"}}
    suite = suite_of(sets=[mixed, absent], methods=METHODS[:1], seeds=(0,))
    summary = bench(suite, tmp_path, data=root, cache=cache)
    assert list(summary["skipped"]) == ["absent"]
    assert "nowhere" in summary["skipped"]["absent"]
    cell = stored(next((tmp_path / "cells").iterdir()))
    assert sorted(cell.record["scores"]) == ["north", "south"]
    assert cell.identity["parts"] == {"north": first, "south": second}
    with pytest.raises(ValueError, match="no path and no split"):
        suite_of(sets=[mixed | {"split": "iid:2"}])


def student(name: str, method: str, kind: str = "federated", **options: Any) -> dict[str, Any]:
    """A row of a suite: a student of two steps a round."""
    join = {"join": options.pop("join")} if "join" in options else {}
    chosen = {"method": method, "student": {"steps": 2} | options}
    return {"name": name, "kind": kind, "options": chosen | join}


def test_averages_keep_to_the_schedule_of_sites(root: Path, plants: Path, tmp_path: Path) -> None:
    late = sorted(p.name for p in plants.iterdir() if p.is_dir())[0]
    tiny = support.write_weights(tmp_path / "tiny.safetensors")
    methods = [student("all", "stfpm"), student("late", "stfpm", join={late: 3})]
    suite = suite_of(methods=methods, seeds=(0,), options={"rounds": 3} | support.options(tiny))
    summary = bench(suite, tmp_path / "out", data=root)
    assert not summary["failed"]
    sent = {
        cell.stem.split("--")[1]: stored(cell).record["costs"]["bytes_up"]
        for cell in (tmp_path / "out" / "cells").iterdir()
    }
    assert sent["late"][late] == pytest.approx(sent["all"][late] / 3, rel=0.01)
    others = set(sent["all"]) - {late}
    assert all(sent["late"][site] == sent["all"][site] for site in others)


def test_students_are_averaged_under_the_same_protocol(root: Path, tmp_path: Path) -> None:
    tiny = support.write_weights(tmp_path / "tiny.safetensors")
    methods = [
        student("stfpm", "stfpm"),
        student("paste", "paste", bootstrap=0),
        student("stfpm, SCAFFOLD", "stfpm", algorithm="scaffold"),
        student("stfpm alone", "stfpm", "local"),
    ]
    suite = suite_of(methods=methods, seeds=(0,), options={"rounds": 2} | support.options(tiny))
    summary = bench(suite, tmp_path / "out", data=root)
    assert not summary["failed"]
    sent = {name: row["costs"]["bytes_up"] for name, row in summary["sets"]["plants"].items()}
    assert sent["stfpm alone"] == 0 < sent["paste"] < sent["stfpm"]
    # the control variates of SCAFFOLD are as large as the weights
    assert sent["stfpm, SCAFFOLD"] > 1.9 * sent["stfpm"]
    rows = summary["sets"]["plants"].values()
    assert all(0 <= row["image_auroc"]["mean"] <= 1 for row in rows)
    again = bench(suite, tmp_path / "out", data=root)
    assert again["sets"] == summary["sets"]


def test_a_row_of_an_earlier_suite_is_refused_with_its_successor() -> None:
    for row in ({"kind": "weights"}, {"weights": {"part": "adaptor"}}):
        with pytest.raises(ValueError, match="kind 'weights' is gone: give a student as options"):
            suite_of(methods=[{"name": "a"} | row])
