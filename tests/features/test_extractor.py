"""From files to descriptors: order, bad files, the cache by content, and bounded memory."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import save_file

from fedvad.data.images import decode_rgb, read_rgb, resize_rgb
from fedvad.errors import ConfigError, DataError
from fedvad.features import extractor as module
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.engine import DescriptorEngine
from fedvad.features.extractor import Extracted, FeatureExtractor, check_bad_share

SIDE = 64
CONFIG = FeatureConfig("filterbank", image_size=SIDE)
MakeImages = Callable[..., list[Path]]
Make = Callable[..., FeatureExtractor]


@pytest.fixture(scope="module")
def engine() -> DescriptorEngine:
    """Compiled once: making it takes longer than any test here."""
    return FeatureExtractor(CONFIG).engine


@pytest.fixture
def make(engine: DescriptorEngine) -> Make:
    def extractor(cache: DescriptorCache | None = None) -> FeatureExtractor:
        made = FeatureExtractor(CONFIG, cache)
        made.__dict__["engine"] = engine
        return made

    return extractor


@pytest.fixture
def cache(cache_root: Path) -> DescriptorCache:
    return DescriptorCache(cache_root)


def _descriptors(found: Iterable[Extracted]) -> list[npt.NDArray[np.float16]]:
    got = []
    for item in found:
        assert item.descriptors is not None, item.error
        got.append(np.array(item.descriptors))
    return got


def _bits(arrays: list[npt.NDArray[np.float16]]) -> npt.NDArray[np.uint16]:
    return np.stack(arrays).view(np.uint16)


def test_descriptors_are_those_of_the_decoded_images(make: Make, make_images: MakeImages) -> None:
    paths = make_images(5, size=80)
    extractor = make()
    found = _descriptors(extractor.stream(paths))
    pixels = np.stack([resize_rgb(read_rgb(path), SIDE) for path in paths])
    np.testing.assert_array_equal(_bits(found), extractor.describe(pixels).view(np.uint16))
    assert found[0].shape == extractor.grid == (16, 16, 72)
    assert len({array.tobytes() for array in found}) == 5


def test_order_with_hits_misses_and_corrupt_files(
    make: Make, make_images: MakeImages, cache: DescriptorCache, tmp_path: Path
) -> None:
    paths = make_images(150)
    truth = make().describe(np.stack([read_rgb(path) for path in paths]))
    half = make(cache)
    assert len(list(half.stream(paths[::2]))) == 75
    bad = {3, 64, 65, 128, 149}
    for i in bad:
        paths[i] = tmp_path / f"bad{i}.png"
        paths[i].write_bytes(b"\x89PNG\r\n\x1a\n broken")
    paths[100] = tmp_path / "absent.png"
    bad.add(100)
    called = []
    extractor = make(cache)
    found = list(extractor.stream(paths, lambda: called.append(1)))
    assert [item.index for item in found] == list(range(150))
    assert len(called) == 150
    for item, path in zip(found, paths, strict=True):
        if item.index in bad:
            assert item.descriptors is None
            assert item.error is not None
            assert str(path) in item.error
        else:
            assert item.error is None
            np.testing.assert_array_equal(item.descriptors, truth[item.index])
    assert extractor.computed == sum(i % 2 == 1 and i not in bad for i in range(150))


@pytest.mark.parametrize("n", [0, 1, 64, 65, 128, 129])
def test_any_number_of_images(n: int, make: Make, make_images: MakeImages) -> None:
    paths = make_images(n, size=16)
    assert [item.index for item in make().stream(paths)] == list(range(n))


def test_all_files_corrupt(make: Make, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(70)]
    found = list(make().stream(paths))
    assert all(item.descriptors is None for item in found)
    assert len({item.error for item in found}) == 70


def test_second_pass_computes_nothing_and_is_bit_identical(
    make: Make, make_images: MakeImages, cache: DescriptorCache
) -> None:
    paths = make_images(70)
    extractor = make(cache)
    first = _descriptors(extractor.stream(paths))
    assert extractor.computed == 70
    second = _descriptors(extractor.stream(paths))
    assert extractor.computed == 70
    np.testing.assert_array_equal(_bits(first), _bits(second))
    without = make()
    np.testing.assert_array_equal(_bits(first), _bits(_descriptors(without.stream(paths))))
    later = make(DescriptorCache(cache.root))
    del later.__dict__["engine"]
    np.testing.assert_array_equal(_bits(first), _bits(_descriptors(later.stream(paths))))
    assert later.computed == 0
    assert "engine" not in later.__dict__  # not even made


def test_each_file_is_read_and_decoded_once(
    make: Make, make_images: MakeImages, cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    decodes: list[str] = []
    read = module.read_bytes

    def counting_read(path: Path) -> bytes:
        reads.append(str(path))
        return read(path)

    def counting_decode(data: bytes, name: str, **limits: Any) -> npt.NDArray[np.uint8]:
        decodes.append(name)
        return decode_rgb(data, name, **limits)

    monkeypatch.setattr(module, "read_bytes", counting_read)
    monkeypatch.setattr(module, "decode_rgb", counting_decode)
    paths = make_images(66, size=16)
    extractor = make(cache)
    list(extractor.stream(paths))
    assert sorted(reads) == sorted(decodes) == [str(path) for path in paths]
    list(extractor.stream(paths))
    assert len(reads) == len(decodes) == 66
    paths[3].write_bytes(paths[4].read_bytes() + b"\0")
    list(extractor.stream(paths))
    assert reads[66:] == decodes[66:] == [str(paths[3])]


def test_cache_goes_by_content(make: Make, make_images: MakeImages, cache: DescriptorCache) -> None:
    one, two, three = make_images(3)
    extractor = make(cache)
    (truth,) = _descriptors(extractor.stream([one]))
    renamed = one.with_name("renamed.jpeg")
    shutil.copy(one, renamed)
    (copied,) = _descriptors(extractor.stream([renamed]))
    assert extractor.computed == 1
    np.testing.assert_array_equal(copied, truth)
    # other content behind the same name, size and time
    times = one.stat().st_mtime_ns
    one.write_bytes(two.read_bytes())
    os.utime(one, ns=(times, times))
    (changed,) = _descriptors(extractor.stream([one]))
    assert extractor.computed == 2
    assert (changed != truth).any()
    _descriptors(extractor.stream([two, three]))
    assert extractor.computed == 3


def test_other_configurations_do_not_meet_in_the_cache(
    make_images: MakeImages, cache: DescriptorCache
) -> None:
    paths = make_images(1)
    for other in ({}, {"pool": 1}, {"image_size": 32}, {"layers": (1,)}):
        config = FeatureConfig("filterbank", **{"image_size": SIDE, "engine": "torch", **other})
        found = FeatureExtractor(config, cache)
        list(found.stream(paths))
        assert found.computed == 1, other
    # the engine is a way, not identity
    again = FeatureExtractor(FeatureConfig("filterbank", image_size=SIDE, layers=(0, 1, 2)), cache)
    list(again.stream(paths))
    assert again.computed == 0  # the default layers, named


def test_file_that_vanishes_between_passes(
    make: Make, make_images: MakeImages, cache: DescriptorCache
) -> None:
    paths = make_images(4)
    extractor = make(cache)
    list(extractor.stream(paths))
    paths[2].unlink()
    found = list(extractor.stream(paths))
    assert [item.descriptors is None for item in found] == [False, False, True, False]
    assert "No such file" in (found[2].error or "")


def test_damaged_entry_is_computed_again(
    make: Make, make_images: MakeImages, cache: DescriptorCache
) -> None:
    paths = make_images(3)
    extractor = make(cache)
    first = _descriptors(extractor.stream(paths))
    for entry in cache.root.rglob("*.npy"):
        entry.write_bytes(entry.read_bytes()[:-1])
    second = _descriptors(extractor.stream(paths))
    assert extractor.computed == 6
    np.testing.assert_array_equal(_bits(first), _bits(second))
    list(extractor.stream(paths))
    assert extractor.computed == 6


def test_full_disk_costs_no_result(
    make: Make,
    make_images: MakeImages,
    cache: DescriptorCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", refuse)
    paths = make_images(70)
    found = _descriptors(make(cache).stream(paths))
    np.testing.assert_array_equal(_bits(found), _bits(_descriptors(make().stream(paths))))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text


# -- bounds -----------------------------------------------------------------------------------


def _peak(run: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class _AtOnce(Executor):
    """Has done what it is asked for before it answers: as far ahead as threads can ever be."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_memory_does_not_grow_with_the_number_of_images(
    make: Make, make_images: MakeImages, cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # threads that lag behind hold less, with few images and with many alike by chance only
    monkeypatch.setattr(module, "ThreadPoolExecutor", _AtOnce)
    paths = make_images(256, size=SIDE)
    image = 16 * 16 * 72 * 2 + SIDE * SIDE * 3

    def stream(extractor: FeatureExtractor, n: int) -> None:
        for item in extractor.stream(paths[:n]):
            assert item.descriptors is not None

    uncached = make()
    stream(uncached, 8)
    few, many = (_peak(partial(stream, uncached, n)) for n in (128, 256))
    assert many < 1.3 * few
    # two chunks of pixels, one of descriptors, and batches in flight; all would be 256 × image
    assert many < 200 * image
    cached = make(cache)
    stream(cached, 256)
    assert cached.computed == 256
    few, many = (_peak(partial(stream, cached, n)) for n in (128, 256))
    assert many < 1.3 * few
    assert many < 200 * image  # two chunks of entries
    assert cached.computed == 256


def test_a_chunk_is_let_go_before_the_next_but_one_is_read(
    make: Make, make_images: MakeImages, cache: DescriptorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the threads take turns, which `test_memory_does_not_grow` depends on."""
    paths = make_images(256)
    extractor = make(cache)
    list(extractor.stream(paths))
    place = {path: i for i, path in enumerate(paths)}
    kept: dict[int, weakref.ref[npt.NDArray[np.float16]]] = {}
    late = []
    load = extractor._load

    def watched(path: Path) -> Any:
        i = place[path]
        late.extend(j for j in range(i // 64 * 64 - 64) if kept[j]() is not None)
        loaded = load(path)
        assert loaded.hit is not None
        kept[i] = weakref.ref(loaded.hit)
        return loaded

    monkeypatch.setattr(extractor, "_load", watched)
    for item in extractor.stream(paths):
        assert item.error is None
        del item
    assert len(kept) == 256
    assert late == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_open_files_do_not_grow_with_the_number_of_images(
    make: Make, make_images: MakeImages, cache: DescriptorCache
) -> None:
    paths = make_images(256, size=16)
    extractor = make(cache)
    list(extractor.stream(paths))

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, most = count(), 0
    for item in extractor.stream(paths):
        assert item.descriptors is not None
        most = max(most, count() - before)
    assert most <= 16


def test_large_descriptors_come_in_small_chunks(
    make: Make, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, read = make_images(12, size=16), module.read_bytes
    seen = []
    monkeypatch.setattr(module, "read_bytes", lambda path: (seen.append(path), read(path))[1])
    whole = list(make().stream(paths))
    assert len(seen) == 12
    extractor = make()
    monkeypatch.setattr(module, "_CHUNK_BYTES", 7 * np.prod(extractor.grid))  # of three images
    seen.clear()
    running = extractor.stream(paths)
    first = next(running)
    assert len(seen) <= 6
    for ours, expected in zip([first, *running], whole, strict=True):
        assert ours.index == expected.index
        assert np.array_equal(ours.descriptors, expected.descriptors)


def test_stopping_early_does_not_read_on(
    make: Make, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_images(128, size=16)
    read, slow = module.read_bytes, set(paths[64:])
    seen = []

    def slowly(path: Path) -> bytes:
        if path in slow:
            seen.append(path)
            time.sleep(0.1)
        return read(path)

    monkeypatch.setattr(module, "read_bytes", slowly)
    threads = threading.active_count()
    running = make().stream(paths)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert len(seen) < 60
    assert threading.active_count() == threads


# -- values that do not fit ---------------------------------------------------------------------


class _Fake:
    """An engine that gives one value everywhere."""

    batch_size = 4

    def __init__(self, value: float) -> None:
        self.value = value

    def run(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for tag, images in batches:
            out = np.zeros((len(images), 2, 2, 3), np.float32)
            out[-1, -1, -1, -1] = self.value
            yield tag, out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [65520.0, -1e6, float("inf"), float("-inf"), float("nan")])
def test_values_beyond_float16_are_reported(
    value: float, make: Make, make_images: MakeImages, cache: DescriptorCache
) -> None:
    extractor = make(cache)
    extractor.__dict__["engine"] = _Fake(value)
    paths = make_images(2, size=16)
    with pytest.raises(DataError, match=r"filterbank.*float16"):
        list(extractor.stream(paths))
    with pytest.raises(DataError, match=r"filterbank.*float16"):
        extractor.describe(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    assert cache.info().entries == 0


@pytest.mark.parametrize("value", [65519.0, -65519.0])
def test_largest_values_pass(value: float, make: Make) -> None:
    extractor = make()
    extractor.__dict__["engine"] = _Fake(value)
    found = extractor.describe(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    assert found[0, 1, 1, 2] == np.copysign(65504, value)


def test_describe_any_number_and_no_other_shape(make: Make) -> None:
    extractor = make()
    images = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)
    every = extractor.describe(images)
    assert every.dtype == np.float16
    np.testing.assert_array_equal(every[4:5], extractor.describe(images[4:5]))
    assert extractor.describe(images[:0]).shape == (0, 16, 16, 72)
    large = np.repeat(images[:1], 2, axis=2)
    small = resize_rgb(large[0], SIDE)[None]
    np.testing.assert_array_equal(extractor.describe(large), extractor.describe(small))
    for wrong in (images.astype(np.float32), images[..., :1], images[0]):
        with pytest.raises(DataError, match="uint8"):
            extractor.describe(wrong)  # type: ignore[arg-type]


@pytest.fixture
def untrained(tmp_path: Path) -> FeatureExtractor:
    from fedvad.features.compat import import_timm

    file = tmp_path / "weights.safetensors"
    save_file(import_timm().create_model("test_resnet", features_only=True).state_dict(), file)
    return FeatureExtractor(FeatureConfig("test_resnet", weights=file, image_size=SIDE))


def test_backbone_that_refuses_the_image_size(
    untrained: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(x: Any) -> None:
        raise AssertionError("Input height (64) doesn't match model (224).")  # as timm's ViTs do

    monkeypatch.setattr(untrained._backbone.network, "forward", refuse)
    with pytest.raises(ConfigError, match=r"test_resnet cannot take images of 64 pixels: Input"):
        _ = untrained.network


def test_maps_with_channels_last_are_refused_not_misread(
    untrained: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = untrained._backbone.network
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda x: [m.permute(0, 2, 3, 1) for m in forward(x)])
    with pytest.raises(ConfigError, match="does not give"):
        _ = untrained.network  # Swin's way
    monkeypatch.undo()
    assert untrained.grid == (8, 8, sum(network.feature_info.channels()))


# -- the share of bad images --------------------------------------------------------------------


def test_bad_share(caplog: pytest.LogCaptureFixture) -> None:
    bad = [f"image{i}: broken" for i in range(5)]
    check_bad_share(bad, 50, 0.1, "site A")
    assert [r.getMessage() for r in caplog.records] == [f"site A: skipped {b}" for b in bad]
    with pytest.raises(DataError, match=r"site A: 5 of 49 .*--max-bad 10%.*image2: broken; \.\.\."):
        check_bad_share(bad, 49, 0.1, "site A")
    check_bad_share([], 0, 0.0, "site A")
    check_bad_share([], 5, 0.0, "site A")


def test_images_that_are_only_too_large_are_not_blamed_on_max_bad(make_images: MakeImages) -> None:
    config = FeatureConfig(backbone="filterbank", image_size=SIDE, max_pixels=SIDE * SIDE - 1)
    found = list(FeatureExtractor(config).stream(make_images(2, size=SIDE)))
    reasons = [str(item.error) for item in found]
    with pytest.raises(DataError, match="--max-pixels") as caught:
        check_bad_share(reasons, 2, 0.05, "here")
    assert "raise --max-bad" not in str(caught.value)
    with pytest.raises(DataError, match="raise --max-bad"):
        check_bad_share([*reasons, "a.png: is empty"], 4, 0.05, "here")
