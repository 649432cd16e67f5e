"""The verdict: what people count first, then advice from the figures, then the gain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from fedvad.evaluation.results import Results
from fedvad.evaluation.thresholds import promise
from fedvad.report.verdict import advice, fitness, gain, verdict
from tests.report.html.support import metric


def reported(
    ours: dict[str, float], alone: dict[str, float] | None = None, *, width: float = 0.01,
    baseline: str = "local", **more: Any,
) -> Results:  # fmt: skip
    """Results with these AUROCs by site, and gains whose intervals are this wide on each side."""
    values: dict[str, Any] = {"image_auroc": metric(dict(ours))}
    if alone is not None:
        gains = {site: ours[site] - alone[site] for site in ours}
        intervals = {
            site: {"gain": change, "low": change - width, "high": change + width}
            for site, change in {**gains, "": sum(gains.values()) / len(gains)}.items()
        }
        values["compare"] = {baseline: {"image_auroc": metric(dict(alone))}}
        values["gain"] = {baseline: {"mean": intervals.pop(""), "sites": intervals}}
    return Results.parse(values | more, "results")


def limit(
    images: int = 24, *, rates: tuple[float, float] | None = None,
    counts: tuple[int, int, int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {"threshold": 1.0, "promise": asdict(promise(images))}
    if rates is not None:
        found |= {"fpr": rates[0], "recall": rates[1]}
    if counts is not None:
        found["counts"] = dict(zip(("good", "stopped", "defects", "caught"), counts, strict=True))
        found["recall"] = counts[3] / counts[2] if counts[2] else None
    return found


def limits(**sites: dict[str, Any]) -> Results:
    return Results.parse({"threshold": {"target_fpr": 0.01, "sites": sites}}, "results")


def test_what_people_count_is_summed_over_the_sites() -> None:
    found = limits(
        alder=limit(counts=(48, 4, 50, 40)), birch=limit(counts=(48, 1, 46, 12)), cedar=limit()
    )
    assert fitness(found) == (
        "At their own thresholds the 2 sites stop 5 of 96 good images and catch 52 of 96 defects "
        "(lowest share at birch: 12 of 46)."
    )
    assert verdict(found).startswith(fitness(found))


def test_a_detector_that_misses_most_defects_says_so() -> None:
    found = limits(alder=limit(counts=(24, 0, 24, 2)))
    assert fitness(found).endswith(
        "catches 2 of 24 defects. It misses 22 of 24 defects: an image that is not flagged may "
        "still show a defect."
    )


def test_no_site_is_the_worst_where_all_is_caught() -> None:
    found = limits(alder=limit(counts=(48, 0, 6, 6)), birch=limit(counts=(48, 0, 5, 5)))
    assert fitness(found) == (
        "At their own thresholds the 2 sites stop 0 of 96 good images and catch 11 of 11 defects."
    )


def test_one_site_is_called_by_its_name() -> None:
    assert fitness(limits(alder=limit(counts=(9, 1, 0, 0)))) == (
        "At its own threshold alder stops 1 of 9 good images; no defect was tested; 9 good images "
        "say little about false alarms."
    )
    assert fitness(limits(alder=limit(counts=(0, 0, 1, 1)))) == (
        "At its own threshold alder catches 1 of 1 defect."
    )


def test_results_of_earlier_versions_hold_only_rates() -> None:
    found = limits(a=limit(rates=(0.02, 0.5)), b=limit(rates=(0.0, 0.8)))
    assert fitness(found) == (
        "At the sites' own thresholds they stop 1.0 % of the good images and catch 65.0 % of the "
        "defects."
    )
    assert fitness(limits(a=limit())) == ""


def test_advice_names_the_site_with_the_fewest_images() -> None:
    found = limits(a=limit(40), b=limit(120), c=limit(300))
    assert advice(found) == [
        "a has only 40 good images: its false-alarm rate may be as high as 7.22 %. To be 95 % sure "
        "of 1 %, collect 299; 99 give 1 % on average."
    ]
    assert advice(limits(a=limit(40), b=limit(40)))[0].startswith("Each site has only 40 good")
    assert advice(limits(a=limit(120), b=limit(150))) == []  # 1 % on average
    assert advice(limits(a=limit(24) | {"method": "given"})) == []  # by hand: no rate was wanted


def test_advice_on_missed_defects_depends_on_the_figures() -> None:
    def of(caught: int, images: int = 300, backbone: str = "resnet18") -> list[str]:
        sites = {"a": limit(images, counts=(10, 0, 10, caught))}
        return advice(
            Results.parse(
                {"threshold": {"target_fpr": 0.01, "sites": sites}, "backbone": backbone}, "it"
            )
        )

    assert of(9) == []
    assert of(8) == [
        "To catch more, train with larger images (--image-size); or accept more false alarms "
        "(--target-fpr)."
    ]
    assert of(8, backbone="fedvad-tiny")[0].startswith(
        "To catch more, train with a stronger backbone (--backbone resnet18, whose weights are a "
        "file of their own) or larger images (--image-size); or"
    )
    assert of(8, images=30)[1].startswith("To catch more, train with more good images or larger")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            reported({"a": 0.99, "b": 0.95}, {"a": 0.8, "b": 0.9}),
            "Federation lifted mean image AUROC from 0.850 (each site alone) to 0.970 (95 % "
            "interval of the difference: 0.110 to 0.130); a gained most (+0.190); no site lost.",
        ),
        (
            reported({"a": 0.9, "b": 0.88}, {"a": 0.8, "b": 0.9}),
            "Federation lifted mean image AUROC from 0.850 (each site alone) to 0.890 (95 % "
            "interval of the difference: 0.030 to 0.050); a gained most (+0.100); b lost (-0.020).",
        ),
        (
            reported({"a": 0.8, "b": 0.7, "c": 0.89}, {"a": 0.9, "b": 0.9, "c": 0.9}, width=0.011),
            "Federation lowered mean image AUROC from 0.900 (each site alone) to 0.797 (95 % "
            "interval of the difference: -0.114 to -0.092); no site gained; 3 sites lost, "
            "b most (-0.200); at 1 of 3 sites the difference may be chance.",
        ),
        (
            reported({"a": 0.9, "b": 0.9}, {"a": 0.9, "b": 0.9}),
            "Mean image AUROC is 0.900 with federation, as with each site alone (0.900) (95 % "
            "interval of the difference: -0.010 to 0.010).",
        ),
        (
            reported({"a": 0.92}, {"a": 0.9}, width=0.05),
            "Federation lifted mean image AUROC from 0.900 (each site alone) to 0.920, which may "
            "be chance (95 % interval of the difference: -0.030 to 0.070).",
        ),
        (
            reported({"a": 0.9}, {"a": 0.95}, baseline="pooled"),
            "Mean image AUROC is 0.900, 0.050 below all images in one place (0.950) (95 % "
            "interval of the difference: -0.060 to -0.040).",
        ),
        (
            reported({"a": 0.9, "b": 0.8}, training_images={"a": 5, "b": 5}),
            "Mean image AUROC is 0.850 over 2 sites (lowest: b, 0.800); whether federation helped "
            "is unknown, because no site was measured alone (train with --compare local).",
        ),
        (
            reported({"a": 0.9, "b": 0.8}, reference="global"),  # of `evaluate`: nothing to compare
            "Mean image AUROC is 0.850 over 2 sites (lowest: b, 0.800).",
        ),
        (
            reported({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}),
            "With federation and with each site alone every test image is ranked correctly (image "
            "AUROC 1.000): this test is too easy, or too small, to show a difference.",
        ),
        (
            reported({"a": 0.9}, reference="global", training_images={"a": 5, "b": 5}),
            "Image AUROC is 0.900; measured at a only: b lacks test images of good parts or of "
            "defects.",
        ),
    ],
)
def test_the_gain(found: Results, sentence: str) -> None:
    assert gain(found) == sentence
    assert verdict(found).endswith(sentence)


def test_what_the_baseline_catches_and_stops_is_counted() -> None:
    found = reported({"a": 0.9, "b": 0.9}, {"a": 0.8, "b": 0.8}).to_dict()
    theirs = {"a": limit(counts=(48, 20, 50, 40)), "b": limit(counts=(48, 8, 46, 23))}
    found["compare"]["local"]["threshold"] = {"sites": theirs}
    assert gain(Results.parse(found, "results")).startswith(
        "Each site alone: 63 of 96 defects caught, 28 of 96 good images stopped. Federation lifted"
    )


def test_little_is_known() -> None:
    assert "no test images" in gain(Results())
    nothing = Results.parse({"image_auroc": metric({"a": None})}, "results")
    assert "no site has test images of both" in gain(nothing)


def test_a_student_whose_held_out_loss_still_falls_is_called_unfinished() -> None:
    at = list(range(10, 210, 10))
    falling = {"at": at, "loss": [1.0] * 20, "held_out": [1 - step / 400 for step in at]}
    settled = falling | {"held_out": [0.3] * 20}
    found = reported({"alder": 0.9, "birch": 0.9}, learning={"alder": falling, "birch": settled})
    assert "Unfinished: the held-out loss is still falling at alder (by 32 %" in verdict(found)
    assert "Unfinished" not in verdict(reported({"birch": 0.9}, learning={"birch": settled}))
