"""The descriptor cache under damage, several writers, sudden death, and a disk that refuses."""

from __future__ import annotations

import errno
import io
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvad.errors import ConfigError
from fedvad.features.cache import (
    DescriptorCache,
    HalfArray,
    content_key,
    default_cache_root,
    parse_bytes,
)

SHAPE = (4, 5, 8)
ENTRY = 128 + 2 * 4 * 5 * 8 + 32  # a .npy header, the values and their digest


def _name(i: int) -> str:
    return content_key(str(i).encode())


def _value(i: int, shape: tuple[int, ...] = SHAPE) -> HalfArray:
    return np.full(shape, i, np.float16)


def _files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.npy"))


@pytest.fixture
def cache(cache_root: Path) -> DescriptorCache:
    return DescriptorCache(cache_root)


def test_round_trip_is_exact(cache: DescriptorCache) -> None:
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    values.flat[:4] = [-0.0, 65504, 6e-8, np.finfo(np.float16).tiny]
    cache.put("conf", _name(1), values)
    found = cache.get("conf", _name(1))
    assert found is not None
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found.view(np.uint16), values.view(np.uint16))
    assert not found.flags.writeable
    assert cache.get("conf", _name(2)) is None
    assert cache.get("other", _name(1)) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_new_cache_is_closed_to_other_users(tmp_path: Path) -> None:
    DescriptorCache(tmp_path / "new").put("conf", _name(1), np.ones(SHAPE, np.float16))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_strided_arrays_round_trip(cache: DescriptorCache) -> None:
    values = np.arange(160, dtype=np.float16).reshape(8, 4, 5).transpose(1, 2, 0)
    cache.put("conf", _name(1), values)
    np.testing.assert_array_equal(cache.get("conf", _name(1)), values)


def _zip_of_arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=_value(1))
    return file.getvalue()


def _saved(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda good: good[:-7],
    "cut in the header": lambda good: good[:40],
    "empty": lambda good: b"",
    "zeros": lambda good: bytes(len(good)),
    "text": lambda good: b"not descriptors at all",
    "broken zip": lambda good: b"PK\x03\x04" + good,
    "zip of arrays": lambda good: _zip_of_arrays(),
    "header does not parse": lambda good: good.replace(b"'shape': (", b"'shape': ((", 1),
    "float32": lambda good: _saved(np.zeros(SHAPE, np.float32)),
    "two axes": lambda good: _saved(np.zeros((4, 5), np.float16)),
    "pickle": lambda good: _saved(np.array([[["a", None]]], dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_entry_is_dropped_reported_and_made_again(
    damage: Callable[[bytes], bytes], cache: DescriptorCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("conf", _name(1), _value(1))
    (path,) = _files(cache.root)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("conf", _name(1)) is None
    assert not path.exists()
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    cache.put("conf", _name(1), _value(2))
    np.testing.assert_array_equal(cache.get("conf", _name(1)), _value(2))


def test_random_damage_never_raises(cache: DescriptorCache) -> None:
    logging.getLogger("fedvad.features.cache").setLevel(logging.ERROR)
    try:
        rng = np.random.default_rng(0)
        cache.put("conf", _name(1), _value(1))
        (path,) = _files(cache.root)
        good = path.read_bytes()
        hits = 0
        for _ in range(500):
            bad = bytearray(good)
            for place in rng.integers(0, 128, rng.integers(1, 5)):
                bad[place] = rng.integers(0, 256)
            path.write_bytes(bad)
            found = cache.get("conf", _name(1))
            hits += found is not None
            assert found is None or (found.ndim == 3 and found.dtype == np.float16)
        assert hits < 100
    finally:
        logging.getLogger("fedvad.features.cache").setLevel(logging.NOTSET)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_file_out_of_reach_is_not_called_damaged(
    number: int,
    cache: DescriptorCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.put("conf", _name(1), _value(1))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert cache.get("conf", _name(1)) is None
    assert not caplog.records
    assert cache.get("conf", _name(1)) is not None


def test_read_only_cache_still_gives_hits(
    cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put("conf", _name(1), _value(1))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get("conf", _name(1)) is not None
    _files(cache.root)[0].write_bytes(b"damaged")
    assert cache.get("conf", _name(1)) is None


# -- several processes ------------------------------------------------------------------------


def _write_all(root: str, rounds: int) -> None:
    cache = DescriptorCache(Path(root))
    for _ in range(rounds):
        for i in range(30):
            cache.put("conf", _name(i), _value(i, (16, 16, 32)))


def test_two_processes_writing_the_same_keys(cache: DescriptorCache) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_all, args=(str(cache.root), 5), daemon=True) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    wrong = 0
    while any(worker.is_alive() for worker in workers):
        for i in range(30):
            found = cache.get("conf", _name(i))
            wrong += found is not None and not (found == i).all()
        time.sleep(0.005)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert wrong == 0
    for i in range(30):
        np.testing.assert_array_equal(cache.get("conf", _name(i)), _value(i, (16, 16, 32)))
    assert cache.info().entries == 30
    assert not list(cache.root.rglob("*.tmp"))


_WRITER = """
import io, sys, time
from pathlib import Path
import numpy as np
from fedvad.features.cache import DescriptorCache, content_key
cache = DescriptorCache(Path(sys.argv[1]))
save = np.save

def save_half(file, array, **options):
    whole = io.BytesIO()
    save(whole, array, **options)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    print("half", flush=True)
    time.sleep(600)

for i in range(2):
    cache.put("conf", content_key(str(i).encode()), np.full((64, 64, 72), i, np.float16))
    np.save = save_half
"""


def test_kill_9_leaves_only_whole_entries(cache: DescriptorCache) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(cache.root)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    (entry,) = _files(cache.root)
    found = cache.get("conf", entry.stem)
    assert found is not None
    assert found.shape == (64, 64, 72)
    assert (found == 0).all()
    assert len(list(cache.root.rglob("*.tmp"))) == 1


def test_leftovers_of_killed_writers_are_swept_once_old(cache: DescriptorCache) -> None:
    cache.put("conf", _name(0), _value(0))
    folder = _files(cache.root)[0].parent
    old, fresh = folder / ".a.0.tmp", folder / ".b.1.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    DescriptorCache(cache.root).put("conf", _name(1), _value(1))
    assert not old.exists()
    assert fresh.exists()
    assert cache.info().entries == 2


# -- the budget -------------------------------------------------------------------------------


def test_budget_evicts_the_least_recently_used(cache_root: Path) -> None:
    cache = DescriptorCache(cache_root, max_bytes=10 * ENTRY)
    start = time.time() - 1000
    for i in range(10):
        cache.put("conf", _name(i), _value(i))
        os.utime(cache._path("conf", _name(i)), (start + i,) * 2)
    assert cache.info().entries == 10
    assert cache.info().bytes == 10 * ENTRY
    for i in (0, 3):  # used again, so the oldest no longer
        assert cache.get("conf", _name(i)) is not None
    cache.put("conf", _name(10), _value(10))
    left = {i for i in range(11) if cache.get("conf", _name(i)) is not None}
    assert left == {0, 3, 4, 5, 6, 7, 8, 9, 10}  # 11 entries down to 90 % of ten: 1 and 2 went


def test_budget_holds_whatever_is_put(cache_root: Path) -> None:
    cache = DescriptorCache(cache_root, max_bytes=20 * ENTRY)
    for i in range(200):
        cache.put("conf", _name(i), _value(i))
        assert cache.info().bytes <= 20 * ENTRY
    assert cache.info().entries >= 18
    for i in range(190, 200):
        assert cache.get("conf", _name(i)) is not None


def test_budget_counts_what_earlier_processes_left(cache_root: Path) -> None:
    first = DescriptorCache(cache_root)
    for i in range(30):
        first.put("conf", _name(i), _value(i))
    small = DescriptorCache(cache_root, max_bytes=5 * ENTRY)
    small.put("conf", _name(99), _value(99))
    assert small.info().bytes <= 5 * ENTRY
    assert small.get("conf", _name(99)) is not None


def test_entry_larger_than_the_budget_is_not_kept(cache_root: Path) -> None:
    cache = DescriptorCache(cache_root, max_bytes=ENTRY // 2)
    cache.put("conf", _name(1), _value(1))
    assert cache.info().entries == 0


def test_eviction_under_a_reader(cache_root: Path) -> None:
    shape = (32, 32, 72)
    cache = DescriptorCache(cache_root, max_bytes=8 * (128 + 2 * 32 * 32 * 72))
    stop = threading.Event()
    seen = [0, 0]

    def read() -> None:
        held: list[tuple[int, HalfArray]] = []
        rng = np.random.default_rng(0)
        while not stop.is_set():
            i = int(rng.integers(0, 24))
            found = cache.get("conf", _name(i))
            if found is not None:
                held = [*held[-5:], (i, found)]  # mapped on while it is being evicted
            for number, array in held:
                seen[0] += 1
                seen[1] += not (array == number).all()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(400):
            cache.put("conf", _name(i % 24), _value(i % 24, shape))
    finally:
        stop.set()
        reader.join()
    assert seen[0] > 20
    assert seen[1] == 0


# -- a disk that refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_refusing_disk_warns_once_and_goes_on(
    number: int,
    cache: DescriptorCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.put("conf", _name(0), _value(0))

    def refuse(file: Any, *args: Any, **kwargs: Any) -> None:
        file.write(b"half of it")
        time.sleep(0.01)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "save", refuse)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put("conf", _name(i), _value(i)), range(1, 9)))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert os.strerror(number) in caplog.text
    assert not list(cache.root.rglob("*.tmp"))
    assert cache.get("conf", _name(0)) is not None
    assert cache.get("conf", _name(1)) is None


def test_root_below_a_file_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DescriptorCache(tmp_path / "file" / "cache")
    for i in range(3):
        assert cache.get("conf", _name(i)) is None
        cache.put("conf", _name(i), _value(i))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_clearing_while_writing_does_not_end_the_caching(
    cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = np.save

    def cleared_meanwhile(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        DescriptorCache(cache.root).clear()

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", cleared_meanwhile)
        cache.put("conf", _name(0), _value(0))
    cache.put("conf", _name(1), _value(1))
    assert cache.get("conf", _name(1)) is not None
    assert not caplog.records


# -- numbers ----------------------------------------------------------------------------------


def test_info_and_clear(cache: DescriptorCache) -> None:
    assert cache.info().entries == 0
    assert cache.clear() == 0
    for i in range(5):
        cache.put("one", _name(i), _value(i))
    for i in range(2):
        cache.put("two", _name(i), _value(i, (8, 8, 8)))
    info = cache.info()
    large = 128 + 2 * 8**3 + 32
    assert info.configurations == {"one": (5, 5 * ENTRY), "two": (2, 2 * large)}
    assert (info.entries, info.bytes) == (7, 5 * ENTRY + 2 * large)
    assert info.root == str(cache.root)
    assert info.max_bytes == 20 << 30
    assert cache.clear() == info.bytes
    assert cache.info().entries == 0
    cache.put("one", _name(0), _value(0))
    assert cache.info().entries == 1


def test_clear_spares_what_is_not_its_own(cache: DescriptorCache) -> None:
    cache.put("one", _name(0), _value(0))
    (cache.root / "notes.txt").write_text("mine")
    cache.clear()
    assert (cache.root / "notes.txt").read_text() == "mine"


def test_default_root(monkeypatch: pytest.MonkeyPatch, cache_root: Path, tmp_path: Path) -> None:
    assert default_cache_root() == cache_root
    monkeypatch.delenv("FEDVAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / "fedvad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert default_cache_root() == Path("/somebody/.cache/fedvad")


def test_content_key_is_the_content() -> None:
    assert content_key(b"") == "3345524abf6bbe1809449224b5972c41790b6cf2"
    assert content_key(b"a") != content_key(b"b")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024), ("20G", 20 << 30), ("20GB", 20 << 30), ("20GiB", 20 << 30),
        (" 500 m ", 500 << 20), ("1.5K", 1536), ("2t", 2 << 40), ("0", 0), ("7B", 7),
    ],
)  # fmt: skip
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "twenty", "20X", "-5G", "-1", "inf", "infG", "1e999", "nan", "nanT", "5GG"]
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(ConfigError, match="20G or 500M"):
        parse_bytes(text)


@given(st.integers(0, 10**6), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "b"]))
def test_parse_bytes_of_any_number_and_unit(number: int, unit: str, suffix: str) -> None:
    expected = number << {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
    assert parse_bytes(f"{number}{unit}{suffix}") == expected
    assert parse_bytes(f"{number} {unit.lower()}") == expected


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert parse_bytes(text) >= 0


def test_reading_parses_no_python(cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    # threads of Python 3.11 that do it together fail now and then, and good entries were dropped
    cache.put("conf", _name(1), _value(1))
    monkeypatch.setattr("ast.literal_eval", lambda text: pytest.fail("parsed as Python"))
    np.testing.assert_array_equal(cache.get("conf", _name(1)), _value(1))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_stream_of_entries_holds_no_file_open(tmp_path: Path) -> None:
    cache = DescriptorCache(tmp_path)
    for number in range(40):
        cache.put("c", f"{number:02d}", np.full((2, 2, 3), number, np.float16))
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = [cache.get("c", f"{number:02d}") for number in range(40)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [float(entry[0, 0, 0]) for entry in held if entry is not None] == list(range(40))
