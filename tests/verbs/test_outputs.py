"""What a run leaves in its folder: `results.json` equal to the byte, whatever makes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from fedvad.data.reading import DataReading, Label, SiteReading, Skipped
from fedvad.data.sets import ImageItem, ImageSet, Site
from fedvad.data.views import View
from fedvad.detectors.base import Scores
from fedvad.evaluation.results import DataRead
from fedvad.evaluation.sites import SiteResult, evaluate_site
from fedvad.evaluation.thresholds import Threshold, conformal_threshold
from fedvad.federation.ledger import Ledger, RoundEntry
from fedvad.runs.config import TrainConfig
from fedvad.verbs.outputs import Fitted, write_outputs

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
SIDE = 16


def made_site(name: str, folder: Path, *, better: float, defects: int = 6) -> SiteResult:
    """Six normal images and some defects with a bright square; scores drawn by the name."""
    rng = np.random.default_rng(list(name.encode()))
    labels = [0] * 6 + [1] * defects
    items, maps = [], rng.random((len(labels) + 1, SIDE, SIDE)).astype(np.float32)
    for index, label in enumerate([*labels, 0]):
        mask = None
        if label:
            maps[index, 3:7, 5:9] += better
            mask = folder / f"{name}-{index}.png"
            drawn = np.zeros((SIDE, SIDE), np.uint8)
            drawn[3:7, 5:9] = 255
            Image.fromarray(drawn).save(mask)
        items.append(
            ImageItem(Path(f"{name}/{index}.png"), label, "cut" if label else "good", mask)
        )
    scores = np.array([rng.normal(0.7, 0.15) + better * label for label in labels])
    threshold = conformal_threshold(rng.normal(0.6, 0.1, 12), 0.1) if better else None
    return evaluate_site(
        name, ImageSet(tuple(items)),
        Scores(scores, maps[:-1], np.arange(len(labels)), (f"{name}/{len(labels)}.png: is empty",)),
        threshold, image_size=SIDE,
    )  # fmt: skip


class MadeRun:
    """Stands for a trained run: site cedar has a threshold and no test images."""

    method, data, reference = "feddymem", "", "global"
    sites = dict.fromkeys(("alder", "birch", "cedar"))
    features = SimpleNamespace(backbone="filterbank", image_size=SIDE, view=View.of(SIDE))

    def threshold(self, name: str) -> Threshold:
        return conformal_threshold(np.arange(1.0, 31.0) / 30, 0.1)

    def learning(self) -> dict[str, Any]:
        return {}


def made_results(folder: Path) -> tuple[list[SiteResult], dict[str, list[SiteResult]]]:
    ours = [made_site("alder", folder, better=0.3), made_site("birch", folder, better=0.2)]
    alone = [made_site("alder", folder, better=0.2), made_site("birch", folder, better=0.25)]
    empty = made_site("elm", folder, better=0.0, defects=0)
    return [*ours, empty], {"local": alone, "pooled": [ours[0], alone[1]]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run folder written from made-up scores, and what was returned."""
    folder = tmp_path_factory.mktemp("made")
    results, comparisons = made_results(folder)
    sets = ImageSet(())
    label = Label("alder/test/cut", "test", "defect", 6, "a folder of defects", True)
    skipped = Skipped("alder", "not an image", 2, 0, "notes.txt")
    reading = DataReading(
        folder,
        (SiteReading(Site("alder", sets, sets), "MVTec AD", (label,), (skipped,), ("a note",)),),
        (skipped,), ("one more",),
    )  # fmt: skip
    entry = RoundEntry(
        round=1, sites=["alder", "birch"], bytes_up={"alder": 500, "birch": 700},
        bytes_down={"alder": 900}, rows_up={"alder": 5, "birch": 7}, memory_rows=12,
        coverage=float("inf"),
    )  # fmt: skip
    ledger = Ledger(rounds=[entry], seconds={"local": 1.5}, peak_rss_mb=12.34, images_computed=3)
    own = {"alder": {"median_alone": 0.5, "median_federated": 0.25, "share_nearer": 0.75}}
    fitted = Fitted(
        cast(Any, MadeRun()), {"alder": 6, "birch": 5}, ["birch/3.png: is empty"],
        own,
    )  # fmt: skip
    data = DataRead.model_validate(reading.to_json())
    config = TrainConfig(target_fpr=0.1, seed=3, compare=("local", "pooled"))
    out = folder / "run"
    out.mkdir()
    returned = write_outputs(out, config, fitted, results, comparisons, ledger, data)
    return out, returned


def test_results_are_equal_to_the_byte(written: tuple[Path, Any]) -> None:
    text = (written[0] / "results.json").read_text()
    assert text == (GOLDEN / "train.json").read_text()
