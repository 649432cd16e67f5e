"""Attention by hand, where it goes through, and what it leaves as it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvad.detectors.student.branches import Branch, STFPMNet
from fedvad.detectors.student.dcam.attention import (
    AttendedNet,
    AttendedStudent,
    AttentionBlock,
    ChannelAttention,
    SpatialAttention,
    attend,
)
from fedvad.detectors.student.dcam.loss import imitation_loss
from fedvad.detectors.student.dcam.options import AttentionConfig, ImitationConfig
from fedvad.detectors.student.parameters import parameters_of
from fedvad.errors import ConfigError

USES = [
    AttentionConfig("channel"),
    AttentionConfig("spatial"),
    AttentionConfig("both", residual=True),
    AttentionConfig("both", on="both"),
    AttentionConfig("both", att_as_weight=True),
]


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _branch(seed: int) -> Branch:
    """Two levels, of 16 and 24 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.BatchNorm2d(24)]
        return Branch(steps, (1, 3))


def _net() -> STFPMNet:
    return STFPMNet(_branch(0), _branch(1))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_channel_attention_adds_what_the_maximum_and_the_mean_say() -> None:
    attention = ChannelAttention(2, reduction=1)
    first, _, second = attention.mlp
    with torch.no_grad():
        first.weight.zero_()[:2] = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        second.weight.zero_()[:, :2] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])  # maxima (3, 4), means (2, 2)
    # the hidden values are (3, 1) and, with what is negative cut off, (2, 0)
    expected = torch.tensor([_sigmoid(3 + 2), _sigmoid(2 * 1 + 2 * 0)])
    torch.testing.assert_close(attention(x), expected.reshape(1, 2, 1, 1))


def test_spatial_attention_looks_at_seven_by_seven_cells_of_mean_and_maximum() -> None:
    attention = SpatialAttention()
    with torch.no_grad():
        attention.conv.weight.zero_()
        attention.conv.weight[0, :, 3, 3] = torch.tensor([1.0, 10.0])
        attention.conv.weight[0, 0, 3, 6] = 100.0  # the mean three cells to the right
    x = torch.zeros(1, 2, 1, 5)
    x[0, :, 0, 0], x[0, :, 0, 3] = torch.tensor([0.2, 0.4]), torch.tensor([0.01, -0.03])
    expected = [0.3 + 10 * 0.4 + 100 * -0.01, 0, 0, -0.01 + 10 * 0.01, 0]
    torch.testing.assert_close(attention(x), torch.tensor(expected).sigmoid().reshape(1, 1, 1, 5))


def test_the_hidden_layer_is_an_eighth_but_never_narrow() -> None:
    assert [tuple(p.shape) for p in ChannelAttention(96, 8).parameters()] == [(12, 96), (96, 12)]
    assert [tuple(p.shape) for p in ChannelAttention(4, 8).parameters()] == [(8, 4), (4, 8)]
    assert [tuple(p.shape) for p in SpatialAttention().parameters()] == [(1, 2, 7, 7)]


def test_channels_come_first_and_positions_see_what_they_leave() -> None:
    x = _draw(0, 2, 16, 5, 4)
    torch.manual_seed(0)
    block = AttentionBlock(16, AttentionConfig("both"))
    assert block.channel is not None
    assert block.spatial is not None
    after = x * block.channel(x)
    torch.testing.assert_close(block(x), after * block.spatial(after))
    block.residual = True
    torch.testing.assert_close(block(x), x + after * block.spatial(after))


@pytest.mark.parametrize(
    ("kind", "shape"), [("channel", (2, 16, 1, 1)), ("spatial", (2, 1, 5, 4)),
                        ("both", (2, 16, 5, 4)), ("none", (1, 1, 1, 1))],
)  # fmt: skip
def test_gains_are_shares_or_with_the_residual_one_and_a_share(
    kind: Any, shape: tuple[int, ...]
) -> None:
    x = _draw(0, 2, 16, 5, 4)
    block = AttentionBlock(16, AttentionConfig(kind))
    gain = block.gain(x).detach()
    assert gain.shape == shape
    torch.testing.assert_close(block(x), x * gain)
    if kind == "none":
        assert not list(block.parameters())
        assert torch.equal(AttentionBlock(16, AttentionConfig(kind, residual=True))(x), x)
        return
    assert 0 < float(gain.min()) < float(gain.max()) < 1
    block.residual = True
    torch.testing.assert_close(block.gain(x), 1 + gain)


@pytest.mark.parametrize("config", USES, ids=str)
class TestAttendedStudent:
    def test_the_loss_reaches_student_and_attention_and_not_the_teacher(
        self, config: AttentionConfig
    ) -> None:
        net = _net()
        student = attend(net, config, image_size=16, seed=3).train()
        x = _draw(0, 2, 3, 16, 16)
        teacher, plain = net.teacher(x), student.plain(x)
        for maps in (teacher, plain):
            assert [m.shape[1] for m in maps] == [16, 24]
        loss = imitation_loss(
            student.target(teacher),
            student.attended(plain),
            ImitationConfig(),
            weights=student.weights(plain),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None, name
            if name not in ("steps.2.bias",):  # the batch norm that follows takes a bias away
                assert float(parameter.grad.norm()) > 1e-9, name
        assert all(p.grad is None for p in net.teacher.parameters())

    def test_the_student_within_it_is_the_nets_own(self, config: AttentionConfig) -> None:
        net = _net()
        student = attend(net, config, image_size=16, seed=3)
        own = parameters_of(net.student)
        names = parameters_of(student).keys()
        assert all(name.startswith("attention.") for name in names - own.keys())
        assert own.keys() < names
        with torch.no_grad():
            student.steps[0].weight.add_(1.0)  # type: ignore[operator, arg-type]
        assert (parameters_of(net.student)["steps.0.weight"] != own["steps.0.weight"]).all()

    def test_a_seed_decides_its_weights_and_nothing_else_does(
        self, config: AttentionConfig
    ) -> None:
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        first = parameters_of(attend(_net(), config, image_size=16, seed=3))
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(6)
        again = parameters_of(attend(_net(), config, image_size=16, seed=3))
        other = parameters_of(attend(_net(), config, image_size=16, seed=4))
        attention = [n for n in first if n.startswith("attention.")]
        assert all((first[n] == again[n]).all() for n in first)
        assert all((first[n] != other[n]).any() for n in attention)


def test_as_weights_it_multiplies_no_map() -> None:
    net, x = _net(), _draw(0, 2, 3, 16, 16)
    weighing = attend(net, USES[-1], image_size=16, seed=3).eval()
    for found, plain in zip(weighing(x), net.student(x), strict=True):
        assert torch.equal(found, plain)
    multiplying = attend(net, USES[0], image_size=16, seed=3).eval()
    assert multiplying.weights(net.student(x)) is None
    for found, plain in zip(multiplying(x), net.student(x), strict=True):
        assert not torch.equal(found, plain)


@pytest.mark.parametrize("on", ["student", "both"])
def test_kept_at_test_it_is_part_of_the_score(on: Any) -> None:
    plain, x = _net(), _draw(0, 2, 3, 16, 16)
    config = AttentionConfig("both", on=on, keep_at_test=True)
    net = AttendedNet(plain.teacher, attend(plain, config, image_size=16, seed=3))
    teacher, student = net(x)
    blocks = net.student.attention
    for block, t, s, t_plain, s_plain in zip(blocks, teacher, student, *plain(x), strict=True):
        torch.testing.assert_close(s, block(s_plain))
        torch.testing.assert_close(t, block(t_plain) if on == "both" else t_plain)
    assert not any(p.requires_grad for p in net.teacher.parameters())
    assert all(p.requires_grad for p in net.student.parameters())
    assert isinstance(net.student, AttendedStudent)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"dcam": "cbam"}, "channel"),
        ({"on": "teacher"}, "both"),
        ({"reduction": 0}, "reduction"),
        ({"dcam": "none", "keep_at_test": True}, "none"),
        ({"dcam": "none", "att_as_weight": True}, "none"),
        ({"att_as_weight": True, "keep_at_test": True}, "nothing to keep_at_test"),
        ({"att_as_weight": True, "on": "both"}, "student"),
    ],
)
def test_impossible_attention_is_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AttentionConfig(**wrong)
