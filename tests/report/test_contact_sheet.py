from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.errors import ConfigError, DataError, StorageError
from fedvad.report import contact_sheet as module
from fedvad.report.choice import CLEAR, FAINT, GROUPS, NEAR, NORMAL, choose_groups
from fedvad.report.contact_sheet import contact_sheet
from fedvad.report.lettering import Fonts, fit
from fedvad.report.overlay import LINE
from fedvad.report.panels import Panel, score_in_words

MAP = np.zeros((4, 4), np.float32)


def panel(site: str, name: str, label: int, score: float, threshold: float | None = 1.0) -> Panel:
    defect = "crack" if label else "good"
    return Panel(site, Path(f"{name}.png"), defect, label, score, threshold, MAP, None)


def many(sites: str = "abcdef", n: int = 8) -> list[Panel]:
    rng = np.random.default_rng(3)
    return [
        panel(site, f"{label}{i:02}", label, float(rng.gamma(9, (0.08, 0.2)[label])))
        for site in sites
        for label in (0, 1)
        for i in range(n)
    ]


def names(panels: list[Panel]) -> list[str]:
    return [f"{p.site}{p.path.stem}" for p in panels]


def test_outcomes_and_ratio():
    outcomes = [panel("a", "x", label, s).outcome for label in (1, 0) for s in (1.1, 1.0)]
    assert outcomes == ["caught", "missed", "false alarm", "passed"]  # flagged only above
    assert panel("a", "x", 1, 3.0, 2.0).ratio == 1.5
    unjudged = panel("a", "x", 1, 3.0, None)
    assert unjudged.outcome == "not judged"
    assert unjudged.ratio is None
    assert panel("a", "x", 0, 0.5, 0.0).outcome == "false alarm"
    assert panel("a", "x", 0, 0.5, 0.0).ratio is None


def test_groups_hold_what_they_say():
    chosen = choose_groups(many())
    assert tuple(chosen) == GROUPS
    assert all(len(group) == 4 for group in chosen.values())
    shown = [p for group in chosen.values() for p in group]
    assert len(set(map(id, shown))) == len(shown)
    assert {p.outcome for p in chosen[CLEAR]} == {"caught"}
    assert all(p.label for p in chosen[FAINT])
    assert not any(p.label for p in chosen[NORMAL])
    assert max(p.score for p in chosen[FAINT]) < min(p.score for p in chosen[CLEAR])
    assert all(abs(p.score - 1) <= 0.1 for p in chosen[NEAR])
    everything = many()
    assert chosen[CLEAR][0].score == max(p.score for p in everything if p.label)
    assert chosen[FAINT][0].score == min(p.score for p in everything if p.label)
    assert chosen[NORMAL][0].score == max(p.score for p in everything if not p.label)


def test_ratio_ranks_not_the_bare_score():
    chosen = choose_groups([panel("a", "x", 1, 9.0, 6.0), panel("b", "y", 1, 2.0, 1.0)])
    assert names(chosen[CLEAR]) == ["by"]
    assert names(chosen[FAINT]) == ["ax"]


def test_order_of_panels_does_not_matter():
    panels = many()
    panels += [replace(p, path=Path(f"twin_{p.path}")) for p in panels]  # ties everywhere
    expected = {group: names(found) for group, found in choose_groups(panels).items()}
    for seed in range(3):
        random.Random(seed).shuffle(panels)
        found = choose_groups(panels)
        assert {group: names(value) for group, value in found.items()} == expected


def test_sites_take_turns():
    loud = [panel("loud", f"{i}", 1, 9.0 + i) for i in range(20)]
    others = [panel(site, f"{i}", 1, 1.5 + i / 10) for site in ("x", "y") for i in range(3)]
    clear = choose_groups(loud + others)[CLEAR]
    assert Counter(p.site for p in clear) == {"loud": 2, "x": 1, "y": 1}
    assert len({p.site for p in choose_groups(many())[CLEAR]}) == 4
    assert names(choose_groups(loud)[CLEAR]) == ["loud19", "loud18", "loud17", "loud16"]


def test_missed_and_false_alarms_come_first_but_sites_take_turns():
    panels = [panel("bad", f"m{i}", 1, 0.1) for i in range(9)]
    panels += [panel("bad", f"a{i}", 0, 5.0) for i in range(9)]
    for site in "xy":
        panels += [panel(site, f"{site}{label}{i}", label, (0.5, 2.0)[label])
                   for label in (0, 1) for i in range(3)]  # fmt: skip
    chosen = choose_groups(panels)
    for group, word in ((FAINT, "missed"), (NORMAL, "false alarm")):
        assert [p.outcome for p in chosen[group]][:2] == [word, word]
        assert Counter(p.site for p in chosen[group]) == {"bad": 2, "x": 1, "y": 1}
    assert chosen[NEAR] == []


def test_few_defects_are_shared_out():
    panels = [panel("a", f"{i}", 1, 2.0 + i) for i in range(3)]
    chosen = choose_groups(panels)
    assert names(chosen[CLEAR]) == ["a2", "a1"]
    assert names(chosen[FAINT]) == ["a0"]
    one = choose_groups([panel("a", "0", 1, 0.4)])
    assert [len(group) for group in one.values()] == [0, 1, 0, 0]


def test_without_thresholds_or_anything():
    chosen = choose_groups([panel("a", f"{i}", i % 2, float(i), None) for i in range(12)])
    assert names(chosen[CLEAR]) == ["a11", "a9", "a7"]
    assert names(chosen[FAINT]) == ["a1", "a3", "a5"]
    assert names(chosen[NORMAL]) == ["a10", "a8", "a6", "a4"]
    assert chosen[NEAR] == []
    assert choose_groups([]) == {group: [] for group in GROUPS}
    with pytest.raises(ConfigError, match="per_group"):
        choose_groups([], per_group=0)
    with pytest.raises(DataError, match="is nan"):
        choose_groups([panel("a", "x", 1, float("nan"))])


@pytest.fixture(scope="module")
def real_panels(tmp_path_factory) -> list[Panel]:
    """Three sites of small photographs with maps; defects have masks."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    panels = []
    for site in ("north", "south", "east"):
        for i in range(8):
            label, stem = i % 2, folder / f"{site}{i}"
            map_ = rng.gamma(9, 0.1, (8, 8)).astype(np.float32)
            image = np.full((40, 60, 3), rng.integers(90, 160), np.uint8)
            mask = None
            if label:
                marked = np.zeros((40, 60), np.uint8)
                marked[10:20, 10:30] = 255
                mask = stem.with_suffix(".mask.png")
                Image.fromarray(marked).save(mask)
                map_[2:4, 1:4] += 2 * rng.random()
            Image.fromarray(image).save(stem.with_suffix(".png"))
            panels.append(
                Panel(site, stem.with_suffix(".png"), "crack" if label else "good", label,
                      float(map_.max()), 2.0, map_, mask)
            )  # fmt: skip
    return panels


def drawn(panels: list[Panel], folder: Path, **options: int) -> Image.Image:
    out = folder / "deep" / "sheet.png"
    assert contact_sheet(panels, out, title="A title", image_size=32, **options) == out
    assert out.stat().st_size < 3_000_000
    with Image.open(out) as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        return sheet.convert("RGB")


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


def test_sheet_shows_outlines(real_panels, tmp_path):
    sheet = drawn(real_panels, tmp_path)
    assert sheet.width == 1920
    bare = drawn([replace(p, mask=None) for p in real_panels], tmp_path)
    assert bare.size == sheet.size
    assert count(sheet, LINE) > 1000 > count(bare, LINE) > 0  # legend


EDGES = {
    "no anomaly": lambda panels: [p for p in panels if not p.label],
    "no normal": lambda panels: [p for p in panels if p.label],
    "no threshold": lambda panels: [replace(p, threshold=None) for p in panels],
    "one panel": lambda panels: panels[:1],
    "no panel": lambda panels: [],
    "unicode": lambda panels: [
        replace(p, site=f"{p.site} 上海 Ø مصنع 😀\n" * 9, defect="ß_|" * 60) for p in panels
    ],
    "empty names": lambda panels: [replace(p, site="", defect="") for p in panels],
    "constant maps": lambda panels: [replace(p, map=MAP) for p in panels],
    "no image": lambda panels: [replace(p, path=Path("/nowhere/x.png")) for p in panels],
    "no mask file": lambda panels: [replace(p, mask=Path("/nowhere/x.png")) for p in panels],
}


@pytest.mark.parametrize("edge", EDGES)
def test_sheet_in_all_circumstances(real_panels, tmp_path, edge):
    panels = EDGES[edge](real_panels)
    sheet = drawn(panels, tmp_path, per_group=2)
    empty = 176 + 4 * 70 + 24
    if panels:
        assert sheet.width == 1920
        assert sheet.height > empty + 200
    else:
        assert sheet.size == (1920, empty)
    placeholder = count(sheet, (0xC9, 0xCE, 0xD3))
    assert (placeholder > 10_000) == (edge == "no image")


def test_columns_rows_and_proportions(real_panels, tmp_path):
    heights = {n: drawn(real_panels, tmp_path, per_group=n).height for n in (1, 3, 4, 6)}
    assert heights[1] == heights[3]  # three columns at least, so that one picture is no poster
    assert heights[4] < heights[3]  # four narrower columns
    assert heights[6] > heights[4]  # a second row
    rows = 4 if any(choose_groups(real_panels)[NEAR]) else 3
    tile = ((1920 - 2 * 48 - 3 * 36) // 4 - 6) // 2
    assert heights[4] == 176 + 4 * 70 + 24 + rows * (round(tile * 40 / 60) + 102)


def test_large_sheets_lose_colours_not_pictures(real_panels, tmp_path, monkeypatch):
    full = drawn(real_panels, tmp_path)
    monkeypatch.setattr(module, "_MAX_BYTES", 10_000)
    reduced = drawn(real_panels, tmp_path)
    assert reduced.size == full.size
    assert len(reduced.getcolors(1 << 24)) <= 256
    difference = np.asarray(full).astype(int) - np.asarray(reduced)
    assert np.abs(difference).mean() < 4


def test_long_text_is_shortened_to_its_room():
    fonts = Fonts()
    font = fonts.get("x", 17)
    assert fit("short", 200, fonts, 17) == "short"
    for text in ("W" * 300, "Prüfstand Ø " * 30, "a"):
        fitted = fit(text, 150, fonts, 17)
        assert font.getlength(fitted) <= 150
    assert fit("begin" + "x" * 200 + "end", 150, fonts, 17).endswith("end")
    assert fit("two\nlines\x00", 200, fonts, 17) == "two lines"


def test_caption_never_rounds_onto_the_threshold():
    shown = [score_in_words(s, 1.0) for s in (1.43, 0.998, 0.9, 25.3)]
    assert shown == ["1.43 × threshold", "0.998 × threshold", "0.90 × threshold", "25 × threshold"]
    assert score_in_words(0.12345, None) == "score 0.123"


def test_sheet_refuses(real_panels, tmp_path):
    with pytest.raises(ConfigError, match="image size"):
        contact_sheet(real_panels, tmp_path / "a.png", title="", image_size=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        contact_sheet([], tmp_path / "file" / "a.png", title="", image_size=8)
