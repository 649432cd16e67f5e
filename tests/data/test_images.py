from __future__ import annotations

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fedvad.data import formats
from fedvad.data.images import (
    IMAGE_SUFFIXES,
    decode_rgb,
    read_bytes,
    read_mask,
    read_rgb,
    resize_rgb,
)
from fedvad.data.masks import nearest
from fedvad.errors import ConfigError, DataError, ImageError

RNG = np.random.default_rng(0)
# Smooth, so that lossy formats reproduce it closely; no symmetry, so that turns show.
SMOOTH = np.stack(
    np.broadcast_arrays(
        np.linspace(0, 255, 24)[:, None], np.linspace(255, 30, 40)[None], np.full((24, 40), 90.0)
    ),
    axis=2,
).astype(np.uint8)
NOISE = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 16),
        ("JPEG", {"quality": 95}, 16),
        ("PPM", {}, 0),
        ("AVIF", {"quality": 95}, 16),
    ],
)
def test_every_format_round_trips(form, options, tolerance) -> None:
    pixels = decode_rgb(encode(SMOOTH, form, **options), "x")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 40, 3)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - SMOOTH).max() <= tolerance


def test_read_rgb_is_read_bytes_and_decode_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a b ü.PNG", NOISE)
    assert (read_rgb(path) == NOISE).all()
    assert (decode_rgb(read_bytes(path), "x") == NOISE).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "JPEG", "GIF", "PPM"])
def test_grey_is_repeated_over_the_channels(form) -> None:
    pixels = decode_rgb(encode(SMOOTH[:, :, 0], form), "x")
    assert np.abs(pixels.astype(int) - SMOOTH[:, :, :1]).max() <= (8 if form == "JPEG" else 0)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_1_257(form) -> None:
    deep = np.array([[0, 128, 129, 257], [32768, 65278, 65534, 65535]], np.uint16)
    assert decode_rgb(encode(deep, form), "x")[:, :, 0].tolist() == [
        [0, 0, 1, 1],
        [128, 254, 255, 255],
    ]


def test_dark_16_bit_png_stays_dark() -> None:
    assert decode_rgb(encode(np.full((4, 4), 200, np.uint16), "PNG"), "x").max() == 1


def raw_tiff(values: np.ndarray, *, end: str = "<", photometric: int = 1) -> bytes:
    """A TIFF of one row, as Pillow cannot write it."""
    kind, bits = "uif".index(values.dtype.kind) + 1, 8 * values.dtype.itemsize
    tags = [(256, values.size), (257, 1), (258, bits), (259, 1), (262, photometric), (277, 1)]
    tags += [(278, 1), (279, values.nbytes), (339, kind)]
    entries = [(tag, struct.pack(f"{end}HHIHH", tag, 3, 1, value, 0)) for tag, value in tags]
    offset = 8 + 2 + 12 * 10 + 4
    entries.append((273, struct.pack(f"{end}HHII", 273, 4, 1, offset)))
    body = struct.pack(f"{end}H", 10) + b"".join(e for _, e in sorted(entries)) + b"\0" * 4
    magic = b"MM\x00*" if end == ">" else b"II*\x00"
    stored = values.astype(values.dtype.newbyteorder(end)).tobytes()
    return magic + struct.pack(f"{end}I", 8) + body + stored


def test_big_endian_16_bit_tiff() -> None:
    data = raw_tiff(np.array([0, 257, 65535], np.uint16), end=">")
    assert decode_rgb(data, "x")[:, :, 0].tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-5, 0, 7, 255]], np.int32), [0, 0, 7, 255]),
        (np.array([[-5, 0, 257, 65535]], np.int32), [0, 0, 1, 255]),
        (np.array([[-5, 0, 2**24, 2**31 - 1]], np.int32), [0, 0, 1, 127]),
        (np.array([[-0.2, 0, 0.5, 1]], np.float32), [0, 0, 128, 255]),
        (np.array([[np.nan, 0, 99.6, np.inf]], np.float32), [0, 0, 100, 255]),
        (np.array([[0, 257, 65535, -np.inf]], np.float32), [0, 1, 255, 0]),
        (np.array([[0, 0.5, 1, 1.2]], np.float32), [0, 128, 255, 255]),  # as a filter overshoots
        (np.array([[0, 128, 255, 300]], np.float32), [0, 128, 255, 255]),
    ],
)
def test_32_bit_integers_and_floats_take_the_smallest_range(values, expected) -> None:
    assert decode_rgb(encode(values, "TIFF"), "x")[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 0.5, 1, 1.5]], np.float32), "up to 1.5"),  # else all but black
        (np.array([[0, 128, 255, 400]], np.float32), "up to 400"),
        (np.array([[0, 128, 4095, 5]], np.int32), "up to 4095"),  # 12 bits: else nearly black
        (np.array([[-2, 0, 1, 2]], np.float32), "up to 2"),
        (np.array([[-1, 0, 0.5, 1]], np.float32), "down to -1"),
        (np.full((1, 4), np.nan, np.float32), "no finite value"),
    ],
)
def test_a_range_that_would_be_a_guess_is_refused(values, reason) -> None:
    with pytest.raises(ImageError, match=f"^x: .*{reason}"):
        decode_rgb(encode(values, "TIFF"), "x")


def test_signed_16_bit_is_scaled_like_unsigned_however_dark() -> None:
    for values in ([0, 100, 200], [0, 15_000, 30_000]):
        seen = decode_rgb(raw_tiff(np.array(values, np.int16)), "x")
        assert (seen == decode_rgb(raw_tiff(np.array(values, np.uint16)), "x")).all()
        assert seen[0, 2, 0] == round(values[2] / 257)
    with pytest.raises(ImageError, match="x: holds values down to -1000: shift"):
        decode_rgb(raw_tiff(np.array([-1000, 0, 500], np.int16)), "x")


def test_32_bit_tiff_without_a_sign_and_8_bit_tiff_with_one() -> None:
    bright = np.array([0, 16 * 2**24, 255 * 2**24], np.uint32)
    assert decode_rgb(raw_tiff(bright), "x")[0, :, 0].tolist() == [0, 16, 254]
    dark = np.array([0, 60, 127], np.int8)
    assert decode_rgb(raw_tiff(dark), "x")[0, :, 0].tolist() == [0, 60, 127]
    with pytest.raises(ImageError, match="x: holds values down to -100: shift"):
        decode_rgb(raw_tiff(np.array([-100, 0, 100], np.int8)), "x")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(3, np.float64), "64-bit floats, which is not read: save it as grey or RGB of 8"),
        (np.zeros(3, np.uint64), "64-bit integers, which is not read"),
    ],
)
def test_a_tiff_of_other_values_says_how_to_save_it(values, said) -> None:
    with pytest.raises(ImageError, match=f"^x: is a TIFF of {said}"):
        decode_rgb(raw_tiff(values), "x")


def test_a_tiff_compressed_by_another_method_says_so() -> None:
    plain = raw_tiff(np.zeros(3, np.uint8))
    entry = struct.pack("<HHI", 259, 3, 1)  # tag, type and count of the compression
    at = plain.index(entry) + len(entry)
    data = plain[:at] + struct.pack("<H", 34712) + plain[at + 2 :]
    with pytest.raises(ImageError, match="is a TIFF compressed by JPEG 2000: save"):
        decode_rgb(data, "x")


def test_deep_tiff_in_which_white_is_zero_is_inverted_like_a_shallow_one() -> None:
    data = raw_tiff(np.array([0, 257 * 100, 65535], np.uint16), photometric=0)
    assert decode_rgb(data, "x")[0, :, 0].tolist() == [255, 155, 0]


def test_portable_maps_use_the_range_that_their_header_names() -> None:
    assert decode_rgb(b"P5 3 1 255 " + bytes([0, 7, 255]), "x")[0, :, 0].tolist() == [0, 7, 255]
    twelve = b"P5 3 1 4095 " + np.array([0, 2048, 4095], ">u2").tobytes()
    assert decode_rgb(twelve, "x")[0, :, 0].tolist() == [0, 128, 255]
    dark = b"P5 2 1 65535 " + np.array([0, 200], ">u2").tobytes()
    assert decode_rgb(dark, "x")[0, :, 0].tolist() == [0, 1]
    assert decode_rgb(b"P2\n# drawn\n2 1\n15\n0 15\n", "x")[0, :, 0].tolist() == [0, 255]
    assert decode_rgb(b"P4 8 1 " + bytes([0b10101010]), "x")[0, :2, 0].tolist() == [0, 255]


def test_transparency_is_composited_over_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 10, 0, 255)
    rgba[0, 1] = (200, 10, 0, 0)
    rgba[1, 0] = (0, 0, 0, 51)
    expected = [[[200, 10, 0], [255, 255, 255]], [[204, 204, 204], [255, 255, 255]]]
    assert decode_rgb(encode(rgba, "PNG"), "x").tolist() == expected
    la = Image.fromarray(rgba).convert("LA")
    assert decode_rgb(encode(la, "PNG"), "x")[0, 1].tolist() == [255, 255, 255]
    keyed = Image.fromarray(np.array([[5, 9]], np.uint8))
    assert decode_rgb(encode(keyed, "PNG", transparency=9), "x")[0, :, 0].tolist() == [5, 255]


def test_palette_with_and_without_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    assert decode_rgb(encode(picture, "PNG"), "x")[0].tolist() == [
        [10, 20, 30],
        [40, 50, 60],
        [70, 80, 90],
    ]
    seen = decode_rgb(encode(picture, "PNG", transparency=1), "x")
    assert seen[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]
    half = decode_rgb(encode(picture, "PNG", transparency=bytes([255, 0, 255])), "x")
    assert (half == seen).all()


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form) -> None:
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    pixels = decode_rgb(encode(cmyk, form, quality=95), "x")
    assert np.abs(pixels.astype(int) - SMOOTH).max() <= 20


def test_one_bit() -> None:
    assert decode_rgb(encode(np.array([[True, False]]), "PNG"), "x")[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form, orientation) -> None:
    upright = Image.fromarray(SMOOTH)
    # What has to be stored so that the viewer's turn gives the upright picture.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_rgb(encode(turned, form, exif=exif, quality=95), "x")
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - SMOOTH).max() <= 16


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"", b"Exif\0\0MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_does_not_cost_the_image(exif) -> None:
    assert decode_rgb(encode(SMOOTH, "JPEG", exif=exif), "x").shape == (24, 40, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "PPM"])
@pytest.mark.parametrize("keep", [0.05, 0.4, 0.9])
def test_truncated(tmp_path: Path, form, keep) -> None:
    data = encode(NOISE, form)
    path = tmp_path / f"half.{form.lower()}"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match="half"):
        read_rgb(path)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("damage", ["zeros", "flip"])
def test_a_png_of_other_pixels_than_its_checksum_says_is_refused(damage) -> None:
    data = bytearray(encode(NOISE, "PNG"))
    assert data.count(b"IDAT") == 1
    middle = len(data) // 2
    if damage == "zeros":  # as after a crash of the machine that was writing
        data[middle:] = bytes(len(data) - middle)
    else:
        data[middle] ^= 1
    with pytest.raises(ImageError, match=r"^x: is a damaged PNG, by its checksum: copy or save"):
        decode_rgb(bytes(data), "x")


def test_refusals_name_file_and_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1")
    (tmp_path / "magic.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    for name, reason in [
        ("empty.png", "is empty"),
        ("text.png", "is not a PNG"),
        ("lfs.png", "is a pointer of Git LFS"),
        ("magic.png", "cannot be decoded"),
        ("folder.png", "not a regular file"),
        ("pipe.png", "not a regular file"),
        ("loop.png", "cannot be read"),
        ("missing.png", "No such file"),
        ("photo.heic", "is HEIC"),
        ("nul\0byte.png", "cannot be read"),
    ]:
        with pytest.raises(ImageError) as caught:
            read_rgb(tmp_path / name)
        assert name in str(caught.value)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_file_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(ImageError, match="large"):
        read_bytes(tmp_path / "sparse.png")


@pytest.mark.parametrize("side", [10_001, 60_000, 2**31 - 1])
def test_bomb_is_refused_from_its_header(monkeypatch, side) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="over the limit"):
        decode_rgb(bomb(side, side), "bomb.png")


def test_size_limit_needs_no_pillow_state() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    data = encode(NOISE, "PNG")
    with pytest.raises(ImageError, match="40 × 24"):
        decode_rgb(data, "x", max_pixels=959)
    assert decode_rgb(data, "x", max_pixels=960).shape == (24, 40, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="over the limit"):
            decode_rgb(bomb(10_000, 10_001), "x")
    assert (limit, filters) == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


def test_webp_bomb_that_pillow_refuses_itself() -> None:
    body = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xfe\xff\x00" * 2
    data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    with pytest.raises(ImageError):
        decode_rgb(data, "x")


@pytest.mark.parametrize("error", [MemoryError(), struct.error("bad"), SyntaxError("broken\nPNG")])
def test_any_error_of_a_decoder_becomes_image_error(monkeypatch, error) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(formats.PngImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"x\.png: cannot be decoded: (not enough memory|b)"):
        decode_rgb(encode(NOISE, "PNG"), "x.png")


FUZZ_SEEDS = {
    "png": encode(SMOOTH, "PNG"),
    "png16": encode(SMOOTH[:, :, 0].astype(np.uint16) * 200, "PNG"),
    "palette": encode(Image.fromarray(SMOOTH).convert("P"), "PNG", transparency=3),
    "jpeg": encode(SMOOTH, "JPEG"),
    "progressive": encode(SMOOTH, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "tiff": encode(SMOOTH, "TIFF"),
    "lzw": encode(SMOOTH, "TIFF", compression="tiff_lzw"),
    "bmp": encode(SMOOTH, "BMP"),
    "webp": encode(SMOOTH, "WEBP"),
    "gif": encode(SMOOTH, "GIF"),
    "avif": encode(SMOOTH, "AVIF"),
    "ppm": encode(SMOOTH, "PPM"),
    "pgm": b"P2 3 1 9 1 2 3",
}


def decodes_or_refuses(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on odd TIFF tags
        try:
            pixels = decode_rgb(data, "fuzz", max_pixels=4_000_000)
        except ImageError as error:
            reported = str(error)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            return
    assert reported.startswith("fuzz: ")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(FUZZ_SEEDS)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
    header=st.booleans(),
    cut=st.none() | st.integers(0, 10**6),
)
def test_fuzz_damaged_files(name, flips, header, cut) -> None:
    data = bytearray(FUZZ_SEEDS[name])
    reach = min(200, len(data)) if header else len(data)
    for place, value in flips:
        data[place % reach] = value
    decodes_or_refuses(bytes(data if cut is None else data[: cut % len(data)]))


@given(
    magic=st.sampled_from([bytes(at) + m for at, m, _ in formats._MAGIC] + [b"", b"P5 ", b"P2 "]),
    tail=st.binary(max_size=300),
)
def test_fuzz_random_bytes(magic, tail) -> None:
    decodes_or_refuses(magic + tail)


def test_resize() -> None:
    small = resize_rgb(NOISE, 10)
    assert small.shape == (10, 10, 3)
    assert small.dtype == np.uint8
    assert resize_rgb(small, 10) is small
    assert resize_rgb(NOISE[:1, :1], 32).shape == (32, 32, 3)
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_rgb(stripes, 32).astype(int) - 128).max() <= 8  # antialiased
    with pytest.raises(ConfigError):
        resize_rgb(NOISE, 0)
    for wrong in (NOISE[:, :, 0], NOISE.astype(float), NOISE[:0]):
        with pytest.raises(DataError):
            resize_rgb(wrong, 8)


def test_mask_counts_every_value_but_zero(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 10:20] = 1
    for name, stored in {
        "8.png": mask,
        "16.png": mask.astype(np.uint16),
        "32.tif": mask.astype(np.int32),
        "bit.png": mask.astype(bool),
        "rgb.bmp": np.repeat(mask[:, :, None], 3, axis=2),
        "palette.png": Image.fromarray(mask * 255).convert("P"),
        "alpha.png": np.dstack([mask * 255] * 3 + [mask * 255]),
    }.items():
        found = read_mask(save(tmp_path / name, stored))
        assert found.dtype == bool
        assert (found == mask.astype(bool)).all(), name
    lossy = save(tmp_path / "rings.jpg", mask * 255, quality=50)
    assert np.mean(read_mask(lossy) != mask) < 0.02


def test_mask_is_resized_by_nearest_neighbour(tmp_path: Path) -> None:
    mask = RNG.random((37, 53)) > 0.5
    path = save(tmp_path / "m.png", mask)
    for size in (1, 16, 64):
        wanted = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
        assert (nearest(read_mask(path), (size, size)) == np.asarray(wanted)).all()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    with pytest.raises(ImageError, match="bad"):
        read_mask(tmp_path / "bad.png")


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
    assert {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".webp", ".gif"} < IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & formats.KNOWN_UNREAD.keys()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.PNG", ".png"),
        ("a.nii.gz", ".nii.gz"),
        ("a.tar.gz", None),
        (".png", None),
        ("a.txt", None),
    ],
)
def test_suffix_of_an_image(name, suffix) -> None:
    assert formats.image_suffix(Path(name)) == suffix


def test_a_file_that_looks_like_an_image_says_why_it_is_not_read() -> None:
    assert "ffmpeg" in str(formats.unread_reason(Path("line.MP4")))
    assert formats.unread_reason(Path("a.png")) is formats.unread_reason(Path("a.txt")) is None


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    plain = encode(SMOOTH, "JPEG", progressive=True)
    assert decode_rgb(plain, "a").shape == SMOOTH.shape
    last, end = plain.rindex(b"\xff\xda"), plain.rindex(b"\xff\xd9")
    many = plain[:end] + plain[last:end] * 90 + plain[end:]
    assert decode_rgb(many, "a").shape == SMOOTH.shape
    with pytest.raises(ImageError, match="JPEG of 110 scans, more than 100"):
        decode_rgb(plain[:end] + plain[last:end] * 100 + plain[end:], "a")
    # each scan is a pass over all pixels: the larger the image, the fewer
    with pytest.raises(ImageError, match="more than 16"):
        decode_rgb(many, "a", max_pixels=SMOOTH.size // 3)


def test_a_jpeg_of_many_scans_within_a_tiff_is_refused_too() -> None:
    plain = encode(SMOOTH[:, :, 0], "JPEG", progressive=True)
    last, end = plain.rindex(b"\xff\xda"), plain.rindex(b"\xff\xd9")
    many = plain[:end] + plain[last:end] * 60 + plain[end:]
    page = tiff_of_jpeg(many, SMOOTH.shape)
    assert decode_rgb(page, "a").shape == SMOOTH.shape
    with pytest.raises(ImageError, match="more than 16"):
        decode_rgb(page, "a", max_pixels=SMOOTH.size // 3)
    # many strips of one scan each are a single pass
    buffer = BytesIO()
    strips = np.zeros((2000, 16, 3), np.uint8)
    Image.fromarray(strips).save(buffer, "TIFF", compression="jpeg", strip_size=16 * 16 * 3)
    assert buffer.getvalue().count(b"\xff\xda") > 100
    assert decode_rgb(buffer.getvalue(), "a", max_pixels=32_000).shape == strips.shape


def tiff_of_jpeg(jpeg: bytes, shape: tuple[int, ...]) -> bytes:
    """A grey TIFF of one strip."""
    height, width = shape[:2]
    tags = {256: width, 257: height, 258: 8, 259: 7, 262: 1, 273: 0, 277: 1, 278: height}
    tags |= {279: len(jpeg)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + jpeg


def test_a_small_file_of_many_pixels_is_refused_where_files_are_hostile() -> None:
    flat = encode(Image.new("L", (2000, 2000), 90), "PNG")
    assert decode_rgb(flat, "x").shape == (2000, 2000, 3)
    with pytest.raises(ImageError, match="more than 200 pixels per byte"):
        decode_rgb(flat, "x", max_expansion=200)
    assert decode_rgb(encode(Image.new("L", (900, 900)), "PNG"), "x", max_expansion=200).any() == 0


def test_too_large_an_image_names_the_option() -> None:
    with pytest.raises(ImageError, match="--max-pixels"):
        decode_rgb(bomb(20_000, 20_000), "x")
