"""Results of sites against scikit-learn and counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from fedvad.data.folders import ImageItem, ImageSet
from fedvad.detectors.base import Scores
from fedvad.evaluation.aupro import aupro
from fedvad.evaluation.sites import SiteResult, evaluate_site, gains, summarise
from fedvad.evaluation.thresholds import Threshold

SIDE = 8


def site(
    name: str, folder: Path, scores: tuple[float, ...], limit: float
) -> tuple[SiteResult, np.ndarray, np.ndarray]:
    """Five images, the third unreadable; maps at full size, so that no pixel is interpolated."""
    rng = np.random.default_rng(list(name.encode()))
    masks = np.zeros((5, SIDE, SIDE), bool)
    masks[2, 0, 0] = masks[3, 0:2, 5:8] = masks[4, 6, 1:4] = True  # nowhere symmetrical
    items = []
    for i, mask in enumerate(masks):
        file = folder / f"{name}{i}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        bad = bool(mask.any())
        items.append(ImageItem(Path(f"{name}/{i}.png"), int(bad), "d" if bad else "good",
                               file if bad else None))  # fmt: skip
    kept = np.array([0, 1, 3, 4])
    maps = (rng.random((4, SIDE, SIDE)) + masks[kept]).astype(np.float32)
    found = evaluate_site(
        name, ImageSet(tuple(items)), Scores(np.array(scores), maps, kept, ("2 is broken",)),
        Threshold(limit, 9, "conformal", 0.1), image_size=SIDE,
    )  # fmt: skip
    return found, maps, masks[kept]


def test_every_figure_is_that_of_scikit_learn(tmp_path: Path) -> None:
    made = [site("a", tmp_path, (0, 2, 1, 4), 0.5), site("b", tmp_path, (5, 6, 8, 7), 5.5)]
    for found, maps, masks in made:
        labels = masks.any((1, 2))
        assert found.image_auroc == pytest.approx(roc_auc_score(labels, found.scores))
        assert found.average_precision == pytest.approx(
            average_precision_score(labels, found.scores)
        )
        assert found.pixel_auroc == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
        assert found.aupro == pytest.approx(aupro(maps, masks))
        assert (found.fpr, found.recall) == (
            np.mean(found.scores[:2] > found.threshold.value),
            np.mean(found.scores[2:] > found.threshold.value),
        )
    results = [found for found, _, _ in made]
    reported = summarise(results, target_fpr=0.1)
    scores = np.concatenate([r.scores for r in results])
    labels = np.concatenate([m.any((1, 2)) for _, _, m in made])
    assert reported["image_auroc"]["pooled"] == pytest.approx(roc_auc_score(labels, scores))
    assert reported["image_auroc"]["pooled"] != pytest.approx(reported["image_auroc"]["mean"])
    maps, masks = (np.concatenate([part[i] for part in made]) for i in (1, 2))
    assert reported["pixel_auroc"]["pooled"] == pytest.approx(
        roc_auc_score(masks.ravel(), maps.ravel())
    )
    assert reported["aupro"]["pooled"] == pytest.approx(aupro(maps, masks))
    assert reported["threshold"]["mean_fpr"] == pytest.approx(np.mean([r.fpr for r in results]))
    assert reported["threshold"]["mean_recall"] == pytest.approx(
        np.mean([r.recall for r in results])
    )
    assert reported["threshold"]["mean_fpr"] != pytest.approx(reported["threshold"]["mean_recall"])


def test_a_gain_is_of_the_first_over_the_second(tmp_path: Path) -> None:
    better, _, masks = site("a", tmp_path, (0, 2, 1, 4), 0.5)
    labels = masks.any((1, 2))
    better = replace(better, scores=labels.astype(float), image_auroc=1.0)
    worse = replace(better, scores=-labels.astype(float), image_auroc=0.0)
    found = gains([better], [worse], seed=0)
    assert found is not None
    assert found.mean.gain == found.sites["a"].gain == 1.0
