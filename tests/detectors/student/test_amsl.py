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
    answer, weights = recalled(z, items, MemoriesConfig())  # dot products 1 and 1
    assert weights.tolist() == [[[0.5, 0.5]]]
    assert answer.flatten().tolist() == [0.5, 1.0]


def test_recall_by_cosines_is_shrunk_and_sharpened() -> None:
    items = torch.tensor([[1.0, 0], [0, 2], [-5, 0]])
    z = torch.tensor([3.0, 0]).reshape(1, 2, 1, 1)  # cosines 1, 0, -1
    config = MemoriesConfig(read="cosine", temperature=0.5)
    e = [math.exp(2), 1, math.exp(-2)]
    assert recalled(z, items, config)[1].flatten().tolist() == pytest.approx(
        [value / sum(e) for value in e]
    )
    shrunk = MemoriesConfig(read="cosine", temperature=0.5, shrink=1.0)  # below a third: none
    answer, weights = recalled(z, items, shrunk)
    assert weights.flatten().tolist() == pytest.approx([1, 0, 0])
    assert answer.flatten().tolist() == pytest.approx([1, 0])
    warm = recalled(z, items, MemoriesConfig(temperature=3.0))[1].flatten()  # dots 3, 0, -15
    assert float(warm[0] / warm[1]) == pytest.approx(math.e, rel=1e-5)


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_answers_are_fused_as_the_option_says_and_all_learns(fusion: str) -> None:
    config = MemoriesConfig(items=6, channels=(4, 8), fusion=fusion)  # type: ignore[arg-type]
    net = AdaptiveMemories(SHAPE, config, seed=2)
    assert "gates" not in dict(net.named_parameters())
    seen: list[Tensor] = []
    net.decoders[1].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    answer = net.answer(maps())
    z = net.encoder(net._filled(net.views(maps())[1]))
    both = [recalled(z, items, config)[0] for items in (net.common, net.own[1])]
    wanted = torch.cat(both, 1) if fusion == "concat" else sum(both) / 2
    assert torch.allclose(seen[0][:, 8:], wanted, atol=1e-6)
    sum(r.square().mean() for r in answer.rebuilt).backward()
    for memory in (net.common, *net.own):
        assert float(memory.grad.abs().sum()) > 0


def test_fusion_gates_what_both_memories_recall() -> None:
    net = AdaptiveMemories(SHAPE, CONFIG, seed=2)
    seen: list[Tensor] = []
    net.decoders[1].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.no_grad():
        net.gates[2], net.gates[3] = math.log(3), -math.log(3)  # shares 0.75 and 0.25
        net.answer(maps())
        z = net.encoder(net._filled(net.views(maps())[1]))
        wanted = (
            0.75 * recalled(z, net.common, CONFIG)[0] + 0.25 * recalled(z, net.own[1], CONFIG)[0]
        )
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
    "wrong",
    [
        {"views": ("plain", "upside down")},
        {"views": ()},
        {"items": 0},
        {"entropy": -1.0},
        {"read": "l2"},
        {"fusion": "max"},
        {"temperature": 0.0},
        {"shrink": -1.0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        MemoriesConfig(**wrong)  # type: ignore[arg-type]
