"""train(): what a run leaves, every method, thresholds, odd sites, interruptions, full disks."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedvad
from fedvad.detectors.base import NormalFeatures
from fedvad.detectors.calibration import RowLookup, held_out_scores
from fedvad.detectors.memory.feddymem import PatchCore
from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import MemoryScorer, ScoringConfig
from fedvad.errors import ConfigError, DataError, FederationError, StorageError
from fedvad.evaluation.thresholds import conformal_threshold
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from fedvad.federation.codecs import rounding
from fedvad.federation.ledger import Ledger
from fedvad.half import to_float
from fedvad.memory.bank import MemoryBank, concatenate
from fedvad.report.results_tables import rich_tables
from fedvad.runs.config import resolve_config
from fedvad.runs.data import load_sites, warm_up
from fedvad.runs.families import METHODS, method_class
from fedvad.runs.memory_run import TrainedRun
from fedvad.runs.method import make_method
from fedvad.runs.plan import split_held_out
from fedvad.runs.progress import no_progress
from fedvad.runs.run_folder import read_config
from tests.helpers import OPTIONS, TRAIN, without_masks

METRICS = ("image_auroc", "pixel_auroc", "aupro")
SITES = {"alder", "birch", "cedar"}


@pytest.fixture(scope="module")
def features(plants: Path, shared_cache: Path) -> dict[str, NormalFeatures]:
    config = FeatureConfig(**OPTIONS)
    extractor = FeatureExtractor(config, DescriptorCache(shared_cache))
    return warm_up(load_sites(plants, None, 0), extractor, 0.05, no_progress)


def _same(value: Any, kind: type) -> None:
    assert value is None or isinstance(value, kind)


def check_shape(results: dict[str, Any], sites: set[str], *, main: bool) -> None:
    """The shape that the issue promises for `--json`."""
    for metric in METRICS:
        assert {"mean", "worst", "pooled", "sites"} <= set(results[metric])
        for key in ("mean", "worst", "pooled"):
            _same(results[metric][key], float)
        assert set(results[metric]["sites"]) == sites
        known = [v for v in results[metric]["sites"].values() if v is not None]
        if known:
            assert results[metric]["mean"] == pytest.approx(np.mean(known))
            assert results[metric]["worst"] == min(known)
    assert results["threshold"]["target_fpr"] == 0.01
    assert set(results["threshold"]["sites"]) == sites
    for values in results["threshold"]["sites"].values():
        for key in ("threshold", "fpr", "recall"):
            _same(values[key], float)
    if not main:
        return
    ledger = results["ledger"]
    for key in ("rounds", "bytes_up_per_site_round", "bytes_down_per_site_round"):
        assert ledger[key] > 0
    assert {"features", "local", "merge", "score", "total"} <= set(ledger["seconds"])
    assert ledger["peak_rss_mb"] > 1
    for other in results["compare"].values():
        check_shape(other, sites, main=False)


class TestAnOrdinaryRun:
    def test_results_have_the_promised_shape(self, trained: tuple[Path, dict[str, Any]]) -> None:
        results = trained[1]
        check_shape(results, SITES, main=True)
        assert set(results["compare"]) == {"local", "pooled", "identity"}
        assert results["training_images"] == dict.fromkeys(SITES, TRAIN)
        assert results["unreadable"] == []
        json.dumps(results.to_dict(), allow_nan=False)

    def test_results_are_stored_as_they_were_returned(
        self, trained: tuple[Path, dict[str, Any]]
    ) -> None:
        out, results = trained
        assert json.loads((out / "results.json").read_text()) == results

    def test_the_folder_holds_everything_and_no_state(
        self, trained: tuple[Path, dict[str, Any]]
    ) -> None:
        out, _ = trained
        files = {
            str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.suffix != ".webp"
        }
        assert files == {
            "config.json", "detector.safetensors", "gallery.json", "heatmaps.png", "ledger.json",
            "report.html", "results.json", "scores.json",
            "tables/method.csv", "tables/own-normals.csv", "tables/rate.csv", "tables/results.md",
            "tables/site.csv",
        }  # fmt: skip
        with Image.open(out / "heatmaps.png") as sheet:
            assert min(sheet.size) > 100
        with (out / "tables" / "site.csv").open(encoding="utf-8") as file:
            assert {row["site"] for row in csv.DictReader(file)} == SITES
        config = read_config(out)
        assert config == resolve_config(compare="local,pooled,identity", **OPTIONS)

    def test_the_ledger_adds_up(self, trained: tuple[Path, dict[str, Any]]) -> None:
        out, results = trained
        ledger = json.loads((out / "ledger.json").read_text())
        assert len(ledger["rounds"]) == results["ledger"]["rounds"] == 2
        sent = [b for entry in ledger["rounds"] for b in entry["bytes_up"].values()]
        assert results["ledger"]["bytes_up_per_site_round"] == round(sum(sent) / len(sent))
        assert max(sent) <= read_config(out).upload_bytes

    def test_identity_is_the_method_itself_when_nothing_is_trained(
        self, trained: tuple[Path, dict[str, Any]]
    ) -> None:
        results = trained[1]
        identity = results["compare"]["identity"]
        assert identity == {k: results[k] for k in identity}
        assert results["gain"]["identity"]["mean"]["gain"] == 0

    def test_saved_scores_are_live_scores(
        self, trained: tuple[Path, dict[str, Any]], plants: Path, shared_cache: Path
    ) -> None:
        out, results = trained
        again = fedvad.evaluate(out, plants, cache=shared_cache)
        for key in (*METRICS, "threshold", "average_precision", "oracle_f1"):
            assert again[key] == results[key]

    def test_the_run_can_be_loaded(self, trained: tuple[Path, dict[str, Any]]) -> None:
        run = fedvad.load(trained[0])
        assert set(run.sites) == SITES
        assert len(run.memory) == trained[1]["ledger"]["memory_rows"]
        assert run.memory.total_weight == pytest.approx(3 * TRAIN * 256, rel=1e-4)
        for model in run.sites.values():
            assert model.n_images == TRAIN
            assert set(model.thresholds) == {"global", "local"}
            assert model.generator.is_identity


@pytest.mark.parametrize("method", [m for m in METHODS if "memory_rows" in method_class(m).options])
def test_every_method_runs_end_to_end(
    method: str, plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    compare = "identity" if method == "feddymem-trained" else ""
    results = fedvad.train(
        plants, tmp_path / "run", cache=shared_cache, method=method, compare=compare, **OPTIONS
    )
    check_shape(results, SITES, main=True)
    # means of positions cannot tell apart where a weave is; that is what they are measured for
    assert results["image_auroc"]["mean"] > (0.5 if method == "feddymem-position" else 0.75)
    run = fedvad.load(tmp_path / "run")
    trained = [not model.generator.is_identity for model in run.sites.values()]
    assert all(trained) if method == "feddymem-trained" else not any(trained)
    again = fedvad.evaluate(tmp_path / "run", plants, cache=shared_cache)
    assert again["image_auroc"] == results["image_auroc"]
    assert again["threshold"] == results["threshold"]


class TestReproducible:
    def test_bit_for_bit_for_a_seed_whatever_the_jobs(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        for name, jobs in (("a", 1), ("b", 3)):
            fedvad.train(plants, tmp_path / name, cache=shared_cache, jobs=jobs, **OPTIONS)
        a, b = (tmp_path / name / "detector.safetensors" for name in "ab")
        assert a.read_bytes() == b.read_bytes()
        fedvad.train(plants, tmp_path / "c", cache=shared_cache, seed=1, **OPTIONS)
        assert (tmp_path / "c" / "detector.safetensors").read_bytes() != a.read_bytes()

    def test_without_a_cache_that_can_be_written(
        self, plants: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("no folder")
        fedvad.train(plants, tmp_path / "run", cache=tmp_path / "file" / "cache", **OPTIONS)
        expected = (trained[0] / "detector.safetensors").read_bytes()
        assert (tmp_path / "run" / "detector.safetensors").read_bytes() == expected


def test_the_pooled_memory_is_as_large_as_the_global_one(
    features: dict[str, NormalFeatures],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = resolve_config(upload_rows=20, join={"cedar": 2}, **OPTIONS)
    method = make_method(config, features["alder"].extractor)
    method.take(features)
    memory = method.train(Ledger()).memory  # type: ignore[attr-defined]
    made: list[tuple[int, int]] = []

    def fit(self: PatchCore, *sites: NormalFeatures) -> PatchCore:
        made.append((self.rows, len(sites)))
        return self.with_memory(memory)

    monkeypatch.setattr(PatchCore, "fit_features", fit)
    method.baseline("pooled")
    assert len(memory) == 5 * 20  # not the 6 x 20 that all may send
    assert made == [(100, 3)]


def test_thresholds_of_the_identity_are_those_of_a_federation_that_trains_no_generator(
    plants: Path, shared_cache: Path
) -> None:
    found = {}
    for trains in (True, False):
        config = resolve_config(
            train_generator=trains, precision="int5", rounds=1, threshold_rule="own", **OPTIONS
        )
        extractor = FeatureExtractor(config.features(), DescriptorCache(shared_cache))
        method = make_method(config, extractor)
        method.read(load_sites(plants, None, 0))
        if trains:
            made = method.baseline("identity")
            assert made is not None
            found[trains] = {name: one.threshold() for name, one in made.items()}
        else:
            run = method.train(Ledger())
            method.calibrate(run)
            found[trains] = {name: s.thresholds["global"] for name, s in run.sites.items()}
    assert found[True] == found[False]  # rows of an image are its own in five bits, too


@pytest.fixture(scope="module")
def bank(features: dict[str, NormalFeatures]) -> MemoryBank:
    """All patches of every third row of the grid, of all images of all sites."""
    rows = [
        d[::3].reshape(-1, d.shape[-1]).astype(np.float32)
        for name in sorted(features)
        for d in features[name]
    ]
    return concatenate([MemoryBank.of_patches(patches) for patches in rows])


class TestLeaveOneOut:
    """Each image is scored as if its rows had never been in the memory."""

    @pytest.mark.parametrize("map_", ["nn1", "cfa", "patchcore", "spread"])
    def test_equals_a_memory_without_the_image(
        self, features: dict[str, NormalFeatures], bank: MemoryBank, map_: Any
    ) -> None:
        scoring = ScoringConfig(map=map_, search="exact", density=0)
        identity = Generator.identity(bank.dim)
        ours = features["birch"].subset([0, 2])
        scores = held_out_scores(ours, MemoryScorer(bank, scoring), identity, leave_one_out=True)
        lookup = RowLookup(bank.vectors)
        for i, descriptors in enumerate(ours):
            own = lookup.rows_of(to_float(descriptors.reshape(-1, bank.dim)))
            assert len(own) == 6 * 16
            rest = bank.take(np.setdiff1d(np.arange(len(bank)), own))
            expected = held_out_scores(
                ours.subset([i]), MemoryScorer(rest, scoring), identity, leave_one_out=False
            )
            assert scores[i] == pytest.approx(expected[0], rel=1e-5)

    def test_raises_scores(self, features: dict[str, NormalFeatures], bank: MemoryBank) -> None:
        reported = [
            held_out_scores(
                features["birch"], MemoryScorer(bank, ScoringConfig()),
                Generator.identity(bank.dim), leave_one_out=out,
            )
            for out in (True, False)
        ]  # fmt: skip
        assert (np.array(reported[0]) > np.array(reported[1])).all()

    def test_an_image_that_is_the_whole_memory_is_left_out(
        self, features: dict[str, NormalFeatures]
    ) -> None:
        one = features["birch"].subset([1])
        bank = MemoryBank.of_patches(next(iter(one)).reshape(256, -1).astype(np.float32))
        identity, scoring = Generator.identity(bank.dim), ScoringConfig()
        assert held_out_scores(one, MemoryScorer(bank, scoring), identity, leave_one_out=True) == []

    def test_finds_rows_within_a_hundredth_of_a_patch(self) -> None:
        rng = np.random.default_rng(0)
        patches = rng.normal(size=(40, 96)).astype(np.float32)
        lengths = np.linalg.norm(patches, axis=1, keepdims=True)
        moved = rng.normal(size=patches.shape).astype(np.float32)
        moved *= lengths / np.linalg.norm(moved, axis=1, keepdims=True)
        for share, found in ((0.0, 40), (0.0099, 40), (0.0101, 0)):
            lookup = RowLookup(np.concatenate([rng.normal(size=(9, 96)), patches + share * moved])
                               .astype(np.float32))  # fmt: skip
            assert lookup.rows_of(patches).tolist() == list(range(9, 9 + found))
        assert RowLookup(np.zeros((2, 3), np.float32)).rows_of(patches[:1, :3]).tolist() == []
        zero = np.array([[0.0, 1], [-0.0, 0], [0, 0]], np.float32)
        assert RowLookup(zero).rows_of(np.zeros((1, 2), np.float32)).tolist() == [1, 2]

    def test_another_engine_tells_the_same_rows(self, plants: Path, tmp_path: Path) -> None:
        images = sorted((plants / "birch" / "train" / "good").iterdir())[:3]
        described = {}
        for engine in ("openvino", "torch"):
            config = FeatureConfig(image_size=64, engine=engine)
            found = [e.descriptors for e in FeatureExtractor(config).stream(images)]
            described[engine] = [to_float(d.reshape(-1, d.shape[-1])) for d in found]
        assert (described["openvino"][0] != described["torch"][0]).any()
        for stored in (lambda rows: rows, rounding("int8"), rounding("int5")):
            memory = stored(np.concatenate(described["openvino"]))
            lookup, count = RowLookup(memory), len(memory) // 3
            for i, patches in enumerate(described["torch"]):
                own = range(i * count, (i + 1) * count)
                assert set(own) <= set(lookup.rows_of(stored(patches)).tolist())


class TestHoldout:
    def test_held_out_images_never_reach_the_memory(
        self, features: dict[str, NormalFeatures]
    ) -> None:
        config = resolve_config(method="feddymem-cluster", holdout=0.4, **OPTIONS)
        fitting, held_out = split_held_out(features, config)
        for name, feature in features.items():
            assert len(held_out[name]) == round(0.4 * TRAIN)
            assert set(fitting[name].paths) | set(held_out[name].paths) == set(feature.paths)
            assert not set(fitting[name].paths) & set(held_out[name].paths)

    def test_they_change_thresholds_only(
        self, plants: Path, shared_cache: Path, tmp_path: Path, features: dict[str, NormalFeatures]
    ) -> None:
        options: dict[str, Any] = {"calibration": "holdout", "holdout": 0.5, **OPTIONS}
        shutil.copytree(plants, tmp_path / "plants")
        _, held_out = split_held_out(features, resolve_config(**options))
        fedvad.train(tmp_path / "plants", tmp_path / "a", cache=shared_cache, **options)
        for feature in held_out.values():
            for path in feature.paths:
                there = tmp_path / "plants" / path.relative_to(plants)
                Image.fromarray(255 - np.array(Image.open(path))).save(there)
        fedvad.train(tmp_path / "plants", tmp_path / "b", cache=shared_cache, **options)
        a, b = fedvad.load(tmp_path / "a"), fedvad.load(tmp_path / "b")
        np.testing.assert_array_equal(a.memory.vectors, b.memory.vectors)
        for name in SITES:
            np.testing.assert_array_equal(a.sites[name].bank.vectors, b.sites[name].bank.vectors)
            # negatives of the images are far from any memory
            high = b.sites[name].thresholds["global"].value
            assert high > 1.5 * a.sites[name].thresholds["global"].value

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_an_image_to_fit_on_is_always_left(
        self, share: float, count: int, features: dict[str, NormalFeatures]
    ) -> None:
        few = {"alder": features["alder"].subset(range(count))}
        config = resolve_config(calibration="holdout", holdout=share)
        fitting, held_out = split_held_out(few, config)
        assert len(fitting["alder"]) >= 1
        assert len(fitting["alder"]) + len(held_out["alder"]) == count


class TestPrecision:
    """Compressed rows: fewer bytes, thresholds that still know nothing of their own images."""

    @pytest.mark.parametrize(
        ("precision", "bytes_of", "close"),
        [("int8", 0.6, 0.02), ("int5", 0.4, 0.1), ("pca", 0.7, 0.2), ("pq", 3, 0.2)],
    )
    def test_a_compressed_run_is_close_to_a_plain_one(
        self,
        precision: str,
        bytes_of: float,
        close: float,
        plants: Path,
        trained: tuple[Path, dict[str, Any]],
        shared_cache: Path,
        tmp_path: Path,
    ) -> None:
        out, plain = trained
        options: dict[str, Any] = {"precision": precision, "holdout": 0.5, **OPTIONS}
        reported = fedvad.train(plants, tmp_path / "run", cache=shared_cache, **options)
        sent, before = reported["ledger"]["bytes_up_max"], plain["ledger"]["bytes_up_max"]
        # on so few rows the codebooks of pq weigh more than they save
        assert sent < bytes_of * before
        assert reported["image_auroc"]["mean"] > plain["image_auroc"]["mean"] - close
        ours, theirs = fedvad.load(tmp_path / "run"), fedvad.load(out)
        for name in SITES:
            limit = ours.sites[name].thresholds["global"].value
            if precision == "int8":  # rows of an image are still known as its own, and hidden
                assert limit == pytest.approx(
                    theirs.sites[name].thresholds["global"].value, rel=0.05
                )
            assert limit > 0
        rows = [r["score"] for r in fedvad.predict(tmp_path / "run", plants / "alder" / "test")]
        assert all(score > 0 for score in rows)

    def test_int8_rows_are_hidden_from_their_own_image_only_in_their_stored_form(
        self, features: dict[str, NormalFeatures], bank: MemoryBank
    ) -> None:
        stored = rounding("int8")
        coded = MemoryBank(stored(bank.vectors), bank.weights, bank.spread)
        one = next(iter(features["birch"])).reshape(-1, bank.dim)
        lookup = RowLookup(coded.vectors)
        hidden = lookup.rows_of(stored(to_float(one)))
        assert len(hidden) == 6 * 16
        assert len(lookup.rows_of(to_float(one))) < len(hidden)


@pytest.fixture(scope="module")
def odd(plants: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on sites of 6, 3 and 1 images, with names that need care, one without test images."""
    root = tmp_path_factory.mktemp("odd")
    names = {"alder": "Werk Süd 1", "birch": "дом [b] — 3", "cedar": "just one"}
    for old, new in names.items():
        shutil.copytree(plants / old, root / "data" / new)
    for i in range(3, TRAIN):
        (root / "data" / names["birch"] / "train/good" / f"{i:03d}.png").unlink()
    for i in range(1, TRAIN):
        (root / "data" / names["cedar"] / "train/good" / f"{i:03d}.png").unlink()
    results = fedvad.train(
        root / "data", root / "run", cache=shared_cache, compare="local,pooled", **OPTIONS
    )
    return root, names, results


class TestOddSites:
    def test_few_images_and_odd_names(self, odd: Any) -> None:
        _, names, results = odd
        check_shape(results, set(names.values()), main=True)
        thresholds = results["threshold"]["sites"]
        assert thresholds["Werk Süd 1"]["n"] == 6
        assert thresholds["дом [b] — 3"]["n"] == 3
        assert thresholds["just one"] == {
            "threshold": None, "n": 0, "method": None, "promise": None, "fpr": None, "recall": None,
            "counts": None,
        }  # fmt: skip
        assert results["image_auroc"]["sites"]["just one"] is not None

    def test_they_can_be_evaluated_and_predicted(self, odd: Any, shared_cache: Path) -> None:
        root, names, results = odd
        again = fedvad.evaluate(root / "run", root / "data", cache=shared_cache)
        assert again["image_auroc"] == results["image_auroc"]
        for name in names.values():
            row = next(fedvad.predict(root / "run", root / "data" / name / "test/good", site=name))
            assert row["site"] == name
            assert (row["anomalous"] is None) == (name == "just one")

    def test_names_that_cannot_be_written_are_refused(self, plants: Path, tmp_path: Path) -> None:
        site = tmp_path / os.fsdecode(b"bad\xff")
        try:
            site.mkdir()
        except OSError:
            pytest.skip("this file system takes Unicode only")
        shutil.copytree(plants / "alder", site, dirs_exist_ok=True)
        with pytest.raises(DataError, match="rename"):
            fedvad.train(tmp_path, tmp_path / "run", **OPTIONS)

    def test_a_single_site_without_test_images(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(plants / "alder" / "train", tmp_path / "alder" / "train")
        results = fedvad.train(
            tmp_path / "alder", tmp_path / "run", cache=shared_cache, compare="local", **OPTIONS
        )
        assert results["image_auroc"] == {
            "mean": None, "worst": None, "pooled": None, "sites": {},
        }  # fmt: skip
        assert not (tmp_path / "run" / "heatmaps.png").exists()
        assert fedvad.load(tmp_path / "run").sites["alder"].thresholds["global"].n == TRAIN

    def test_without_masks_pixel_metrics_are_null(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        data = without_masks(plants, tmp_path / "plants")
        results = fedvad.train(
            data, tmp_path / "run", cache=shared_cache, compare="local", **OPTIONS
        )
        check_shape(results, SITES, main=True)
        for metrics in (results, results["compare"]["local"]):
            for metric in ("pixel_auroc", "aupro"):
                assert metrics[metric] == {
                    "mean": None, "worst": None, "pooled": None,
                    "sites": dict.fromkeys(SITES),
                }  # fmt: skip
            assert metrics["image_auroc"]["mean"] is not None

    def test_unreadable_images_are_listed(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(plants, tmp_path / "plants")
        (tmp_path / "plants/alder/train/good/zero.png").write_bytes(b"")
        (tmp_path / "plants/birch/test/good/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
        with pytest.raises(DataError, match=r"alder: 1 of 7 .*--max-bad"):
            fedvad.train(tmp_path / "plants", tmp_path / "a", cache=shared_cache, **OPTIONS)
        results = fedvad.train(
            tmp_path / "plants", tmp_path / "b", cache=shared_cache, max_bad=0.3, **OPTIONS
        )
        assert [Path(r.split(":")[0]).name for r in results["unreadable"]] == [
            "zero.png", "cut.png",
        ]  # fmt: skip
        assert results["training_images"]["alder"] == TRAIN

    def test_a_split_set(
        self, plants: Path, shared_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = fedvad.train(
            plants / "birch", tmp_path / "run", cache=shared_cache, split="iid:3", **OPTIONS
        )
        assert set(results["image_auroc"]["sites"]) == {"part1", "part2", "part3"}
        again = fedvad.evaluate(tmp_path / "run", plants / "birch", cache=shared_cache)
        assert again["image_auroc"] == results["image_auroc"]
        (tmp_path / "above").mkdir()
        (tmp_path / "above" / "birch").symlink_to(plants / "birch")
        inner = fedvad.train(
            tmp_path / "above", tmp_path / "in", cache=shared_cache, split="iid:3", **OPTIONS
        )
        assert inner["image_auroc"] == results["image_auroc"]
        shutil.copytree(plants / "birch", tmp_path / "moved")
        (tmp_path / "moved/test/good").joinpath("new.png").write_bytes(
            next((plants / "birch/test/good").iterdir()).read_bytes()
        )
        with caplog.at_level("WARNING"):
            fedvad.evaluate(tmp_path / "run", tmp_path / "moved", cache=shared_cache)
        assert "does not hold the images that were split" in caplog.text
        with pytest.raises(ConfigError, match="3 sites"):
            fedvad.train(plants, tmp_path / "other", split="iid:3", **OPTIONS)


def test_without_test_images_it_tells_how_own_normals_moved(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    for name in SITES:
        shutil.copytree(plants / name / "train", tmp_path / "plants" / name / "train")
    results = fedvad.train(tmp_path / "plants", tmp_path / "run", cache=shared_cache, **OPTIONS)
    sites = results["threshold"]["sites"]
    assert {name: reported["fpr"] for name, reported in sites.items()} == dict.fromkeys(SITES)
    assert all(reported["threshold"] > 0 and reported["n"] == TRAIN for reported in sites.values())
    shown = rich_tables(results)
    assert str(shown[-1].title) == "Own normal images"
    assert shown[-1].row_count == len(SITES)
    assert "each site's own normal images" in (tmp_path / "run" / "report.html").read_text()


def test_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve_config(backbone="own.safetensors", weights="moved.safetensors")
    assert config.backbone == str(tmp_path / "own.safetensors")
    assert config.weights == tmp_path / "moved.safetensors"
    assert resolve_config(backbone="resnet18").backbone == "resnet18"


class TestSchedules:
    def test_a_site_that_never_took_part_is_still_served(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        results = fedvad.train(
            plants, tmp_path / "run", cache=shared_cache, join={"cedar": 9}, **OPTIONS
        )
        assert results["image_auroc"]["sites"]["cedar"] is not None
        assert results["threshold"]["sites"]["cedar"]["threshold"] is not None
        run = fedvad.load(tmp_path / "run")
        assert len(run.sites["cedar"].bank) == 0
        with pytest.raises(ConfigError, match="took part in no round"):
            fedvad.evaluate(tmp_path / "run", plants, reference="local", cache=shared_cache)
        union = fedvad.evaluate(tmp_path / "run", plants, reference="union", cache=shared_cache)
        assert union["image_auroc"]["sites"]["cedar"] == results["image_auroc"]["sites"]["cedar"]

    def test_an_unknown_joiner_is_reported_before_any_work(
        self, plants: Path, tmp_path: Path
    ) -> None:
        def never(stage: str, done: int, total: int) -> None:
            raise AssertionError(stage)

        with pytest.raises(ConfigError, match=r"oak.*alder"):
            fedvad.train(plants, tmp_path / "run", join={"oak": 2}, progress=never, **OPTIONS)
        assert not (tmp_path / "run").exists()

    def test_no_site_in_the_first_round(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(FederationError, match="no site"):
            fedvad.train(
                plants, tmp_path / "run", cache=shared_cache, join=dict.fromkeys(SITES, 2),
                **OPTIONS,
            )  # fmt: skip

    def test_positions_that_do_not_fit_into_the_bytes_are_refused(
        self, plants: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="--upload-bytes"):
            fedvad.train(
                plants, tmp_path / "run", method="feddymem-position", upload_bytes=20_000,
                **OPTIONS,
            )  # fmt: skip


class TestOutFolder:
    def test_an_occupied_folder_is_refused(
        self, trained: tuple[Path, dict[str, Any]], plants: Path
    ) -> None:
        with pytest.raises(ConfigError, match="already holds a run"):
            fedvad.train(plants, trained[0], **OPTIONS)

    def test_a_file_is_refused(self, plants: Path, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        with pytest.raises(ConfigError, match="is a file"):
            fedvad.train(plants, tmp_path / "run", **OPTIONS)

    def test_files_of_something_else_are_not_overwritten(
        self, plants: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text('{"mine": 1}')
        with pytest.raises(ConfigError, match="something else"):
            fedvad.train(plants, tmp_path, **OPTIONS)
        assert (tmp_path / "config.json").read_text() == '{"mine": 1}'

    def test_a_missing_data_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder"):
            fedvad.train(tmp_path / "none", tmp_path / "run", **OPTIONS)
        assert not (tmp_path / "run").exists()


class Stop(Exception):
    """Raised in the middle of things."""


def _stop_at(stage: str, done: int) -> Any:
    def progress(name: str, so_far: int, total: int) -> None:
        if (name, so_far) == (stage, done):
            raise Stop

    return progress


class TestResume:
    @pytest.fixture
    def whole(self, trained: tuple[Path, dict[str, Any]]) -> Iterator[bytes]:
        return (trained[0] / "detector.safetensors").read_bytes()  # type: ignore[return-value]

    @pytest.mark.parametrize(
        ("stage", "done", "round_"),
        [("features", 3, 0), ("rounds", 2, 0), ("rounds", 5, 1), ("thresholds", 4, 2),
         ("scoring", 3, 2)],
    )  # fmt: skip
    def test_an_interrupted_run_goes_on_to_the_same_memory(
        self, stage: str, done: int, round_: int, whole: bytes, plants: Path, shared_cache: Path,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        out = tmp_path / "run"
        with pytest.raises(Stop):
            fedvad.train(plants, out, cache=shared_cache, progress=_stop_at(stage, done), **OPTIONS)
        state = [p.name for p in (out / "state").glob("*")]
        assert state == ([f"round-{round_:04d}"] if round_ else [])
        if state:
            with pytest.raises(ConfigError, match="--resume"):
                fedvad.train(plants, out, cache=shared_cache, **OPTIONS)
        results = fedvad.train(plants, out, cache=shared_cache, resume=True, **OPTIONS)
        assert (out / "detector.safetensors").read_bytes() == whole
        assert not (out / "state").exists()
        assert results["ledger"]["rounds"] == 2

    def test_with_another_configuration_it_is_refused(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        with pytest.raises(Stop):
            fedvad.train(plants, out, cache=shared_cache, progress=_stop_at("rounds", 4), **OPTIONS)
        for changed in ({"seed": 1}, {"rounds": 3}, {"merge": "kcenter"}, {"image_size": 96}):
            with pytest.raises(ConfigError, match=next(iter(changed))):
                fedvad.train(plants, out, cache=shared_cache, resume=True, **(OPTIONS | changed))
        fedvad.train(
            plants, out, cache=shared_cache, resume=True, jobs=2, compare="local", **OPTIONS
        )

    @pytest.mark.parametrize("replaced", [False, True], ids=["one gone", "one of another site"])
    def test_with_other_images_it_is_refused(
        self, replaced: bool, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        data, out = tmp_path / "plants", tmp_path / "run"
        shutil.copytree(plants, data)
        with pytest.raises(Stop):
            fedvad.train(data, out, cache=shared_cache, progress=_stop_at("rounds", 4), **OPTIONS)
        (data / "birch/train/good/000.png").unlink()
        if replaced:
            shutil.copy(data / "alder/train/good/000.png", data / "birch/train/good/000.png")
        with pytest.raises(ConfigError, match=r"images changed.*birch"):
            fedvad.train(data, out, cache=shared_cache, resume=True, **OPTIONS)

    def test_a_finished_run_is_left_as_it_is(
        self, plants: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        data, out = tmp_path / "plants", tmp_path / "run"
        shutil.copytree(plants, data)
        first = fedvad.train(data, out, cache=shared_cache, **OPTIONS)
        before = (out / "detector.safetensors").stat().st_mtime_ns
        again = fedvad.train(data, out, cache=shared_cache, resume=True, **OPTIONS)
        assert again == first
        assert (out / "detector.safetensors").stat().st_mtime_ns == before
        more = fedvad.train(data, out, cache=shared_cache, resume=True, compare="local", **OPTIONS)
        assert set(more["compare"]) == {"local"}
        shutil.copy(data / "alder/train/good/000.png", data / "birch/train/good/000.png")
        with pytest.raises(ConfigError, match=r"other training images.*birch"):
            fedvad.train(data, out, cache=shared_cache, resume=True, **OPTIONS)

    def test_a_full_disk_is_a_storage_error_and_the_state_is_kept(
        self,
        whole: bytes,
        plants: Path,
        shared_cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out, real = tmp_path / "run", os.fsync

        def full(fd: int) -> None:
            if (out / "state" / "round-0002" / "complete.json").exists():
                raise OSError(28, "No space left on device")
            real(fd)

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(StorageError, match=r"detector.*No space left"):
                fedvad.train(plants, out, cache=shared_cache, **OPTIONS)
        assert [p.name for p in (out / "state").iterdir()] == ["round-0002"]
        assert not (out / "detector.safetensors").exists()
        fedvad.train(plants, out, cache=shared_cache, resume=True, **OPTIONS)
        assert (out / "detector.safetensors").read_bytes() == whole


def test_a_shared_threshold_is_that_of_all_sites_counts(
    plants: Path, shared_cache: Path, tmp_path: Path
) -> None:
    fedvad.train(
        plants,
        tmp_path / "run",
        cache=shared_cache,
        shared_threshold=True,
        target_fpr=0.1,
        **OPTIONS,
    )
    run = TrainedRun.load(tmp_path / "run")
    found = {name: model.thresholds["global"] for name, model in run.sites.items()}
    assert len({t.value for t in found.values()}) == 1
    everything = sorted(s for t in found.values() for s in t.scores)
    exact = conformal_threshold(np.array(everything), 0.1)
    shared = next(iter(found.values()))
    assert shared.method == "conformal, summed counts"
    assert shared.n == len(everything)
    assert exact.value <= shared.value <= 1.014 * exact.value
    own = {model.thresholds["local"].method for model in run.sites.values()}
    assert "conformal, summed counts" not in own


def test_evaluate_warns_when_normal_images_no_longer_score_as_they_did(
    trained: tuple[Path, dict[str, Any]],
    plants: Path,
    shared_cache: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    normals = sorted((plants / "alder/test/good").glob("*.png")) * 4
    good = tmp_path / "now/alder/test/good"
    good.mkdir(parents=True)
    (tmp_path / "now/alder/train/good").mkdir(parents=True)
    for i, path in enumerate(normals[:12]):
        shutil.copy(path, good / f"{i}.png")
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    assert (
        fedvad.evaluate(run, tmp_path / "now", cache=shared_cache)["drift"] == {}
    )  # 6 are too few
    kept = TrainedRun.load(run)
    limits = kept.sites["alder"].thresholds
    before = tuple(np.linspace(2.5, 3, 20) * limits["global"].value)
    limits["global"] = replace(limits["global"], scores=before)
    kept.save(run)
    reported = fedvad.evaluate(run, tmp_path / "now", cache=shared_cache)["drift"]
    assert reported["alder"]["drifted"]
    assert reported["alder"]["n"] == 12
    assert reported["alder"]["ratio"] < 0.6
    assert "alder: its normal images score" in caplog.text
