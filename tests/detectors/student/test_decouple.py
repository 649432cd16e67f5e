"""Both branches are of one size, give the teacher's shapes, and leave the teacher alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvad.detectors.student.dmdd.decouple import Decoupler, DualNet, build_dual
from fedvad.detectors.student.dmdd.options import DualConfig
from fedvad.detectors.student.dmdd.perception import Perception
from fedvad.detectors.student.loss import combine_maps, level_maps
from fedvad.detectors.student.parameters import parameters_of
from fedvad.errors import ConfigError
from tests.detectors.student.test_branches import IMAGES, layers, network

CONFIG = DualConfig(head_channels=8)


def dual(name: str = "test_resnet", seed: int = 1, **changes: Any) -> DualNet:
    config = DualConfig(**{"head_channels": 8} | changes)
    taps = layers(name)
    return build_dual(network(name), taps, taps, config, image_size=64, seed=seed)


@pytest.mark.parametrize(("channels", "layers", "factor"), [(24, 2, 1.0), (7, 1, 2.0), (1, 3, 0.5)])
def test_both_branches_have_equally_many_parameters(
    channels: int, layers: int, factor: float
) -> None:
    made = Decoupler(channels, layers=layers, factor=factor)
    normality, abnormality = (
        sum(p.numel() for p in branch.parameters()) for branch in (made.normality, made.abnormality)
    )
    assert normality == abnormality > 0
    assert not {id(p) for p in made.normality.parameters()} & {
        id(p) for p in made.abnormality.parameters()
    }
    x = torch.randn(2, channels, 3, 3)
    assert [tuple(m.shape) for m in made.eval()(x)] == [(2, channels, 3, 3)] * 2


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("student", ["decoder", "encoder"])
def test_features_have_the_shapes_of_the_teachers_maps(name: str, student: str) -> None:
    net = dual(name, student=student)
    with torch.inference_mode():
        teacher = net.teacher(IMAGES)
        for features in net.branches(teacher, IMAGES):
            assert [m.shape for m in features] == [m.shape for m in teacher]
            assert all(m.isfinite().all() for m in features)
        assert (net.maps(IMAGES, "sum").shape[1]) == 3


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (parameters_of(dual(seed=s).student) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all((one[n] == same[n]).all() for n in one)
    assert any((one[n] != other[n]).any() for n in one)
    branches = [(n, n.replace("normality", "abnormality")) for n in one if ".normality." in n]
    assert any((one[a] != one[b]).any() for a, b in branches)


def test_the_three_maps_are_those_of_the_parts() -> None:
    net = dual()
    with torch.inference_mode():
        teacher = net.teacher(IMAGES)
        normality, abnormality = net.branches(teacher, IMAGES)
        stack = net.maps(IMAGES, "sum")
        grid = (teacher[0].shape[2], teacher[0].shape[3])
        expected = [
            combine_maps(level_maps(teacher, normality), grid, "sum"),
            combine_maps(level_maps(teacher, abnormality), grid, "sum"),
            net.student.head(teacher, normality, abnormality),
        ]
        torch.testing.assert_close(stack, torch.stack(expected, 1))
        assert ((stack[:, 2] > 0) & (stack[:, 2] < 1)).all()
        compared = net.from_shared(IMAGES)
    for found, wanted in zip(compared[1], normality, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("given", ["map", "product"])
def test_a_head_begins_as_a_logistic_function_of_all_distances(given: Any) -> None:
    shapes = [(5, 4, 4), (3, 4, 4)]
    head = Perception(shapes, given, 8)
    head.begin()
    drawn = [[torch.randn(2, *s) for s in shapes] for _ in range(3)]
    teacher, normality, abnormality = drawn
    distances = level_maps(teacher, normality) + level_maps(teacher, abnormality)
    total = torch.stack(distances).sum(0)
    torch.testing.assert_close(head(*drawn), torch.sigmoid(total - 2))


def test_training_moves_neither_weights_nor_statistics_of_the_teacher() -> None:
    net = dual()
    before = {n: t.clone() for n, t in net.teacher.state_dict().items()}
    moving = {n: t.clone() for n, t in net.student.state_dict().items()}
    net.train()
    assert not net.teacher.training
    teacher = net.teacher(IMAGES)
    normality, abnormality = net.branches(teacher, IMAGES)
    total: Tensor = net.student.head(teacher, normality, abnormality).sum()
    total = total + sum(m.square().sum() for m in normality + abnormality)
    total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in net.teacher.parameters())
    assert all(torch.equal(t, before[n]) for n, t in net.teacher.state_dict().items())
    assert any(not torch.equal(t, moving[n]) for n, t in net.student.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"student": "mirror"}, "unknown student"),
        ({"aim": "far"}, "unknown aim"),
        ({"aim_reference": "other"}, "unknown aim_reference"),
        ({"mask": "mean"}, "unknown mask"),
        ({"head_input": "sum"}, "unknown head_input"),
        ({"head_sees": "normals"}, "unknown head_sees"),
        ({"width": 0.0}, "width"),
        ({"factor": float("nan")}, "factor"),
        ({"layers": 0}, "layers"),
        ({"pairs": 0}, "pairs"),
        ({"margin": 2.5}, "margin"),
        ({"anomaly_prob": 0.0}, "anomaly_prob"),
        ({"head_start_step": -1}, "head_start_step"),
        ({"head_rate": 0.0}, "head_rate"),
        ({"aim_weight": -1.0}, "aim_weight"),
        ({"focal_gamma": float("inf")}, "focal_gamma"),
    ],
)
def test_impossible_options_are_reported(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        DualConfig(**wrong)


def test_the_head_starts_after_a_fifth_of_the_steps_or_where_it_is_asked_to() -> None:
    assert DualConfig().head_start(500) == 100
    assert DualConfig().head_start(None) == 0
    assert DualConfig(head_start_step=7).head_start(500) == 7


def test_layers_that_are_not_there_are_reported() -> None:
    for config in (CONFIG, replace(CONFIG, student="encoder")):
        with pytest.raises(ConfigError, match="layers"):
            build_dual(network("test_resnet"), (1, 2), (1, 9), config, image_size=64, seed=0)
