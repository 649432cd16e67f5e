"""The verdict: what people count first, then advice from the figures, then the gain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from fedvad.evaluation.results import Results
from fedvad.evaluation.thresholds import promise
from fedvad.report.verdict import advice, fitness, gain, verdict
from tests.report.html.support import metric


def told(
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
        "(fewest at birch: 12 of 46)."
    )
    assert verdict(found).startswith(fitness(found))


def test_one_site_is_called_by_its_name() -> None:
    assert fitness(limits(alder=limit(counts=(9, 1, 0, 0)))) == (
        "At its own threshold alder stops 1 of 9 good images; no defect was tested."
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
        "99 normal images per site are needed to promise 1 % false alarms on average, 299 with "
        "95 % confidence: a has the fewest, 40, which promise at most 7.22 % with 95 % confidence."
    ]
    same = limits(a=limit(24), b=limit(24))
    assert "a and b have 24 each, which promise at most 11.7 %" in advice(same)[0]
    assert "b has 24, which" in advice(limits(a=limit(300), b=limit(24)))[0]
    assert advice(limits(a=limit(299))) == []
    assert advice(limits(a=limit(24) | {"method": "given"})) == []  # by hand: no rate was wanted
    enough_on_average = limits(a=limit(120), b=limit(150))
    assert advice(enough_on_average)[0].startswith(
        "299 normal images per site are needed to promise 1 % false alarms with 95 % confidence: "
        "a has the fewest, 120"
    )


def test_advice_on_missed_defects_depends_on_the_figures() -> None:
    def of(caught: int, images: int = 300, backbone: str = "resnet18") -> list[str]:
        sites = {"a": limit(images, counts=(10, 0, 10, caught))}
        return advice(
            Results.parse(
                {"threshold": {"target_fpr": 0.01, "sites": sites}, "backbone": backbone}, "it"
            )
        )

    assert of(9) == []
    assert of(8) == ["To catch more, train with larger images (--image-size)."]
    assert of(8, backbone="fedvad-tiny") == [
        "To catch more, train with a stronger backbone (--backbone resnet18) or larger images "
        "(--image-size)."
    ]
    assert of(8, images=30)[1].startswith("To catch more, train with more normal images or larger")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            told({"a": 0.99, "b": 0.95}, {"a": 0.8, "b": 0.9}),
            "Federation lifted mean image AUROC from 0.850 (each site alone) to 0.970 (interval of "
            "the difference [+0.110, +0.130]); a gained most (+0.190); no site lost.",
        ),
        (
            told({"a": 0.9, "b": 0.88}, {"a": 0.8, "b": 0.9}),
            "Federation lifted mean image AUROC from 0.850 (each site alone) to 0.890 (interval of "
            "the difference [+0.030, +0.050]); a gained most (+0.100); b lost (-0.020).",
        ),
        (
            told({"a": 0.8, "b": 0.7, "c": 0.89}, {"a": 0.9, "b": 0.9, "c": 0.9}, width=0.011),
            "Federation lowered mean image AUROC from 0.900 (each site alone) to 0.797 (interval "
            "of the difference [-0.114, -0.092]); no site gained; 3 sites lost, b most (-0.200); "
            "the interval includes zero at 1 of 3.",
        ),
        (
            told({"a": 0.9, "b": 0.9}, {"a": 0.9, "b": 0.9}),
            "Mean image AUROC is 0.900 with federation, as with each site alone (0.900), but the "
            "interval [-0.010, +0.010] of the difference includes zero; no site gained; no site "
            "lost; the interval includes zero at all of them.",
        ),
        (
            told({"a": 0.92}, {"a": 0.9}, width=0.05),
            "Federation lifted mean image AUROC from 0.900 (each site alone) to 0.920, but the "
            "interval [-0.030, +0.070] of the difference includes zero.",
        ),
        (
            told({"a": 0.9}, {"a": 0.95}, baseline="pooled"),
            "Mean image AUROC is 0.900, 0.050 below pooled (0.950) (interval of the difference "
            "[-0.060, -0.040]).",
        ),
        (
            told({"a": 0.9, "b": 0.8}, training_images={"a": 5, "b": 5}),
            "Mean image AUROC is 0.850 over 2 sites (lowest: b, 0.800); whether federation helped "
            "is unknown, because no site was measured alone (train with --compare local).",
        ),
        (
            told({"a": 0.9, "b": 0.8}, reference="global"),  # of `evaluate`: nothing to compare
            "Mean image AUROC is 0.850 over 2 sites (lowest: b, 0.800).",
        ),
    ],
)
def test_the_gain(found: Results, sentence: str) -> None:
    assert gain(found) == sentence
    assert verdict(found).endswith(sentence)


def test_little_is_known() -> None:
    assert "no test images" in gain(Results())
    nothing = Results.parse({"image_auroc": metric({"a": None})}, "results")
    assert "no site has both" in gain(nothing)
