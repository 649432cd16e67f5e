"""The anomalib plugin: same scores, own thresholds, anomalib's Engine, command line and export."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedvad
from fedvad.data.folders import read_set
from fedvad.detectors.memory.feddymem import PatchCore as OurPatchCore
from fedvad.detectors.memory.generator import Generator
from fedvad.drawing.demo import write_demo
from fedvad.errors import ConfigError, WeightsError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.helpers import OPTIONS, SIZE

# importing it takes 20 s, also where the quick suite only looks for its tests
pytestmark = pytest.mark.skipif(
    find_spec("anomalib") is None, reason="needs the extra: pip install 'fedvad[anomalib]'"
)

Run = tuple[Path, dict[str, Any]]
FILTERS: dict[str, Any] = {"backbone": "filterbank", "image_size": SIZE}
QUIET: dict[str, Any] = {"visualizer": False}


@pytest.fixture(scope="module")
def plugin() -> Any:
    from fedvad.integrations import anomalib

    return anomalib


@pytest.fixture
def make_engine(tmp_path: Path, plugin: Any) -> Callable[[], Any]:
    from anomalib.engine import Engine

    return lambda: Engine(
        default_root_dir=tmp_path / "out",
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def engine(make_engine: Callable[[], Any]) -> Any:
    return make_engine()


MakeData = Callable[..., Any]


@pytest.fixture
def folder(plugin: Any) -> MakeData:
    """`folder(site)`: an anomalib datamodule of a folder in MVTec's layout."""
    from anomalib.data import Folder

    def make(root: Path, batch: int = 4) -> Any:
        defects = sorted(p.name for p in (root / "test").iterdir() if p.name != "good")
        return Folder(
            name="site",
            root=root,
            normal_dir="train/good",
            abnormal_dir=[f"test/{d}" for d in defects],
            normal_test_dir="test/good",
            mask_dir=[f"ground_truth/{d}" for d in defects],
            train_batch_size=batch,
            eval_batch_size=batch,
            num_workers=0,
            val_split_mode="same_as_test",
        )

    return make


def raw_scores(model: Any, data: Any) -> dict[str, float]:
    """Scores before post-processing, by path of the test image."""
    import torch

    data.setup()
    # as the trainer does with the resize of the model
    data.test_data.augmentations = model.pre_processor.transform
    model.eval()
    scores: dict[str, float] = {}
    for batch in data.test_dataloader():
        with torch.inference_mode():
            out = model.model(batch.image)
        scores |= dict(zip(batch.image_path, out.pred_score.tolist(), strict=True))
    return scores


def largest_difference(scores: dict[str, float], run: Path, site: str | None) -> float:
    """Relative, to what `fedvad predict` gives for the same files."""
    theirs = {str(row["path"]): row["score"] for row in fedvad.predict(run, scores, site=site)}
    assert set(theirs) == set(scores)
    return max(abs(scores[p] - theirs[p]) / theirs[p] for p in scores)


@pytest.mark.parametrize("site", [None, "birch"])
def test_an_imported_run_scores_as_the_run(
    plugin: Any, folder: MakeData, trained: Run, plants: Path, site: str | None
) -> None:
    model = plugin.FedDyMem(run=trained[0], site=site, **QUIET)
    scores = raw_scores(model, folder(plants / "birch"))
    assert len(scores) == 7
    assert largest_difference(scores, trained[0], site) < 1e-3


@pytest.fixture
def with_generator(trained: Run, tmp_path: Path) -> Path:
    """The trained run as if birch had a generator of its own."""
    run = fedvad.load(trained[0])
    rng = np.random.default_rng(0)
    dim = run.memory.dim
    weight, bias = (0.1 * rng.normal(size=s).astype(np.float32) for s in ((dim, dim), dim))
    run.sites["birch"] = replace(run.sites["birch"], generator=Generator(weight, bias))
    run.save(tmp_path)
    shutil.copy(trained[0] / "config.json", tmp_path)
    return tmp_path


def test_a_site_brings_its_generator(
    plugin: Any, folder: MakeData, with_generator: Path, plants: Path
) -> None:
    model = plugin.FedDyMem(run=with_generator, site="birch", **QUIET)
    scores = raw_scores(model, folder(plants / "birch"))
    assert largest_difference(scores, with_generator, "birch") < 1e-3
    assert largest_difference(scores, with_generator, None) > 0.1
    state = plugin.FedDyMem(run=with_generator, **QUIET)
    state.load_state_dict(model.state_dict())
    assert raw_scores(state, folder(plants / "birch")) == pytest.approx(scores, rel=1e-6)
    with pytest.raises(ConfigError, match="trained a generator"):
        plugin.FedDyMem(run=with_generator, site="birch", grow=True)


def test_resizing_by_torchvision_changes_scores_little(
    plugin: Any, folder: MakeData, trained: Run, plants: Path, tmp_path: Path
) -> None:
    from PIL import Image

    small = plants / "birch"
    for path in small.rglob("*.png"):
        copy = tmp_path / "large" / path.relative_to(small)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            wanted = Image.Resampling.BICUBIC if image.mode == "RGB" else Image.Resampling.NEAREST
            image.resize((3 * SIZE, 2 * SIZE), wanted).save(copy)
    model = plugin.FedDyMem.from_run(trained[0], **QUIET)
    scores = raw_scores(model, folder(tmp_path / "large"))
    assert largest_difference(scores, trained[0], None) < 0.02


@pytest.mark.parametrize("grow", [False, True])
def test_a_site_of_the_run_keeps_its_threshold(
    plugin: Any, engine: Any, folder: MakeData, trained: Run, plants: Path, grow: bool
) -> None:
    run = fedvad.load(trained[0])
    model = plugin.FedDyMem(run=trained[0], site="birch", grow=grow, rows=10, **QUIET)
    known = run.threshold("birch")
    assert known is not None
    engine.fit(model, datamodule=folder(plants / "birch"))
    assert float(model.post_processor.image_threshold) == pytest.approx(known.value)
    before = len(run.memory)
    np.testing.assert_array_equal(model.model.bank.vectors[:before], run.memory.vectors)
    assert len(model.model.bank) == before + 10 * grow


def test_a_new_site_gets_a_threshold_of_its_own_and_can_grow_the_memory(
    plugin: Any, engine: Any, folder: MakeData, trained: Run, plants: Path
) -> None:
    run = fedvad.load(trained[0])
    model = plugin.FedDyMem(run=trained[0], grow=True, rows=20, **QUIET)
    borrowed = float(model.post_processor.image_threshold)
    engine.fit(model, datamodule=folder(plants / "cedar"))
    bank = model.model.bank
    assert len(bank) == len(run.memory) + 20
    np.testing.assert_array_equal(bank.vectors[:-20], run.memory.vectors)
    assert float(model.post_processor.image_threshold) != borrowed


def test_patchcore_is_as_good_as_ours_and_its_checkpoint_scores_alike(
    plugin: Any, engine: Any, folder: MakeData, plants: Path
) -> None:
    root = plants / "alder"
    model = plugin.PatchCore(rows=300, candidates=1.0, **FILTERS, **QUIET)
    engine.fit(model, datamodule=folder(root))
    [metrics] = engine.test(model, datamodule=folder(root))
    extractor = FeatureExtractor(FeatureConfig(**FILTERS, engine="torch"))
    images = read_set(root)
    ours = OurPatchCore(extractor=extractor, rows=300, candidates=1.0).fit(images.train)
    expected = image_auroc(ours.score(images.test.paths).image, images.test.labels)
    assert expected is not None
    # 12 pairs of a normal and a defect: the coresets start at different patches, one pair may turn
    assert metrics["image_AUROC"] == pytest.approx(expected, abs=1 / 12 + 1e-6)

    scores = raw_scores(model, folder(root))
    path = engine.trainer.checkpoint_callback.best_model_path
    again = plugin.PatchCore.load_from_checkpoint(path, **QUIET)
    assert len(again.model.bank) == 300
    assert raw_scores(again, folder(root)) == pytest.approx(scores, rel=1e-6)
    threshold = float(again.post_processor.image_threshold)
    assert threshold == float(model.post_processor.image_threshold) > 0


def test_a_second_fit_starts_anew(
    plugin: Any, make_engine: Callable[[], Any], folder: MakeData, plants: Path
) -> None:
    model = plugin.PatchCore(rows=50, **FILTERS, **QUIET)
    rows = []
    for site in ("alder", "birch"):
        # an engine has used up its epochs after one fit
        make_engine().fit(model, datamodule=folder(plants / site))
        rows.append({row.tobytes() for row in model.model.bank.vectors})
    assert len(rows[0]) == len(rows[1]) == 50
    assert not rows[0] & rows[1]


def test_training_mode_leaves_the_backbone_frozen(plugin: Any) -> None:
    model = plugin.PatchCore(**FILTERS)
    model.train()
    assert not any(part.training for part in model.model.network.modules())


def test_labels_of_validation_images_do_not_move_the_threshold(plugin: Any) -> None:
    import torch

    post = plugin.NormalOnlyPostProcessor()
    post.set_threshold(3.0)
    post.on_validation_batch_end(None, None, None)
    post.on_validation_epoch_end(None, None)
    raw = torch.tensor([0.0, 2.9, 3.0, 3.1, 1000.0, 1001.0])
    from anomalib.data import InferenceBatch

    out = post(InferenceBatch(pred_score=raw, anomaly_map=raw[None, None]))
    assert out.pred_label.tolist() == [False, False, False, True, True, True]
    assert bool((out.pred_score.diff() > 0).all())
    assert float(out.pred_score[2]) == 0.5
    assert out.pred_mask.sum() == 3


def test_images_that_were_normalised_already_are_refused(
    plugin: Any, engine: Any, folder: MakeData, plants: Path
) -> None:
    from anomalib.models.components import AnomalibModule

    wrong = AnomalibModule.configure_pre_processor((SIZE, SIZE))
    model = plugin.PatchCore(pre_processor=wrong, **FILTERS, **QUIET)
    with pytest.raises(ConfigError, match="take Normalize out"):
        engine.fit(model, datamodule=folder(plants / "alder"))


def test_images_of_another_size_are_refused(plugin: Any) -> None:
    import torch

    with pytest.raises(ConfigError, match=r"3 x 64 x 64.*image_size"):
        plugin.PatchCore(**FILTERS).model.describe(torch.zeros(1, 3, 32, 64))


def test_a_model_without_memory_says_so(plugin: Any) -> None:
    import torch

    with pytest.raises(ConfigError, match="train it, or import a run"):
        plugin.FedDyMem(**FILTERS)(torch.zeros(1, 3, SIZE, SIZE))


def test_nothing_is_downloaded(plugin: Any) -> None:
    with pytest.raises(WeightsError, match=r"--model\.weights"):
        plugin.PatchCore("resnet18")


def test_without_weights_the_backbone_is_the_bundled_one(plugin: Any) -> None:
    import torch

    patches = plugin.PatchCore(image_size=SIZE).model.describe(torch.zeros(1, 3, SIZE, SIZE))
    grid = SIZE // 8
    assert patches.numel() == grid * grid * (64 + 128)


def test_options_of_a_run_need_one(plugin: Any, trained: Run) -> None:
    with pytest.raises(ConfigError, match="give run"):
        plugin.FedDyMem(site="birch", **FILTERS)
    with pytest.raises(ConfigError, match=r"'oak' is not in .*alder"):
        plugin.FedDyMem(run=trained[0], site="oak")


def test_the_openvino_export_scores_as_the_model(
    plugin: Any, folder: MakeData, trained: Run, plants: Path, tmp_path: Path
) -> None:
    import openvino
    import torch

    model = plugin.FedDyMem(run=trained[0], **QUIET)
    path = model.to_openvino(tmp_path, onnx_kwargs={"opset_version": 18})
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    data = folder(plants / "birch", batch=7)
    data.setup()
    [batch] = data.test_dataloader()
    with torch.inference_mode():
        expected = model(batch.image)
    exported = compiled([batch.image.numpy()])
    np.testing.assert_allclose(exported["pred_score"], expected.pred_score, atol=1e-3)
    np.testing.assert_allclose(exported["anomaly_map"], expected.anomaly_map, atol=1e-3)
    np.testing.assert_array_equal(exported["pred_label"], expected.pred_label)


def test_the_example_of_the_docs_runs_as_written(tmp_path: Path) -> None:
    """In a process of its own: what it imports first matters beside a CPU-only torch."""
    page = (Path(__file__).parents[2] / "docs/anomalib.md").read_text(encoding="utf-8")
    mark = "<!-- executed by tests/integrations/test_anomalib.py -->\n```python\n"
    program = page.split(mark)[1].split("```")[0]
    data = tmp_path / "fedvad-demo/data"
    write_demo(data, plants=2, train=6, test_normal=2, test_defect=6, size=SIZE)
    fedvad.train(data, tmp_path / "run", cache=tmp_path / "cache", **OPTIONS)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "export").rglob("*.xml"))


@pytest.mark.real
def test_the_command_line_of_anomalib_trains_feddymem(
    plugin: Any, shared: Path, resnet18_weights: Path, tmp_path: Path
) -> None:
    from anomalib.cli.cli import AnomalibCLI

    cli = AnomalibCLI(
        [
            "train",
            "--model=fedvad.integrations.anomalib.FedDyMem",
            f"--model.weights={resnet18_weights}",
            "--model.rows=300",
            "--model.visualizer=False",
            "--data=anomalib.data.Folder",
            "--data.name=toy",
            f"--data.root={shared / 'data' / 'hazelnut_toy'}",
            "--data.normal_dir=train/good",
            "--data.abnormal_dir=test/colour",
            "--data.normal_test_dir=test/good",
            "--data.mask_dir=ground_truth/colour",
            "--data.val_split_mode=same_as_test",
            "--data.num_workers=0",
            f"--default_root_dir={tmp_path}",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
        ]
    )
    metrics = {k: float(v) for k, v in cli.engine.trainer.callback_metrics.items()}
    # `fedvad train` gives 1.0 and 0.986 on this set
    assert metrics["image_AUROC"] == pytest.approx(1.0, abs=0.01)
    assert metrics["pixel_AUROC"] == pytest.approx(0.986, abs=0.005)
    assert len(cli.model.model.bank) == 300
    assert list(tmp_path.rglob("model.ckpt"))
