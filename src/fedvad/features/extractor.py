"""From image files to descriptors: read once, hash, look up, decode, run, store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedvad.data.frames import split_frame
from fedvad.data.images import decode_rgb, read_bytes, read_rgb, resize_rgb
from fedvad.data.pictures import Picture
from fedvad.errors import ConfigError, DataError, ImageError
from fedvad.features.backbones import Backbone, build_backbone
from fedvad.features.cache import DescriptorCache, content_key
from fedvad.features.config import FeatureConfig
from fedvad.features.engine import DescriptorEngine, make_engine
from fedvad.half import HalfArray, to_half

if TYPE_CHECKING:
    from fedvad.features.modules import DescriptorNet

__all__ = ["Extracted", "FeatureExtractor", "check_bad_share"]

log = logging.getLogger(__name__)
_CHUNK = 64
_CHUNK_BYTES = 128_000_000
# Part of every entry's name, with the number of the image in its file: a change of the rules by
# which files become pixels must not find descriptors of before.
_RULES = 2
_FileState = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Extracted:
    """One image's outcome: float16 (h, w, d) descriptors, or the reason why there are none."""

    index: int
    descriptors: HalfArray | None
    error: str | None = None


@dataclass(eq=False)
class _Loaded:
    key: str = ""
    hit: HalfArray | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    error: str | None = None


class FeatureExtractor:
    """Descriptors of images under one feature configuration, through the cache when there is one.

    Memory is bounded by two chunks of at most 64 images and 128 MB of descriptors, whatever the
    number of images. Raises what `build_backbone` raises.
    """

    def __init__(self, config: FeatureConfig, cache: DescriptorCache | None = None) -> None:
        self._backbone: Backbone = build_backbone(
            config.backbone, weights=config.weights, layers=config.layers
        )
        self.config = config.with_hash(
            self._backbone.weights_hash, self._backbone.layers, self._backbone.name
        )
        self.cache = cache
        self._key = self.config.key()
        self.computed = 0
        # content by file state: a second pass over the same images need not read them again
        self._keys: dict[_FileState | None, str] = {}

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
                image_size=self.config.image_size,
            )
        except (AssertionError, RuntimeError, ValueError) as error:  # as timm's models refuse
            raise ConfigError(
                f"backbone {self.config.backbone} cannot take images of "
                f"{self.config.image_size} pixels: {error}"
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
            image_size=self.config.image_size,
            kind=self.config.engine,
            device=self.config.device,
        )

    @cached_property
    def grid(self) -> tuple[int, int, int]:
        """(h, w, d) of every image's descriptors."""
        return (*self.network.grid, self.network.dim)

    @property
    def _chunk(self) -> int:
        height, width, dim = self.grid
        return max(1, min(_CHUNK, _CHUNK_BYTES // (2 * height * width * dim)))

    def stream(
        self, paths: Sequence[Path], on_image: Callable[[], None] | None = None
    ) -> Iterator[Extracted]:
        """Outcome of every image, in order; `on_image` is called after each.

        Pictures in memory are neither looked up in the cache nor stored there.
        """
        workers = max(2, os.cpu_count() or 1)
        chunk = self._chunk
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
                        yield Extracted(start + offset, found, item.error)
                        if on_image is not None:
                            on_image()
            finally:  # a caller who stops early does not wait for images nobody wants
                for future in ahead:
                    future.cancel()

    def describe(self, images: npt.NDArray[np.uint8]) -> HalfArray:
        """Descriptors (b, h, w, d) float16 of (b, S, S, 3) uint8 images in memory, uncached."""
        side = self.config.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise DataError(
                f"expected uint8 (b, {side}, {side}, 3) images, not {images.dtype} {images.shape}"
            )
        step = self.engine.batch_size
        batches = ((s, images[s : s + step]) for s in range(0, len(images), step))
        made = [self._half(out) for _, out in self.engine.run(batches)]
        return np.concatenate(made) if made else np.zeros((0, *self.grid), np.float16)

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
            if isinstance(path, Picture):
                whole = read_rgb(path, max_pixels=self.config.max_pixels)
                return _Loaded(pixels=resize_rgb(whole, self.config.image_size))
            seen = _identity(path)
            key = self._keys.get(seen, "")
            hit = self._cached(key)
            if hit is None:
                data = read_bytes(path)
                frame = split_frame(path)[1]
                key = f"{content_key(data)}-{_RULES}-{frame or 0}"
                hit = self._cached(key)
                if seen is not None:
                    self._keys[seen] = key
            if hit is not None:
                return _Loaded(key, hit=hit)
            whole = decode_rgb(data, str(path), frame=frame, max_pixels=self.config.max_pixels)
            pixels = resize_rgb(whole, self.config.image_size)
        except ImageError as error:
            return _Loaded(error=str(error))
        return _Loaded(key, pixels=pixels)

    def _cached(self, key: str) -> HalfArray | None:
        return self.cache.get(self._key, key, self.grid) if self.cache is not None and key else None

    def _compute(self, loaded: list[_Loaded], pool: ThreadPoolExecutor) -> dict[int, HalfArray]:
        missing = [(i, item.pixels) for i, item in enumerate(loaded) if item.pixels is not None]
        if not missing:
            return {}
        step = self.engine.batch_size
        batches = (
            ([i for i, _ in missing[s : s + step]], np.stack([p for _, p in missing[s : s + step]]))
            for s in range(0, len(missing), step)
        )
        made: dict[int, HalfArray] = {}
        writes = []
        for indices, out in self.engine.run(batches):
            for i, descriptors in zip(indices, self._half(out), strict=True):
                made[i] = descriptors
                if self.cache is not None and loaded[i].key:
                    writes.append(
                        pool.submit(self.cache.put, self._key, loaded[i].key, descriptors)
                    )
        self.computed += len(missing)
        for write in writes:
            write.result()
        return made


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
            raise DataError(f"{where}: none of {total} images can be read ({shown}). Mend them.")
        raise DataError(
            f"{where}: {len(bad)} of {total} images are unreadable, more than --max-bad "
            f"{max_bad:.0%} ({shown}). Mend or remove them, or raise --max-bad."
        )
