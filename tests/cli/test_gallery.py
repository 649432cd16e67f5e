"""`fedvad gallery`: the picture, its JSON, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.synthesis import KINDS
from fedvad.report.overlay import LINE
from tests.helpers import run_main

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def test_every_kind_is_drawn_and_outlined(
    plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    out = tmp_path / "deep" / "gallery.png"
    code = run_main(
        monkeypatch, "gallery", plants, "--out", out, "--rows", 1, "--image-size", 64, "--json"
    )
    captured = capsys.readouterr()
    assert code == 0
    assert re.fullmatch(r"\d\d:\d\d:\d\d drawing: 12 pictures, \d+ s\n", captured.err)
    reported = json.loads(captured.out)
    assert reported["path"] == str(out)
    assert reported["bytes"] == out.stat().st_size
    assert set(reported["milliseconds"]) == set(KINDS)
    assert [defect["kind"] for defect in reported["defects"]] == [
        k for k in KINDS for _ in range(2)
    ]
    assert {defect["site"] for defect in reported["defects"]} == {"alder", "birch"}
    assert all(
        0 < defect["area"] <= 0.06 and defect["change"] >= 8 for defect in reported["defects"]
    )
    sheet = np.asarray(Image.open(out).convert("RGB"))
    assert sheet.shape[1] == 1920
    line = (sheet == LINE).all(axis=2)
    assert line.sum() > 1000
    # Only the third picture of an example is outlined.
    thirds = np.flatnonzero(line.any(axis=0)) - 48
    assert {int(x) % 930 // 300 for x in thirds} == {2}


def test_same_seed_same_picture_and_a_kind_looks_the_same_alone(
    plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    def drawn(name: str, *flags: object) -> bytes:
        arguments = ("--rows", 1, "--image-size", 64, "--kinds", "stain", *flags)
        assert run_main(monkeypatch, "gallery", plants, "--out", tmp_path / name, *arguments) == 0
        return (tmp_path / name).read_bytes()

    first = drawn("a.png")
    assert first == drawn("b.png")
    assert first != drawn("c.png", "--seed", 1)
    assert "a.png" in capsys.readouterr().out
    drawn("d.png", "--kinds", "scratch, stain")
    with Image.open(tmp_path / "a.png") as alone, Image.open(tmp_path / "d.png") as second:
        height = alone.height - 96  # without the title
        below = second.crop((0, second.height - height, 1920, second.height))
        assert below.tobytes() == alone.crop((0, 96, 1920, alone.height)).tobytes()


def test_textures_and_foreground_reach_the_defects(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    y, x = np.mgrid[:64, :64]
    button = np.where(((x - 30) ** 2 + (y - 35) ** 2 < 8**2)[..., None], 140, 20) * np.ones(3)
    for folder, picture in (("set/train/good", button), ("white", np.full((20, 20, 3), 255))):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / folder / "a.png")
    flags = ("--rows", 1, "--image-size", 64, "--kinds", "texture", "--json")

    def drawn(*more: object) -> list[dict[str, float]]:
        out = ("--out", tmp_path / "a.png")
        assert run_main(monkeypatch, "gallery", tmp_path / "set", *out, *flags, *more) == 0
        return list(json.loads(capsys.readouterr().out)["defects"])

    plain, filled = drawn(), drawn("--textures", tmp_path / "white")
    assert [d["change"] for d in filled] != [d["change"] for d in plain]
    for foreground in ("otsu", "80"):
        on_button = drawn("--foreground", foreground)
        # The button has about 200 pixels: a defect on it has no more than the 16 it needs.
        assert all(round(d["area"] * 64 * 64) == 16 for d in on_button)
    assert max(d["area"] for d in plain) * 64 * 64 > 32


def test_what_no_kind_can_show_is_reported(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "set/train/good").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "set/train/good/a.png")
    out = tmp_path / "a.png"
    flags = ("--out", out, "--rows", 1, "--image-size", 32, "--kinds", "blur")
    assert run_main(monkeypatch, "gallery", tmp_path / "set", *flags) == 0
    assert "2 defects, 2 of them spots" in capsys.readouterr().out


def test_refusals(plants: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    out = tmp_path / "a.png"
    (tmp_path / "empty").mkdir()
    for flags, named, code in [
        (("--kinds", "rust"), "unknown kind of defect 'rust'", 2),
        (("--foreground", "grabcut"), "unknown foreground 'grabcut'", 2),
        (("--foreground", "300"), "grey level 0 to 254", 2),
        (("--rows", "0"), "rows", 2),
        (("--seed", "-1"), "seed", 2),
        (("--textures", tmp_path / "no"), "no such file or folder", 3),
        (("--textures", tmp_path / "empty"), "no image found", 3),
        (("--out", tmp_path / "empty"), "is a folder: add the name of a file", 2),
    ]:
        quick = ("--image-size", 32, "--rows", 1, "--kinds", "stain", "--json")
        assert run_main(monkeypatch, "gallery", plants, "--out", out, *quick, *flags) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert named in captured.err
        assert "Traceback" not in captured.err
    assert run_main(monkeypatch, "gallery", tmp_path / "no", "--out", out) == 3
    assert not out.exists()


def test_it_needs_no_torch(plants: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedvad.verbs.gallery import gallery;"
        "gallery(Path(sys.argv[1]), Path(sys.argv[2]), kinds=('stain',), rows=1, image_size=32);"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(plants), str(tmp_path / "a.png")]
    assert subprocess.run(command, check=False).returncode == 0
