"""Stages: the teacher never moves, the student goes on, resuming is exact, and it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.graphs import normalise_of
from fedvad.detectors.student.loss import combine_maps, level_maps
from fedvad.distillation.stages import MaskedStage, StageConfig, StepLog, seed_of
from fedvad.distillation.teacher import Teacher
from fedvad.errors import ConfigError, MismatchError
from fedvad.evaluation.metrics import image_auroc
from fedvad.features.architecture import Architecture
from fedvad.features.backbones import build_backbone, weights_hash
from tests.detectors.student import support

SIZE = 48
TINY = {"stem": 4, "widths": [8, 12, 16], "inner": [8, 12, 16], "depths": [1, 1, 1]}
QUICK = StageConfig(steps=6, batch=4, warmup=2, distance="mse", hidden=8, mode="weighted")


class Ripples:
    """Coloured waves under uneven light; `count` of them, or endless."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.asked: list[int] = []

    def __call__(self, number: int) -> npt.NDArray[np.uint8]:
        self.asked.append(number)
        rng = np.random.default_rng([5, number])
        line = np.arange(SIZE)
        wave = np.sin(line[:, None] / 6 + line[None] / 4 + rng.uniform(0, 6))
        light = 0.6 + 0.4 * np.sin(line / 20 + rng.uniform(0, 6))
        colour = rng.uniform(0.4, 1, 3)
        picture = (0.6 + 0.3 * wave)[..., None] * light[:, None, None] * colour
        return np.asarray(255 * picture, dtype=np.uint8)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(build_backbone("filterbank", layers=(1, 2)), image_size=SIZE, engine="torch")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A heterogeneous one: other strides, other channels."""
    path = support.write_weights(tmp_path_factory.mktemp("weights") / "t.safetensors")
    backbone = build_backbone(support.NAME, weights=path, layers=(2, 3))
    return Teacher(backbone, image_size=SIZE, engine="torch")


def _student(seed: int = 0) -> torch.nn.Module:
    network = Architecture.of("tiny", (1, 2), TINY).build()
    reinitialise(network, seed)
    return network


def _stage(
    student: torch.nn.Module, teacher: Teacher, images: Ripples, config: StageConfig = QUICK,
    seed: int = 3,
) -> MaskedStage:  # fmt: skip
    return MaskedStage(
        student, teacher, images, config, normalise=normalise_of((0.5,) * 3, (0.25,) * 3), seed=seed
    )


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("count", [None, 7])
def test_a_stage_that_goes_on_is_the_same_to_the_bit(teacher: Teacher, count: int | None) -> None:
    whole_log: list[StepLog] = []
    whole = _stage(_student(), teacher, Ripples(count))
    whole.run(whole_log.append)
    kept: dict[str, npt.NDArray[np.float32]] = {}
    interrupted = _stage(_student(), teacher, Ripples(count))

    def stop(log: StepLog) -> None:
        if log.step == 4:
            kept.update(interrupted.state())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.run(stop)
    rest: list[StepLog] = []
    again = _stage(_student(seed=9), teacher, Ripples(count), seed=3)
    again.restore(kept, 4)
    again.run(rest.append)
    assert rest == whole_log[4:]
    assert _same(again.student, whole.student)
    assert _same(again.heads, whole.heads)
    again.run()  # nothing is left to do
    assert again.done == QUICK.steps


def test_teacher_stays_and_student_moves(teacher: Teacher) -> None:
    student = _student()
    before = {n: t.clone() for n, t in student.state_dict().items()}
    images = Ripples()
    pixels = np.stack([images(0), images(1)])
    batch = [np.arange(2)]
    _, first = next(teacher.stream(images, batch))
    _stage(student, teacher, images).run()
    _, second = next(teacher.stream(images, batch))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(pixels[0], images(0))
    after = student.state_dict()
    assert all(not torch.equal(before[n], after[n]) for n in before)


def test_the_next_stage_begins_with_the_same_student(teacher: Teacher, other: Teacher) -> None:
    student = _student()
    _stage(student, teacher, Ripples()).run()
    before = weights_hash(student)
    following = _stage(student, other, Ripples(), seed=4)
    assert weights_hash(student) == before
    assert following.heads.levels[0].aligner.out_channels == other.shapes[0][0]
    assert other.shapes != teacher.shapes
    log: list[StepLog] = []
    following.run(log.append)
    assert weights_hash(student) != before
    assert all(np.isfinite([s.loss for s in log]))


def test_images_that_repeat_pass_the_teacher_once(teacher: Teacher) -> None:
    images = Ripples(7)
    stage = _stage(_student(), teacher, images, replace(QUICK, steps=20))
    stage.run()
    # once for the units of the channels, once for the maps that are kept
    assert sorted(images.asked) == sorted([*range(7)] * 2)
    endless = Ripples()
    _stage(_student(), teacher, endless, replace(QUICK, steps=5)).run()
    assert set(range(20)) <= set(endless.asked)


def test_the_rate_rises_and_falls_to_nothing(teacher: Teacher) -> None:
    rates = [QUICK.training(0).rate(step) for step in range(1, 7)]
    assert rates[0] < rates[1] > rates[3] > rates[5] > 0
    assert rates[5] < 0.1 * QUICK.learning_rate
    assert [QUICK.training(3).rate(step) for step in (1, 2, 3)] == rates[3:]


def test_two_stages_learn_and_find_defects_that_an_untrained_student_does_not(
    teacher: Teacher, other: Teacher
) -> None:
    def score(stage: MaskedStage, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        class Given:
            count = None

            def __call__(self, number: int) -> npt.NDArray[np.uint8]:
                return pixels[number]

        (_, wanted), = stage.teacher.stream(Given(), [np.arange(len(pixels))])  # fmt: skip
        stage.student.eval()
        with torch.no_grad():
            x = stage.normalise(torch.from_numpy(pixels)).contiguous()
            found = stage.heads.aligned(stage.student(x))
        maps = combine_maps(level_maps(wanted, found), tuple(wanted[0].shape[2:]), "sum")
        return maps.flatten(1).amax(1).double().numpy()

    def areas(first: int) -> npt.NDArray[np.uint8]:
        return np.stack([images(n) for n in range(first, first + 24)])

    images = Ripples(24)
    config = replace(QUICK, steps=20, batch=8, learning_rate=1e-2)
    config = replace(config, rho_s=0.2)
    student = _student()
    _stage(student, other, images, config).run()
    log: list[StepLog] = []
    trained = _stage(student, teacher, images, replace(config, steps=80))
    trained.run(log.append)
    losses = [entry.plain for entry in log]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    normal, defective = areas(1000), areas(2000)
    rng = np.random.default_rng(0)
    for picture in defective:
        y, x = rng.integers(8, SIZE - 20, 2)
        picture[y : y + 12, x : x + 12] = rng.integers(0, 256, (12, 12, 1))
    labels = np.repeat([0, 1], len(normal))
    untrained = _stage(_student(), teacher, images, config)
    good, poor = (
        image_auroc(np.concatenate([score(s, normal), score(s, defective)]), labels)
        for s in (trained, untrained)
    )
    assert good is not None
    assert poor is not None
    assert good > max(0.6, poor + 0.1)
    numbers = np.arange(500, 516)
    for better, worse in zip(
        trained.fidelity(images, numbers), untrained.fidelity(images, numbers), strict=True
    ):
        assert better["explained"] > max(0.0, worse["explained"])
        assert better["cosine"] > worse["cosine"]


def test_another_student_does_not_go_on(teacher: Teacher) -> None:
    state = _stage(_student(), teacher, Ripples()).state()
    wide = Architecture.of("tiny", (1, 2), TINY | {"stem": 6}).build()
    with pytest.raises(MismatchError, match="another student"):
        _stage(wide, teacher, Ripples()).restore(state, 2)
    with pytest.raises(ConfigError, match="nearest to no tap"):
        _stage(Architecture.of("tiny", (0, 1, 2), TINY).build(), teacher, Ripples())
    frozen = _student().requires_grad_(False)
    assert _stage(frozen, teacher, Ripples()) is not None  # the heads still learn


def test_seeds_differ_by_what_they_are_for(tmp_path: Path) -> None:
    assert len({seed_of(a, b) for a in range(20) for b in range(20)}) == 400
    assert seed_of(1, 2) == seed_of(1, 2) >= 0
