"""Cubes of bands go the way of pictures: read, exchanged, scored, shown; one way is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from scipy.io import savemat

import fedvad
from fedvad.data.cubes.names import is_cube
from fedvad.data.cubes.pixels import read_cube, read_picture, resize_cube
from fedvad.data.folders import read_data
from fedvad.data.inputs import list_images
from fedvad.data.labels import LabelNames
from fedvad.deploy.init import init
from fedvad.deploy.server import federate
from fedvad.deploy.settings import read_server, read_site, to_toml
from fedvad.deploy.site import answer, run_folder
from fedvad.errors import ConfigError, DataError, WeightsError
from fedvad.evaluation.results import Results
from fedvad.features.bands import write_bands_file
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.signed import generate_keys
from fedvad.runs.memory_run import TrainedRun
from fedvad.serving.predictor import Predictor
from fedvad.spectral.moments import Moments
from fedvad.verbs.bank import export_upload
from fedvad.verbs.bank_import import import_global
from fedvad.verbs.bank_server import merge_uploads
from tests.deploy.support import FakeLinks

BANDS = 12
# no site sees the size of another's cubes
APART = {"backbone": "spectral", "image_size": "fit:32x32"}
Cube = NDArray[np.uint16]


def _npy(path: Path, cube: Cube) -> None:
    np.save(path.with_suffix(".npy"), cube)


def _mat(path: Path, cube: Cube) -> None:
    savemat(path.with_suffix(".mat"), {"cube": cube})


def _envi(path: Path, cube: Cube) -> None:
    path.with_suffix(".hdr").write_text(
        f"ENVI\nlines = {cube.shape[0]}\nsamples = {cube.shape[1]}\nbands = {BANDS}\n"
        "data type = 12\ninterleave = bip\n"
    )
    cube.tofile(path.with_suffix(".raw"))


def _tiff(path: Path, cube: Cube) -> None:
    first, *rest = (Image.fromarray(np.ascontiguousarray(b)) for b in np.moveaxis(cube, 2, 0))
    first.save(path.with_suffix(".tif"), save_all=True, append_images=rest)


def _lights(path: Path, cube: Cube) -> None:
    folder = path.with_suffix(".bands")
    folder.mkdir()
    for number, band in enumerate(np.moveaxis(cube, 2, 0)):
        Image.fromarray(np.ascontiguousarray(band)).save(folder / f"{number:02}.png")


FORMATS: dict[str, tuple[Callable[[Path, Cube], None], ...]] = {
    "arrays": (_npy, _mat),
    "envi": (_envi,),
    "pages": (_tiff, _lights),
}


def drawn(rng: np.random.Generator, *, stained: bool) -> tuple[Cube, NDArray[np.bool_]]:
    """Mixtures of two spectra; a stain has a third, of the same brightness."""
    waves = np.linspace(0, 1, BANDS)
    share = rng.random((18, 20, 1))
    cube = share * (0.3 + 0.4 * waves) + (1 - share) * (0.6 - 0.3 * waves)
    mask = np.zeros(cube.shape[:2], np.bool_)
    if stained:
        top, left = rng.integers(1, 12, 2)
        mask[top : top + 4, left : left + 4] = True
        cube[mask] += 0.1 * np.sin(9 * waves)
    cube += rng.normal(0, 0.01, cube.shape)
    return np.rint(1000 * cube).astype(np.uint16), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cubes") / "sites"
    rng = np.random.default_rng(0)
    for site, writers in FORMATS.items():
        (root / site / "ground_truth" / "stain").mkdir(parents=True)
        for part, count in (("train/good", 4), ("test/good", 2), ("test/stain", 2)):
            folder = root / site / part
            folder.mkdir(parents=True)
            for number in range(count):
                cube, mask = drawn(rng, stained=part == "test/stain")
                writers[number % len(writers)](folder / f"{number}", cube)
                if part == "test/stain":
                    place = root / site / "ground_truth" / "stain" / f"{number}_mask.png"
                    Image.fromarray(mask).save(place)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("spectral") / "run"
    return out, fedvad.train(data, out, backbone="spectral")


def test_every_format_is_read_and_stains_are_found(run: tuple[Path, Results]) -> None:
    results = run[1]
    sites = results["data"]["sites"]
    assert results["data"]["complete"], results["data"]
    assert {name: (s["train"], s["test"]) for name, s in sites.items()} == dict.fromkeys(
        FORMATS, (4, 4)
    )
    assert results["image_auroc"]["mean"] == 1.0
    assert results["pixel_auroc"]["worst"] > 0.99


def test_the_backbone_is_that_of_all_normal_pixels(
    data: Path, run: tuple[Path, Results], tmp_path: Path
) -> None:
    sites = read_data(data, LabelNames(cubes=True)).sites
    cubes = [read_cube(path).cube for site in sites for path in site.train.paths]
    pixels = np.concatenate([cube.reshape(-1, BANDS) for cube in cubes]).astype(np.float64)
    kept = load_file(run[0] / "bands.safetensors")
    np.testing.assert_allclose(kept["mean"], pixels.mean(0), rtol=1e-6)
    white = (pixels - kept["mean"]) @ kept["axes"].T
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(BANDS), atol=1e-4)
    # sites that never meet add up their sums, and have the very same file
    parts = []
    for site in sites:
        own = sum((Moments.of(read_cube(p).cube) for p in site.train.paths), Moments.zero(BANDS))
        parts.append(own)
    fedvad.score_scenes([], moments=parts, save_backbone=tmp_path / "all.safetensors")
    merged = load_file(tmp_path / "all.safetensors")
    np.testing.assert_allclose(np.abs(merged["axes"]), np.abs(kept["axes"]), rtol=1e-3, atol=1e-5)


def test_a_moved_run_scores_the_same_and_shows_false_colours(
    data: Path, run: tuple[Path, Results], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run[0], moved)
    images = [data / "envi/test/stain", data / "pages/test/stain/0.tif"]
    rows = fedvad.predict(moved, images, site="envi", out=tmp_path / "odd")
    assert [Path(row["path"]).name for row in rows] == ["0.hdr", "1.hdr", "0.tif#bands"]
    assert all(row["anomalous"] for row in rows)
    before = {
        image["path"]: image["score"] for image in fedvad.predict(run[0], images, site="envi")
    }
    assert [before[row["path"]] for row in rows] == [row["score"] for row in rows]
    assert all(Path(row["overlay"]).is_file() for row in rows)
    picture = read_picture(data / "pages/test/stain/1.bands")
    assert picture.shape == (18, 20, 3)
    assert len(np.unique(picture)) > 20


def _same(own: TrainedRun, other: TrainedRun) -> None:
    np.testing.assert_array_equal(own.memory.vectors, other.memory.vectors)
    (name,) = own.sites
    np.testing.assert_array_equal(own.sites[name].bank.vectors, other.sites[name].bank.vectors)


def test_signed_files_give_the_memory_of_train(
    data: Path, run: tuple[Path, Results], tmp_path: Path
) -> None:
    options = APART | {"weights": run[0] / "bands.safetensors"}
    keys, stick = tmp_path / "keys", tmp_path / "stick"
    for name in (*FORMATS, "server"):
        generate_keys(keys, name)
    for round_ in (1, 2):
        uploads = [stick / f"{site}-{round_}.fedvad" for site in FORMATS]
        for index, (site, upload) in enumerate(zip(FORMATS, uploads, strict=True)):
            export_upload(
                data / site, tmp_path / site, keys / f"{site}.key", upload,
                index=index, options=options,
            )  # fmt: skip
        merged = stick / f"global-{round_}.fedvad"
        facts = merge_uploads(uploads, keys, keys / "server.key", tmp_path / "server", merged)
        assert facts["refused"] == {}
        out = tmp_path / "run" if round_ == 2 else None
        for site in FORMATS:
            here = out if site == "envi" else None
            import_global(merged, tmp_path / site, keys / "server.pub", out=here)
    _same(TrainedRun.load(tmp_path / "run"), TrainedRun.load(run[0]))
    (row,) = fedvad.predict(tmp_path / "run", [data / "envi/test/stain/0.hdr"])
    assert row["anomalous"]


def test_messages_of_flower_give_the_memory_of_train(
    data: Path, run: tuple[Path, Results], tmp_path: Path
) -> None:
    init(tmp_path, ["localhost"], list(FORMATS))
    (tmp_path / "server/federation.toml").write_text(to_toml(APART))
    weights = run[0] / "bands.safetensors"
    sites = {
        name: read_site(tmp_path / "sites" / name, data=data / name, weights=weights)
        for name in FORMATS
    }
    links = FakeLinks({name: partial(answer, site) for name, site in sites.items()})
    settings = read_server(tmp_path).model_copy(update={"deadline": 20.0})
    federate(settings, "run", links, clock=links.clock)
    identity = json.loads((settings.run("run") / "federation.json").read_text())["federation"]
    for site in sites.values():
        _same(TrainedRun.load(run_folder(site, identity)), TrainedRun.load(run[0]))


def test_descriptors_are_white_and_of_every_pixel(data: Path, run: tuple[Path, Results]) -> None:
    config = FeatureConfig("spectral", run[0] / "bands.safetensors", image_size="fit:64x64", pool=1)
    extractor = FeatureExtractor(config)
    paths = [p for s in read_data(data, LabelNames(cubes=True)).sites for p in s.train.paths]
    found = [one.descriptors for one in extractor.stream(paths)]
    assert {None if f is None else f.shape for f in found} == {(18, 20, BANDS)}
    rows = np.concatenate([np.asarray(f, np.float64).reshape(-1, BANDS) for f in found])
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(np.cov(rows.T), np.eye(BANDS), atol=2e-2)


def test_a_cube_is_known_by_its_values_in_every_format(
    run: tuple[Path, Results], tmp_path: Path
) -> None:
    cube, _ = drawn(np.random.default_rng(5), stained=False)
    for write in (_npy, _mat, _envi, _tiff):
        write(tmp_path / write.__name__, cube)
    _npy(tmp_path / "turned", cube.reshape(20, 18, BANDS))
    cache = DescriptorCache(tmp_path / "cache")
    config = FeatureConfig("spectral", run[0] / "bands.safetensors", image_size="fit:64x64")
    extractor = FeatureExtractor(config, cache)
    paths = list_images([tmp_path], cubes=True).paths
    *same, turned = [one.digest for one in extractor.stream(paths)]
    assert len(same) == 4
    assert len(set(same)) == 1
    assert turned != same[0]
    assert cache.info().entries == 2


def test_what_does_not_fit_is_refused(
    data: Path, run: tuple[Path, Results], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="--backbone spectral"):
        fedvad.train(data / "arrays", tmp_path / "no", backbone="filterbank")
    with pytest.raises(ConfigError, match="spectral"):
        fedvad.train(data, tmp_path / "no", backbone="spectral", method="stfpm")
    with pytest.raises(ConfigError, match="cubes of 12 bands"):
        Predictor.load(run[0])
    with pytest.raises(ConfigError, match="cubes of 12 bands"):
        fedvad.export(run[0])
    with pytest.raises(WeightsError, match="--save-backbone"):
        FeatureExtractor(FeatureConfig("spectral"))
    np.save(tmp_path / "other.npy", np.ones((9, 9, 5)))
    (row,) = fedvad.predict(run[0], [tmp_path / "other.npy"])
    assert "has 5 bands, and this detector is for 12" in row["error"]
    with pytest.raises(DataError, match="same spectrum"):
        write_bands_file(tmp_path / "flat.safetensors", np.zeros(3), np.zeros((3, 3)))


def test_a_bench_compares_on_cubes_and_shows_what_trivial_statistics_reach(
    data: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "cubes.toml"
    suite.write_text(
        'name = "cubes"\nconvergence = false\nbaselines = ["alone"]\n'
        '[options]\nbackbone = "spectral"\nmemory_rows = 500\n'
        '[[sets]]\nname = "parts"\npath = "sites"\n'
        '[[methods]]\nname = "feddymem"\n[[methods]]\nname = "alone"\nkind = "local"\n'
    )
    found = fedvad.bench(suite, tmp_path / "out", data=data.parent, seeds=[0])
    assert found["failed"] == {}
    rows = found["sets"]["parts"]
    assert rows["feddymem"]["image_auroc"]["mean"] == 1.0
    # of false colours, which the stains change less than they change the spectra
    statistics = found["trivial"]["parts"]["statistics"]
    assert set(statistics["brightness"]["sites"]) == set(FORMATS)
    (bands,) = (tmp_path / "out/bands").iterdir()
    assert load_file(bands / "bands.safetensors")["mean"].shape == (BANDS,)


def test_cubes_are_files_only_where_they_are_asked_for(data: Path) -> None:
    with pytest.raises(DataError, match="no image found"):
        list_images([data / "arrays/train"])
    arrays = list_images([data / "arrays/train"], cubes=True).paths
    assert [path.name for path in arrays] == ["0.npy", "1.mat", "2.npy", "3.mat"]
    pages = list_images([data / "pages/train"], cubes=True).paths
    assert [path.name for path in pages] == ["0.tif#bands", "1.bands", "2.tif#bands", "3.bands"]
    assert all(map(is_cube, pages))
    assert len(list_images([data / "pages/train"]).paths) == 4 * BANDS


def test_inspect_reads_a_folder_of_cubes(data: Path) -> None:
    found = fedvad.inspect(data)["data"]
    assert found["complete"]
    assert found["sites"]["envi"]["test"] == 4


def test_a_larger_cube_is_averaged_band_by_band() -> None:
    cube = np.zeros((4, 4, 2), np.float32)
    cube[:2, :2, 1] = 4
    small = resize_cube(cube, (2, 2))
    assert small[..., 0].max() == 0
    assert small[0, 0, 1] > small[0, 1, 1] > small[1, 1, 1]
