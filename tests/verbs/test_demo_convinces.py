"""The demo as a reader runs it: what it must show for the first minute to be worth it."""

from __future__ import annotations

import numpy as np
import pytest

import fedvad
from fedvad.evaluation.results import Results
from fedvad.report.html.record import Gallery


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Gallery]:
    out = tmp_path_factory.mktemp("demo") / "run"
    results = fedvad.demo(out)
    gallery = Gallery.read(out)
    assert gallery is not None
    return results, gallery


@pytest.mark.slow
def test_federation_finds_what_each_plant_alone_misses(run: tuple[Results, Gallery]) -> None:
    results, _ = run
    assert results["image_auroc"]["mean"] > 0.97
    assert results["compare"]["local"]["image_auroc"]["mean"] < 0.85
    for site in results.threshold.sites.values():
        assert site.promise is not None
        assert site.fpr is not None
        assert site.fpr <= site.promise.rate
    assert results["threshold"]["mean_fpr"] <= 0.03


@pytest.mark.slow
def test_what_a_person_sees_at_a_glance_is_caught(run: tuple[Results, Gallery]) -> None:
    _, gallery = run
    caught = {
        kind: np.mean([p.score > (p.threshold or 0) for p in gallery.pictures if p.defect == kind])
        for kind in ("hole", "cut", "stain")
    }
    assert caught["hole"] == 1
    assert caught["cut"] > 0.9
    assert caught["stain"] > 0.7
