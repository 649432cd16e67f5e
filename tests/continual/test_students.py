"""Students in a row of tasks: what they forget, what a memory gives back, and going on later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvad.continual.base import Task
from fedvad.continual.codecs import CodecConfig
from fedvad.continual.memory import ReplayMemory
from fedvad.continual.students import StudentLearner
from fedvad.data.folders import ImageItem, ImageSet, read_set
from fedvad.detectors.artefact import read_arrays, write_arrays
from fedvad.detectors.student.detector import StudentDetector
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.parameters import parameters_of
from fedvad.detectors.student.stfpm import STFPM, PaSTe
from fedvad.errors import ArtefactError, ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.conftest import MakeImages
from tests.detectors.student import support

SHORT = replace(support.QUICK, epochs=12, warmup=2)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractor:
    weights = support.write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return FeatureExtractor(FeatureConfig(**support.options(weights)))


@pytest.fixture(scope="module")
def tasks(plants: Path) -> list[Task]:
    return [Task(name, read_set(plants / name).train) for name in ("alder", "birch", "cedar")]


def paste(extractor: FeatureExtractor, **options: Any) -> StudentDetector:
    settings = {"bootstrap": 0, "train": SHORT, "held_out": 0.0, "seed": 3} | options
    return PaSTe(extractor=extractor, **settings)


def learner(
    extractor: FeatureExtractor, codec: str | None = None, epochs: int = 12, **options: Any
) -> StudentLearner:
    memory = None if codec is None else ReplayMemory(CodecConfig(codec), slots=6, seed=3)
    detector = paste(extractor, train=replace(SHORT, epochs=epochs))
    strategy = "naive" if memory is None else "replay"
    return StudentLearner(detector, memory=memory, **{"strategy": strategy} | options)


def weights_of(found: StudentLearner) -> np.ndarray:
    return np.concatenate([a.ravel() for a in parameters_of(found._net.student).values()])


def loss_on(found: StudentLearner, task: Task) -> float:
    data = found._detector.prepare(task.images, found._net).empty_like(len(task.images))
    from fedvad.detectors.student.pixels import read_pixels

    data.extend(p.pixels for p in read_pixels(task.images.paths, 64) if p.pixels is not None)
    batch = data.batch(range(len(data)))
    return float(cosine_loss(batch.teacher, found._net.student(batch.inputs)).detach())


@pytest.mark.slow
def test_a_naive_student_forgets_and_a_replaying_one_does_not(
    extractor: FeatureExtractor, make_images: MakeImages
) -> None:
    cloth, noise = make_images(6, folder="cloth"), make_images(6, folder="noise")
    for number, path in enumerate(noise):  # unlike the first task in colour and grain
        values = np.random.default_rng(number).integers(150, 230, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    first, second = (
        Task(name, ImageSet(tuple(ImageItem(path, 0, "good", None) for path in paths)))
        for name, paths in (("cloth", cloth), ("noise", noise))
    )
    lost = {}
    for kind, codec in (("naive", None), ("replay", "pixels"), ("compressed", "float16")):
        found = learner(extractor, codec, epochs=60)
        found.learn([first])
        before = loss_on(found, first)
        found.learn([second])
        lost[kind] = loss_on(found, first) - before
    assert lost["naive"] > 0.1
    assert lost["replay"] < lost["naive"] / 3
    assert lost["compressed"] < lost["naive"] / 3


def test_replay_of_exact_features_is_replay_of_images(
    extractor: FeatureExtractor, tasks: list[Task]
) -> None:
    found = [learner(extractor, codec) for codec in ("pixels", "float32")]
    for one in found:
        for task in tasks[:2]:
            one.learn([task])
    images, features = map(weights_of, found)
    np.testing.assert_allclose(features, images, atol=1e-5)
    naive = learner(extractor)
    for task in tasks[:2]:
        naive.learn([task])
    assert np.abs(weights_of(naive) - images).max() > 1e-3


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_student_resumed_behind_a_task_goes_on_to_the_bit(
    optimiser: str, extractor: FeatureExtractor, tasks: list[Task], tmp_path: Path
) -> None:
    train = replace(SHORT, epochs=3, optimiser=optimiser, learning_rate=0.01)

    def new() -> StudentLearner:
        memory = ReplayMemory(CodecConfig("float16"), slots=6, seed=3)
        detector = paste(extractor, train=train)
        return StudentLearner(detector, memory=memory, strategy="replay", carry_optimiser=True)

    whole = new()
    for task in tasks:
        whole.learn([task])
    first = new()
    for task in tasks[:2]:
        first.learn([task])
    arrays, values = first.state()
    assert any(name.startswith("momentum/") for name in arrays)
    write_arrays(tmp_path / "state.safetensors", arrays, {})  # as a checkpoint keeps them
    second = new()
    second.restore(read_arrays(tmp_path / "state.safetensors")[0], values)
    second.learn(tasks[2:])
    np.testing.assert_array_equal(weights_of(second), weights_of(whole))
    assert second.cost() == whole.cost()


def test_carried_momentum_changes_the_next_task(
    extractor: FeatureExtractor, tasks: list[Task]
) -> None:
    found = [learner(extractor, carry_optimiser=carry) for carry in (False, True)]
    for one in found:
        one.learn(tasks[:1])
    np.testing.assert_array_equal(*map(weights_of, found))
    for one in found:
        one.learn(tasks[1:2])
    assert (weights_of(found[0]) != weights_of(found[1])).any()
    assert found[0].cost().optimiser == 0
    assert found[1].cost().optimiser == weights_of(found[1]).nbytes


def test_single_students_keep_to_themselves_and_share_the_rest(
    extractor: FeatureExtractor, tasks: list[Task]
) -> None:
    found = learner(extractor, strategy="single")
    found.learn(tasks[:1])
    alone, own = found.cost(), weights_of(found).nbytes
    before = found.detector("alder").score(tasks[0].images.paths).image
    found.learn(tasks[1:2])
    np.testing.assert_array_equal(
        found.detector("alder").score(tasks[0].images.paths).image, before
    )
    assert found.detector("birch") is not found.detector("alder")
    assert found.cost().parameters == alone.parameters + own


def test_a_joint_student_learns_all_at_once(extractor: FeatureExtractor, tasks: list[Task]) -> None:
    found = learner(extractor, strategy="joint")
    reported = found.learn(tasks)
    assert reported["images"] == sum(len(task.images) for task in tasks)
    assert found.state()[1]["tasks"] == ["alder", "birch", "cedar"]


def test_bytes_are_those_of_the_memory_and_the_net(
    extractor: FeatureExtractor, tasks: list[Task]
) -> None:
    found = learner(extractor, "pixels")
    for task in tasks[:2]:
        found.learn([task])
    cost = found.cost()
    assert cost.memory == cost.peak == 6 * 64 * 64 * 3
    assert cost.learned == 0
    memory = paste(extractor).memory()
    assert (cost.parameters, cost.buffers) == (memory.parameters, memory.buffers)
    assert cost.macs == paste(extractor).macs()


def test_what_does_not_go_together_is_refused(extractor: FeatureExtractor) -> None:
    stfpm = STFPM(extractor=extractor, train=SHORT)
    with pytest.raises(ConfigError, match="stale"):
        StudentLearner(stfpm, strategy="replay", memory=ReplayMemory(CodecConfig("float16")))
    with pytest.raises(ConfigError, match="goes with strategy replay"):
        StudentLearner(stfpm, strategy="replay")
    with pytest.raises(ConfigError, match="unknown strategy"):
        StudentLearner(stfpm, strategy="often")  # type: ignore[arg-type]
    naive = learner(extractor)
    with pytest.raises(ArtefactError, match="strategy replay"):
        naive.restore({}, {"strategy": "replay"})
    with pytest.raises(ArtefactError, match="damaged"):
        naive.restore({}, {"strategy": "naive", "tasks": [], "peak": 0})
