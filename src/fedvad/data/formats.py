"""Which files count as images: suffixes for listing folders, first bytes for decoding.

Suffixes only choose what a folder holds. The decoder is chosen by the first bytes, never by the
suffix, so that a wrong name neither misleads a decoder nor reaches one that was not meant.
"""

from __future__ import annotations

from pathlib import Path

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fedvad.errors import ImageError

# What may hold several images, each listed as an image of its own (see `frames`). An animated
# PNG is usually called .png: it is refused when it is decoded, so that listing need not open PNGs.
FRAME_SUFFIXES = frozenset(
    {".tif", ".tiff", ".gif", ".webp", ".apng", ".avif", ".dcm", ".dicom", ".nii", ".nii.gz"}
)
IMAGE_SUFFIXES = FRAME_SUFFIXES | {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".pgm", ".ppm", ".pbm", ".pnm", ".pfm",
}  # fmt: skip

_CONVERT = "save the images as PNG or TIFF"
_RAW = f"is the raw data of a camera, not a picture: develop it and {_CONVERT}"
_VIDEO = f"is a video: {_CONVERT}, one file for each frame (ffmpeg -i VIDEO %06d.png)"
_ARRAY = f"is an array, not an image file: {_CONVERT}, or pass it to fedvad.predict in Python"
_VECTOR = f"is a drawing without pixels: {_CONVERT}"
_DOCUMENT = f"is a document: {_CONVERT}"
_VOLUME = "is a volume in a format that is not read: convert it to NIfTI"

# Files that people keep beside images, or take for images, and why they are not read.
KNOWN_UNREAD: dict[str, str] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), f"is HEIC, which is not read: {_CONVERT}"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
                    f"is JPEG 2000, whose decoder cannot be bounded: {_CONVERT}"),
    **dict.fromkeys((".jxl", ".jxr", ".wdp", ".exr", ".hdr", ".psd", ".psb", ".xcf", ".tga",
                     ".ico", ".icns", ".cur", ".dds", ".pcx", ".sgi", ".pam", ".qoi", ".fits",
                     ".fit", ".fts", ".mpo", ".jps", ".emf", ".wmf"),
                    f"is in an image format that is not read: {_CONVERT}"),
    **dict.fromkeys((".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".dng", ".orf",
                     ".rw2", ".raf", ".pef", ".srw"), _RAW),
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ai", ".dxf"), _VECTOR),
    **dict.fromkeys((".pdf", ".djvu", ".ps"), _DOCUMENT),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv",
                     ".mjpg", ".mjpeg", ".ts", ".flv"), _VIDEO),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5", ".pt", ".pth", ".pkl", ".zarr",
                     ".tfrecord", ".csv"), _ARRAY),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".img", ".minc", ".mnc",
                     ".vtk", ".vti"), _VOLUME),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".oib", ".oif", ".lsm", ".svs", ".ndpi", ".scn",
                     ".mrxs", ".vms", ".bif", ".zvi", ".ims"),
                    f"is a microscope's own format: {_CONVERT}"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz"),
                    "is an archive: unpack it"),
}  # fmt: skip

HEAD = 352  # bytes by which any format is recognised
_NAMES = "PNG, JPEG, BMP, TIFF, WebP, GIF, AVIF, PGM/PPM/PBM, DICOM or NIfTI"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\x00", "NIFTI"),
    (4, b"n+2\x00\r\n\x1a\n", "NIFTI"),
    (0, b"\x1f\x8b", "NIFTI"),  # .nii.gz; what else is packed like this is refused there
)
_DECODERS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "PPM": PpmImageFile,
}
_PNM = frozenset({b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"})


def image_suffix(path: Path) -> str | None:
    """The suffix by which `path` counts as an image, in lower case (".nii.gz" too); or None."""
    name = path.name.lower()
    for suffix in (*(s for s in IMAGE_SUFFIXES if s.count(".") > 1), path.suffix.lower()):
        if suffix in IMAGE_SUFFIXES and name.endswith(suffix) and name != suffix:
            return suffix
    return None


def unread_reason(path: Path) -> str | None:
    """Why a file that one may take for an image is not read, and what to do; None if unknown."""
    return None if image_suffix(path) else KNOWN_UNREAD.get(path.suffix.lower())


def format_of(head: bytes, name: str) -> str:
    """The format of a file that begins with `head` (352 bytes, or all of a shorter file).

    One of PNG, JPEG, BMP, TIFF, WEBP, GIF, AVIF, PPM, DICOM, NIFTI. Raises `ImageError` for
    anything else, naming what it probably is where the name says so.
    """
    for offset, magic, found in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return found
    if head[:2] in _PNM and head[2:3] in b" \t\r\n\v\f#":
        return "PPM"
    if head[4:12] in (b"ftypmif1", b"ftypmsf1") and _lists_avif(head):
        return "AVIF"
    why = unread_reason(Path(name))
    if head.startswith(b"version https://git-lfs"):
        why = "is a pointer of Git LFS, not the image itself: git lfs pull fetches it"
    if why is not None:
        raise ImageError(f"{name}: {why}")
    raise ImageError(f"{name}: is not a {_NAMES} image")


def decoder_of(form: str, name: str) -> type[ImageFile]:
    """Pillow's decoder of a format that `format_of` found; never DICOM's or NIfTI's.

    Raises `ImageError` for AVIF where Pillow was built without it (before 11.3, as a rule).
    """
    if form != "AVIF":
        return _DECODERS[form]
    try:
        from PIL.AvifImagePlugin import SUPPORTED, AvifImageFile
    except ImportError:
        SUPPORTED = False
    if not SUPPORTED:
        raise ImageError(
            f"{name}: is AVIF, which this Pillow cannot read: pip install 'pillow>=11.3'"
        )
    return AvifImageFile


def _lists_avif(head: bytes) -> bool:
    """Whether an ISO media file that names no coding as its main brand lists AVIF's."""
    brands = head[16 : int.from_bytes(head[:4], "big")]
    return any(brands[i : i + 4] in (b"avif", b"avis") for i in range(0, len(brands), 4))
