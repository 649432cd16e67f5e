"""The whole feature configuration: what a detector's vectors depend on besides the images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedvad.data.bounds import MAX_PIXELS, check_limit
from fedvad.data.views import Size, View
from fedvad.errors import ConfigError, MismatchError
from fedvad.features.names import BUNDLED, name_of_file

Engine = Literal["openvino", "openvino-bf16", "torch"]


@dataclass(frozen=True)
class FeatureConfig:
    """Which descriptors to compute. `engine`, `device`, `weights`, `max_pixels` and `region` are
    ways, not identity.

    backbone: `fedvad-tiny`, `filterbank`, `mcunet_in3`, `mcunet_in4`, any timm model name, or
        the path of a backbone file (see `backbone_file`), which becomes `file:NAME` when it has
        been read.
    weights: a safetensors file; None lets timm use its own cache or download. Of a backbone file:
        where it lies now.
    weights_hash: SHA-256 of the backbone's parameters, filled in when it is built.
    image_size: pixels to which every image is resized: the side of a square (256), `256x512`
        (height x width), or `fit:256x512`, which keeps proportions; see `data.views`.
    tiles: side in pixels of the squares in which images pass the backbone; None: whole. overlap:
        pixels that neighbouring tiles share at least.
    region: where to look, see `data.region`; None: everywhere.
    layers: taps of the backbone; None means its default.
    max_pixels: an image of more counts as unreadable, before any pixel is decoded.
    pool: side of the neighbourhood average (1 is none), in cells of each layer.
    """

    backbone: str = BUNDLED
    weights: Path | None = field(default=None, compare=False)
    weights_hash: str = ""
    image_size: Size = 256
    tiles: int | None = None
    overlap: int = 64
    layers: tuple[int, ...] | None = None
    pool: int = 3
    engine: Engine = field(default="openvino", compare=False)
    device: str = field(default="cpu", compare=False)
    max_pixels: int = field(default=MAX_PIXELS, compare=False)
    region: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self.view.check()
        if self.view.size != self.image_size:
            raise ConfigError(f"image size {self.image_size!r} is written {self.view.size!r}")
        check_limit(self.max_pixels, "max_pixels")
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"layers {','.join(map(str, self.layers))}: name each layer once")
        if self.pool not in (1, 3, 5, 7):
            raise ConfigError(f"neighbourhood pooling must be 1, 3, 5 or 7 cells, got {self.pool}")

    @cached_property
    def view(self) -> View:
        """How images are resized and cut."""
        return View.of(self.image_size, self.tiles, self.overlap)

    @property
    def side(self) -> int:
        """Side in pixels of squares; raises `ConfigError` for other views and for regions."""
        if isinstance(self.image_size, str) or self.tiles or self.region:
            words = f"{self.image_size}" + ", in tiles" * bool(self.tiles)
            raise ConfigError(
                "this takes whole images squashed to a square, such as --image-size 256, not "
                f"{words}{', with a region' * bool(self.region)}"
            )
        return self.image_size

    def identity(self) -> dict[str, Any]:
        """What must agree for two sets of descriptors to be comparable, as JSON values."""
        everything = asdict(self)
        for name in ("weights", "engine", "device", "max_pixels", "region"):
            del everything[name]
        if self.tiles is None:  # as before there were any
            del everything["tiles"], everything["overlap"]
        everything["layers"] = None if self.layers is None else list(self.layers)
        return everything

    def key(self) -> str:
        """16 hex digits that name this configuration in caches and messages."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_same(self, other: FeatureConfig, what: str) -> None:
        """Raise `MismatchError`, naming each difference, unless `other` gives equal descriptors."""
        mine, theirs = self.identity(), other.identity()
        differences = [
            f"{name}: {what} has {mine.get(name)!r}, here is {theirs.get(name)!r}"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]
        if differences:
            raise MismatchError(
                f"{what} was made with other features ({'; '.join(differences)}); "
                "use the same backbone, weights and image size, or train again"
            )

    def with_hash(
        self, weights_hash: str, layers: tuple[int, ...], file: str = ""
    ) -> FeatureConfig:
        """The same configuration with what building the backbone made known.

        file: what a backbone file calls itself. Its path is a way and no identity: a file that was
        moved gives the same descriptors.
        """
        known = replace(self, weights_hash=weights_hash, layers=layers)
        if not file:
            return known
        place = self.weights or Path(self.backbone)
        return replace(known, backbone=name_of_file(file), weights=place)
