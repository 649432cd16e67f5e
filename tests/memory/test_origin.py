from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedvad.errors import MemoryBankError
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.memory.merge import MergeMode, merge_banks
from fedvad.memory.origin import Origin, Source, join_origins, origin_arrays, origin_from
from tests.helpers import make_bank


def sent(site: str, rows: int = 9, seed: int = 0, round_: int = 1) -> MemoryBank:
    origin = Origin.of([Source(site, round_)], np.zeros(rows, np.int64))
    return replace(make_bank(rows, seed=seed), origin=origin)


@pytest.fixture
def banks() -> dict[str, MemoryBank]:
    return {name: sent(name, seed=seed) for seed, name in enumerate(("a", "b", "c"))}


@pytest.mark.parametrize("mode", ["concat", "kcenter"])
def test_rows_keep_their_site(banks: dict[str, MemoryBank], mode: MergeMode) -> None:
    merged = merge_banks(banks, mode=mode, size=14, seed=0)
    assert merged.origin is not None
    for row, source in zip(merged.vectors, merged.origin.source, strict=True):
        site = merged.origin.sources[source].site
        assert (banks[site].vectors == row).all(1).any()


def test_averages_have_shares_that_are_those_of_their_patches(
    banks: dict[str, MemoryBank],
) -> None:
    for mode in ("kmeans", "average"):
        merged = merge_banks(banks, mode=mode, size=4, seed=0)
        assert merged.origin is not None
        assert len(merged.origin.share) > len(merged)
        np.testing.assert_allclose(np.bincount(merged.origin.row, merged.origin.share), 1, 1e-6)
        by_site = merged.origin.by_site(merged.weights)
        assert by_site == pytest.approx({n: b.total_weight for n, b in banks.items()}, rel=1e-5)


def test_a_site_that_left_is_named_no_longer(banks: dict[str, MemoryBank]) -> None:
    together = concatenate([banks["a"], sent("b", round_=2), banks["c"]])
    assert together.origin is not None
    left = together.take(together.origin.share_of("b") == 0)
    assert left.origin is not None
    assert [s.site for s in left.origin.sources] == ["a", "c"]
    assert b'"b"' not in origin_arrays(left.origin)["origin.sources"].tobytes()


def test_rows_of_an_earlier_version_are_unknown(banks: dict[str, MemoryBank]) -> None:
    old = make_bank(3)
    assert concatenate([old, old]).origin is None
    mixed = concatenate([old, banks["a"]])
    assert mixed.origin is not None
    assert mixed.origin.by_site(np.ones(12)) == {"": 3.0, "a": 9.0}


def test_what_is_written_is_read_again() -> None:
    images = Origin.of([Source("a", 1, "i"), Source("a", 1, "j"), Source("b", 1)], [0, 1, 1, 2])
    cells = images.cells([0, 0, 1, 1], [1, 3, 1, 1])
    for origin, wanted in ((images, 2), (cells, 4)):
        arrays = origin_arrays(origin)
        assert len(arrays) == wanted
        found = origin_from(arrays, len(origin))
        assert found is not None
        assert found.sources == origin.sources
        assert found.source.tolist() == origin.source.tolist()
        assert found.share.tolist() == origin.share.tolist()
    assert origin_from({}, 4) is None


def test_images_stay_at_the_site() -> None:
    origin = Origin.of([Source("a", 1, "i"), Source("a", 1, "j")], [0, 1, 1])
    outside = origin.without_images()
    assert outside.sources == (Source("a", 1),)
    assert outside.source.tolist() == [0, 0, 0]
    assert origin.share_of("a", "j").tolist() == [0, 1, 1]


def test_one_image_in_two_files_is_one_source() -> None:
    origin = join_origins([Origin.of([Source("a", 1, "i"), Source("a", 1, "i")], [0, 1])])
    assert origin.sources == (Source("a", 1, "i"),)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": np.array([0, 9, 0], np.uint16)},
        {"origin": np.zeros(4, np.uint16)},
        {"origin": np.zeros(3, np.float32)},
        {"origin.sources": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"origin.sources": np.frombuffer(b'[["a", "1"]]', np.uint8)},
        {"origin.sources": np.frombuffer(b'[["a", 1], ["a", 1]]', np.uint8)},
        {"origin.sources": np.frombuffer(b"[7]", np.uint8)},
        {"origin.count": np.array([1, 2, 0], np.uint32)},
        {"origin.share": np.array([1, np.nan, 1], np.float32)},
    ],
)
def test_what_no_origin_can_be_is_refused(change: dict[str, np.ndarray]) -> None:
    arrays = origin_arrays(Origin.of([Source("a", 1)], [0, 0, 0]))
    with pytest.raises(MemoryBankError):
        origin_from(arrays | change, 3)
