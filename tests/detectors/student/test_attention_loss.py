"""The two losses, against numbers worked out by hand, and what each of them cannot see."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fedvad.detectors.student.dcam.attention import AttentionBlock
from fedvad.detectors.student.dcam.loss import channel_cosine, imitation_loss, spatial_kl
from fedvad.detectors.student.dcam.options import (
    AttentionConfig,
    Cosine,
    ImitationConfig,
    Standardise,
    check_pair,
    is_idle,
)
from fedvad.detectors.student.loss import cosine_loss
from fedvad.errors import ConfigError

LN3 = math.log(3)
# P = (1/4, 3/4) against Q = (1/2, 1/2)
KL = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
# two channels at two positions
TEACHER = torch.tensor([[[[1.0, 0.0]], [[3.0, 4.0]]]])
STUDENT = torch.tensor([[[[1.0, 1.0]], [[4.0, 3.0]]]])
EVERY = [
    ImitationConfig(cosine=cosine, reduce=reduce, standardise=how)
    for cosine, reduce, how in product(
        get_args(Cosine), ("mean", "sum"), get_args(Standardise)
    )
]  # fmt: skip


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _row(*values: float) -> Tensor:
    """One channel of one image."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


class TestChannelCosine:
    def test_per_channel_compares_the_maps_of_each_channel(self) -> None:
        by_hand = ((1 - math.sqrt(0.5)) + (1 - 24 / 25)) / 2
        assert float(channel_cosine(TEACHER, STUDENT, over="per_channel")) == pytest.approx(by_hand)

    def test_per_location_compares_the_channels_at_each_location(self) -> None:
        by_hand = ((1 - 13 / math.sqrt(10 * 17)) + (1 - 12 / (4 * math.sqrt(10)))) / 2
        found = float(channel_cosine(TEACHER, STUDENT, over="per_location"))
        assert found == pytest.approx(by_hand, rel=1e-5)

    def test_per_location_is_the_loss_of_stfpm(self) -> None:
        teacher, student = _draw(0, 2, 5, 4, 3), _draw(1, 2, 5, 4, 3)
        torch.testing.assert_close(
            channel_cosine(teacher, student, over="per_location"), cosine_loss([teacher], [student])
        )

    def test_each_reading_ignores_the_gains_of_what_it_normalises(self) -> None:
        teacher, student = _draw(0, 2, 5, 4, 3), _draw(1, 2, 5, 4, 3)
        gains = {
            "per_channel": _draw(2, 2, 5, 1, 1).exp(),
            "per_location": _draw(3, 2, 1, 4, 3).exp(),
        }
        for over, (name, gain) in product(get_args(Cosine), gains.items()):
            before = float(channel_cosine(teacher, student, over=over))
            after = float(channel_cosine(teacher, student * gain, over=over))
            assert (after == pytest.approx(before, rel=1e-5)) == (over == name)

    def test_weights_are_shares_of_the_vectors_and_of_their_values(self) -> None:
        channels = torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1)
        found = channel_cosine(TEACHER, STUDENT, over="per_channel", weight=channels)
        by_hand = (1.5 * (1 - math.sqrt(0.5)) + 0.5 * (1 - 24 / 25)) / 2
        assert float(found) == pytest.approx(by_hand)
        # within a vector: (1, 3) and (1, 4) with weights 3 and 1, (0, 4) and (1, 3) likewise
        found = channel_cosine(TEACHER, STUDENT, over="per_location", weight=channels)
        first = (3 * 1 + 12) / math.sqrt((3 + 9) * (3 + 16))
        second = 12 / math.sqrt(16 * (3 + 9))
        assert float(found) == pytest.approx((2 - first - second) / 2)


class TestSpatialKL:
    @pytest.mark.parametrize(
        ("options", "teacher", "expected"),
        [
            ({}, LN3, KL),
            ({"tau": 2.0}, 2 * LN3, 4 * KL),
            ({"tau": 2.0, "tau_squared": False}, 2 * LN3, KL),
        ],
    )
    def test_it_is_that_of_the_softmax_over_positions(
        self, options: dict[str, Any], teacher: float, expected: float
    ) -> None:
        # 7: a softmax does not see what all positions have in common
        found = spatial_kl(_row(7, 7 + teacher), _row(5, 5), standardise="none", **options)
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_channels_are_added_up_or_averaged_and_images_averaged(self) -> None:
        differs, equal = _row(0, LN3), _row(1, 2)
        teacher = torch.cat([torch.cat([differs, equal], 1), torch.cat([equal, equal], 1)])
        student = torch.cat([torch.cat([0 * differs, equal], 1), torch.cat([equal, equal], 1)])
        for reduce, expected in (("sum", KL / 2), ("mean", KL / 4)):
            found = spatial_kl(teacher, student, reduce=reduce, standardise="none")  # type: ignore[arg-type]
            assert float(found) == pytest.approx(expected)

    def test_it_may_be_taken_in_units_of_a_deviation(self) -> None:
        # positions 0 and 2 have a deviation of 1, so the maps are 0 and 2 of them
        p = 1 / (1 + math.exp(-2))
        expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
        for gain in (1.0, 50.0):
            found = spatial_kl(_row(0, 2 * gain), _row(3, 3), standardise="own")
            assert float(found) == pytest.approx(expected, rel=1e-3)
            found = spatial_kl(_row(0, 2 * gain), _row(3, 3), standardise="teacher")
            # a hundredth of the level's variance is added to that of a channel
            assert float(found) == pytest.approx(expected, rel=0.01)
        assert float(spatial_kl(_row(0, 2), _row(0, 2 * 5), standardise="own")) < 1e-6
        assert float(spatial_kl(_row(0, 2), _row(0, 2 * 5), standardise="teacher")) > 0.1

    def test_a_flat_channel_of_the_teacher_does_not_outweigh_all_others(self) -> None:
        teacher, student = _draw(0, 1, 4, 6, 6), _draw(1, 1, 4, 6, 6)
        whole = float(spatial_kl(teacher, student, reduce="sum"))
        teacher[:, 0] = 1.0
        student[:, 0] *= 0.1
        assert float(spatial_kl(teacher, student, reduce="sum")) < 1.5 * whole

    def test_weights_count_positions_without_ever_becoming_negative(self) -> None:
        weight = _row(3, 1)
        found = spatial_kl(_row(0, LN3), _row(0, 0), standardise="none", weight=weight)
        first, second = 0.25 * math.log(0.5) + 0.25, 0.75 * math.log(1.5) - 0.25
        assert float(found) == pytest.approx(1.5 * first + 0.5 * second)
        even = spatial_kl(_row(0, LN3), _row(0, 0), standardise="none", weight=7 * _row(1, 1))
        assert float(even) == pytest.approx(KL)


@pytest.mark.parametrize("config", EVERY, ids=str)
class TestBoth:
    def test_equal_maps_cost_nothing(self, config: ImitationConfig) -> None:
        maps = [_draw(0, 2, 5, 4, 4), _draw(1, 2, 7, 2, 2), torch.zeros(2, 3, 2, 2)]
        weights = [_draw(i, *m.shape).sigmoid() for i, m in enumerate(maps)]
        assert float(imitation_loss(maps, maps, config)) == 0
        assert float(imitation_loss(maps, maps, config, weights=weights)) < 1e-6

    def test_maps_of_zeros_give_finite_losses_and_gradients(self, config: ImitationConfig) -> None:
        drawn = _draw(0, 2, 5, 4, 4)
        for t, s in product((torch.zeros_like(drawn), drawn), repeat=2):
            student = s.clone().requires_grad_()
            weight = torch.full_like(student, 1e-45).requires_grad_()  # a sigmoid's least
            for weights in (None, [weight]):
                loss = imitation_loss([t], [student], config, weights=weights)
                loss.backward()  # type: ignore[no-untyped-call]
                assert math.isfinite(loss.item())
                assert student.grad is not None
                assert torch.isfinite(student.grad).all()
            assert weight.grad is not None
            assert torch.isfinite(weight.grad).all()


def test_levels_and_losses_add_up_with_their_weights() -> None:
    config = ImitationConfig(cosine_weight=2.0, kl_weight=3.0, tau=2.0, tau_squared=False)
    teacher = [_draw(0, 2, 5, 4, 4), _draw(1, 2, 7, 2, 2)]
    student = [_draw(2, 2, 5, 4, 4), _draw(3, 2, 7, 2, 2)]
    pairs = list(zip(teacher, student, strict=True))
    expected = sum(2 * channel_cosine(t, s, over="per_channel") for t, s in pairs)
    expected += sum(3 * spatial_kl(t, s, tau=2, tau_squared=False) for t, s in pairs)
    assert float(imitation_loss(teacher, student, config)) == pytest.approx(float(expected))
    with pytest.raises(ConfigError, match="level"):
        imitation_loss([], [], config)
    with pytest.raises(ValueError):
        imitation_loss(teacher, student[:1], config)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"cosine": "channel"}, "per_channel"),
        ({"reduce": "max"}, "reduce"),
        ({"standardise": True}, "standardise"),
        ({"tau": 0.0}, "tau"),
        ({"tau": math.inf}, "tau"),
        ({"kl_weight": -1.0}, "kl_weight must lie in"),
        ({"cosine_weight": math.nan}, "cosine_weight must lie in"),
        ({"cosine_weight": 0.0, "kl_weight": 0.0}, "nothing would"),
    ],
)
def test_impossible_losses_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ImitationConfig(**wrong)


@pytest.mark.parametrize("dcam", ["channel", "spatial", "both"])
@pytest.mark.parametrize(("on", "as_weight"), [("student", False), ("both", False),
                                               ("student", True)])  # fmt: skip
def test_an_attention_is_idle_exactly_where_no_gradient_reaches_it(
    dcam: Any, on: Any, as_weight: bool
) -> None:
    attention = AttentionConfig(dcam=dcam, on=on, att_as_weight=as_weight)
    torch.manual_seed(0)
    block = AttentionBlock(16, attention)
    teacher, student = _draw(0, 2, 16, 6, 6), _draw(1, 2, 16, 6, 6)
    for cosine, how, weights in product(
        get_args(Cosine), get_args(Standardise), ((1, 0), (0, 1), (1, 1))
    ):
        config = ImitationConfig(
            cosine=cosine, standardise=how, cosine_weight=weights[0], kl_weight=weights[1]
        )
        block.zero_grad()
        target = block(teacher) if on == "both" else teacher
        loss = (
            imitation_loss([teacher], [student], config, weights=[block.gain(student)])
            if as_weight
            else imitation_loss([target], [block(student)], config)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        reached = max(float(p.grad.norm()) for p in block.parameters() if p.grad is not None)
        assert (reached < 1e-5) == is_idle(attention, config), (config, reached)
        if is_idle(attention, config):
            with pytest.raises(ConfigError, match=f"cannot see the {dcam} attention"):
                check_pair(attention, config)
        else:
            check_pair(attention, config)
