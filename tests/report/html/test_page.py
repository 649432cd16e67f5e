"""The page: numbers as in the results, nothing from outside, names escaped, size bounded."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import asdict, replace

import pytest
from markupsafe import escape

from fedvad.errors import DataError
from fedvad.evaluation.results import Promised, Results
from fedvad.evaluation.thresholds import promise
from fedvad.federation.ledger import Ledger
from fedvad.report.html.page import Contents, render
from fedvad.report.html.record import Gallery, Scores
from fedvad.report.results_tables import sites_table
from fedvad.report.tables import without_empty
from fedvad.report.verdict import advice, fitness, gain
from tests.report.html.support import Reader, contents, ledger, results, site_scores, webp

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "</title></svg><b>",
    "{{ 7 * 7 }} &amp; &lt;",
)


def test_the_numbers_are_those_of_the_results() -> None:
    made = contents()
    page = Reader(render(made).html)
    for row in without_empty(sites_table(made.results, name="federated")):
        assert page.row(row[0]) == row
    mean = made.results.image_auroc.mean
    assert f"{mean:.3f}" in page.text
    assert page.row("all sites") == ["all sites", "4", "1,200", "200 kB", "400 kB"]
    assert page.row("2") == ["2", "2", "600", "1,200", "0.5", "0.2", "100 kB", "400 kB", "0"]
    assert "Peak memory 321 MiB" in page.text
    assert "77 images" in page.text
    assert "300 rows" not in page.text
    assert "together 600 rows (3,600 values), 100 kB; its 12 training images stayed" in page.text


def test_nothing_is_fetched_and_only_its_own_script_may_run() -> None:
    html = render(contents()).html.decode()
    assert "http://" not in html
    assert "https://" not in html
    page = Reader(html)
    sources = [v for _, found in page.elements for k, v in found.items()
               if k in ("src", "srcset", "data", "poster", "action")]  # fmt: skip
    assert sources
    assert all(str(source).startswith("data:image/webp;base64,") for source in sources)
    assert all(str(a["href"]).startswith("#") for a in page.all("a"))
    assert not page.all("link")
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in str(policy["content"])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy["content"])


def _named(name: str) -> Contents:
    """A run in which everything that can bear a name bears this one."""
    sites = (name, "birch")
    scores = Scores(sites={s: site_scores(i) for i, s in enumerate(sites)})
    first = scores.sites[name]
    same = first.model_copy(
        update={"defects": [name] * len(first.files), "files": [name] * len(first.files)}
    )
    costs = ledger(sites)
    costs.rounds[0].rejected[name] = name
    made = contents(
        sites, name=name, scores=Scores(sites={name: same, "birch": scores.sites["birch"]}),
        ledger=costs, config={"method": name, name: name}, identity={name: name},
        hashes={name: name}, missing=[name],
    )  # fmt: skip
    assert made.gallery is not None
    pictures = [p.model_copy(update={"defect": name, "file": name}) for p in made.gallery.pictures]
    reported = made.results.model_copy(update={"method": name, "backbone": name})
    return replace(made, results=reported, gallery=Gallery(tested=36, pictures=pictures))


@pytest.mark.parametrize("name", EVIL)
def test_names_are_escaped_wherever_they_stand(name: str) -> None:
    page, harmless = Reader(render(_named(name)).html), Reader(render(_named("x")).html)
    shape = [(tag, list(found)) for tag, found in page.elements]
    assert shape == [(tag, list(found)) for tag, found in harmless.elements]
    assert page.text.count(name) > 50
    assert len(page.all("script")) == 1
    cards = page.all("li", **{"class": "card"})
    assert {c["data-site"] for c in cards} == {name, "birch"}
    assert all(c["data-defect"] == name for c in cards)
    assert all(name in str(image["alt"]) for image in page.all("img"))


def test_filters_offer_what_the_cards_are() -> None:
    made = contents()
    page = Reader(render(made).html)
    cards = page.all("li", **{"class": "card"})
    assert made.gallery is not None
    assert len(cards) == len(made.gallery.pictures)
    for card, picture in zip(cards, made.gallery.pictures, strict=True):
        above = picture.score > 1
        expected = ("caught" if above else "missed") if picture.label else (
            "false alarm" if above else "passed")  # fmt: skip
        assert card["data-site"] == picture.site
        assert card["data-defect"] == picture.defect
        assert card["data-outcome"] == expected
    options = {o["value"] for o in page.all("option")}
    for key in ("data-site", "data-defect", "data-outcome"):
        assert {c[key] for c in cards} <= options
    tested = Counter(c["data-outcome"] for c in cards)
    for name, n in tested.items():
        assert re.search(rf"{name} {n} of {n}\b", page.text)
    assert [s["name"] for s in page.all("select")] == ["site", "defect", "outcome", "border"]


def test_a_score_near_its_threshold_is_marked_on_either_side() -> None:
    made = contents()
    assert made.gallery is not None
    scores = (0.89, 0.91, 1.09, 1.11)
    pictures = [
        picture.model_copy(update={"score": score})
        for picture, score in zip(made.gallery.pictures, scores, strict=False)
    ]
    page = Reader(render(replace(made, gallery=Gallery(tested=4, pictures=pictures))).html)
    cards = page.all("li", **{"class": "card"})
    assert [c["data-border"] for c in cards] == ["clear", "borderline", "borderline", "clear"]
    assert page.text.count("borderline") == 2 + 1  # two chips and the choice of the filter
    assert len(page.all("span", **{"class": "chip border"})) == 2


def test_people_count_first_and_advice_follows() -> None:
    made = contents()
    assert '<section class="advice"' not in render(made).html.decode()
    limits = {
        site: limit.model_copy(update={"promise": Promised(**asdict(promise(24)))})
        for site, limit in made.results.threshold.sites.items()
    }
    threshold = made.results.threshold.model_copy(update={"sites": limits})
    found = made.results.model_copy(update={"threshold": threshold})
    page = render(replace(made, results=found)).html.decode()
    parts = [str(escape(text)) for text in (fitness(found), gain(found), *advice(found))]
    parts[2:2] = ["<dt>good images stopped", "<dt>mean image AUROC"]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert len(places) == 5


def test_coverage_of_a_memory_that_keeps_every_row_is_not_shown() -> None:
    costs = ledger()
    assert "coverage" in Reader(render(contents(ledger=costs)).html).text
    for entry in costs.rounds:
        entry.coverage = 0.0
    page = Reader(render(contents(ledger=costs)).html)
    assert "coverage" not in page.text
    assert page.row("2") == ["2", "2", "600", "1,200", "0.2", "100 kB", "400 kB", "0"]


def test_pictures_can_be_used_without_a_mouse_or_eyes() -> None:
    page = Reader(render(contents()).html)
    cards = page.all("li", **{"class": "card"})
    assert len(page.all("button", **{"aria-pressed": "false"})) == len(cards)
    images = page.all("img")
    assert len(images) == 2 * len(cards)
    assert all(image["alt"] and image["width"] for image in images)
    assert sum("Heat map, ground truth outlined" in str(i["alt"]) for i in images) == 16
    assert len(page.all("svg", role="img")) == len(page.all("svg"))


@pytest.mark.parametrize("aim", [60_000, 90_000, 4_000_000])
def test_the_byte_budget_holds_and_what_is_left_out_is_reported(aim: int) -> None:
    made = contents(picture=lambda name: webp(size=48))
    page = render(made, aim=aim)
    assert made.gallery is not None
    total = len(made.gallery.pictures)
    assert len(page.html) <= aim
    assert page.shown + page.left_out == total
    read = Reader(page.html)
    assert len(read.all("li", **{"class": "card"})) == page.shown
    assert f"{page.shown} of {total} test images are shown" in read.text
    if aim > 1_000_000:
        assert page.left_out == 0
        assert "left out" not in read.text
    else:
        assert 0 < page.left_out < total
        assert f"{page.left_out} chosen pictures were left out" in read.text
        # the beginning of the order, not what happens to fit
        shown = [(c["data-site"], c["data-defect"]) for c in read.all("li", **{"class": "card"})]
        assert shown == [(p.site, p.defect) for p in made.gallery.pictures[: page.shown]]


def test_names_that_grow_when_escaped_do_not_break_the_budget() -> None:
    made = contents()
    assert made.gallery is not None
    grown = [p.model_copy(update={"file": '"' * 4000}) for p in made.gallery.pictures]
    made = replace(made, gallery=Gallery(tested=36, pictures=grown))
    page = render(made, aim=500_000)
    assert len(page.html) <= 500_000
    assert page.left_out > 0


def test_a_page_that_cannot_be_small_is_refused() -> None:
    with pytest.raises(DataError, match="without any picture"):
        render(contents(), limit=10_000)


def test_many_sites_stay_small() -> None:
    sites = tuple(f"site{i}" for i in range(300))
    page = render(contents(sites, gallery=None))
    assert len(page.html) < 2_000_000
    text = Reader(page.html).text
    assert "252 more sites are not drawn" in text
    assert "site299" in text


class TestMissingPieces:
    def page(self, **changes: object) -> tuple[Reader, Contents]:
        made = contents(**changes)  # type: ignore[arg-type]
        return Reader(render(made).html), made

    def test_no_comparison(self) -> None:
        made = contents()
        bare = {k: v for k, v in made.results.items() if k not in ("compare", "gain")}
        scores = Scores(sites={n: s.model_copy(update={"compared": {}})
                               for n, s in made.scores.sites.items()})  # type: ignore[union-attr]  # fmt: skip
        page = Reader(render(replace(made, results=Results.parse(bare, "it"), scores=scores)).html)
        assert "whether federation helped is unknown" in page.text
        assert "gain over" not in page.text
        assert "each site alone" not in page.text

    def test_one_class_only(self) -> None:
        scores = Scores(sites={"alder": site_scores(1, defects=0)})
        page, _ = self.page(
            sites=("alder",),
            scores=scores,
            results=Results.parse(results(scores), "it"),
            gallery=None,
        )
        assert "no site has test images of both good parts and defects" in page.text
        assert "all of one class" in page.text
        assert page.row("alder")[-2:] == ["0 of 10", "1"]
        assert "None" not in page.text
        assert "nan" not in page.text

    def test_no_test_images_at_all(self) -> None:
        empty = {"image_auroc": {"mean": None, "worst": None, "pooled": None, "sites": {}},
                 "compare": {}, "gain": {}, "training_images": {"alder": 4}}  # fmt: skip
        page, _ = self.page(results=Results.parse(empty, "it"), scores=Scores(), gallery=Gallery())
        assert "There were no test images" in page.text
        assert "No site has test images." in page.text
        assert "0 of 0 test images" in page.text

    def test_one_site(self) -> None:
        page, _ = self.page(sites=("alder",))
        assert "At its own threshold alder stops" in page.text
        assert "gained most" not in page.text

    def test_nothing_but_results(self) -> None:
        page, _ = self.page(
            ledger=Ledger(), config={}, scores=None, gallery=None, dim=None, missing=["It is old."]
        )
        assert "It is old." in page.text
        assert "No scores to draw." in page.text
        assert "No pictures" in page.text
        assert "keeps no ledger" in page.text

    def test_pictures_whose_files_are_gone(self) -> None:
        page, made = self.page(picture=lambda name: None)
        assert made.gallery is not None
        assert "or because their files are gone" in page.text
        assert not page.all("img")

    def test_sites_without_threshold(self) -> None:
        made = contents()
        assert made.scores is not None
        assert made.gallery is not None
        sites = {n: s.model_copy(update={"threshold": None}) for n, s in made.scores.sites.items()}
        pictures = [p.model_copy(update={"threshold": None}) for p in made.gallery.pictures]
        reported = dict(made.results) | {
            "threshold": {"target_fpr": 0.01, "sites": {"alder": {"threshold": None}}}
        }
        page = Reader(render(replace(
            made, scores=Scores(sites=sites), results=Results.parse(reported, "it"),
            gallery=Gallery(tested=36, pictures=pictures),
        )).html)  # fmt: skip
        cards = page.all("li", **{"class": "card"})
        assert {c["data-outcome"] for c in cards} == {"not judged"}
        assert "alder has no threshold" in page.text


def test_paths_of_the_machine_do_not_travel() -> None:
    html = render(contents()).html.decode()
    assert "/home/someone" not in html
    assert "someone\\textures" not in html
    assert "dual: textures: textures" in html
    assert "w.safetensors" in html


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render(contents()).html == render(contents()).html
