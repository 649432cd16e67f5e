"""Which pictures are chosen, how they are drawn, and what is kept of them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.errors import ArtefactError, ConfigError, StorageError
from fedvad.report.choice import choose
from fedvad.report.html.gallery import write_gallery
from fedvad.report.html.record import GALLERY_FILE, Gallery, Scores, printable
from fedvad.report.panels import Panel

MAP = np.arange(16, dtype=np.float32).reshape(4, 4)


def panel(site: str, label: int, score: float, limit: float | None = 1.0, n: int = 0) -> Panel:
    path = Path(f"{site}{label}{score}{n}.png")
    return Panel(site, path, "crack" if label else "good", label, score, limit, MAP, None)


def brief(panels: list[Panel]) -> list[tuple[str, int, float]]:
    return [(p.site, p.label, p.score) for p in panels]


def test_mistakes_come_first_the_worst_of_them_foremost_then_the_nearest() -> None:
    panels = [
        panel("a", 1, 5.0), panel("a", 1, 0.9), panel("a", 1, 0.2), panel("a", 0, 1.1),
        panel("a", 0, 3.0), panel("a", 0, 0.95), panel("a", 0, 0.1), panel("a", 1, 1.2),
    ]  # fmt: skip
    expected = [0.2, 3.0, 0.9, 1.1, 0.95, 1.2, 0.1, 5.0]
    for seed in range(3):
        random.Random(seed).shuffle(panels)
        assert [p.score for p in choose(panels, limit=8)] == expected


def test_sites_take_turns_and_thresholds_make_them_comparable() -> None:
    panels = [panel("loud", 1, 0.1 + i / 100) for i in range(9)] + [panel("b", 1, 7.0, 10.0)]
    assert brief(choose(panels, limit=3))[:2] == [("loud", 1, 0.1), ("b", 1, 7.0)]


def test_mistakes_leave_a_quarter_to_what_is_right() -> None:
    wrong = [panel("a", 1, 0.01 * i) for i in range(50)]
    right = [panel("a", 1, 1.5 + i) for i in range(50)]
    chosen = choose(wrong + right, limit=20)
    assert [p.outcome for p in chosen] == ["missed"] * 15 + ["caught"] * 5
    assert len(choose(wrong + right[:2], limit=20)) == 20
    assert len(choose(wrong, limit=20)) == 20


def test_without_threshold_both_classes_take_turns() -> None:
    panels = [panel("a", label, s, None) for label in (0, 1) for s in (1.0, 2.0)]
    assert brief(choose(panels, limit=4)) == [
        ("a", 1, 1.0), ("a", 0, 2.0), ("a", 1, 2.0), ("a", 0, 1.0),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="at least 1"):
        choose(panels, limit=0)


def draw(folder: Path, n: int, size: tuple[int, int] = (600, 300)) -> list[Panel]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    panels = []
    for i in range(n):
        path, mask = folder / f"{i}.png", folder / f"{i}_mask.png"
        small = Image.fromarray(rng.integers(0, 255, (6, 12, 3), dtype=np.uint8))
        small.resize(size).save(path)
        where = np.zeros((30, 60), np.uint8)
        where[10:20, 20:40] = 255
        Image.fromarray(where).save(mask)
        label = i % 2
        panels.append(
            Panel("s", path, "crack" if label else "good", label, 0.5 + i, 1.0, MAP,
                  mask if label else None)
        )  # fmt: skip
    return panels


def test_pictures_are_small_and_read_back(tmp_path: Path) -> None:
    panels = draw(tmp_path / "data", 4)
    made = write_gallery(panels, tmp_path / "run")
    assert made == Gallery.read(tmp_path / "run")
    assert made.tested == len(made.pictures) == 4
    assert made.pictures[0].file.startswith("data/")  # names recur in other folders
    for picture in made.pictures:
        assert (picture.width, picture.height) == (224, 112)
        assert picture.outlined == bool(picture.label)
        for name in (picture.photo, picture.heat):
            file = tmp_path / "run" / "gallery" / name
            assert file.stat().st_size < 30_000
            with Image.open(file) as image:
                assert image.format == "WEBP"
                assert image.size == (224, 112)
    # a smaller gallery leaves no picture of the larger one behind
    write_gallery(panels[:1], tmp_path / "run")
    assert len(list((tmp_path / "run" / "gallery").iterdir())) == 2


def test_images_that_are_gone_are_counted(tmp_path: Path) -> None:
    panels = draw(tmp_path / "data", 4)
    panels[1].path.unlink()
    panels[3].mask.unlink()  # type: ignore[union-attr]
    made = write_gallery(panels, tmp_path / "run")
    assert (len(made.pictures), made.unreadable, made.tested) == (3, 1, 4)
    assert not any(p.outlined for p in made.pictures)
    assert write_gallery([], tmp_path / "empty") == Gallery()


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot write pictures"):
        write_gallery(draw(tmp_path / "data", 1), tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", '{"schema_version": 2}', '{"tested": -1}', '{"pictures": [{}]}',
        '{"pictures": [{"site": "a", "file": "f", "defect": "d", "label": 0, "score": 1, '
        '"threshold": null, "outlined": false, "photo": "../../etc/passwd", '
        '"heat": "0000-heat.webp", "width": 9, "height": 9}]}',
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / GALLERY_FILE).write_text(text)
    with pytest.raises(ArtefactError, match="damaged"):
        Gallery.read(tmp_path)


def test_scores_are_read_back_and_checked(tmp_path: Path) -> None:
    assert Scores.read(tmp_path) is None
    row = '{"files": ["a"], "defects": ["good"], "labels": [0], "scores": [%s], "threshold": 1}'
    (tmp_path / "scores.json").write_text('{"sites": {"x": %s}}' % (row % "0.5"))
    found = Scores.read(tmp_path)
    assert found is not None
    assert found.sites["x"].scores == [0.5]
    for wrong in ("0.5, 0.6", '"NaN"', "null"):
        (tmp_path / "scores.json").write_text('{"sites": {"x": %s}}' % (row % wrong))
        with pytest.raises(ArtefactError, match=r"scores\.json is damaged"):
            Scores.read(tmp_path)


def test_names_become_printable() -> None:
    assert printable("a\udcff\n\u202eb ü✓") == "a\ufffd\ufffd\ufffdb ü✓"
