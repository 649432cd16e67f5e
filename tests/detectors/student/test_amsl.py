"""Adaptive memories: views, recall, fusion and losses, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from fedvad.detectors.student.amsl.net import AdaptiveMemories, Answer, recalled
from fedvad.detectors.student.amsl.options import VIEWS, MemoriesConfig
from fedvad.detectors.student.amsl.views import Views
from fedvad.errors import ConfigError

SHAPE = (2, 22, 5)
CONFIG = MemoriesConfig(items=6, channels=(4, 8))


def maps(seed: int = 0, count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_views_are_their_transformations() -> None:
    x, views = maps(), Views(VIEWS, SHAPE, seed=4)
    found = dict(zip(VIEWS, views(x), strict=True))
    assert torch.equal(found["plain"], x)
    assert torch.equal(found["negated"], -x)
    assert torch.equal(found["reversed"][:, :, 0], x[:, :, -1])
    assert torch.equal(found["scaled"], views.factor * x)
    assert views.factor in (0.5, 0.8, 1.5, 2.0)
    noise = (found["noise"] - x).square().mean((1, 2, 3)) / x.square().mean((1, 2, 3))
    pattern = float(views.get_buffer("pattern").square().mean())
    assert noise.tolist() == pytest.approx([pattern / 5] * 3, rel=1e-4)
    inner = savgol_filter(x.numpy(), 11, 3, axis=2)[:, :, 5:-5]
    np.testing.assert_allclose(found["smoothed"][:, :, 5:-5].numpy(), inner, atol=1e-5)
    parts = [found["permuted"][0, 0, :, 0].tolist(), x[0, 0, :, 0].tolist()]
    assert parts[0] != parts[1]
    assert sorted(parts[0]) == sorted(parts[1])
    moves = torch.diff(views.get_buffer("order")) != 1
    assert int(moves.sum()) <= 4  # five segments, whole


def test_positions_are_laid_back_and_equal_seeds_give_equal_views() -> None:
    x, views = maps(), Views(("reversed", "permuted"), SHAPE, seed=1)
    for back in views.in_place(views(x)):
        assert torch.equal(back, x)
    again = Views(("reversed", "permuted"), SHAPE, seed=1)
    assert torch.equal(again(x)[1], views(x)[1])


def test_recall_is_a_softmax_of_dot_products() -> None:
    items = torch.tensor([[1.0, 0], [0, 2]])
    z = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    answer, weights = recalled(z, items)  # dot products 1 and 1
    assert weights.tolist() == [[[0.5, 0.5]]]
    assert answer.flatten().tolist() == [0.5, 1.0]


def test_fusion_gates_what_both_memories_recall() -> None:
    net = AdaptiveMemories(SHAPE, CONFIG, seed=2)
    seen: list[Tensor] = []
    net.decoders[1].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.no_grad():
        net.gates[2], net.gates[3] = math.log(3), -math.log(3)  # shares 0.75 and 0.25
        net.answer(maps())
        z = net.encoder(net._filled(net.views(maps())[1]))
        wanted = 0.75 * recalled(z, net.common)[0] + 0.25 * recalled(z, net.own[1])[0]
    assert torch.allclose(seen[0][:, :8], z)
    assert torch.allclose(seen[0][:, 8:], wanted, atol=1e-6)


def test_every_memory_gate_and_decoder_learns() -> None:
    net = AdaptiveMemories(SHAPE, CONFIG, seed=2)
    answer = net.answer(maps())
    assert [r.shape for r in answer.rebuilt] == [(3, *SHAPE)] * len(VIEWS)
    pairs = zip(answer.views, answer.rebuilt, strict=True)
    (sum((a - b).square().mean() for a, b in pairs) + answer.regulariser(CONFIG)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    for memory in (net.common, *net.own):
        assert float(memory.grad.abs().sum()) > 0
    assert (net.gates.grad != 0).all()


def test_the_regulariser_adds_cross_entropy_and_entropy_over_the_views() -> None:
    config = MemoriesConfig(views=("plain", "negated"), classify=2.0, entropy=0.5)
    even = torch.full((4, 9, 8), 1 / 8)
    answer = Answer([], [], [torch.zeros(4, 2)] * 2, [even] * 4)
    wanted = 2.0 * 2 * math.log(2) + 0.5 * 4 * math.log(8)
    assert float(answer.regulariser(config)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"views": ("plain", "upside down")}, {"views": ()}, {"items": 0}, {"entropy": -1.0}]
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MemoriesConfig(**wrong)  # type: ignore[arg-type]
