"""Slices of DICOM and NIfTI: windows, ranges, axes, and nothing about a person in any message."""

from __future__ import annotations

import builtins
import gzip
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvad.data.folders import read_data
from fedvad.data.frames import frames_of
from fedvad.data.images import decode_rgb, read_mask, read_rgb
from fedvad.data.inputs import list_images
from fedvad.errors import ImageError

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

SECRET = "DOE^JANE"
RAMP = np.array([[0, 1000, 2000], [3000, 4000, 4095]], np.uint16)


def dicom(
    values: np.ndarray, *, colour: bool = False, syntax: str | None = None, **tags: Any
) -> bytes:
    """A file of values (H, W) or (F, H, W), in colour (H, W, 3) or (F, H, W, 3)."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    frames = values.ndim - colour == 3
    made.PatientName = SECRET
    made.Rows, made.Columns = values.shape[frames : frames + 2]
    if frames:
        made.NumberOfFrames = len(values)
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * values.dtype.itemsize
    made.BitsStored = made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(made, name, value)
    buffer = BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()


def grey(data: bytes, frame: int | None = None) -> list[list[int]]:
    seen = decode_rgb(data, "scan.dcm", frame=frame)
    assert seen.dtype == np.uint8
    assert (seen == seen[:, :, :1]).all()
    return seen[:, :, 0].tolist()  # type: ignore[no-any-return]


def test_without_a_window_deep_values_span_the_file_and_8_bits_stay() -> None:
    assert grey(dicom(RAMP)) == [[0, 62, 125], [187, 249, 255]]
    assert grey(dicom(np.array([[3, 100, 200]], np.uint8))) == [[3, 100, 200]]
    frames = np.stack([RAMP // 2, RAMP])  # one scale for all frames of a file
    assert max(grey(dicom(frames), 1)[1]) == 127
    assert max(grey(dicom(frames), 2)[1]) == 255


def test_the_first_window_is_applied_after_the_rescaling() -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    wide = dicom(RAMP, WindowCenter=[3000, 9], WindowWidth=[4000, 9], **tags)
    # C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) × 255 at x = -1000, 1000, 3000, 5000, ...
    assert grey(wide) == [[0, 0, 128], [255, 255, 255]]
    exact = dicom(RAMP, WindowCenter=2000, WindowWidth=4000, VOILUTFunction="LINEAR_EXACT")
    assert grey(exact) == [[0, 64, 128], [191, 255, 255]]
    sigmoid = grey(dicom(RAMP, WindowCenter=2000, WindowWidth=4000, VOILUTFunction="SIGMOID"))
    assert sigmoid[0] == [30, 69, 128]
    assert grey(dicom(RAMP, WindowCenter=2000.5, WindowWidth=1)) == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_voi_table_stands_for_a_window(bits: int) -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    top = 2**bits - 1
    values = [0, top // 4, top // 2, top]
    shown = [round(value * 255 / top) for value in values[1:3]]
    # as stored: entries, the value that the first one stands for, bits of an entry
    table.LUTDescriptor = [4, 1000, bits]
    table.LUTData = np.array(values, "<u2").tobytes()
    deep = np.array([[0, 1000, 1001], [1002, 1003, 4095]], np.uint16)
    assert grey(dicom(deep, VOILUTSequence=[table])) == [[0, 0, shown[0]], [shown[1], 255, 255]]


def test_signed_values_are_taken_as_they_are() -> None:
    hounsfield = np.array([[-1000, 0, 1000]], np.int16)
    assert grey(dicom(hounsfield)) == [[0, 128, 255]]
    assert grey(dicom(hounsfield, WindowCenter=0.5, WindowWidth=201)) == [[0, 128, 255]]


def test_monochrome1_is_inverted() -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1"}
    assert grey(dicom(np.array([[0, 100, 255]], np.uint8), **tags)) == [[255, 155, 0]]
    assert grey(dicom(RAMP, **tags))[0] == [255, 193, 130]


def test_windows_of_enhanced_files_are_those_of_each_frame() -> None:
    from pydicom.dataset import Dataset

    def group(centre: int) -> Dataset:
        window, item = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 1
        item.FrameVOILUTSequence = [window]
        return item

    data = dicom(
        np.stack([RAMP, RAMP]), PerFrameFunctionalGroupsSequence=[group(1500), group(3500)]
    )
    assert grey(data, 1) == [[0, 0, 255], [255, 255, 255]]
    assert grey(data, 2) == [[0, 0, 0], [0, 255, 255]]


def test_colour_is_rgb_and_ybr_is_converted() -> None:
    rgb = np.array([[[10, 20, 30], [200, 100, 0]]], np.uint8)
    assert decode_rgb(dicom(rgb, colour=True), "x").tolist() == rgb.tolist()
    ybr = np.array([[[128, 128, 128]]], np.uint8)
    data = dicom(ybr, colour=True, PhotometricInterpretation="YBR_FULL")
    assert decode_rgb(data, "x").tolist() == [[[128, 128, 128]]]
    red = np.array([[[76, 85, 255]]], np.uint8)
    strong = dicom(red, colour=True, PhotometricInterpretation="YBR_FULL")
    assert np.abs(decode_rgb(strong, "x")[0, 0].astype(int) - [254, 0, 0]).max() <= 2


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": SECRET}, "unknown colours"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "window of width 0"),
        ({"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": SECRET}, "unknown function"),
        ({"Rows": 20_000, "Columns": 20_000}, "over the limit"),
        ({"Rows": 9}, "damaged or unusual DICOM"),
        ({"NumberOfFrames": 30_000}, "more than 10000 images"),
        ({"RescaleSlope": "1e400", "RescaleIntercept": "0"}, "damaged or unusual"),
    ],
)
def test_what_is_not_read_is_refused_without_a_word_of_the_file(tags, reason) -> None:
    with pytest.raises(ImageError, match=rf"^scan\.dcm: .*{reason}") as caught:
        grey(dicom(RAMP, **tags))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.filterwarnings("ignore")
def test_compressed_files_are_read_or_refused_by_the_name_of_the_compression() -> None:
    packed = pydicom.dcmread(BytesIO(dicom(np.array([[1, 2, 3, 9]] * 4, np.uint8))))
    packed.compress(pydicom.uid.RLELossless)
    buffer = BytesIO()
    packed.save_as(buffer)
    assert grey(buffer.getvalue())[0] == [1, 2, 3, 9]
    packed.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    packed.save_as(buffer := BytesIO())
    with pytest.raises(ImageError, match=r"compressed as JPEG Lossless.*pip install"):
        grey(buffer.getvalue())
    with pytest.raises(ImageError, match="deflated"):
        grey(dicom(RAMP, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian))


def test_a_report_is_no_image_and_named_as_one_that_is_not_read(tmp_path: Path) -> None:
    good = tmp_path / "train/good"
    good.mkdir(parents=True)
    for name, value in (("a", 7), ("b", 8)):
        (good / f"{name}.dcm").write_bytes(dicom(np.full((4, 5), value, np.uint8)))
    report = pydicom.dcmread(good / "a.dcm")
    for tag in ("PixelData", "Rows", "Columns"):
        delattr(report, tag)
    report.save_as(good / "report.dcm")
    reading = read_data(tmp_path)
    assert [path.name for path in reading.sites[0].train.paths] == ["a.dcm", "b.dcm"]
    (left,) = reading.parts[0].skipped
    assert (left.folder, left.files, left.notable) == ("train/good", 1, True)
    assert left.reason == "DICOM without pixels (a report, a structure)"
    listing = list_images([good])
    assert [path.name for path in listing.paths] == ["a.dcm", "b.dcm"]
    assert listing.left_out["other"] == 1
    with pytest.raises(ImageError, match="without pixels"):  # a file named outright is tried
        read_rgb(list_images([good / "report.dcm"]).paths[0])


def test_each_frame_of_a_file_is_an_image(tmp_path: Path) -> None:
    file = tmp_path / "cine.dcm"
    file.write_bytes(dicom(np.stack([np.full((4, 5), v, np.uint8) for v in (7, 8, 9)])))
    assert [p.name for p in frames_of(file)] == ["cine.dcm#1", "cine.dcm#2", "cine.dcm#3"]
    assert [read_rgb(p).max() for p in frames_of(file)] == [7, 8, 9]
    with pytest.raises(ImageError, match="holds 3 images"):
        read_rgb(file)


def nifti(volume: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> bytes:
    made = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        made.header[name] = value
    made.header["descrip"] = SECRET.encode()
    return bytes(made.to_bytes())


VOLUME = np.arange(24, dtype=np.int16).reshape(2, 3, 4) * 10  # x, y, z


def test_slices_are_axial_with_the_first_axis_to_the_right_and_the_second_upwards() -> None:
    last = grey(nifti(VOLUME), 4)
    assert np.shape(last) == (3, 2)
    expected = (VOLUME[:, :, 3].T[::-1] / 230 * 255).round()
    assert last == expected.tolist()


def test_however_a_volume_is_stored_its_slices_look_alike(tmp_path: Path) -> None:
    turned = VOLUME.transpose(2, 0, 1)[:, ::-1]  # z, -x, y
    affine = np.array([[0, -1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    for data in (nifti(turned, affine), gzip.compress(nifti(turned, affine))):
        assert [grey(data, n) for n in (1, 4)] == [grey(nifti(VOLUME), n) for n in (1, 4)]
    file = tmp_path / "head.nii.gz"
    file.write_bytes(gzip.compress(nifti(turned, affine)))
    assert [p.name for p in frames_of(file)] == [f"head.nii.gz#{n}" for n in (1, 2, 3, 4)]


def test_values_of_a_volume() -> None:
    whole = np.array([[[0], [128], [255]]], np.uint8)
    assert grey(nifti(whole)) == [[255], [128], [0]]
    windowed = nifti(VOLUME[:, :, :1], cal_min=0, cal_max=100)
    assert grey(windowed) == [[204, 255], [102, 255], [0, 255]]
    scaled = nifti(VOLUME[:, :, :1], scl_slope=-1.0, scl_inter=0.0)
    assert grey(scaled)[2][0] == 255  # what is stored as the least is the greatest
    holes = np.array([[[0.5], [np.nan], [1.5]]], np.float32)
    assert grey(nifti(holes)) == [[255], [0], [0]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (nifti(np.zeros((2, 2, 2, 5), np.int16)), "four|three axes"),
        (nifti(np.zeros((2, 2, 1), np.complex64)), "grey numbers"),
        (nifti(VOLUME)[:380], "truncated"),
        (gzip.compress(nifti(VOLUME))[:100], "truncated|damaged"),
        (gzip.compress(b"a text" * 100), "not NIfTI"),
        (b"\x1f\x8b" + bytes(90), "damaged"),
        (nifti(np.full((1, 2, 1), np.nan, np.float32)), "no finite value"),
    ],
    # not from the bytes: gzip's hold the time, and two workers must name a test alike
    ids=["4d", "complex", "cut", "packed-cut", "packed-text", "packed-junk", "nan"],
)
def test_volumes_that_are_not_read(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^v\.nii: .*({reason})"):
        decode_rgb(data, "v.nii", frame=1)


def test_a_bomb_is_not_unpacked() -> None:
    header = bytearray(nifti(np.zeros((8, 8, 1), np.uint8)))
    header[42:46] = np.array([30_000, 30_000], "<i2").tobytes()
    with pytest.raises(ImageError, match="over the limit"):
        decode_rgb(gzip.compress(bytes(header) + bytes(50_000_000)), "v.nii")


def test_masks_are_label_maps_in_either_format(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    (tmp_path / "m.dcm").write_bytes(dicom(labels, PhotometricInterpretation="MONOCHROME1"))
    assert read_mask(tmp_path / "m.dcm").tolist() == (labels > 0).tolist()
    (tmp_path / "m.nii").write_bytes(nifti(labels.T[:, ::-1, None].copy()))
    assert read_mask(tmp_path / "m.nii").tolist() == (labels > 0).tolist()


@pytest.mark.parametrize("data", [dicom(RAMP), nifti(VOLUME)])
def test_without_the_extra_the_reason_names_it(monkeypatch: pytest.MonkeyPatch, data) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("pydicom", "nibabel"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImageError, match=r"pip install 'fedvad\[medical\]'"):
        decode_rgb(data, "a")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "sound", [dicom(np.stack([RAMP, RAMP])), nifti(VOLUME), gzip.compress(nifti(VOLUME))]
)
def test_damaged_files_are_read_or_refused(sound: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), rng.integers(1, 8)):
            data[place] = rng.integers(0, 256)
        said = ""
        try:
            seen = decode_rgb(bytes(data[: rng.integers(1, 2 * len(data))]), "f", frame=1)
        except ImageError as error:
            said = str(error)
        if said:
            assert said.startswith("f: ")
            assert "JANE" not in said
        else:
            assert seen.dtype == np.uint8
            assert seen.shape[2] == 3
