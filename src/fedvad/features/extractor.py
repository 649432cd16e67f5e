"""From image files to descriptors: read once, hash, look up, decode, run, store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedvad.data.bounds import MAX_PIXELS
from fedvad.data.cubes.pixels import cube_of, resize_cube
from fedvad.data.frames import split_frame
from fedvad.data.images import check_rgb, decode_rgb, read_bytes, read_rgb
from fedvad.data.pictures import Picture
from fedvad.data.region import Region
from fedvad.data.views import Tiling
from fedvad.errors import ConfigError, DataError, ImageError
from fedvad.features.backbones import Backbone, build_backbone
from fedvad.features.cache import DescriptorCache, content_key
from fedvad.features.config import FeatureConfig
from fedvad.features.engine import BF16, DescriptorEngine, check_engine, make_engine
from fedvad.features.stitching import Stitching
from fedvad.half import HalfArray, to_half

if TYPE_CHECKING:
    from fedvad.features.modules import DescriptorNet

log = logging.getLogger(__name__)
_CHUNK = 64
_CHUNK_BYTES = 128_000_000
# Part of every entry's name, with the number of the image in its file: a change of the rules by
# which files become pixels must not find descriptors of before.
_RULES = 2
_DIGITS = 16  # of an image's digest that memories keep
_FileState = tuple[str, int, int]
_Tile = tuple[int, int, npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Extracted:
    """One image's outcome: float16 (h, w, d) descriptors, or the reason why there are none.

    Cells outside the region of interest are NaN. digest: of the image file, with the number of
    the image where the file holds several; of a cube's values; "" for pictures in memory.
    """

    index: int
    descriptors: HalfArray | None
    error: str | None = None
    digest: str = ""


@dataclass(eq=False)
class _Loaded:
    key: str = ""
    hit: HalfArray | None = None
    pixels: npt.NDArray[Any] | None = None
    error: str | None = None


class FeatureExtractor:
    """Descriptors of images under one feature configuration, through the cache when there is one.

    Memory is bounded by two chunks of at most 64 images and 128 MB of descriptors, whatever the
    number of images. Raises what `build_backbone` raises, `ConfigError` for an engine or device
    that is not there, even when every descriptor is cached.
    """

    def __init__(self, config: FeatureConfig, cache: DescriptorCache | None = None) -> None:
        check_engine(config.engine, config.device)
        self._backbone: Backbone = build_backbone(
            config.backbone,
            weights=config.weights,
            layers=config.layers,
            image_size=config.view.input,
        )
        self.config = config.with_hash(
            self._backbone.weights_hash, self._backbone.layers, self._backbone.name
        )
        self.cache = cache
        self._view = self.config.view
        self._region = None if config.region is None else Region.of(config.region)
        self._key = self.config.key()
        # what is refused must not depend on what another limit let into the cache
        limit = self.config.max_pixels
        self._rules = f"{_RULES}" if limit == MAX_PIXELS else f"{_RULES}-{limit}"
        if self.config.engine == BF16:  # nearly the same descriptors, but not the same
            self._rules += "-bf16"
        self.bands = self._backbone.bands
        self.computed = 0
        # content by file state: a second pass over the same images need not read them again
        self._keys: dict[_FileState | None, str] = {}
        # the last file of several images, with its bytes and content: its pages come one by one
        self._paged: tuple[_FileState, bytes, str] | None = None
        self._paging = Lock()

    @cached_property
    def network(self) -> DescriptorNet:
        """The graph from uint8 pixels to descriptors, as every engine and export runs it."""
        from fedvad.features.modules import DescriptorNet

        try:
            network = DescriptorNet(
                self._backbone.network,
                mean=self._backbone.mean,
                std=self._backbone.std,
                pool=self.config.pool,
                image_size=self._view.input,
            )
        except (AssertionError, RuntimeError, ValueError) as error:  # as timm's models refuse
            raise ConfigError(
                f"backbone {self.config.backbone} cannot take images of "
                f"{' x '.join(map(str, dict.fromkeys(self._view.input)))} pixels: {error}"
            ) from error
        info = getattr(self._backbone.network, "feature_info", None)
        if info is not None and sum(info.channels()) != network.dim:  # Swin and its kin
            raise ConfigError(f"backbone {self.config.backbone} does not give (b, c, h, w) maps")
        network.eval().requires_grad_(False)
        return network

    @cached_property
    def engine(self) -> DescriptorEngine:
        """Made on the first image that is not in the cache."""
        return make_engine(
            self.network,
            image_size=self._view.input,
            kind="torch" if self.bands else self.config.engine,
            device=self.config.device,
        )

    @cached_property
    def grid(self) -> tuple[int, int, int]:
        """(h, w, d) of every image's descriptors; of the largest ones where sizes vary."""
        return (*self._tiling((self._view.height, self._view.width)).grid, self.network.dim)

    def _tiling(self, shape: tuple[int, int]) -> Tiling:
        return self._view.tiling(shape, self.network.grid)

    @property
    def chunk(self) -> int:
        """Number of images whose descriptors are held at a time."""
        height, width, dim = self.grid
        held = 2 * dim + 4 * self.bands
        return max(1, min(_CHUNK, _CHUNK_BYTES // (height * width * held)))

    def seconds(self) -> float:
        """Time that the backbone takes for one of the largest images on this machine."""
        tiling = self._tiling((self._view.height, self._view.width))
        blank = np.zeros((1, *self._view.input, self.bands or 3), np.uint8)
        for _ in range(2):  # the first run is the slower one
            start = time.perf_counter()
            for _ in self.engine.run([(0, blank)]):
                pass
        return (time.perf_counter() - start) * len(tiling)

    def stream(
        self, paths: Sequence[Path], on_image: Callable[[], None] | None = None
    ) -> Iterator[Extracted]:
        """Outcome of every image, in order; `on_image` is called after each.

        Pictures in memory are neither looked up in the cache nor stored there.
        """
        chunk, workers = self.chunk, max(2, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers, thread_name_prefix="fedvad-read") as pool:
            ahead = [pool.submit(self._load, p) for p in paths[:chunk]]
            try:
                for start in range(0, len(paths), chunk):
                    now = ahead
                    following = paths[start + chunk : start + 2 * chunk]
                    ahead = [pool.submit(self._load, p) for p in following]
                    loaded = [future.result() for future in now]
                    made = self._compute(loaded, pool)
                    for offset, item in enumerate(loaded):
                        found = item.hit if item.hit is not None else made.pop(offset, None)
                        if found is not None:
                            found = self._looked_at(found)
                        yield Extracted(start + offset, found, item.error, _digest(item.key))
                        if on_image is not None:
                            on_image()
                    del now, loaded, made, item, found  # else three chunks are held, not two
            finally:  # a caller who stops early does not wait for images nobody wants
                for future in ahead:
                    future.cancel()
                self._paged = None

    def describe(
        self, images: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
    ) -> HalfArray | list[HalfArray]:
        """Descriptors (b, h, w, d) float16 of b uint8 (H, W, 3) images in memory, uncached.

        A list of (h, w, d) where images differ in their cells. Raises `DataError` for other arrays.
        """
        for image in images:
            check_rgb(image)
        scaled = dict(enumerate(map(self._view.scaled, images)))
        made = dict(self._run(scaled))
        found = [self._looked_at(made[i]) for i in range(len(images))]
        if self._view.varies:
            return found
        return np.stack(found) if found else np.zeros((0, *self.grid), np.float16)

    def _run(self, images: Mapping[int, npt.NDArray[np.uint8]]) -> Iterator[tuple[int, HalfArray]]:
        """Descriptors of scaled images by number, each once all of its tiles are through."""
        tilings = {i: self._tiling(image.shape[:2]) for i, image in images.items()}
        tiles = (
            (i, number, tile)
            for i, image in images.items()
            for number, tile in enumerate(tilings[i].cut(image))
        )
        batches = (
            ([(i, number) for i, number, _ in batch], np.stack([tile for _, _, tile in batch]))
            for batch in _batched(tiles, self.engine.batch_size)
        )
        stitched: Stitching | None = None
        for places, out in self.engine.run(batches):
            for (i, number), part in zip(places, self._half(out), strict=True):
                if stitched is None:
                    stitched = Stitching(tilings[i], part.shape[-1])
                stitched.add(number, part)
                if number == len(tilings[i]) - 1:
                    yield i, stitched.result()
                    stitched = None

    def inside(self, grid: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """(h, w) cells in the region of interest of an image with this grid; None for all."""
        return None if self._region is None else self._region.cells(grid)

    def _looked_at(self, descriptors: HalfArray) -> HalfArray:
        return descriptors if self._region is None else self._region.within(descriptors)

    def _half(self, descriptors: npt.NDArray[np.float32]) -> HalfArray:
        try:
            return to_half(descriptors)
        except DataError as error:
            raise DataError(
                f"backbone {self.config.backbone} gives descriptors beyond the float16 range "
                f"({error}); its weights are damaged or not meant for these inputs"
            ) from error

    def _load(self, path: Path) -> _Loaded:
        try:
            if self.bands:
                return self._load_cube(path)
            limit = self.config.max_pixels
            if isinstance(path, Picture):
                return _Loaded(pixels=self._view.scaled(read_rgb(path, max_pixels=limit)))
            seen = _identity(path)
            key = self._keys.get(seen, "")
            if (hit := self._cached(key)) is not None:
                return _Loaded(key, hit=hit)
            frame = split_frame(path)[1]
            data, content = self._content(path, frame, seen)
            key = f"{content}-{self._rules}-{frame or 0}"
            if seen is not None:
                self._keys[seen] = key
            if (hit := self._cached(key)) is not None:
                return _Loaded(key, hit=hit)
            whole = decode_rgb(data, str(path), frame=frame, max_pixels=limit)
            return _Loaded(key, pixels=self._view.scaled(whole))
        except ImageError as error:
            return _Loaded(error=str(error))

    def _load_cube(self, path: Path) -> _Loaded:
        cube = cube_of(path, self.bands, self.config.max_pixels)
        # of the values, not of the files: these are read once, and one cube has many formats
        content = content_key(f"{cube.shape}".encode() + cube.tobytes())
        key = f"{content}-{self._rules}-0"
        if (hit := self._cached(key)) is not None:
            return _Loaded(key, hit=hit)
        return _Loaded(key, pixels=resize_cube(cube, self._view.shape(*cube.shape[:2])))

    def _content(self, path: Path, frame: int | None, seen: _FileState | None) -> tuple[bytes, str]:
        """Bytes of an image's file, and the key of their content; read once for all pages."""
        if frame is None or seen is None:
            data = read_bytes(path)
            return data, content_key(data)
        state = str(split_frame(path)[0]), *seen[1:]
        with self._paging:
            if self._paged is None or self._paged[0] != state:
                data = read_bytes(path)
                self._paged = state, data, content_key(data)
            return self._paged[1:]

    def _cached(self, key: str) -> HalfArray | None:
        if self.cache is None or not key:
            return None
        wanted = (None, None, self.network.dim) if self._view.varies else self.grid
        return self.cache.get(self._key, key, wanted)

    def _compute(self, loaded: list[_Loaded], pool: ThreadPoolExecutor) -> dict[int, HalfArray]:
        missing = {i: item.pixels for i, item in enumerate(loaded) if item.pixels is not None}
        if not missing:
            return {}
        made: dict[int, HalfArray] = {}
        writes = []
        for i, descriptors in self._run(missing):
            made[i] = descriptors
            if self.cache is not None and loaded[i].key:
                writes.append(pool.submit(self.cache.put, self._key, loaded[i].key, descriptors))
        self.computed += len(missing)
        for write in writes:
            write.result()
        return made


def _digest(key: str) -> str:
    """What is left of a cache key without the rules, which are not of the image."""
    content, _, rest = key.partition("-")
    frame = rest.rpartition("-")[2]
    return content[:_DIGITS] + (f"#{frame}" if frame not in ("", "0") else "")


def _batched(tiles: Iterable[_Tile], size: int) -> Iterator[list[_Tile]]:
    each = iter(tiles)
    while batch := list(islice(each, size)):
        yield batch


def _identity(path: Path) -> _FileState | None:
    try:
        status = split_frame(path)[0].stat()
    except OSError:
        return None
    return str(path), status.st_mtime_ns, status.st_size


def check_bad_share(bad: Sequence[str], total: int, max_bad: float, where: str) -> None:
    """Log every unreadable image; raise `DataError` when more than the share `max_bad` are."""
    for reason in bad:
        log.warning("%s: skipped %s", where, reason)
    if total and len(bad) > max_bad * total:
        shown = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
        if all("--max-pixels" in reason for reason in bad):  # each says itself what to do
            raise DataError(f"{where}: {len(bad)} of {total} images are too large ({shown}).")
        if len(bad) == total:
            raise DataError(f"{where}: none of {total} images can be read ({shown}). Replace them.")
        raise DataError(
            f"{where}: {len(bad)} of {total} images are unreadable, more than --max-bad "
            f"{max_bad:.0%} ({shown}). Replace or remove them, or raise --max-bad."
        )
