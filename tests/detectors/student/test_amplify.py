"""Amplified teachers: bounds of gate and residual, forcing, and the losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvad.detectors.student.aand.amplify import (
    AdvancedNet,
    AmplifyBlock,
    amplifier,
    position_code,
)
from fedvad.detectors.student.aand.loss import amplification_loss, amplify_loss, focal_loss
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.aand.pairs import PairBatch
from fedvad.detectors.student.parameters import parameters_of
from fedvad.detectors.student.rd.net import ReverseStudent
from fedvad.errors import ConfigError

SMALL = AmplifyConfig(items=4)
SHAPES = [(6, 8, 8), (10, 4, 4)]


def block(config: AmplifyConfig = SMALL, shape: tuple[int, int, int] = (6, 8, 8)) -> AmplifyBlock:
    made = amplifier([shape], config, seed=3)[0]
    assert isinstance(made, AmplifyBlock)
    return made


def features(shape: tuple[int, int, int] = (6, 8, 8), seed: int = 0, scale: float = 5) -> Tensor:
    return scale * torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))


def batch(*, masked: bool = True, images: int = 4) -> PairBatch:
    """Features whose masked cells lie in a direction of their own."""
    teacher, masks = [], []
    for index, shape in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(index)
        mask = torch.zeros(images, 1, *shape[1:])
        if masked:
            mask[:2, :, 1:3, 1:3] = 1
        normal = torch.ones(shape) + 0.3 * torch.randn(images, *shape, generator=generator)
        odd = torch.linspace(-0.5, 1, shape[0])[:, None, None] * torch.ones(shape)
        teacher.append(normal + mask * odd)
        masks.append(mask)
    cells = [m[:, 0] > 0 for m in masks]
    return PairBatch(teacher, masks, [~c for c in cells], cells)


class TestBlock:
    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    @pytest.mark.parametrize("tau", [0.01, 0.2, 5.0])
    def test_the_gate_is_a_share(self, scale: float, tau: float) -> None:
        x = features(scale=scale)
        gate = block(replace(SMALL, tau=tau)).gate(x)
        assert gate.shape == (3, 1, 8, 8)
        assert bool((gate >= 0).all() and (gate <= 1).all())
        if tau >= 0.2:
            assert bool((gate > 0).all() and (gate < 1).all())

    def test_the_gate_is_the_anomalous_items_part_of_the_softmax(self) -> None:
        made = block()
        x = features()
        query = made.gate.query(x + position_code(6, 8, 8))[1, :, 2, 5]
        cosines = torch.nn.functional.cosine_similarity(query[None], made.gate.memory)
        expected = torch.softmax(cosines / 0.2, 0)[4:].sum()
        torch.testing.assert_close(made.gate(x)[1, 0, 2, 5], expected)

    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    def test_a_scaling_residual_is_no_larger_than_the_feature(self, scale: float) -> None:
        x = features(scale=scale)
        residual = block().residual(x).detach()
        assert bool((residual.abs() <= x.abs()).all())
        assert float((residual - x).abs().max()) > 0

    def test_an_additive_residual_may_be(self) -> None:
        x = features(scale=1e-3)
        assert bool((block(replace(SMALL, residual="additive")).residual(x).abs() > x.abs()).any())

    def test_forced_by_an_empty_mask_nothing_changes_to_the_bit(self) -> None:
        x = features()
        amplified, _, _ = block()(x, torch.zeros(3, 1, 8, 8))
        assert torch.equal(amplified, x)

    def test_forced_the_mask_says_where(self) -> None:
        x, mask = features(), torch.zeros(3, 1, 8, 8)
        mask[1, :, 2:4] = 1
        amplified, gate, residual = block()(x, mask)
        torch.testing.assert_close(amplified, x + mask * residual)
        free, same, _ = block()(x)
        torch.testing.assert_close(free, x + gate * residual)
        torch.testing.assert_close(same, gate)

    def test_hidden_width_follows_the_channels(self) -> None:
        assert SMALL.width(24) == 48
        assert SMALL.width(800) == 1024
        assert block(replace(SMALL, hidden=7)).gate.query[0].weight.shape[0] == 7  # type: ignore[union-attr]

    def test_equal_seeds_give_equal_blocks_and_leave_the_global_seed_alone(self) -> None:
        before = torch.random.get_rng_state()
        one, same, other = (parameters_of(amplifier(SHAPES, SMALL, seed=s)) for s in (1, 1, 2))
        assert all((one[n] == same[n]).all() for n in one)
        assert any((one[n] != other[n]).any() for n in one)
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 30])
def test_position_codes_of_any_number_of_channels_tell_cells_apart(channels: int) -> None:
    code = position_code(channels, 5, 7)
    assert code.shape == (channels, 5, 7)
    assert float(code.abs().max()) <= 1
    if channels >= 6:
        assert len(torch.unique(code.flatten(1).T, dim=0)) == 35
    assert (
        AmplifyBlock((channels, 5, 7), SMALL)(torch.rand(1, channels, 5, 7))[0].shape[1] == channels
    )


def test_the_position_code_is_that_of_transformers() -> None:
    code = position_code(8, 5, 7)
    row, column = 3, 4
    slow = 10_000**-0.5
    expected = [
        math.sin(row), math.sin(row * slow), math.cos(row), math.cos(row * slow),
        math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow),
    ]  # fmt: skip
    torch.testing.assert_close(code[:, row, column], torch.tensor(expected))


class TestLosses:
    def test_focal_by_hand_and_finite_where_a_gate_is_certain_and_wrong(self) -> None:
        gate, mask = torch.tensor([0.7, 0.4]), torch.tensor([1.0, 0.0])
        expected = -0.8 * 0.3**2 * math.log(0.7) - 0.2 * 0.4**2 * math.log(0.6)
        assert float(focal_loss(gate, mask)) == pytest.approx(expected / 2, rel=1e-5)
        wrong = torch.tensor([0.0, 1.0], requires_grad=True)
        loss = focal_loss(wrong, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(float(loss.detach()))
        assert wrong.grad is not None
        assert torch.isfinite(wrong.grad).all()

    @pytest.mark.parametrize(("margin", "expected"), [("sub", 0.35), ("mul", 0.41)])
    def test_amplification_by_hand(self, margin: Any, expected: float) -> None:
        normal = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        before = torch.tensor([[3.0, 4.0]])  # cosines 0.6 and 0.8
        after = torch.tensor([[10.0, 0.0]])  # cosines 1 and 0
        # sub: limits 0.3 and 0.5, so 0.7 and 0; mul: 0.18 and 0.24, so 0.82 and 0
        value = float(amplification_loss(normal, before, after, alpha=0.3, margin=margin))
        assert value == pytest.approx(expected, rel=1e-5)

    def test_an_anomaly_that_went_far_enough_costs_nothing(self) -> None:
        normal, before = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        after = torch.tensor([[0.29, (1 - 0.29**2) ** 0.5]])
        assert float(amplification_loss(normal, before, after)) == 0
        assert float(amplification_loss(normal, before, before)) == pytest.approx(0.3, rel=1e-5)

    def test_all_losses_are_the_weighted_sum_over_the_levels(self) -> None:
        blocks, pairs = amplifier(SHAPES, SMALL, seed=3).requires_grad_(False), batch()
        config = replace(SMALL, focal_weight=2.0, amplify_weight=0.5, keep_weight=3.0)
        expected = 0.0
        for i, each in enumerate(blocks):
            x, mask = pairs.teacher[i], pairs.masks[i]
            amplified, gate, residual = each(x, mask)
            inside, outside = mask[:, 0] > 0, mask[:, 0] == 0
            flat, moved = x.movedim(1, 3), amplified.movedim(1, 3)
            expected += 2.0 * float(focal_loss(gate, mask))
            expected += 0.5 * float(amplification_loss(flat[outside], flat[inside], moved[inside]))
            expected += 3.0 * float((gate * residual).movedim(1, 3)[outside].abs().mean())
        assert float(amplify_loss(blocks, pairs, config)) == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("forcing", [True, False])
    @pytest.mark.parametrize("keep", [0.0, 1.0])
    def test_without_a_masked_cell_loss_and_gradients_are_finite(
        self, forcing: bool, keep: float
    ) -> None:
        blocks, pairs = amplifier(SHAPES, SMALL, seed=3), batch(masked=False)
        config = replace(SMALL, gate_forcing=forcing, keep_weight=keep)
        loss = amplify_loss(blocks, pairs, config)
        loss.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(float(loss.detach()))
        for parameter in blocks.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
        alone = replace(config, focal_weight=1e-9, amplify_weight=1.0, keep_weight=0.0)
        assert float(amplify_loss(blocks, pairs, alone).detach()) == pytest.approx(0, abs=1e-6)

    def test_forced_the_gate_learns_from_the_focal_loss_alone(self) -> None:
        blocks, pairs = amplifier(SHAPES, SMALL, seed=3), batch()
        amplify_loss(blocks, pairs, replace(SMALL, focal_weight=0)).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is None for b in blocks for p in b.gate.parameters())  # type: ignore[union-attr]
        assert any(p.grad is not None for b in blocks for p in b.residual.parameters())  # type: ignore[union-attr]

    @pytest.mark.parametrize("residual", ["scale", "additive"])
    @pytest.mark.parametrize("margin", ["sub", "mul"])
    def test_training_moves_anomalies_away_and_opens_the_gate_on_them(
        self, residual: Any, margin: Any
    ) -> None:
        config = replace(SMALL, residual=residual, margin=margin, amplify_weight=1.0)
        blocks, pairs = amplifier(SHAPES, config, seed=3), batch()
        optimiser = torch.optim.Adam(blocks.parameters(), 0.01)
        losses = []
        for _ in range(40):
            loss = amplify_loss(blocks, pairs, config)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]
        with torch.inference_mode():
            for i, each in enumerate(blocks):
                inside = pairs.anomalous[i]
                amplified, gate, _ = each(pairs.teacher[i])
                assert gate[:, 0][inside].mean() > 0.3 + gate[:, 0][~inside].mean()
                x, moved = pairs.teacher[i].movedim(1, 3), amplified.movedim(1, 3)
                far, near = moved[inside], x[~inside]
                unit = nn.functional.normalize
                after = (unit(far, dim=1) @ unit(near, dim=1).T).mean()
                before = (unit(x[inside], dim=1) @ unit(near, dim=1).T).mean()
                assert after < before - 0.1


def test_the_net_compares_with_amplified_maps_and_freezes_its_teacher() -> None:
    teacher = nn.Module()
    taps = [features((6, 8, 8)), features((10, 4, 4))]
    teacher.forward = lambda x: taps  # type: ignore[method-assign]
    blocks = amplifier(SHAPES, SMALL, seed=3)
    net = AdvancedNet(teacher, ReverseStudent(SHAPES, seed=0), blocks).eval()
    with torch.inference_mode():
        target, rebuilt = net(torch.zeros(3, 3, 64, 64))
        for i, each in enumerate(blocks):
            torch.testing.assert_close(target[i], each(taps[i])[0])
            torch.testing.assert_close(net.gates(taps)[i], each(taps[i])[1])
        for found, expected in zip(rebuilt, net.student(net.advanced(taps)), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"margin": "add"}, "margin"),
        ({"residual": "tanh"}, "residual"),
        ({"items": 0}, "items"),
        ({"pairs": 0}, "pairs"),
        ({"hidden": 0}, "hidden"),
        ({"tau": 0.0}, "tau"),
        ({"alpha": -0.1}, "alpha"),
        ({"focal_weight": 0.0, "amplify_weight": 0.0}, "nothing would"),
        ({"keep_weight": math.inf}, "keep_weight"),
        ({"focal_alpha": 1.0}, "focal_alpha"),
        ({"anomaly_prob": 0.0}, "anomaly_prob"),
        ({"mask_share": 1.0}, "mask_share"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AmplifyConfig(**wrong)


def test_amplification_is_computed_in_float32() -> None:
    cells = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    plain = amplification_loss(*cells)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = amplification_loss(cells[0], cells[1], cells[2].bfloat16().float())
    assert mixed.dtype == torch.float32
    assert float(mixed) == pytest.approx(float(plain), abs=2e-3)
