"""`fedvad group`: groups found from images, and a federation within each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.cli import group as cli
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.errors import ArtefactError, ConfigError, DataError, MismatchError
from fedvad.federation import grouping
from fedvad.verbs.group import group
from fedvad.verbs.group_apart import group_shares, site_shares, site_summary
from tests.helpers import run_main

OPTIONS = {"backbone": "filterbank", "image_size": 64}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of stripes and two of coarse blocks, the last with no test images."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for name, period in (("stripes1", 4), ("stripes2", 4), ("blocks1", 32), ("blocks2", 32)):
        for number in range(14):
            part = "train" if number < 10 else "test"
            if part == "test" and name == "blocks2":
                continue
            rows = (np.arange(64) // (period // 2)) % 2
            pattern = rows[:, None] ^ rows[None] if period == 32 else rows[:, None] + 0 * rows
            pixels = 80 + 80 * pattern[..., None] + rng.normal(0, 6, (64, 64, 3))
            defect = number >= 12
            if defect:
                pixels[20:40, 20:40] = 255
            folder = root / name / part / ("hole" if defect else "good")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


WANTED = [["blocks1", "blocks2"], ["stripes1", "stripes2"]]


def test_sites_of_one_product_are_a_group(mixed: Path) -> None:
    found = group(mixed, **OPTIONS)
    assert found.groups == WANTED
    assert found.sites == ["blocks1", "blocks2", "stripes1", "stripes2"]
    assert np.array(found.shares)[:2, 2:].max() == 0
    assert found.bytes_per_site < 5000
    assert "runs" not in found.to_json()


@pytest.mark.slow
def test_each_group_gets_a_run(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = (
        "group", mixed, "--out", out, "--backbone", "filterbank", "--image-size", "64",
        "--memory-rows", "50", "--json",
    )  # fmt: skip
    assert run_main(monkeypatch, *arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["groups"] == WANTED == json.loads((out / "groups.json").read_text())["groups"]
    assert list(printed["runs"]) == ["group1", "group2"]
    for name in ("group1", "group2"):
        assert (out / name / "detector.safetensors").is_file()
    assert sorted(p.name for p in (out / "sites/group2").iterdir()) == WANTED[1]
    # again: nothing is trained twice, and nothing is lost
    assert run_main(monkeypatch, *arguments) == 2
    assert run_main(monkeypatch, *arguments, "--resume") == 0


def test_one_site_has_no_groups(mixed: Path) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        group(mixed / "stripes1", **OPTIONS)
    with pytest.raises(ConfigError, match="--split"):
        group(mixed, split="iid:2", **OPTIONS)


@pytest.mark.slow
def test_train_finds_the_groups_and_python_has_their_results(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"memory_rows": 50, "join": {"stripes2": 2}, **OPTIONS}
    with pytest.raises(ConfigError, match="--join names unknown sites stripes"):
        group(mixed, tmp_path / "python", **(options | {"join": {"stripes": 2}}))
    found = group(mixed, tmp_path / "python", **options)
    arguments = (
        "train", mixed, "--out", tmp_path / "cli", "--group", "auto", "--backbone", "filterbank",
        "--image-size", "64", "--memory-rows", "50", "--join", "stripes2:2",
    )  # fmt: skip
    assert run_main(monkeypatch, *arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["groups"] == WANTED
    for name, results in found.runs.items():
        assert printed["runs"][name]["image_auroc"] == results.to_dict()["image_auroc"]
        assert results.training_images == dict.fromkeys(WANTED[name == "group2"], 10)
    for wrong, words in ((("--group", "some"), "takes auto"), (("--track", "mlflow"), "one run")):
        assert run_main(monkeypatch, *arguments, *wrong) == 2
        assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_command_has_the_tolerance_of_python() -> None:
    assert cli.TOLERANCE == grouping.TOLERANCE


def test_cubes_of_bands_have_groups(tmp_path: Path) -> None:
    """By axes of all sites' pixels, which nobody gave weights of."""
    rng = np.random.default_rng(0)
    for name, tilt in (("belt1", 0.0), ("belt2", 0.0), ("tank1", 9.0), ("tank2", 9.0)):
        folder = tmp_path / "sites" / name / "train" / "good"
        folder.mkdir(parents=True)
        for number in range(9):
            cube = rng.normal(100, 1, (12, 12, 5)) + tilt * np.linspace(0, 1, 5)
            np.save(folder / f"{number}.npy", cube)
    found = group(tmp_path / "sites", backbone="spectral")
    assert found.groups == [["belt1", "belt2"], ["tank1", "tank2"]]


def test_sites_that_never_meet_find_the_same_groups_from_files(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together = group(mixed, **OPTIONS)
    summaries = []
    for name in together.sites:
        summaries.append(tmp_path / f"{name}.safetensors")
        assert site_summary(mixed / name, summaries[-1], **OPTIONS) < 10_000
    shares = []
    for name in together.sites:
        shares.append(tmp_path / f"{name}.shares")
        site_shares(mixed / name, summaries, shares[-1], **OPTIONS)
    found = group_shares(shares)
    assert (found.groups, found.shares) == (WANTED, together.shares)
    assert found.bytes_per_site == together.bytes_per_site
    # the same from the command line
    site, out = mixed / "blocks1", tmp_path / "again.safetensors"
    flags = ("--backbone", "filterbank", "--image-size", "64", "--json")
    assert run_main(monkeypatch, "group", site, "--save-summary", out, *flags) == 0
    assert out.read_bytes() == summaries[0].read_bytes()
    given = [word for file in summaries for word in ("--summaries", file)]
    again = tmp_path / "again.shares"
    assert run_main(monkeypatch, "group", site, *given, "--save-shares", again, *flags) == 0
    assert again.read_bytes() == shares[0].read_bytes()
    capsys.readouterr()
    given = [word for file in shares for word in ("--shares", file)]
    assert run_main(monkeypatch, "group", *given) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"group{n}: {', '.join(names)}" for n, names in enumerate(WANTED, 1)
    ]
    site_shares(mixed / "blocks1", summaries[:3], again, **OPTIONS)
    with pytest.raises(DataError, match="stripes2 at blocks1"):
        group_shares([again, *shares[1:]])
    with pytest.raises(DataError, match="stripes2 wrote are missing"):
        group_shares(shares[:3])
    with pytest.raises(DataError, match="second file of the shares of site blocks2"):
        group_shares([*shares, shares[1]])
    with pytest.raises(MismatchError, match="other features or another seed"):
        site_shares(mixed / "blocks1", summaries, again, **OPTIONS, seed=1)
    with pytest.raises(ArtefactError, match="no summary"):
        site_shares(mixed / "blocks1", shares[1:2], again, **OPTIONS)
    with pytest.raises(ArtefactError, match="no shares"):
        group_shares(summaries)
    with pytest.raises(ConfigError, match="one site"):
        site_summary(mixed, out, **OPTIONS)
    for file, key, value in (
        (summaries[1], "site", "\x1b[2J"), (summaries[1], "n_images", "many"),
        (shares[1], "site", 7), (shares[1], "sites", [*together.sites[:3], "\x1b[2J"]),
    ):  # fmt: skip
        arrays, values = read_arrays(file)
        write_arrays(tmp_path / "strange", arrays, values | {key: value})
        given = [tmp_path / "strange"]
        with pytest.raises(ArtefactError, match=r"strange (names a site|is of 'many' images)"):
            group_shares(given) if file in shares else site_shares(site, given, again, **OPTIONS)
    config = tmp_path / "config.json"  # of the user's, with a key that a summary has, too
    config.write_text('{"precision": "int8", "shares": 1}')
    with pytest.raises(ConfigError, match="fedvad did not write it"):
        site_summary(site, config, **OPTIONS)
    with pytest.raises(ConfigError, match="fedvad did not write it"):
        site_shares(site, summaries, config, **OPTIONS)
    assert run_main(monkeypatch, "group", *given, site) == 2
    assert run_main(monkeypatch, "group", site, "--save-shares", again) == 2


def test_sites_of_one_name_are_not_taken_for_one(mixed: Path, tmp_path: Path) -> None:
    """Each of two sites calls its folder `line`: neither may leave the other out in silence."""
    summaries = []
    for name in ("stripes1", "blocks1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "line").symlink_to(mixed / name, target_is_directory=True)
        summaries.append(tmp_path / f"{name}.summary")
        site_summary(tmp_path / name / "line", summaries[-1], **OPTIONS)
    for given in (summaries, summaries[1:]):
        with pytest.raises(DataError, match=r"blocks1\.summary is of another site .* called line"):
            site_shares(tmp_path / "stripes1/line", given, tmp_path / "shares", **OPTIONS)
    with pytest.raises(DataError, match="is of another site that is called line"):
        site_shares(mixed / "stripes2", summaries, tmp_path / "shares", **OPTIONS)


def test_other_groups_take_no_place_of_those_before(mixed: Path, tmp_path: Path) -> None:
    """Runs of other sites would be taken for theirs, and links of then be trained on, too."""
    before = '{"groups": [["blocks1"], ["blocks2"], ["stripes1", "stripes2"]]}'
    (tmp_path / "groups.json").write_text(before)
    for resume in (False, True):
        with pytest.raises(ConfigError, match="has other groups"):
            group(mixed, tmp_path, resume=resume, **OPTIONS)
    assert (tmp_path / "groups.json").read_text() == before
    assert not (tmp_path / "sites").exists()
