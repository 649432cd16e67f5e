"""The losses of dual modelling by hand, at their limits, and what each of them moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fedvad.detectors.student.dmdd.decouple import DualNet
from fedvad.detectors.student.dmdd.loss import (
    away_loss,
    dual_loss,
    guidance_loss,
    segmentation_loss,
)
from fedvad.detectors.student.dmdd.options import Aim, DualConfig
from fedvad.detectors.student.dmdd.pairs import DualBatch
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.rd.loss import global_loss
from fedvad.detectors.student.targets import Batch
from fedvad.errors import ConfigError
from tests.detectors.student.test_branches import IMAGES
from tests.detectors.student.test_decouple import dual

CONFIG = DualConfig(head_channels=8)
# cosines with the first axis: 1, 0, -1
X = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])[None, :, None]  # (1, 2, 1, 3)
R = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])[None, :, None]


def mask(*cells: int) -> Tensor:
    return torch.tensor(cells, dtype=torch.float32)[None, None, None]


@pytest.mark.parametrize(
    ("form", "cells", "expected"),
    [
        ("l1mask", (0, 0, 0), (0 + 1 + 2) / 3),
        ("l1mask", (0, 1, 1), (0 + 0 + 1) / 3),
        ("l1mask", (1, 1, 1), (1 + 0 + 1) / 3),
        ("margin", (0, 0, 0), 1.0),
        ("margin", (0, 1, 1), 0.0),
        ("margin", (1, 1, 0), (1 + 0) / 2 + 2),
        ("cos", (0, 1, 0), (0 + 2) / 2 + 0),
        ("cos", (1, 1, 1), 1 / 3),
        ("away_only", (0, 0, 0), 0.0),
        ("away_only", (1, 0, 0), 1.0),
    ],
)
def test_away_losses_by_hand(form: Any, cells: tuple[int, ...], expected: float) -> None:
    assert float(away_loss([R], [X], [mask(*cells)], form)) == pytest.approx(expected, abs=1e-6)


def test_a_larger_margin_and_several_levels() -> None:
    on = mask(0, 1, 1)
    assert float(away_loss([R], [X], [on], "margin", margin=2)) == pytest.approx(0.5)
    one = float(away_loss([R], [X], [on], "l1mask"))
    assert float(away_loss([R, R], [X, X], [on, on], "l1mask")) == pytest.approx(2 * one)
    with pytest.raises(ConfigError, match="level"):
        away_loss([], [], [], "l1mask")


def test_without_a_mask_all_forms_but_one_are_plain_mimicry() -> None:
    nothing = mask(0, 0, 0)
    for form in ("l1mask", "margin", "cos"):
        found = away_loss([R], [X], [nothing], form)  # type: ignore[arg-type]
        torch.testing.assert_close(found, cosine_loss([R], [X]))


def test_segmentation_by_hand() -> None:
    found, wanted = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    focal = 0.5**4 * 0.6931472 / 2
    assert float(segmentation_loss(found, wanted)) == pytest.approx(focal + 0.25, rel=1e-4)
    worst = segmentation_loss(1 - wanted, wanted)
    assert worst.isfinite()
    assert worst > 10


def test_guidance_takes_positions_or_whole_maps() -> None:
    torch.testing.assert_close(guidance_loss([R], [X]), cosine_loss([R], [X]))
    torch.testing.assert_close(guidance_loss([R], [X], flatten=True), global_loss([R], [X]))


@pytest.fixture(scope="module")
def net() -> DualNet:
    return dual()


def batch(net: DualNet, masked: float = 0.3) -> DualBatch:
    """Two pairs, of which the defective ones have other maps in a corner."""
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        normal = net.teacher(IMAGES)
    normal = [m.clone() for m in normal]
    masks = [torch.zeros(2, 1, *m.shape[2:]) for m in normal]
    for m in masks:
        m[..., : round(masked * m.shape[2]), :] = 1
    noise = [torch.randn(m.shape, generator=generator) for m in normal]
    teacher = [m + k * n for m, k, n in zip(normal, masks, noise, strict=True)]
    return DualBatch(teacher, teacher, Batch(normal, normal), masks)


def gradients(net: DualNet, **changes: Any) -> dict[str, float]:
    """Largest gradient of each part of the student."""
    net.student.train()
    net.zero_grad()
    dual_loss(net, batch(net), replace(CONFIG, **changes)).backward()  # type: ignore[no-untyped-call]
    net.student.eval()
    assert all(p.grad is None for p in net.teacher.parameters())
    found: dict[str, float] = {}
    for name, p in net.student.named_parameters():
        part = next(x for x in ("base", ".normality", ".abnormality", "widen", "head") if x in name)
        size = 0.0 if p.grad is None else float(p.grad.abs().max())
        found[part] = max(found.get(part, 0.0), size)
    return found


@pytest.mark.parametrize("form", get_args(Aim))
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_no_mask_and_nothing_but_mask_stay_finite(net: DualNet, form: Any, masked: float) -> None:
    net.zero_grad()
    value = dual_loss(net, batch(net, masked), replace(CONFIG, aim=form))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.student.parameters())


def test_the_guidance_is_by_the_paired_image(net: DualNet) -> None:
    right = batch(net)
    swapped = [m.flip(0) for m in right.normal.teacher]
    wrong = DualBatch(right.inputs, right.teacher, Batch(swapped, swapped), right.masks)
    config = replace(CONFIG, aim_weight=0.0, head_weight=0.0, self_weight=0.0)
    with torch.inference_mode():
        assert (
            abs(float(dual_loss(net, right, config)) - float(dual_loss(net, wrong, config))) > 1e-4
        )


def test_each_loss_moves_its_own_part(net: DualNet) -> None:
    everything = gradients(net)
    assert all(everything.values())
    assert not gradients(net, aim_weight=0.0)[".abnormality"]
    assert not gradients(net, head_weight=0.0)["head"]
    alone = gradients(net, self_weight=0.0, aim_weight=0.0, head_sees="defects")
    assert alone[".normality"]


def test_the_head_moves_the_branches_only_if_it_may(net: DualNet) -> None:
    apart, joint = (gradients(net, aim_weight=0.0, joint=j) for j in (False, True))
    assert not apart[".abnormality"]
    assert joint[".abnormality"]


def test_options_change_the_value(net: DualNet) -> None:
    def value(head: bool = True, **changes: Any) -> float:
        with torch.inference_mode():
            return float(dual_loss(net, batch(net), replace(CONFIG, **changes), head=head))

    plain = value()
    for changes in (
        {"self_weight": 0.0}, {"flatten": True}, {"aim_reference": "paired"}, {"aim": "cos"},
        {"head_sees": "defects"}, {"focal_gamma": 0.0}, {"aim_weight": 2.0}, {"head_weight": 3.0},
    ):  # fmt: skip
        assert value(**changes) != pytest.approx(plain, rel=1e-6), changes
    assert value(head=False) == pytest.approx(value(head_weight=0.0))
    margin = value(aim="margin")
    assert value(aim="margin", margin=2.0) > margin
