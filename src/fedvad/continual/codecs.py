"""How a replay memory keeps a sample: each codec says what it costs and gives back what it can.

A sample is a feature of a shared trunk, (c, h, w) float32, or an image, (S, S, 3) uint8. What a
codec learns (ranges, a basis, codebooks) it learns once, from the first task, so that an entry
never has to be decoded and encoded again.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedvad.continual.learned_codecs import (
    CODEBOOKS,
    fit_basis,
    fit_codebooks,
    pca_decode,
    pca_encode,
    pq_decode,
    pq_encode,
)
from fedvad.errors import ConfigError, check_choice

CodecName = Literal["float32", "float16", "uint8", "pca", "pq", "pixels", "jpeg"]
Granularity = Literal["sample", "channel", "calibrated"]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Encoded = dict[str, Array]

_IMAGES = ("pixels", "jpeg")


def nbytes(arrays: Encoded) -> int:
    """Bytes of all the arrays."""
    return sum(array.nbytes for array in arrays.values())


@dataclass(frozen=True)
class CodecConfig:
    """Which codec, and its options.

    uint8: one range for the `sample`, one for each of its channels, or one for each channel of
    all samples (`calibrated` on the first task); bits: 8 or 4; clip: percent of the values cut
    off at either end. pca: `variance` kept by a basis of each sample's own, or, with
    `components`, that many directions of the first task's, in float16 (`bits` 8: in bytes).
    pq: `groups` of channels share a byte. jpeg: `quality`.
    """

    name: CodecName = "float32"
    granularity: Granularity = "channel"
    bits: int = 8
    clip: float = 0.0
    variance: float = 0.98
    components: int | None = None
    groups: int = 6
    quality: int = 90

    def __post_init__(self) -> None:
        check_choice("codec", self.name, CodecName)
        check_choice("granularity", self.granularity, Granularity)
        if self.bits not in (4, 8) or not 0 <= self.clip < 50 or not 0 < self.variance <= 1:
            raise ConfigError("a codec takes bits 4 or 8, clip in [0, 50) %, variance in (0, 1]")
        if self.groups < 1 or not 1 <= self.quality <= 95:
            raise ConfigError("a codec takes groups >= 1 and quality in 1..95")
        if self.components is not None and self.components < 1:
            raise ConfigError("pca keeps at least 1 component, or none given")

    @property
    def of_images(self) -> bool:
        """Whether it keeps images rather than features."""
        return self.name in _IMAGES


@dataclass
class Codec:
    """A configuration and what was learned for it. learned: its parameters, counted apart."""

    config: CodecConfig
    learned: Encoded = field(default_factory=dict)
    fitted: bool = False

    def fit(self, samples: Sequence[Array], *, seed: int) -> None:
        """Learn what the codec needs from samples of the first task; later calls do nothing."""
        if self.fitted or not samples:
            return
        self.fitted = True
        config = self.config
        if config.name == "uint8" and config.granularity == "calibrated":
            self.learned = dict(
                zip(("low", "high"), _channel_range(samples, config.clip), strict=True)
            )
        elif config.name == "pca" and config.components is not None:
            self.learned = fit_basis(samples, config.components, quantised=config.bits == 8)
        elif config.name == "pq":
            self.learned = {CODEBOOKS: fit_codebooks(samples, config.groups, seed=seed)}

    def encode(self, sample: Array) -> Encoded:
        """What is kept of a sample; raises `ConfigError` for one of the wrong kind."""
        if self.config.of_images != (sample.dtype == np.uint8):
            raise ConfigError(f"codec {self.config.name} cannot keep {sample.dtype} samples")
        return _ENCODE[self.config.name](self, sample)

    def decode(self, kept: Encoded) -> Array:
        """The sample, up to the codec's error."""
        return _DECODE[self.config.name](self, kept)

    @property
    def nbytes(self) -> int:
        """Bytes of what was learned."""
        return nbytes(self.learned)


def _channel_range(samples: Sequence[Array], clip: float) -> tuple[Floats, Floats]:
    """Lowest and highest value (c,) of each channel over all samples."""
    values = np.concatenate([s.reshape(len(s), -1) for s in samples], axis=1)
    low, high = np.percentile(values, [clip, 100 - clip], axis=1)
    return low.astype(np.float32), high.astype(np.float32)


def _quantise(codec: Codec, sample: Array) -> Encoded:
    config = codec.config
    flat = sample.reshape(len(sample), -1).astype(np.float32)
    kept: Encoded = {}
    if config.granularity == "calibrated":
        low, high = codec.learned["low"], codec.learned["high"]
    elif config.granularity == "channel":
        low, high = _channel_range([sample], config.clip)
        kept = {"low": low, "high": high}
    else:
        ends = np.percentile(flat, [config.clip, 100 - config.clip]).astype(np.float32)
        low, high = ends[:1], ends[1:]
        kept = {"low": low, "high": high}
    levels = 2**config.bits - 1
    step = np.where(high > low, (high - low) / levels, np.float32(1))[:, None]
    codes = np.clip(np.rint((flat - low[:, None]) / step), 0, levels).astype(np.uint8)
    if config.bits == 8:
        return kept | {"codes": codes.reshape(sample.shape)}
    pairs = np.pad(codes.ravel(), (0, codes.size % 2)).reshape(-1, 2)
    shape = np.array(sample.shape, np.uint16)
    return kept | {"codes": pairs[:, 0] << 4 | pairs[:, 1], "shape": shape}


def _dequantise(codec: Codec, kept: Encoded) -> Floats:
    config = codec.config
    source = codec.learned if config.granularity == "calibrated" else kept
    low, high = source["low"], source["high"]
    levels = 2**config.bits - 1
    step = np.where(high > low, (high - low) / levels, np.float32(1)).astype(np.float32)
    codes = kept["codes"]
    if config.bits == 4:
        shape = tuple(int(n) for n in kept["shape"])
        halves = np.stack([codes >> 4, codes & 15], 1).ravel()
        codes = halves[: int(np.prod(shape))].reshape(shape)
    return codes.astype(np.float32) * step[:, None, None] + low[:, None, None]


def _jpeg(codec: Codec, sample: Array) -> Encoded:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sample).save(buffer, "JPEG", quality=codec.config.quality)
    return {"jpeg": np.frombuffer(buffer.getvalue(), np.uint8)}


def _unjpeg(codec: Codec, kept: Encoded) -> Array:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(kept["jpeg"].tobytes())).convert("RGB"))


def _cast(dtype: npt.DTypeLike) -> Callable[[Codec, Array], Encoded]:
    return lambda codec, sample: {"values": sample.astype(dtype)}


def _values(codec: Codec, kept: Encoded) -> Array:
    values = kept["values"]
    return values if values.dtype == np.uint8 else values.astype(np.float32)


_ENCODE: dict[str, Callable[[Codec, Array], Encoded]] = {
    "float32": _cast(np.float32),
    "float16": _cast(np.float16),
    "pixels": _cast(np.uint8),
    "uint8": _quantise,
    "pca": lambda codec, z: pca_encode(z, codec.learned, codec.config.variance),
    "pq": lambda codec, z: pq_encode(z, codec.learned[CODEBOOKS]),
    "jpeg": _jpeg,
}
_DECODE: dict[str, Callable[[Codec, Encoded], Array]] = {
    "float32": _values,
    "float16": _values,
    "pixels": _values,
    "uint8": _dequantise,
    "pca": lambda codec, kept: pca_decode(kept, codec.learned),
    "pq": lambda codec, kept: pq_decode(kept, codec.learned[CODEBOOKS]),
    "jpeg": _unjpeg,
}
