"""Reverse students rebuild maps of any backbone's shapes; losses are those of the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import reinitialise
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.parameters import buffers_of, parameters_of
from fedvad.detectors.student.rd.loss import global_loss, hard_loss, reverse_loss
from fedvad.detectors.student.rd.net import ReverseNet, ReverseStudent, build_reverse, tap_shapes
from fedvad.errors import ConfigError
from fedvad.features.compat import import_timm
from fedvad.features.filterbank import FilterBank
from fedvad.features.mcunet import build_mcunet
from fedvad.features.modules import BlockTaps, Taps

# two to four taps; strides that do not double; grids that are equal
TAPS: dict[str, tuple[int, ...]] = {
    "test_resnet": (1, 2),
    "mobilenetv2_035": (0, 1, 2, 3),
    "convnext_atto": (0, 2),
    "mcunet_in3": (3, 4, 9),
    "filterbank": (0, 1, 2),
}
SHAPES = [(6, 8, 8), (10, 4, 4)]


def network(name: str) -> nn.Module:
    taps = TAPS[name]
    if name == "filterbank":
        return Taps(FilterBank(), taps).eval()
    if name == "mcunet_in3":
        made: nn.Module = BlockTaps(build_mcunet(name), taps)
    else:
        made = import_timm().create_model(name, features_only=True, out_indices=taps)
    reinitialise(made, seed=5)
    return made.eval()


def build(name: str, size: int = 64, **options: Any) -> ReverseNet:
    taps = TAPS[name]
    return build_reverse(network(name), taps, taps, image_size=size, **{"seed": 1} | options)


def maps(seed: int, batch: int = 2, shapes: Any = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("name", list(TAPS))
@pytest.mark.parametrize("size", [64, 100])
def test_every_backbones_maps_are_rebuilt_in_their_shapes(name: str, size: int) -> None:
    net = build(name, size, width=0.5)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        teacher, rebuilt = net(images)
    assert [m.shape for m in rebuilt] == [m.shape for m in teacher]
    assert [tuple(m.shape[1:]) for m in teacher] == tap_shapes(net.teacher, size)
    assert all(torch.isfinite(m).all() for m in rebuilt)


def test_order_of_taps_and_grids_that_are_not_square_do_not_matter() -> None:
    shapes = [(10, 3, 5), (6, 9, 15), (4, 7, 7)]
    student = ReverseStudent(shapes, seed=0)
    given = maps(0, shapes=shapes)
    assert [m.shape for m in student(given)] == [m.shape for m in given]


def test_all_that_it_gives_went_through_the_bottleneck() -> None:
    student = ReverseStudent(SHAPES, seed=0).eval()
    assert student.bottleneck(maps(0)).shape == (2, 20, 2, 2)
    nn.init.zeros_(student.bottleneck.join.body[3].weight)  # type: ignore[arg-type]
    nn.init.zeros_(student.bottleneck.join.shortcut[0].weight)  # type: ignore[arg-type, index]
    for a, b in zip(student(maps(0)), student(maps(1)), strict=True):
        torch.testing.assert_close(a, b)


def test_width_scales_the_hidden_channels_down_to_eight() -> None:
    sizes = [
        sum(
            p.numel()
            for p in ReverseStudent([(32, 8, 8), (64, 4, 4)], width=w, seed=0).parameters()
        )
        for w in (0.001, 0.25, 0.5, 1)
    ]
    assert sizes == sorted(set(sizes))
    student = ReverseStudent([(32, 8, 8), (64, 4, 4)], width=0.001, seed=0)
    assert student.bottleneck.join.body[0].weight.shape[:2] == (16, 16)  # type: ignore[index]


def test_equal_seeds_give_equal_weights_and_leave_the_global_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (parameters_of(ReverseStudent(SHAPES, seed=s)) for s in (1, 1, 2))
    assert all((one[n] == same[n]).all() for n in one)
    assert any((one[n] != other[n]).any() for n in one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_teacher_is_frozen_and_its_statistics_do_not_move() -> None:
    net = build("mobilenetv2_035")
    before = buffers_of(net.teacher)
    net.train()
    assert net.student.training
    assert not net.teacher.training
    images = torch.rand(4, 3, 64, 64)
    reverse_loss(*net(images), "global").backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and not p.requires_grad for p in net.teacher.parameters())
    assert all(p.grad is not None for p in net.student.parameters())
    for name, array in buffers_of(net.teacher).items():
        assert (array == before[name]).all()


@pytest.mark.parametrize(
    ("shapes", "width", "match"),
    [
        ([], 1.0, "2 x 2"),
        ([(8, 4, 4), (8, 1, 1)], 1.0, "larger images"),
        (SHAPES, 0.0, "width"),
        (SHAPES, math.nan, "width"),
    ],
)
def test_impossible_students_are_refused(shapes: Any, width: float, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ReverseStudent(shapes, width=width, seed=0)


@pytest.mark.parametrize("layers", [(), (1, 7)])
def test_layers_that_the_backbone_does_not_give_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="gives layers"):
        build_reverse(network("test_resnet"), (1, 2), layers, image_size=64, seed=0)


def test_some_of_the_given_layers_can_be_distilled() -> None:
    net = build_reverse(network("test_resnet"), (1, 2), (2,), image_size=64, seed=0)
    with torch.inference_mode():
        teacher, rebuilt = net(torch.rand(1, 3, 64, 64))
    assert len(teacher) == len(rebuilt) == 1
    assert teacher[0].shape == (1, *tap_shapes(network("test_resnet"), 64)[1])


class TestLosses:
    def test_global_is_one_minus_the_cosine_of_whole_maps(self) -> None:
        t = torch.zeros(2, 2, 2, 2)
        s = torch.zeros(2, 2, 2, 2)
        t[0, 0, 0], s[0, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
        t[1, 1, 1, 1], s[1, 1, 1, 1] = 2.0, 7.0
        # cosines 24/25 and 1
        assert float(global_loss([t], [s])) == pytest.approx((1 / 25) / 2, abs=1e-6)
        assert float(global_loss([t, t], [s, s])) == pytest.approx(1 / 25, abs=1e-6)

    def test_hard_is_the_mean_of_the_largest_distances_of_each_image(self) -> None:
        angles = torch.tensor([[0.0, 0.2, 0.5, 1.0], [0.3, 0.1, 0.4, 0.0]]).reshape(2, 2, 2)
        t = torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)], 1)
        s = torch.stack([angles.cos(), angles.sin()], 1) * 3
        distances = [1 - math.cos(a) for a in (1.0, 0.5, 0.4, 0.3)]
        assert float(hard_loss([t], [s], 2)) == pytest.approx(sum(distances) / 4, rel=1e-5)

    def test_more_hard_positions_than_there_are_is_the_mean_of_all(self) -> None:
        t, s = maps(0), maps(1)
        assert float(hard_loss(t, s, 10_000)) == pytest.approx(float(cosine_loss(t, s)), rel=1e-5)

    def test_the_kinds_add_up(self) -> None:
        t, s = maps(0), maps(1)
        both = float(reverse_loss(t, s, "hard+global", hard=3))
        assert both == pytest.approx(float(global_loss(t, s) + hard_loss(t, s, 3)))
        assert float(reverse_loss(t, s, "global")) == float(global_loss(t, s))
        assert float(reverse_loss(t, s, "mean")) == float(cosine_loss(t, s))

    @pytest.mark.parametrize("kind", ["global", "hard+global", "mean"])
    def test_nothing_is_0_and_zeros_have_finite_gradients(self, kind: Any) -> None:
        t = maps(0)
        assert float(reverse_loss(t, [5 * m for m in t], kind)) == pytest.approx(0, abs=1e-5)
        s = [torch.zeros_like(m, requires_grad=True) for m in t]
        reverse_loss(t, s, kind).backward()  # type: ignore[no-untyped-call]
        assert all(m.grad is not None and torch.isfinite(m.grad).all() for m in s)
        with pytest.raises(ConfigError, match="level"):
            reverse_loss([], [], kind)
