"""feedback(): a false alarm is normal from then on, a defect never is; both can be undone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig, distance_scale
from fedvad.errors import ConfigError
from fedvad.evaluation.thresholds import Threshold
from fedvad.federation.codecs import rounding
from fedvad.memory.bank import MemoryBank
from fedvad.memory.neighbours import NeighbourIndex
from fedvad.memory.origin import Origin, Source
from fedvad.runs.answers import Answer, AnswerValues, believed, with_answers
from fedvad.runs.feedback import _sent
from fedvad.runs.memory_run import TrainedRun
from tests.helpers import run_main

Run = tuple[Path, dict[str, Any]]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def answer(run: Path, shared_cache: Path) -> Callable[..., dict[str, Any]]:
    def call(image: Path, verdict: Any, **options: Any) -> dict[str, Any]:
        given = {"site": "birch", **options}
        return fedvad.feedback(run, image, verdict, cache=shared_cache, **given)

    return call


@pytest.fixture
def odd(plants: Path) -> Path:
    """An image of birch that looks like nothing it has seen."""
    return sorted((plants / "birch/test").glob("[!g]*/*.png"))[0]


def scores(run: Path, folder: Path, **options: Any) -> list[float]:
    return [row["score"] for row in fedvad.predict(run, [folder], **{"site": "birch", **options})]


def test_a_false_alarm_is_normal_from_then_on_at_its_site(
    answer: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    rows = fedvad.predict(run, [plants / "birch/test"], site="birch")
    odd = Path(max(rows, key=lambda row: row["score"])["path"])
    elsewhere = scores(run, odd, site="alder")
    [before] = scores(run, odd)
    normal = scores(run, plants / "birch/test/good")
    limit = fedvad.load(run).threshold("birch").value
    assert before > limit
    reported = answer(odd, "normal")
    [after] = scores(run, odd)
    assert reported["score"] == pytest.approx(before)
    assert reported["score_now"] == pytest.approx(after)
    assert after < limit
    for reference in ("local", "union"):
        assert scores(run, odd, reference=reference)[0] < before
    assert scores(run, odd, site="alder") == elsewhere
    assert fedvad.load(run).threshold("birch").value == limit
    now = scores(run, plants / "birch/test/good")
    assert all(new <= old * (1 + 1e-6) for new, old in zip(now, normal, strict=True))


def test_a_confirmed_defect_raises_its_like_and_nothing_normal(
    answer: Callable[..., dict[str, Any]], run: Path, plants: Path, odd: Path
) -> None:
    normal = scores(run, plants / "birch/test/good")
    [before] = scores(run, odd)
    answer(odd, "defect")
    [after] = scores(run, odd)
    assert after > 1.5 * before
    assert scores(run, plants / "birch/test/good") == pytest.approx(normal, rel=0.05)


def test_a_defect_is_never_remembered_as_normal(
    answer: Callable[..., dict[str, Any]], run: Path, plants: Path, odd: Path, shared_cache: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    reported = answer(odd, "defect")
    raised = reported["score_now"]
    before = fedvad.load(run)
    for name in (odd.name, "copy.png"):  # by mistake among new normal images
        (tmp_path / "new").mkdir(exist_ok=True)
        shutil.copy(odd, tmp_path / "new" / name)
    with pytest.raises(ConfigError, match="confirmed to be defective"):
        fedvad.update(run, tmp_path / "new", site="birch", cache=shared_cache)
    # in another image: of its patches those of the defect stay out
    pixels = np.asarray(Image.open(odd)).copy()
    pixels[:8, :8] = pixels[8:16, :8]
    Image.fromarray(pixels).save(tmp_path / "new/other.png")
    fedvad.update(run, tmp_path / "new", site="birch", cache=shared_cache)
    after = fedvad.load(run)
    new = after.sites["birch"].bank.vectors[len(before.sites["birch"].bank) :]
    known = np.concatenate([before.memory.vectors, before.sites["birch"].bank.vectors])
    [answered] = before.sites["birch"].answers
    far = NeighbourIndex(answered.vectors).query(new)[0][:, 0]
    assert len(new)
    assert (far > NeighbourIndex(known).query(new)[0][:, 0]).all()
    fedvad.undo_feedback(run, reported["number"])
    assert scores(run, odd)[0] < raised / 1.5


def test_answers_are_listed_and_undone_to_the_bit(
    answer: Callable[..., dict[str, Any]], run: Path, plants: Path, odd: Path
) -> None:
    before = fedvad.load(run).sites["birch"].bank.vectors
    scored = scores(run, plants / "birch/test")
    assert fedvad.list_feedback(run) == []
    other = plants / "birch/test/good/001.png"
    answer(odd, "normal")
    answer(other, "defect", region=(8, 8, 20, 16))
    rows = fedvad.list_feedback(run)
    assert [(row["number"], row["verdict"], row["region"]) for row in rows] == [
        (1, "normal", None), (2, "defect", (8, 8, 20, 16)),
    ]  # fmt: skip
    assert rows[0]["date"].endswith("+00:00")
    assert [row["name"] for row in rows] == [str(odd), str(other)]
    with pytest.raises(ConfigError, match="answer 1 calls this normal"):
        answer(odd, "defect")
    fedvad.undo_feedback(run, 2)
    fedvad.undo_feedback(run, 1)
    assert scores(run, plants / "birch/test") == scored
    np.testing.assert_array_equal(fedvad.load(run).sites["birch"].bank.vectors, before)
    assert [bool(row["undone"]) for row in fedvad.list_feedback(run)] == [True, True]
    with pytest.raises(ConfigError, match="no answer 1 counts"):
        fedvad.undo_feedback(run, 1)
    assert answer(odd, "normal")["number"] == 3


def test_a_region_limits_what_is_kept(
    answer: Callable[..., dict[str, Any]], run: Path, plants: Path
) -> None:
    image = plants / "birch/test/good/001.png"
    assert answer(image, "defect", region=(0, 0, 8, 8))["rows"] == 4
    for region in ((0, 0, 65, 3), (0, 0, 0, 3), (-1, 0, 3, 3)):
        with pytest.raises(ConfigError, match="does not lie in an image of 64 x 64"):
            answer(image, "defect", region=region)


def test_an_exported_model_cannot_hold_a_defect_and_says_so(
    answer: Callable[..., dict[str, Any]], run: Path, odd: Path, tmp_path: Path
) -> None:
    answer(odd, "defect")
    with pytest.raises(ConfigError, match="cannot hold"):
        fedvad.export(run, out=tmp_path / "out", site="birch")


def test_a_forgotten_image_is_no_answer_either(
    answer: Callable[..., dict[str, Any]], run: Path, odd: Path, shared_cache: Path
) -> None:
    reported = answer(odd, "normal")
    fedvad.forget(run, site="birch", image=odd, cache=shared_cache, no_receipt=True)
    assert fedvad.list_feedback(run) == []
    assert reported["image"].encode() not in (run / "detector.safetensors").read_bytes()


def test_defects_of_others_are_believed_by_the_scale_of_the_threshold() -> None:
    # gaps 1, 1 and 8: 2 is above a threshold of 1 and 4 / 8 below, though 4 / 8 ** 0.5 is not
    bank = MemoryBank.of_patches(np.array([[0], [1], [9]], np.float32))
    others = MemoryBank.of_patches(np.array([[-2], [13]], np.float32))
    others = replace(others, origin=Origin.of([Source("alder", 1, "")], np.zeros(2, np.int64)))
    scoring = ScoringConfig(density=1, map_density=0.5, density_neighbours=1)
    scale = distance_scale(bank, scoring)
    limit = Threshold(1.0, 9, "conformal", 0.01)
    assert believed(others, "birch", bank, scale, scoring, limit).tolist() == [[-2]]


@pytest.mark.parametrize("precision", ["float16", "int8", "int5"])
def test_rows_of_a_confirmed_defect_leave_a_memory_of_any_precision(precision: Any) -> None:
    patches = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float16).astype(np.float32)
    generator = Generator(np.eye(16, dtype=np.float32), np.ones(16, np.float32))
    bank = generator.embedded(MemoryBank.of_patches(rounding(precision)(patches)))
    left, _, negatives = with_answers(
        bank, None, [_defect(patches[:3])], ScoringConfig(), generator
    )
    np.testing.assert_array_equal(left.vectors, bank.vectors[3:])
    np.testing.assert_array_equal(negatives, generator(patches[:3]))


def test_a_defect_that_travelled_is_known_as_shared() -> None:
    patches = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    patches[:, 0] = 16  # beside such a value a byte has few steps for all others
    origin = Origin.of([Source("alder", 1), Source("birch", 4)], [0] * 6 + [1] * 3)
    sent = replace(MemoryBank.of_patches(rounding("int8")(patches)), origin=origin)
    run: Any = SimpleNamespace(negatives=sent)
    assert _sent(_defect(patches[6:]), "birch", run).values.shared == 4
    assert _sent(_defect(patches[:3]), "birch", run).values.shared == 0  # of another site


def _defect(patches: np.ndarray) -> Answer:
    values = AnswerValues(
        number=1, date="", verdict="defect", image="x", name="x.png", region=None, score=1.0,
        rows=len(patches),
    )  # fmt: skip
    return Answer(values, patches)


@pytest.mark.parametrize(("distance", "factor"), [(0.0, 3.0), (1.0, 2.0), (2.0, 1.0), (9.0, 1.0)])
def test_the_ratio_of_distances_raises_a_score_at_most_threefold(
    distance: float, factor: float
) -> None:
    config = ScoringConfig(density=0, smooth=1, top=0)
    bank = MemoryBank.of_patches(np.zeros((1, 2), np.float32))
    patch = np.array([[[2.0, 0.0]]], np.float32)
    negatives = np.array([[2.0, distance]], np.float32)
    score, _ = MemoryScorer(bank, config, negatives=negatives).score(patch)
    assert score == pytest.approx(2 * factor)
    at_home, _ = MemoryScorer(bank, config, negatives=negatives).score(0 * patch)
    assert at_home == 0


def test_the_command(
    run: Path, odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("feedback", run, odd, "--site", "birch")
    assert run_main(monkeypatch, *call) == 2
    assert run_main(monkeypatch, *call, "--normal", "--defect") == 2
    assert run_main(monkeypatch, *call, "--normal", "--region", "1,2") == 2
    capsys.readouterr()
    assert run_main(monkeypatch, *call, "--normal", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "normal"
    assert run_main(monkeypatch, "feedback", run, "--list") == 0
    assert re.search(
        rf"1  \d{{4}}-\d\d-\d\d \d\d:\d\d UTC  birch: {re.escape(str(odd))} \(.*\) is normal; "
        r"\d+ patches", capsys.readouterr().out,
    )  # fmt: skip
    assert run_main(monkeypatch, "feedback", run, "--undo", "1") == 0
    assert "undone" in capsys.readouterr().out


@pytest.mark.parametrize("verdict", ["normal", "defect"])
def test_answers_of_a_trained_generator_outlive_it(
    run: Path, answer: Callable[..., dict[str, Any]], odd: Path, verdict: str
) -> None:
    def with_generator(factor: float) -> TrainedRun:
        before = TrainedRun.load(run)
        dim = before.memory.dim
        generator = Generator((factor - 1) * np.eye(dim, dtype=np.float32), np.zeros(dim, "f"))
        site = replace(before.sites["birch"], generator=generator, raw=True)
        changed = replace(before, sites={**before.sites, "birch": site})
        changed.save(run)
        return changed

    with_generator(0.5)
    [later] = scores(run, odd)
    with_generator(2.0)
    [alone] = scores(run, odd)
    answer(odd, verdict)
    [now] = scores(run, odd)
    assert now < alone if verdict == "normal" else now > alone
    [given] = TrainedRun.load(run).sites["birch"].answers
    again = with_generator(0.5)  # of a later training
    [then] = scores(run, odd)
    assert then / later == pytest.approx(now / alone, rel=0.02)
    if verdict == "defect":
        np.testing.assert_allclose(again.defects_at("birch"), given.vectors / 2, rtol=1e-5)
