"""Predictor: the results of `predict`, from files, bytes and arrays, by many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fedvad
from fedvad.data.bounds import SERVICE_EXPANSION
from fedvad.data.images import read_rgb
from fedvad.detectors.memory.feddymem import FedDyMem
from fedvad.errors import ArtefactError, ConfigError, DataError
from fedvad.serving.predictor import Prediction, Predictor
from tests.helpers import SIZE

Run = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def predictor(trained: Run) -> Iterator[Predictor]:
    with Predictor.load(trained[0], site="birch") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(plants: Path) -> list[Path]:
    return sorted((plants / "birch/test").rglob("*.png"))


def test_results_are_those_of_predict(
    trained: Run, predictor: Predictor, files: list[Path]
) -> None:
    rows = list(fedvad.predict(trained[0], files, site="birch"))
    found = predictor.predict(files)
    assert [p.score for p in found] == pytest.approx([r["score"] for r in rows], abs=1e-5)
    assert [p.anomalous for p in found] == [r["anomalous"] for r in rows]
    assert {p.threshold for p in found} == {rows[0]["threshold"]}
    assert len({p.anomalous for p in found}) == 2  # both answers occur
    for prediction in found:
        assert prediction.error is None
        assert prediction.size == (SIZE, SIZE)
        assert prediction.map is not None
        assert prediction.map.dtype == np.float32
        assert prediction.map.shape == (SIZE // 4, SIZE // 4)


def test_paths_bytes_and_arrays_give_the_same(predictor: Predictor, files: list[Path]) -> None:
    path = files[0]
    found = predictor.predict([path, str(path), path.read_bytes(), read_rgb(path)])
    assert len({p.score for p in found}) == 1
    for prediction in found[1:]:
        np.testing.assert_array_equal(prediction.map, found[0].map)


def test_one_at_a_time_is_as_all_together(predictor: Predictor, files: list[Path]) -> None:
    together = [p.score for p in predictor.predict(files * 4)]  # more than one chunk
    single = [predictor.predict([path])[0].score for path in files]
    assert together == pytest.approx(single * 4, abs=1e-5)


def test_threads_get_what_one_thread_gets(predictor: Predictor, files: list[Path]) -> None:
    alone = {path: predictor.predict([path])[0] for path in files}
    work = files * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: predictor.predict([path])[0], work))
    for path, prediction in zip(work, found, strict=True):
        assert prediction.score == alone[path].score
        np.testing.assert_array_equal(prediction.map, alone[path].map)


def test_the_size_is_that_of_the_image_given(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    found = predictor.predict([rng.integers(0, 256, (50, 130, 3), dtype=np.uint8)])
    assert found[0].size == (50, 130)
    assert found[0].score is not None


def test_what_cannot_be_read_stands_among_the_results(
    predictor: Predictor, files: list[Path], tmp_path: Path
) -> None:
    gone = tmp_path / "gone.png"
    found = predictor.predict([b"no image", files[0], gone, b""], names=["a", "b", "c", "d"])
    assert [p.error is None for p in found] == [False, True, False, False]
    assert found[0].error == (
        "a: is not a PNG, JPEG, BMP, TIFF, WebP, GIF, AVIF, PGM/PPM/PBM, DICOM or NIfTI image"
    )
    assert found[2].error is not None
    assert "gone.png" in found[2].error
    for prediction in (found[0], found[2], found[3]):
        assert prediction.score is prediction.anomalous is prediction.map is None
        assert prediction.size is None


def test_large_images_are_refused_before_they_are_decoded(trained: Run, files: list[Path]) -> None:
    with Predictor.load(trained[0], max_pixels=SIZE * SIZE - 1) as careful:
        (found,) = careful.predict([files[0]])
    assert found.error is not None
    assert "over the limit" in found.error


def test_a_service_refuses_tiny_files_of_many_pixels(trained: Run, tmp_path: Path) -> None:
    Image.new("L", (1500, 1500), 90).save(tmp_path / "flat.png")
    with Predictor.load(trained[0], max_expansion=SERVICE_EXPANSION) as careful:
        (found,) = careful.predict([tmp_path / "flat.png"])
    assert "pixels per byte" in str(found.error)


def test_without_a_site_the_median_threshold_decides(trained: Run, files: list[Path]) -> None:
    known = sorted(v["threshold"] for v in trained[1]["threshold"]["sites"].values())
    with Predictor.load(str(trained[0])) as everyone:
        assert everyone.site is None
        assert everyone.predict(files[:1])[0].threshold == known[1]


def test_without_a_threshold_nothing_is_decided(trained: Run, files: list[Path]) -> None:
    from fedvad.runs.opening import open_memory_run as open_run

    run, _, extractor = open_run(trained[0])
    with Predictor(run.detector(None, extractor), None) as bare:
        (found,) = bare.predict(files[:1])
    assert found.score is not None
    assert found.threshold is found.anomalous is None


def test_no_image_gives_no_result(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_grey_alpha_deep_float_pil_and_tensors_score_like_the_array(
    trained: Run, predictor: Predictor, files: list[Path]
) -> None:
    import torch

    rgb = read_rgb(files[0])
    same = {
        "pil": Image.fromarray(rgb),
        "alpha": np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]),
        "deep": rgb.astype(np.uint16) * 257,
        "float": rgb / 255,
        "float of 255": rgb.astype(np.float32),
        "strided": np.ascontiguousarray(rgb[:, :, ::-1])[:, :, ::-1],
        "tensor": torch.from_numpy(rgb),
        "channels first": torch.from_numpy(rgb).permute(2, 0, 1).float() / 255,
        "bytearray": bytearray(files[0].read_bytes()),
    }
    found = predictor.predict([rgb, *same.values()])
    assert [p.error for p in found] == [None] * len(found)
    assert [p.score for p in found] == [found[0].score] * len(found), [*same]
    rows = list(fedvad.predict(trained[0], [rgb, *same.values(), files[0]], site="birch"))
    assert [r["path"] for r in rows[:2]] == ["images[0]", "images[1]"]
    assert [r["score"] for r in rows] == [pytest.approx(found[0].score, abs=1e-5)] * len(rows)


def test_a_picture_in_memory_is_drawn_like_a_file(
    trained: Run, files: list[Path], tmp_path: Path
) -> None:
    drawn = []
    for place, image in (("memory", read_rgb(files[0])), ("file", files[0])):
        (row,) = fedvad.predict(trained[0], image, site="birch", out=tmp_path / place)
        drawn.append(read_rgb(Path(row["overlay"])))
    below_the_names = slice(66, None)
    np.testing.assert_array_equal(*(picture[below_the_names] for picture in drawn))


def test_one_that_cannot_be_read_stands_among_the_results_of_predict(
    trained: Run, files: list[Path]
) -> None:
    rows = list(fedvad.predict(trained[0], [b"no image", files[0]], site="birch"))
    assert [r["error"] is None for r in rows] == [False, True]
    assert str(rows[0]["error"]).startswith("images[0]: is not a PNG")


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (np.zeros((0, 8, 3), np.uint8), "no image"),
        (np.zeros(3, np.uint8), "no image"),
        (np.zeros((3, 8, 8), np.uint8), r"channels first: give array.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 5), np.uint8), "5 channels"),
        (np.zeros((1, 8, 8, 3), np.uint8), "batch"),
        (np.zeros((8, 8), complex), "complex128"),
        (np.array([["a"]]), "not numbers"),
        (None, "NoneType"),
        (7, "int"),
    ],
)
def test_other_things_are_refused(
    predictor: Predictor, trained: Run, thing: Any, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        predictor.predict([thing])
    with pytest.raises(DataError, match=reason):
        list(fedvad.predict(trained[0], [thing]))


def test_what_cannot_be_done_is_reported(trained: Run, tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(ConfigError, match="oak"):
        Predictor.load(trained[0], site="oak")
    with pytest.raises(ConfigError, match="local"):
        Predictor.load(trained[0], reference="local")
    with pytest.raises(ArtefactError, match="does not exist"):
        Predictor.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="engine"):
        Predictor.load(trained[0], engine="openvino", device="cuda").warm_up()
    with Predictor.load(trained[0]) as one:
        pixels = np.zeros((8, 8, 3), np.uint8)
        for single in (files[0], str(files[0]), b"", pixels, Image.fromarray(pixels), None, 7):
            with pytest.raises(ConfigError, match="list"):
                one.predict(single)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="2 names for 1"):
            one.predict(files[:1], names=["a", "b"])
    with pytest.raises(ConfigError, match="closed"):
        one.predict(files)


def test_a_detector_without_memory_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="no memory"):
        Predictor(FedDyMem(extractor=predictor._detector.extractor), None)


def test_no_cache_is_filled(trained: Run, files: list[Path], cache_root: Path) -> None:
    with Predictor.load(trained[0]) as live:
        live.warm_up()
        live.predict(files[:1])
    assert not cache_root.exists()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    head=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"RIFF\x00\x00\x00\x00WEBP"]
    ),
    tail=st.binary(max_size=400),
)
def test_garbage_is_an_error_and_never_a_crash(
    predictor: Predictor, head: bytes, tail: bytes
) -> None:
    (found,) = predictor.predict([head + tail], names=["garbage"])
    assert isinstance(found, Prediction)
    if found.error is not None:
        assert found.error.startswith("garbage: ")
        assert found.score is None


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_scored_or_refused(
    predictor: Predictor, files: list[Path], data: st.DataObject
) -> None:
    sound = bytearray(files[0].read_bytes())
    cut = data.draw(st.integers(0, len(sound)))
    for _ in range(data.draw(st.integers(0, 5))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    (found,) = predictor.predict([bytes(sound[:cut])])
    assert (found.error is None) == (found.score is not None)


def test_a_jpeg_that_is_also_something_else_is_read_as_a_jpeg(
    predictor: Predictor, tmp_path: Path
) -> None:
    from io import BytesIO

    buffer = BytesIO()
    Image.new("RGB", (40, 40), (9, 90, 200)).save(buffer, "JPEG")
    alone, both = predictor.predict(
        [buffer.getvalue(), buffer.getvalue() + b"PK\x03\x04<script>alert(1)</script>"]
    )
    assert alone.error is None
    assert both.score == alone.score


def test_closing_waits_for_the_call_that_is_under_way(trained: Run) -> None:
    one = Predictor.load(trained[0])
    one.warm_up()
    begun = threading.Event()
    chunk = one._chunk

    def slowly(read: Any) -> Any:
        begun.set()
        return chunk(read)

    one._chunk = slowly  # type: ignore[method-assign]
    images = [np.full((SIZE, SIZE, 3), i, np.uint8) for i in range(100)]
    with ThreadPoolExecutor() as pool:
        call = pool.submit(one.predict, images)
        assert begun.wait(30)
        one.close()
        assert call.done()
    assert len(call.result()) == 100
