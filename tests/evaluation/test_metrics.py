from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from fedvad.errors import DataError
from fedvad.evaluation.metrics import (
    average_precision,
    f1_max_oracle,
    gather,
    image_auroc,
    pixel_auroc,
)


def f1(labels, flagged):
    return 2 * np.sum(labels * flagged) / (np.sum(labels) + np.sum(flagged))


@st.composite
def labelled(draw, max_size=40):
    """Scores on few levels, hence many ties, and labels with both classes present."""
    n = draw(st.integers(2, max_size))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = draw(arrays(np.int64, n, elements=st.integers(-3, draw(st.integers(0, 30)))))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 1)))
    labels[:2] = 0, 1
    return (scores / 7).astype(dtype), labels


@given(labelled())
def test_ranking_metrics_equal_scikit_learn(case):
    scores, labels = case
    assert image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


@given(labelled())
def test_ranking_metrics_ignore_monotone_transforms(case):
    scores, labels = case
    for moved in (np.exp(scores.astype(float)), scores.astype(float) * 5 - 2, scores**3):
        assert image_auroc(moved, labels) == image_auroc(scores, labels)
        assert average_precision(moved, labels) == average_precision(scores, labels)
    assert image_auroc(-scores, labels) == pytest.approx(1 - image_auroc(scores, labels))


@given(labelled(max_size=15))
def test_f1_max_is_the_best_of_all_thresholds_and_its_threshold_reaches_it(case):
    scores, labels = case
    best, threshold = f1_max_oracle(scores, labels)
    brute = max(f1(labels, scores >= t) for t in scores)
    assert best == pytest.approx(brute, abs=1e-12)
    assert f1(labels, scores > threshold) == pytest.approx(best, abs=1e-12)
    # the same decision when a float64 caller compares
    assert f1(labels, scores.astype(float) > threshold) == pytest.approx(best, abs=1e-12)


def test_f1_max_by_hand():
    assert f1_max_oracle([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]) == (1.0, 2.0)
    best, threshold = f1_max_oracle([1.0, 1.0], [0, 1])  # only "flag all" finds the anomaly
    assert best == pytest.approx(2 / 3)
    assert threshold < 1.0
    assert f1_max_oracle([0.0, 1.0, 2.0], [1, 0, 1])[1] < 0.0  # flag all: 4/5, flag one: 2/3


def test_auroc_by_hand():
    assert image_auroc([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]) == 1.0
    assert image_auroc([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0]) == 0.0
    assert image_auroc([5, 5, 5], [0, 1, 1]) == 0.5
    assert image_auroc([1, 2, 2, 3], [0, 0, 1, 1]) == 3.5 / 4
    assert image_auroc([1, 2], [False, True]) == 1.0


@pytest.mark.parametrize("metric", [image_auroc, average_precision, f1_max_oracle])
@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_has_no_answer(metric, labels):
    assert metric(np.arange(len(labels)), labels) is None


@pytest.mark.parametrize("metric", [image_auroc, average_precision, f1_max_oracle])
@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([1.0, np.nan], [0, 1], "NaN"),
        ([1.0, np.inf], [0, 1], "index 1"),
        ([1.0, 2.0], [0, 1, 1], "one label per score"),
        ([1.0, 2.0], [0, 2], "labels must be"),
        ([1.0, 2.0], [0.0, np.nan], "labels must be"),
        ([[1.0], [2.0]], [[0], [1]], "shape"),
        (["a", "b"], [0, 1], "real numbers"),
    ],
)
def test_bad_scores_are_refused(metric, scores, labels, said):
    with pytest.raises(DataError, match=said):
        metric(scores, labels)


@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.sampled_from([0.02, 0.5, 0.9]))
def test_pixel_auroc_equals_scikit_learn_and_streams(seed, levels, share):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 8, 9)) < share
    masks[0, 0, :2] = True, False
    maps = (rng.integers(0, levels, masks.shape) / 8).astype(np.float32)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert pixel_auroc(zip(maps, masks, strict=True)) == pixel_auroc(maps, masks)
    assert pixel_auroc(maps.astype(np.float16), masks.astype(np.uint8) * 255) == pixel_auroc(
        maps, masks
    )


def test_pixel_auroc_leaves_its_input_alone_and_keeps_double_precision():
    rng = np.random.default_rng(0)
    maps = 1 + rng.random((2, 6, 6)) * 1e-12  # all equal in float32
    masks = maps > np.median(maps)
    before = maps.copy()
    assert pixel_auroc(maps, masks) == 1.0
    np.testing.assert_array_equal(maps, before)


def test_pixel_auroc_takes_images_of_several_sizes():
    maps = [np.array([[0.0, 1.0]]), np.array([[0.5], [2.0], [0.1]])]
    masks = [np.array([[False, True]]), np.array([[False], [True], [False]])]
    assert pixel_auroc(maps, masks) == 1.0
    assert pixel_auroc(list(zip(maps, masks, strict=True))) == 1.0


def test_pixel_auroc_of_one_class_has_no_answer():
    maps = np.random.default_rng(0).random((2, 4, 4), dtype=np.float32)
    assert pixel_auroc(maps, np.zeros(maps.shape, bool)) is None
    assert pixel_auroc(maps, np.ones(maps.shape, bool)) is None
    assert pixel_auroc([]) is None


@pytest.mark.parametrize(
    ("maps", "masks", "said"),
    [
        (np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2), bool), "image 0"),
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 3), bool), "share one"),
        (np.zeros((2, 2, 2)), np.zeros((1, 2, 2), bool), "one mask per map"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), "share one"),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.3), "not boolean"),
        (np.zeros((1, 2, 2), complex), np.zeros((1, 2, 2), bool), "real"),
        (np.zeros((1, 2, 2)), None, "masks are missing"),
        (iter([]), np.zeros((1, 2, 2), bool), "as pairs"),
    ],
)
def test_bad_maps_are_refused(maps, masks, said):
    with pytest.raises(DataError, match=said):
        pixel_auroc(maps, masks)


def test_gather_joins_in_order_and_empties_the_list():
    chunks = [np.arange(3, dtype=np.float32), np.array([]), np.array([9.5])]
    joined = gather(chunks)
    assert joined.tolist() == [0, 1, 2, 9.5]
    assert joined.dtype == np.float64
    assert chunks == []
