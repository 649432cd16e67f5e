"""`continual`: streams from files, cells that go on where they stopped, and the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from typer.testing import CliRunner

import fedvad
from fedvad.cli.main import app
from fedvad.continual.students import StudentLearner
from fedvad.data.folders import ImageSet, Site, read_set
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.base import Scores
from fedvad.detectors.registry import load_detector
from fedvad.errors import ConfigError
from fedvad.evaluation.aupro import aupro
from fedvad.experiments.continual.cells import FIGURES, _figures
from fedvad.experiments.continual.run import run_stream
from fedvad.experiments.continual.stream import Stream, load_stream
from fedvad.experiments.experiment import shipped
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.detectors.student import support
from tests.helpers import SIZE

STREAM = """
name = "tiny"
analysis = { top = 0.02, images = 4 }
tasks = [{name = "a", path = "alder"}, {name = "b", path = "birch"}, {name = "c", path = "cedar"}]

[defaults]
features = { backbone = "test_efficientnet", layers = [1, 2], image_size = 64, engine = "torch" }
train = { steps = 3, warmup = 1 }

[[methods]]
name = "naive"
detector = "paste"
strategy = "naive"
options = { bootstrap = 0 }

[[methods]]
name = "important"
detector = "paste"
strategy = "naive"
top_features = 0.1
options = { bootstrap = 0 }

[[methods]]
name = "compressed"
detector = "paste"
codec = { name = "uint8" }
slots = 6
train = { steps = 2 }
options = { bootstrap = 0 }

[[methods]]
name = "joint"
detector = "stfpm"
strategy = "joint"

[[methods]]
name = "single"
detector = "stfpm"
strategy = "single"

[[methods]]
name = "bank"
detector = "patchcore"
budget = 20_000
features = { backbone = "filterbank", layers = [0, 1, 2] }
"""


def cells_in(out: Path) -> list[Path]:
    """Files of the cells of a stream, without the detectors beside them."""
    return sorted(p for p in (out / "cells").iterdir() if ".detector" not in p.name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams") / "tiny.toml"
    path.write_text(STREAM)
    return path


@pytest.fixture(scope="module")
def stream(file: Path) -> Stream:
    return load_stream(str(file)).only(seeds=[0])


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, file: Path, plants: Path, weights: Path
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("continual")
    own = {"test_efficientnet": weights}
    return out, fedvad.run_stream(str(file), out, data=plants, weights=own, seeds=[0])


def test_every_method_has_figures_of_every_task(ran: tuple[Path, dict[str, Any]]) -> None:
    _, summary = ran
    assert summary["failed"] == {}
    assert list(summary["methods"]) == [
        "naive",
        "important",
        "compressed",
        "joint",
        "single",
        "bank",
    ]
    for method in summary["methods"].values():
        assert set(method["by_task"]) == {"a", "b", "c"}
        assert all(0 <= figure["mean"] <= 1 for figure in method["figures"].values())
        assert {"image_auroc", "image_f1", "pixel_auroc", "pixel_f1", "pixel_ap", "aupro"} <= set(
            method["figures"]
        )
        final = np.mean([v["mean"] for v in method["by_task"].values()])
        assert method["figures"]["image_auroc"]["mean"] == pytest.approx(final)


def test_the_matrix_is_that_of_the_strategy(ran: tuple[Path, dict[str, Any]]) -> None:
    methods = ran[1]["methods"]
    (naive,) = np.array(methods["naive"]["matrices"]["image_auroc"], dtype=float)
    assert np.isfinite(naive).tolist() == np.tri(3, dtype=bool).tolist()
    (joint,) = np.array(methods["joint"]["matrices"]["image_auroc"], dtype=float)
    assert np.isfinite(joint).tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert "image_auroc" not in methods["joint"]["forgetting"]
    (single,) = np.array(methods["single"]["matrices"]["image_auroc"], dtype=float)
    assert (single[2, :2] == np.diag(single)[:2]).all()
    assert methods["single"]["forgetting"]["image_auroc"]["relative"]["mean"] == 0
    assert methods["single"]["costs"]["parameters"] > methods["joint"]["costs"]["parameters"]


def test_bytes_are_counted_and_bounded(ran: tuple[Path, dict[str, Any]]) -> None:
    out, summary = ran
    methods = summary["methods"]
    assert methods["naive"]["costs"]["peak"] == 0
    assert methods["bank"]["costs"]["peak"] <= 20_000
    (state,) = (p for p in cells_in(out) if p.name.startswith("compressed"))
    header = int.from_bytes(state.read_bytes()[:8], "little")
    entries = json.loads(state.read_bytes()[8 : 8 + header])
    held = [v["data_offsets"] for k, v in entries.items() if k.startswith("memory/")]
    assert sum(end - start for start, end in held) == methods["compressed"]["costs"]["memory"] > 0


def test_tables_pictures_and_a_page_that_needs_no_network(ran: tuple[Path, dict[str, Any]]) -> None:
    out, summary = ran
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for name in summary["methods"]:
        assert f'<th scope="row">{name}</th>' in page
    assert page.count("data:image/png;base64,") == 3
    for file in ("curves.png", "forgetting.png", "features.png"):
        assert (out / file).stat().st_size > 10_000
    lines = (out / "continual.csv").read_text().splitlines()
    assert len(lines) == 1 + len(summary["methods"])
    assert "## Forgetting" in (out / "continual.md").read_text()


def test_important_features_of_tasks_and_training_on_them_alone(
    ran: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = ran
    found = summary["analysis"]
    assert {name: np.shape(points) for name, points in found["points"].items()} == dict.fromkeys(
        "abc", (4, 2)
    )
    assert [pair[:2] for pair in found["overlaps"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert all(0 <= share <= 1 for *_, share in found["overlaps"])
    naive, important = (summary["methods"][name] for name in ("naive", "important"))
    assert important["top_features"] == 0.1
    assert important["by_task"] != naive["by_task"]
    text = (out / "continual.md").read_text()
    assert "| 10.0% | important |" in text
    assert "Overlap of the most important features" in text


def test_what_was_learned_can_be_loaded_and_scores_the_same(
    ran: tuple[Path, dict[str, Any]], weights: Path, plants: Path
) -> None:
    (file,) = (ran[0] / "cells").glob("naive--*.detector.safetensors")
    config = FeatureConfig(**support.options(weights))
    detector = load_detector(file, extractor=FeatureExtractor(config))
    assert detector.name == "paste"
    tests = [read_set(plants / name).test for name in ("alder", "birch", "cedar")]
    scores = [detector.score(test.paths).image for test in tests]
    reported = ran[1]["methods"]["naive"]
    for task, test, own in zip("abc", tests, scores, strict=True):
        assert reported["by_task"][task]["mean"] == pytest.approx(roc_auc_score(test.labels, own))
    labels = np.concatenate([test.labels for test in tests])
    pooled = roc_auc_score(labels, np.concatenate(scores))
    assert reported["figures"]["pooled_image_auroc"]["mean"] == pytest.approx(pooled)


def test_figures_of_a_task_are_those_of_scikit_learn(plants: Path) -> None:
    site = Site("alder", ImageSet(()), read_set(plants / "alder").test)
    rng = np.random.default_rng(0)
    masks = np.zeros((len(site.test), SIZE, SIZE), bool)
    for mask, item in zip(masks, site.test, strict=True):
        if item.mask is not None:
            mask[:] = np.asarray(Image.open(item.mask).convert("L")) > 0
    # as large as the masks, so that nothing is resized; with ties
    maps = (rng.normal(size=masks.shape) + masks).round(1).astype(np.float32)
    labels, image = site.test.labels, rng.normal(size=len(site.test)).round(1)
    scores = Scores(image, maps, np.arange(len(site.test)))
    found = _figures(site, scores, SIZE)
    pixels, marks = maps.ravel(), masks.ravel()

    def best_f1(marks: npt.NDArray[Any], values: npt.NDArray[Any]) -> float:
        return max(f1_score(marks, values >= t) for t in np.unique(values))

    assert found == pytest.approx(
        {
            "image_auroc": roc_auc_score(labels, image),
            "image_f1": best_f1(labels, image),
            "pixel_auroc": roc_auc_score(marks, pixels),
            "pixel_f1": best_f1(marks, pixels),
            "pixel_ap": average_precision_score(marks, pixels),
            "aupro": aupro(maps, masks),
        }
    )
    assert len(set(found.values())) == len(FIGURES)


def test_interrupted_it_goes_on_and_ends_the_same(
    ran: tuple[Path, dict[str, Any]],
    stream: Stream,
    plants: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    learn = StudentLearner.learn

    def stop(self: StudentLearner, tasks: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return learn(self, tasks)

    short = stream.only(methods=["compressed"])
    options: dict[str, Any] = {"data": plants, "weights": {"": weights}}
    monkeypatch.setattr(StudentLearner, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stream(short, tmp_path, **options)
    summary = run_stream(short, tmp_path, **options)
    assert calls == 4  # two tasks, the one that was stopped, and that one again
    mine, theirs = (s["methods"]["compressed"] for s in (summary, ran[1]))
    assert {k: v for k, v in mine.items() if k != "seconds"} == {
        k: v for k, v in theirs.items() if k != "seconds"
    }
    (cell,) = cells_in(tmp_path)
    cell.write_bytes(b"damaged")
    run_stream(short, tmp_path, **options)
    assert calls == 7  # begun anew


def test_the_order_is_drawn_by_the_seed(stream: Stream) -> None:
    mixed = stream.model_copy(update={"order": "random"})
    orders = {tuple(t.name for t in mixed.ordered(seed)) for seed in range(20)}
    assert len(orders) > 3
    assert [t.name for t in mixed.ordered(1)] == [t.name for t in mixed.ordered(1)]
    assert [t.name for t in stream.ordered(1)] == ["a", "b", "c"]


def test_shipped_streams_can_be_read() -> None:
    assert shipped(Stream) == ["demo", "edge"]
    edge = load_stream("edge")
    assert len(edge.tasks) == 6
    assert edge.seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('detector = "stfpm"\nstrategy = "joint"', 'detector = "stfpm"', "needs a codec"),
        ('codec = { name = "uint8" }', 'codec = { name = "zip" }', "method 3: codec.name"),
        ("budget = 20_000", 'codec = { name = "uint8" }', "takes no codec"),
        ("slots = 6", "slot = 6", "method 3: slot"),
        ("steps = 3", "steps = 0", "train.steps"),
        ('strategy = "joint"', 'strategy = "joint"\ntop_features = 0.5', "strategy naive"),
        ("top = 0.02", "top = 2", "analysis.top"),
        ('name = "b", path', 'name = "a", path', "only once"),
        ("[defaults]", "[defaults", "not valid TOML"),
    ],
)
def test_a_bad_stream_is_named_with_its_key(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    assert old in STREAM
    path.write_text(STREAM.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_stream(str(path))


def test_missing_things_are_named(
    stream: Stream, plants: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no stream 'nothing'"):
        load_stream("nothing")
    with pytest.raises(ConfigError, match="cannot read"):
        load_stream(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="needs --data"):
        run_stream(stream, tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        run_stream(stream, tmp_path / "out", data=tmp_path / "empty")
    with pytest.raises(ConfigError, match="no methods"):
        stream.only(methods=["other"])
    bad = stream.only(methods=["naive"])
    options = bad.methods[0].model_copy(update={"options": {"bootstap": 0}})
    with pytest.raises(ConfigError, match="bootstap"):
        run_stream(
            bad.model_copy(update={"methods": (options,)}),
            tmp_path,
            data=plants,
            weights={"": weights},
        )


def test_command_line(tmp_path: Path, plants: Path) -> None:
    (tmp_path / "tiny.toml").write_text(STREAM)
    arguments = ["continual", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "run")]
    arguments += ["--data", str(plants), "--seeds", "0,1", "--methods", "bank"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert list(summary["methods"]) == ["bank"]
    assert summary["methods"]["bank"]["figures"]["image_auroc"]["n"] == 2
    reported = CliRunner().invoke(app, arguments)
    assert reported.exit_code == 0
    assert "report.html" in reported.stdout
    wrong = CliRunner().invoke(app, [*arguments, "--weights", "a=x", "--weights", "a=y"])
    assert wrong.exit_code == 2
    assert "two files for a" in wrong.output


def test_a_damaged_checkpoint_leaves_no_trace(plants: Path, stream: Stream, tmp_path: Path) -> None:
    bank = stream.only(methods=["bank"])
    first = run_stream(bank, tmp_path, data=plants)
    (cell,) = cells_in(tmp_path)
    arrays, values = read_arrays(cell)
    arrays["bank/1/weights"][0] = -1
    write_arrays(cell, arrays, values)
    again = run_stream(bank, tmp_path, data=plants)
    for key in ("figures", "costs"):
        assert again["methods"]["bank"][key] == first["methods"]["bank"][key]


def test_other_weights_of_the_same_name_begin_anew(
    plants: Path, stream: Stream, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    naive = stream.only(methods=["naive"])
    out = tmp_path / "out"
    run_stream(naive, out, data=plants, weights={"": weights})
    moved = tmp_path / "elsewhere" / "renamed.safetensors"
    moved.parent.mkdir()
    shutil.copy(weights, moved)
    run_stream(naive, out, data=plants, weights={"": moved})
    assert "starting from the beginning" not in caplog.text  # the same values
    tensors = load_file(moved)
    first = next(name for name, value in tensors.items() if value.ndim == 4)
    save_file(tensors | {first: tensors[first] * 1.5}, moved)
    run_stream(naive, out, data=plants, weights={"": moved})
    assert "starting from the beginning" in caplog.text
