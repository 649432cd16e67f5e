"""Where the content of texture defects comes from: folders, other images, drawn noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvad.data.synthesis import SynthesisConfig, TextureFolder, synthesise
from fedvad.data.synthesis.textures import augment, cutting, draw_texture
from fedvad.errors import ConfigError, DataError, ImageError

GREY = np.full((48, 48, 3), 128, np.uint8)


def _config(**options: object) -> SynthesisConfig:
    return SynthesisConfig(kinds={"texture": 1.0}, **options)  # type: ignore[arg-type]


def test_a_folder_is_read_when_used_at_any_depth(make_images, tmp_path: Path) -> None:
    make_images(2, folder="dtd/dotted")
    make_images(1, size=300, folder="dtd/striped", seed=1)
    textures = TextureFolder(tmp_path / "dtd", size=40)
    assert len(textures) == 3
    assert {texture.shape for texture in textures} == {(40, 40, 3)}
    assert textures[0] is textures[0]
    assert not textures[0].flags.writeable
    first = synthesise(GREY, _config(), seed=1, textures=textures)
    again = synthesise(GREY, _config(), seed=1, textures=[texture.copy() for texture in textures])
    assert first.image.tobytes() == again.image.tobytes()


def test_unusable_folders_and_files_are_named(make_images, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        TextureFolder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image found"):
        TextureFolder(tmp_path / "empty")
    with pytest.raises(ConfigError, match="texture size"):
        TextureFolder(tmp_path / "empty", size=0)
    (broken,) = make_images(1, folder="broken")
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ImageError, match=broken.name):
        synthesise(GREY, _config(), seed=0, textures=TextureFolder(broken.parent))


def test_the_source_decides_and_must_be_given() -> None:
    black, white = (np.full((20, 20, 3), grey, np.uint8) for grey in (0, 255))

    def drawn(**options: object) -> bytes:
        config = _config(beta=(0.0, 0.0), source=options.pop("source", "auto"))
        return synthesise(GREY, config, seed=2, **options).image.tobytes()  # type: ignore[arg-type]

    both = {"textures": [black], "others": [white]}
    assert drawn(**both) == drawn(source="textures", textures=[black])
    assert drawn(others=[white]) == drawn(source="others", **both)
    assert drawn() == drawn(source="procedural", **both)
    assert len({drawn(**both), drawn(others=[white]), drawn()}) == 3
    for source in ("textures", "others"):
        with pytest.raises(ConfigError, match=f"no {source} are given"):
            drawn(source=source)


def test_a_cutting_is_a_piece_or_an_enlargement() -> None:
    texture = np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)
    rng = np.random.default_rng(0)
    piece = cutting(texture, (10, 12), rng)
    places = [
        (i, j)
        for i in range(21)
        for j in range(29)
        if (texture[i : i + 10, j : j + 12] == piece).all()
    ]
    assert places
    for shape in ((30, 40), (31, 5), (100, 300), (2, 700)):
        assert cutting(texture, shape, rng).shape == (*shape, 3)


def test_augmented_and_drawn_textures_differ_from_seed_to_seed() -> None:
    texture = draw_texture((32, 32), np.random.default_rng(0))
    assert texture.dtype == np.uint8
    assert texture.std() > 5
    changed = [augment(texture, np.random.default_rng(seed)) for seed in range(10)]
    assert {image.shape for image in changed} == {(32, 32, 3)}
    assert len({image.tobytes() for image in changed}) == 10
    drawn = {draw_texture((16, 24), np.random.default_rng(seed)).tobytes() for seed in range(10)}
    assert len(drawn) == 10


def test_textures_over_the_limit_are_decoded_again(
    make_images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvad.data.synthesis.textures._KEPT", 1)
    paths = make_images(2, folder="some")
    textures = TextureFolder(tmp_path / "some", size=16)
    first = textures[0]
    assert (textures[1] != first).any()
    Image.fromarray(GREY).save(paths[0])
    assert (textures[0] == 128).all()
