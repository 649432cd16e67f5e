"""The page in a real browser: dropped images, the camera, samples, sliders, a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from fedvad.evaluation.thresholds import Threshold
from fedvad.report.overlay import save_png
from fedvad.serving.predictor import Predictor
from fedvad.serving.service.answers import Answers
from fedvad.serving.service.samples import load_samples
from fedvad.serving.service.sites import SitePredictors
from fedvad.serving.watch.lines import Lines
from fedvad.serving.watch.state import Settings
from tests.browser import Open, needs_chromium
from tests.serving.service.conftest import Run, Serve
from tests.serving.service.support import Stub
from tests.serving.watch.test_lines import log
from tests.serving.watch.test_lines import rows as watched

TOKEN = "correct-horse-battery"


@pytest.fixture
def all_sites(serve: Serve, trained: Run) -> Iterator[str]:
    """The address of a service that offers two sites of the run."""
    with Predictor.load(trained[0]) as everything:
        yield serve(
            everything,
            sites=SitePredictors(
                everything, ["alder", "birch"], lambda name: Predictor.load(trained[0], site=name)
            ),
        )


pytestmark = [pytest.mark.slow, needs_chromium]


def test_dropped_images_are_judged_and_the_slider_moves_the_decision(
    serve: Serve, page: Open, files: list[Path], predictor: Predictor
) -> None:
    shown = page(serve())
    expect(shown.locator("#served")).to_have_text("run 1, site birch")
    expected, worst = max(
        zip(predictor.predict(files), files, strict=True), key=lambda pair: pair[0].score or 0
    )
    drop(shown, worst)
    expect(shown.locator("#say")).to_have_text(f"Anomalous: {worst.name}")
    assert expected.score is not None
    assert f"Score {float(f'{expected.score:.4g}'):g}" in shown.inner_text("#figures")
    box = shown.locator("#photo").bounding_box()
    assert shown.locator("#heat").bounding_box() == box  # the one lies on the other
    assert box is not None
    assert box["width"] > 200

    slider = shown.locator("#threshold")
    expect(shown.locator("#rate")).to_contain_text("at most 1 %")
    slider.focus()
    slider.press("End")
    expect(shown.locator("#say")).to_have_text(f"Below the threshold: {worst.name}")
    expect(shown.locator("#rate")).to_contain_text("about 0 % of normal images")
    expect(shown.locator("#history .what")).to_contain_text("Below the threshold")
    slider.press("Home")
    expect(shown.locator("#say")).to_have_text(f"Anomalous: {worst.name}")
    expect(shown.locator("#rate")).to_contain_text("of 6 held-out ones")
    shown.click("#reset")
    expect(shown.locator("#rate")).to_contain_text("The run's threshold")

    shown.locator("#opacity").fill("25")
    expect(shown.locator("#heat")).to_have_css("opacity", "0.25")
    expect(shown.locator("#opacity-value")).to_have_text("25 %")


def test_kept_calibration_scores_give_a_rate_for_every_threshold(
    serve: Serve, page: Open, predictor: Predictor
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    stub.threshold = Threshold(  # type: ignore[attr-defined]
        value=1.0, n=4, method="conformal", target_fpr=0.25, scores=(0.9, 0.4, 1.0, 1.4)
    )
    shown = page(serve(stub))
    expect(shown.locator("#rate")).to_contain_text("at most 25 %")
    # the upper Clopper-Pearson limit of 1 in 4, as `promise` computes it
    expect(shown.locator("#rate")).to_contain_text("4 normal images promise at most 75.1 %")
    slider = shown.locator("#threshold")
    for value, reported in (("0.95", "about 50 %"), ("0.1", "about 100 %"), ("1.9", "about 0 %")):
        slider.fill(value)
        expect(shown.locator("#rate")).to_contain_text(reported)


def test_without_a_threshold_scores_are_shown_and_nothing_is_decided(
    serve: Serve, page: Open, predictor: Predictor, files: list[Path]
) -> None:
    stub = Stub(predictor)
    stub.go.set()
    stub.threshold = None  # type: ignore[attr-defined]
    shown = page(serve(stub))
    shown.set_input_files("#file", [files[0]])
    expect(shown.locator("#say")).to_have_text(f"Scored: {files[0].name}")
    expect(shown.locator("#figures")).to_contain_text("no threshold")
    expect(shown.locator("#deciding")).to_be_hidden()


def test_the_camera_takes_pictures_until_it_is_closed(serve: Serve, page: Open) -> None:
    shown = page(serve())
    shown.click("#camera")
    expect(shown.locator("#live")).to_be_visible()
    shown.click("#take")
    expect(shown.locator("#history .name")).to_contain_text("camera")
    expect(shown.locator("#say")).to_contain_text("Anomalous")
    shown.click("#stop")
    expect(shown.locator("#live")).to_be_hidden()
    expect(shown.locator("#camera")).to_be_focused()


def drop(shown: Page, path: Path) -> None:
    """Drop a file on the page as a mouse would."""
    transfer = shown.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        [path.name, list(path.read_bytes())],
    )
    for event in ("dragenter", "dragover", "drop"):
        shown.dispatch_event("#drop", event, {"dataTransfer": transfer})


def test_what_cannot_be_read_is_explained_and_the_rest_goes_on(
    serve: Serve, page: Open, files: list[Path], tmp_path: Path
) -> None:
    broken, large = tmp_path / "broken.png", tmp_path / "large.png"
    broken.write_bytes(files[0].read_bytes()[:300])
    large.write_bytes(bytes(1_100_000))
    shown = page(serve(max_file_bytes=1_000_000), width=390)
    shown.set_input_files("#file", [broken])
    expect(shown.locator("#problem")).to_contain_text("This file is damaged")
    expect(shown.locator("#say")).to_have_text("Not scored: broken.png")
    shown.set_input_files("#file", [large])
    expect(shown.locator("#problem")).to_contain_text("larger than 1 MB")
    shown.set_input_files("#file", [files[0], files[1]])
    expect(shown.locator("#history li")).to_have_count(4)
    expect(shown.locator("#problem")).to_be_hidden()
    expect(shown.locator("#tally")).to_contain_text("2 not scored")
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    shown.locator("#history li").last.locator("button").click()
    expect(shown.locator("#say")).to_have_text("Not scored: broken.png")
    shown.click("#clear")
    expect(shown.locator("#past")).to_be_hidden()


def test_an_image_that_the_browser_cannot_show_has_a_heatmap_still(
    serve: Serve, page: Open, files: list[Path], tmp_path: Path
) -> None:
    from PIL import Image

    tiff = tmp_path / "a.tif"
    with Image.open(files[0]) as image:
        image.save(tiff)
    shown = page(serve())
    shown.set_input_files("#file", [tiff])
    expect(shown.locator("#no-photo")).to_be_visible()
    expect(shown.locator("#photo")).to_be_hidden()
    expect(shown.locator("#heat")).to_have_css("opacity", "1")


def test_samples_and_the_session_as_a_table(serve: Serve, page: Open, trained: Run) -> None:
    shown = page(serve(samples=load_samples(trained[0], "birch", limit=3)))
    samples = shown.locator("#sample-list button")
    expect(samples).to_have_count(3)
    samples.first.focus()
    samples.first.press("Enter")
    expect(shown.locator("#history li")).to_have_count(1)
    samples.nth(1).click()
    expect(shown.locator("#history li")).to_have_count(2)
    with shown.expect_download() as download:
        shown.click("#save")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "name,score,threshold,decision,error"
    assert len(lines) == 3
    assert lines[1].startswith('"good ')


def test_the_page_asks_for_the_token(serve: Serve, page: Open, files: list[Path]) -> None:
    shown = page(serve(token=TOKEN), may_complain="401")  # Chromium's own note of it
    expect(shown.locator("#login")).to_be_visible()
    expect(shown.locator("#main")).to_be_hidden()
    for given in ("wrong", TOKEN):
        shown.fill("#token", given)
        shown.press("#token", "Enter")
    expect(shown.locator("#main")).to_be_visible()
    shown.set_input_files("#file", [files[0]])
    expect(shown.locator("#history li")).to_have_count(1)
    shown.reload()
    expect(shown.locator("#main")).to_be_visible()


def test_a_name_is_never_read_as_markup(serve: Serve, page: Open, files: list[Path]) -> None:
    shown = page(serve())
    name = '<img src=x onerror="alert(1)">.png'
    content = {"name": name, "mimeType": "image/png", "buffer": files[0].read_bytes()}
    shown.set_input_files("#file", [content])
    expect(shown.locator("#say")).to_contain_text(name)
    expect(shown.locator("#history .name")).to_have_text(name)


def test_everything_that_can_be_used_has_a_name(serve: Serve, page: Open) -> None:
    shown = page(serve())
    nameless = shown.evaluate(
        """() => [...document.querySelectorAll("button, input")]
            .filter((e) => e.getAttribute("aria-hidden") !== "true")
            .filter((e) => !(e.textContent.trim() || e.labels?.length))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert shown.locator("html").get_attribute("lang") == "en"
    shown.keyboard.press("Tab")
    expect(shown.locator("#file")).to_be_focused()


def test_a_run_of_several_sites_asks_which_one(
    all_sites: str, page: Open, files: list[Path], predictor: Predictor
) -> None:
    shown = page(all_sites)
    expect(shown.locator("#served")).to_contain_text("choose yours")
    expect(shown.locator("#site option")).to_have_count(3)
    shown.select_option("#site", "birch")
    expect(shown.locator("#served")).to_have_text("run 1, site birch")
    assert predictor.threshold is not None
    expect(shown.locator("#threshold-value")).to_have_text(f"{predictor.threshold.value:.4g}")
    shown.set_input_files("#file", [files[0]])
    shown.set_input_files("#file", [files[0]])
    names = shown.locator("#history .name")
    expect(names).to_have_text([f"{files[0].name} (2)", files[0].name])


def test_a_score_just_below_the_threshold_is_borderline(
    serve: Serve, page: Open, files: list[Path]
) -> None:
    shown = page(serve())
    shown.set_input_files("#file", [files[0]])
    expect(shown.locator("#figures")).to_contain_text("Score")
    score = float(shown.inner_text("#figures").split()[1].rstrip(","))
    shown.locator("#threshold").fill(str(score * 1.05))
    expect(shown.locator("#say")).to_contain_text("Borderline")
    expect(shown.locator("#use")).to_contain_text("--threshold")
    shown.locator("#threshold").fill(str(score * 1.5))
    expect(shown.locator("#say")).to_contain_text("Below the threshold")


def test_a_false_alarm_is_answered_seen_gone_and_undone(
    serve: Serve, page: Open, files: list[Path], answering: tuple[SitePredictors, Answers],
    trained: Run, tmp_path: Path,
) -> None:  # fmt: skip
    sites, answers = answering
    birch = sites.get("birch")
    worst = max(zip(birch.predict(files), files, strict=True), key=lambda p: p[0].score or 0)[1]
    runs = [tmp_path / "run", trained[0]]
    shown = page(serve(sites.default, sites=sites, answers=answers, runs=runs), may_complain="422")
    rows = shown.locator("#overview-rows tr")
    expect(rows).to_have_count(6)
    expect(rows.nth(1)).to_contain_text("normal images promise at most")
    counted = rows.nth(1).locator("td").last
    expect(counted).to_have_text("0")
    shown.set_input_files("#file", [worst])
    expect(shown.locator("#answer-hint")).to_contain_text("Choose your site")
    expect(shown.locator("#normal")).to_be_disabled()
    shown.select_option("#site", "birch")
    shown.set_input_files("#file", [worst])
    expect(shown.locator("#say")).to_have_text(f"Anomalous: {worst.name}")
    before = shown.inner_text("#figures")

    shown.click("#normal")
    expect(shown.locator("#say")).to_have_text(f"Below the threshold: {worst.name}")
    expect(shown.locator("#history .what")).to_contain_text("Below the threshold")
    reported = shown.locator("#answer-list li")
    expect(reported).to_contain_text([f"{worst.name}, birch: normal"])
    expect(counted).to_have_text("1")
    shown.click("#normal")  # twice is once
    expect(shown.locator("#problem")).to_contain_text("answer 1 calls this normal already")

    shown.click("text=Undo answer 1")
    expect(shown.locator("#say")).to_have_text(f"Anomalous: {worst.name}")
    expect(shown.locator("#figures")).to_have_text(before)
    expect(reported).to_contain_text(["undone"])
    expect(counted).to_have_text("0")


def test_a_watch_shows_its_week_and_what_changed_with_a_picture(
    serve: Serve, page: Open, tmp_path: Path
) -> None:
    folder = tmp_path / "line 3"
    folder.mkdir()
    settings = Settings(
        id="w", source="/line", site="alder", limit=2.0, scores=(1.0,) * 40, normals=None,
        alpha=0.01, most_stopped=0.1,
    )  # fmt: skip
    settings.write(folder)
    log(folder, watched(1, 30))
    shown = page(serve(lines=Lines([folder])))
    part = shown.locator("#lines")
    expect(part.locator("h3")).to_have_text("line 3, site alder")
    expect(part).to_contain_text("No change in 30 images. Light, focus and position are compared")
    days = part.locator("tbody tr")
    expect(days).to_have_text(["2026-03-011100.0 %0", "2026-03-021900.0 %0"])
    expect(part.locator("img")).to_have_count(0)
    log(folder, watched(31, 12, score=3.0, anomalous=True))
    save_png(folder / "changed.png", np.zeros((20, 60, 3), np.uint8))
    shown.reload()
    expect(part.locator("p.bad")).to_contain_text("Changed since 2026-03-0")
    expect(part.locator("p.bad")).to_contain_text("product (stopped")
    picture = part.get_by_alt_text("Images before and now.")
    expect(picture).to_have_js_property("naturalWidth", 60)


def test_a_rectangle_says_which_part_is_a_defect(
    serve: Serve, page: Open, files: list[Path], answering: tuple[SitePredictors, Answers]
) -> None:
    sites, answers = answering
    shown = page(serve(sites.default, sites=sites, answers=answers))
    shown.select_option("#site", "birch")
    shown.set_input_files("#file", [files[0]])
    expect(shown.locator("#figures")).to_contain_text("Score")
    frame = shown.locator("#picture").bounding_box()
    assert frame is not None
    x, y, width = frame["x"], frame["y"], frame["width"]
    shown.mouse.move(x + width / 4, y + width / 4)
    shown.mouse.down()
    shown.mouse.move(x + width / 2, y + 3 * width / 4, steps=3)
    shown.mouse.up()
    expect(shown.locator("#answer-hint")).to_contain_text("about the rectangle")
    shown.click("#defect")
    # of 64 x 64 pixels
    expect(shown.locator("#answer-list")).to_contain_text("region 16, 16, 16, 32")
    expect(shown.locator("#region")).to_be_hidden()
