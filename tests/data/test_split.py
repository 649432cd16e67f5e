from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedvad.data.folders import ImageItem, ImageSet, Site, read_set
from fedvad.data.split import Split, parse_split, split_site
from fedvad.errors import ConfigError, DataError, ImageError


def make_site(train: int, good: int = 0, **defects: int) -> Site:
    """A site of names alone, for `fake_loader`."""

    def items(count: int, label: int, defect: str, where: str) -> list[ImageItem]:
        folder = Path("/nowhere", where, defect)
        return [ImageItem(folder / f"{i:04}.png", label, defect, None) for i in range(count)]

    test = items(good, 0, "good", "test")
    for defect, count in defects.items():
        test += items(count, 1, defect, "test")
    return Site("toy", ImageSet(tuple(items(train, 0, "good", "train"))), ImageSet(tuple(test)))


def fake_loader(path: Path) -> np.ndarray:
    """A picture that follows from the name: some smooth waves in some colour."""
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    waves = np.sin(np.arange(16)[:, None] * rng.random() + np.arange(16)[None] * rng.random())
    colour = rng.integers(40, 256, 3)
    return ((waves[:, :, None] + 1) / 2 * colour).astype(np.uint8)


def grouped_loader(path: Path) -> np.ndarray:
    """Four brightness groups, by the number in the name."""
    group = int(path.stem) % 4
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    return (30 + 60 * group + rng.normal(0, 4, (32, 32, 3))).clip(0, 255).astype(np.uint8)


def blind_loader(path: Path) -> np.ndarray:
    if zlib.crc32(path.name.encode()) % 3 == 0:
        raise ImageError(f"{path}: cannot be decoded")
    return fake_loader(path)


def sizes(parts: list[Site]) -> list[int]:
    return [len(part.train) for part in parts]


def names(sites: list[Site]) -> list[list[list[str]]]:
    return [[sorted(str(path) for path in s.paths) for s in (p.train, p.test)] for p in sites]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("iid:4", Split("iid", 4)),
        (" style:1000 ", Split("style", 1000)),
        ("dirichlet:6:0.5", Split("dirichlet", 6, 0.5)),
        ("dirichlet:2:.1", Split("dirichlet", 2, 0.1)),
        ("dirichlet:2:1e-3", Split("dirichlet", 2, 0.001)),
    ],
)
def test_parse_split(text, split) -> None:
    assert parse_split(text) == split
    assert parse_split(str(split)) == split


@pytest.mark.parametrize(
    "text",
    [
        "",
        "iid",
        "iid:",
        "iid:1",
        "iid:0",
        "iid:1001",
        "iid:99999",
        "iid:-3",
        "iid:2.5",
        "iid:2:0.5",
        "IID:4",
        "iid: 4",
        "iid:٣",
        "style:x",
        "style:3:1",
        "dirichlet:3",
        "dirichlet:3:",
        "dirichlet:3:0",
        "dirichlet:3:-1",
        "dirichlet:3:nan",
        "dirichlet:3:inf",
        "dirichlet:3:1e999",
        "dirichlet:3:1.2.3",
        "dirichlet:1:1",
        "sites:3",
        "iid:3\n:1",
    ],
)
def test_parse_split_refuses_and_names_the_forms(text) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_split(text)
    for form in ("iid:N", "dirichlet:N:ALPHA", "style:N"):
        assert form in str(caught.value)


@pytest.mark.parametrize("split", [("iid", 1), ("iid", 3, 0.5), ("dirichlet", 3), ("x", 3)])
def test_split_built_by_hand_is_checked_too(split) -> None:
    with pytest.raises(ConfigError):
        Split(*split)


SPLITS = st.one_of(
    st.builds(Split, st.sampled_from(["iid", "style"]), st.integers(2, 6)),
    st.builds(Split, st.just("dirichlet"), st.integers(2, 6), st.floats(1e-320, 1e308)),
)


@settings(max_examples=30)
@given(
    split=SPLITS,
    extra=st.integers(0, 30),
    good=st.integers(0, 15),
    crack=st.integers(0, 9),
    hole=st.integers(0, 9),
    seed=st.integers(0, 2**40),
    loader=st.sampled_from([fake_loader, grouped_loader, blind_loader]),
)
def test_every_image_lands_in_one_part(split, extra, good, crack, hole, seed, loader) -> None:
    n = split.parts
    site = make_site(2 * n + extra, good, crack=crack, hole=hole)
    parts = split_site(site, split, seed, loader=loader)
    assert [part.name for part in parts] == [f"part{i + 1}" for i in range(n)]
    for whole, pieces in [
        (site.train, [part.train for part in parts]),
        (site.test, [part.test for part in parts]),
    ]:
        assert sorted(i.path for p in pieces for i in p) == sorted(whole.paths)
        assert {i for p in pieces for i in p} == set(whole)
    assert min(sizes(parts)) >= 2
    for label, count in [(0, good), (1, crack + hole)]:
        held = [int((part.test.labels == label).sum()) for part in parts]
        assert sum(have > 0 for have in held) >= min(n, count)
    if split.kind == "iid":
        for defect in ("good", "crack", "hole"):
            held = [part.test.defects.count(defect) for part in parts]
            assert max(held) - min(held) <= 1
        assert max(sizes(parts)) - min(sizes(parts)) <= 1
    if split.kind == "style":
        assert min(sizes(parts)) >= len(site.train) // (4 * n)


@pytest.mark.parametrize("text", ["iid:3", "dirichlet:3:0.5", "style:3"])
def test_same_seed_same_split_whatever_the_order(text) -> None:
    site = make_site(40, 12, crack=9, hole=5)
    split = parse_split(text)
    first = split_site(site, split, 7, loader=fake_loader)
    rng = np.random.default_rng(1)
    shuffled = Site(
        "toy",
        site.train.subset(rng.permutation(len(site.train))),
        site.test.subset(rng.permutation(len(site.test))),
    )
    assert split_site(site, split, 7, loader=fake_loader) == first
    assert split_site(shuffled, split, 7, loader=fake_loader) == first
    if text != "style:3":
        assert names(split_site(site, split, 8, loader=fake_loader)) != names(first)


def test_too_few_training_images() -> None:
    with pytest.raises(DataError, match=r"'toy' has 7 .* at least 8"):
        split_site(make_site(7, 20), parse_split("iid:4"), 0, loader=fake_loader)
    with pytest.raises(ConfigError, match="seed"):
        split_site(make_site(9), parse_split("iid:4"), -1, loader=fake_loader)


def skew(alpha: float, seed: int) -> tuple[float, float]:
    """Spread of part sizes, and distance of the parts' brightness mixes from the whole's."""
    site = make_site(160, 40, crack=40)
    parts = split_site(site, Split("dirichlet", 4, alpha), seed, loader=grouped_loader)
    mixes = [
        np.bincount([int(path.stem) % 4 for path in part.train.paths], minlength=4)
        / len(part.train)
        for part in parts
    ]
    return float(np.std(sizes(parts))), float(np.mean(np.abs(np.array(mixes) - 0.25)))


def test_small_alpha_skews_sizes_and_content() -> None:
    strong = np.mean([skew(0.1, seed) for seed in range(3)], axis=0)
    weak = np.mean([skew(100, seed) for seed in range(3)], axis=0)
    assert strong[0] > 4 * weak[0]
    assert strong[1] > 3 * weak[1]


def test_test_images_follow_their_cluster_in_dirichlet() -> None:
    site = make_site(200, 200)
    parts = split_site(site, parse_split("dirichlet:2:0.05"), 3, loader=grouped_loader)
    counts = np.array(
        [
            np.bincount([int(p.stem) % 4 for p in images.paths], minlength=4)
            for part in parts
            for images in (part.train, part.test)
        ]
    )
    assert np.abs(counts[0] - counts[1]).max() <= 20  # of 50 in each group
    assert np.abs(counts[2] - counts[3]).max() <= 20


def test_style_finds_the_brightness_groups_darkest_first() -> None:
    site = make_site(80, 20, crack=12)
    parts = split_site(site, parse_split("style:4"), 0, loader=grouped_loader)
    for number, part in enumerate(parts):
        for images in (part.train, part.test):
            assert {int(path.stem) % 4 for path in images.paths} == {number}


def test_style_fills_parts_that_are_too_small() -> None:
    def one_odd(path: Path) -> np.ndarray:
        if path.stem == "0000":
            return np.full((32, 32, 3), 255, np.uint8)
        return grouped_loader(path.with_stem("0001")) // 2 + int(path.stem) % 5

    parts = split_site(make_site(80), parse_split("style:2"), 0, loader=one_odd)
    assert min(sizes(parts)) >= 80 // 8


@pytest.mark.parametrize("text", ["dirichlet:3:0.3", "style:3"])
@pytest.mark.parametrize("seen", [0, 1, 4, 30])
def test_unreadable_images_do_not_stop_the_split(text, seen) -> None:
    def loader(path: Path) -> np.ndarray:
        if int(path.stem) >= seen:
            raise ImageError(f"{path}: is empty")
        return fake_loader(path)

    site = make_site(60, 9, crack=9)
    parts = split_site(site, parse_split(text), 0, loader=loader)
    assert sum(sizes(parts)) == 60
    assert min(sizes(parts)) >= 2
    unseen = [sum(int(path.stem) >= seen for path in part.train.paths) for part in parts]
    assert max(unseen) - min(unseen) <= 1
    readable = [sum(int(path.stem) < seen for path in part.train.paths) for part in parts]
    assert min(readable) >= min(2, seen // 3)


@pytest.mark.parametrize("text", ["iid:4", "dirichlet:4:1", "style:4"])
def test_identical_images(text) -> None:
    def loader(path: Path) -> np.ndarray:
        return np.full((8, 8, 3), 100, np.uint8)

    parts = split_site(make_site(12, 4, crack=4), parse_split(text), 0, loader=loader)
    assert min(sizes(parts)) >= 2
    assert all({0, 1} == set(part.test.labels.tolist()) for part in parts)


def test_anomalies_among_training_images_are_kept_apart() -> None:
    site = make_site(8, 4, crack=8)
    mixed = Site("toy", site.train + site.test[4:8], site.test[:4] + site.test[8:])
    for text in ("iid:4", "style:4", "dirichlet:4:1"):
        parts = split_site(mixed, parse_split(text), 0, loader=fake_loader)
        assert all(int((part.train.labels == 0).sum()) >= 2 for part in parts)
        assert sum(int(part.train.labels.sum()) for part in parts) == 4


def test_with_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, count in {"train/good": 12, "test/good": 4, "test/crack": 4}.items():
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (20, 20, 3)) + 190 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "train/good/broken.png").write_bytes(b"\x89PNG")
    dark, light = split_site(read_set(tmp_path), parse_split("style:2"), 0)
    assert {int(p.stem) % 2 for p in dark.train.paths if p.stem != "broken"} == {0}
    assert {int(p.stem) % 2 for p in light.train.paths if p.stem != "broken"} == {1}
    assert len(dark.train) + len(light.train) == 13
    assert dark.test.defects == ("good", "good", "crack", "crack")
