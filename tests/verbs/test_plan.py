"""plan(): fingerprints of normal images, options with reasons, and `train` by a plan."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.data.fingerprint import Fingerprint, fingerprint_of
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.runs.choosing import choose_options, middle, remarks
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites
from fedvad.verbs.plan import training_sites
from tests.helpers import OPTIONS, SIZE, TRAIN, run_main

ONE = Fingerprint(
    images=100, seen=100, height=1024.0, width=1024.0, shortest=1.0, longest=1.0,
    border=(0.0, 0.0, 100.0, 100.0), foreground=1.0, brightness=100.0, brightness_spread=5.0,
    alignment=None, near_copies=0.0,
)  # fmt: skip


def made(**changes: Any) -> Fingerprint:
    return Fingerprint(**(vars(ONE) | changes))


def chosen(*sites: Fingerprint, **about: Any) -> dict[str, Any]:
    named = {f"s{i}": site for i, site in enumerate(sites)}
    found = choose_options(named, resolve_config(), **about)
    return {one.key: one.value for one in found}


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Names of all files that this process opens from now on."""
    names: list[str] = []
    sys.addaudithook(lambda event, args: names.append(str(args[0])) if event == "open" else None)
    return names


def test_no_test_image_is_opened(plants: Path, opened: list[str]) -> None:
    opened.clear()
    plan = fedvad.plan(plants)
    assert list(plan.sites) == ["alder", "birch", "cedar"]
    assert plan.sites["birch"].images == TRAIN
    assert (plan.sites["birch"].height, plan.sites["birch"].width) == (SIZE, SIZE)
    images = [Path(name) for name in opened if name.startswith(str(plants))]
    images = [path for path in images if path.suffix == ".png"]
    assert len(images) >= 3 * TRAIN
    assert {path.relative_to(plants).parts[1] for path in images} == {"train"}


def test_train_takes_the_plan_and_flags_win(plants: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "plan.toml"
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(patch, "plan", plants, "--out", file, "--rounds", 1) == 0
    shown = capsys.readouterr().out
    assert shown == file.read_text(encoding="utf-8")
    assert "mean grey" in shown
    assert tomllib.loads(shown) == {"rounds": 1, "image_size": 256, "upload_rows": 1500}
    config = resolve_config(plan=file, upload_rows=77)
    assert (config.rounds, config.image_size, config.upload_rows) == (1, 256, 77)
    other = tmp_path / "config.toml"
    other.write_text("rounds = 3")
    assert resolve_config(other, plan=file).rounds == 3
    with pytest.raises(ConfigError, match="cannot read"):
        fedvad.train(plants, tmp_path / "run", plan=tmp_path / "none.toml")
    fedvad.train(plants, tmp_path / "run", plan=file, upload_rows=9, **OPTIONS, calibration="none")
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert (written["rounds"], written["upload_rows"], written["image_size"]) == (1, 9, SIZE)


def test_sites_apart_plan_as_sites_together(plants: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("alder", "birch"):
            assert run_main(patch, "plan", plants / name, "--json") == 0
            (tmp_path / name).write_text(capsys.readouterr().out)
    apart = fedvad.plan([tmp_path / "alder", tmp_path / "birch", plants / "cedar"])
    assert apart.to_json() == fedvad.plan(plants).to_json()
    with pytest.raises(ConfigError, match="site alder is in"):
        fedvad.plan([tmp_path / "alder", plants])


def test_what_is_no_fingerprint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text("[]")
    with pytest.raises(ArtefactError, match="no output of"):
        fedvad.plan(file)
    values = vars(ONE) | {"border": list(ONE.border), "near_copies": 7.0}
    file.write_text(json.dumps({"sites": {"a": values}}))
    with pytest.raises(ArtefactError, match="no images have"):
        fedvad.plan(file)
    with pytest.raises(ConfigError, match="has none"):
        fedvad.plan(file, method="stfpm")
    with pytest.raises(ConfigError, match="above 0"):
        fedvad.plan(file, budget=0.0)
    with pytest.raises(ConfigError, match="give it, or"):
        fedvad.plan(file, budget=0.5, image_size=256)
    with pytest.raises(ConfigError, match="needs a folder"):
        fedvad.plan([])


def test_parts_of_one_set_have_a_fingerprint_each(plants: Path) -> None:
    plan = fedvad.plan(plants / "alder", split="iid:2")
    assert sum(site.images for site in plan.sites.values()) == TRAIN
    assert plan.to_json()["options"]["split"] == "iid:2"
    with pytest.raises(ConfigError, match="divides one set"):
        fedvad.plan(plants, split="iid:2")


def test_more_is_read_where_there_is_time() -> None:
    assert chosen(ONE)["image_size"] == 512
    assert chosen(ONE, seconds=0.02, budget=0.01)["image_size"] == 256
    assert chosen(ONE, seconds=0.02, budget=0.06)["image_size"] == 384
    assert chosen(ONE, seconds=0.02, budget=0.09) == chosen(ONE)
    whole = chosen(ONE, seconds=0.02, budget=1.0)
    assert (whole["image_size"], whole["tiles"]) == ("fit:1024x1024", 512)
    part = chosen(ONE, seconds=0.02, budget=0.4)  # four tiles of 0.08 s
    assert (part["image_size"], part["tiles"]) == ("fit:921x921", 512)
    assert chosen(made(height=200.0, width=180.0), seconds=0.02, budget=9.0)["image_size"] == 256


def test_a_size_that_was_given_is_written_as_a_number(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps({"sites": {"a": vars(ONE) | {"border": list(ONE.border)}}}))

    def options(**given: Any) -> dict[str, Any]:
        found: dict[str, Any] = fedvad.plan(file, **given).to_json()["options"]
        return found

    assert options(image_size="short:600")["image_size"] == "fit:600x600"
    assert options(image_size=320)["image_size"] == 320
    tiled = options(tiles=512)
    assert (tiled["image_size"], tiled["tiles"]) == ("fit:1024x1024", 512)


def test_sites_share_the_memory_and_keep_what_one_of_them_needs() -> None:
    assert chosen(*[ONE] * 4)["upload_rows"] == 1500
    assert chosen(*[ONE] * 50)["upload_rows"] == 327
    assert chosen(*[ONE] * 1000)["upload_rows"] == 100
    dark = made(border=(10.0, 0.0, 80.0, 100.0))
    assert chosen(dark, made(border=(20.0, 0.0, 90.0, 100.0)))["region"] == "10,0,90,100"
    assert "region" not in chosen(dark, ONE)
    assert middle({"a": made(height=100.0), "b": ONE, "c": ONE}).height == 1024


def test_what_should_be_looked_at_is_said() -> None:
    assert remarks({"a": ONE, "b": made(brightness=110.0)}) == []
    said = " ".join(remarks({"a": ONE, "b": made(brightness=140.0, near_copies=0.25)}))
    assert "100 of 255 at a, 140 at b" in said
    assert "b: 25% of the normal images nearly equal" in said
    assert "any angle" in remarks({"a": made(alignment=0.1)})[0]


def drawn(folder: Path, angles: list[float], border: int = 0) -> list[Path]:
    """Pictures of stripes at these angles in degrees, noise of their own, and a black border."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    paths = []
    for i, angle in enumerate(np.deg2rad(angles)):
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2)
        image = np.clip(128 + 60 * wave + rng.normal(0, 15, wave.shape), 0, 255).astype(np.uint8)
        image[:, :border] = 0
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def test_a_fingerprint_sees_angles_borders_and_copies(tmp_path: Path) -> None:
    paths = drawn(tmp_path, [30.0] * 6, border=16)
    same = fingerprint_of(paths)
    assert (same.alignment or 0) > 0.95
    assert same.border == (25.0, 0.0, 100.0, 100.0)
    assert same.near_copies == 0
    larger = Image.open(paths[0]).resize((256, 192), Image.Resampling.NEAREST)
    larger.save(tmp_path / "again.jpg")
    again = fingerprint_of([*paths, tmp_path / "again.jpg"])
    assert again.near_copies == pytest.approx(2 / 7)
    assert again.shortest == 0.75
    turned = fingerprint_of(drawn(tmp_path, [0.0, 60.0, 120.0]))
    assert (turned.alignment or 1) < 0.2


def test_unreadable_images_are_no_part_of_it(tmp_path: Path) -> None:
    paths = drawn(tmp_path, [0.0, 0.0])
    paths[0].write_bytes(b"none")
    assert (fingerprint_of(paths).images, fingerprint_of(paths).seen) == (2, 1)
    with pytest.raises(DataError, match="none of 1"):
        fingerprint_of(paths[:1])


def test_a_set_is_divided_as_for_the_training(tmp_path: Path) -> None:
    """Images too large to train on are dealt in turn there, whatever they look like."""
    folder = tmp_path / "set/train/good"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(16):
        side = 16 if number < 10 else 40
        pixels = rng.integers(0, 60, (side, side, 3)) + 90 * (number // 2 % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    config = resolve_config(split="style:2", max_pixels=1000)
    found = [
        {site.name: [item.path.name for item in site.train] for site in sites}
        for sites in (
            training_sites(tmp_path / "set", config),
            load_sites(tmp_path / "set", config.split, config.seed, max_pixels=config.max_pixels),
        )
    ]
    assert found[0] == found[1]
