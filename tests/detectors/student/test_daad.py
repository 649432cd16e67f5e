"""Block-wise memories: dividing, addressing and the critic, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvad.data.folders import read_set
from fedvad.detectors.registry import create
from fedvad.detectors.student.daad.blocks import (
    BlockMemory,
    address,
    assemble,
    divide,
    entropy,
    perplexity,
)
from fedvad.detectors.student.daad.loss import adversarial_loss, reversed_gradient
from fedvad.detectors.student.daad.net import MemoryStudent
from fedvad.detectors.student.daad.options import BlockConfig
from fedvad.errors import ConfigError
from fedvad.features.config import FeatureConfig
from fedvad.features.extractor import FeatureExtractor
from tests.detectors.student import support

SHAPES = [(6, 8, 8), (10, 4, 4)]


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def student(**options: Any) -> MemoryStudent:
    return MemoryStudent(SHAPES, BlockConfig(**{"items": 5} | options), width=1.0, seed=3)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (4, 9)])
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_assembling_what_was_divided_gives_the_maps(
    size: tuple[int, int], rows: int, columns: int, depth: int
) -> None:
    x = maps(2, 6, *size)
    blocks = divide(x, rows, columns, depth)
    assert blocks.shape[:2] == (2, depth * rows * columns)
    assert torch.equal(assemble(blocks, (6, *size), rows, columns, depth), x)


def test_a_block_holds_the_neighbours_of_a_place() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    blocks = divide(x, 2, 2, 2)
    assert blocks[0, 0].tolist() == [0, 1, 4, 5]  # first channel, above on the left
    assert blocks[0, 3].tolist() == [10, 11, 14, 15]
    assert blocks[0, 4].tolist() == [16, 17, 20, 21]  # second channel
    assert divide(x, 2, 2)[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_weights_are_the_softmax_of_cosines_shrunk_and_sum_to_one() -> None:
    items = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])
    query = torch.tensor([[[5.0, 0]]])
    e = [math.exp(2), 1, math.exp(-2)]  # cosines 1, 0, -1 over 0.5
    plain = [value / sum(e) for value in e]
    found = address(query, items, temperature=0.5, shrink=0)
    assert found[0, 0].tolist() == pytest.approx(plain)
    assert plain[1] == pytest.approx(0.117, abs=1e-3)
    shrunk = address(query, items, temperature=0.5, shrink=0.1)[0, 0]
    kept = plain[0] + plain[1]
    assert shrunk.tolist() == pytest.approx([plain[0] / kept, plain[1] / kept, 0], abs=1e-6)


def test_where_shrinking_leaves_nothing_the_nearest_item_answers() -> None:
    items = torch.tensor([[1.0, 0], [1, 0.1], [1, -0.1]])
    found = address(torch.tensor([[[1.0, 0.2]]]), items, temperature=9, shrink=0.5)
    assert found[0, 0].tolist() == [0, 1, 0]


def test_one_item_is_what_every_block_becomes() -> None:
    memory = BlockMemory((2, 4, 4), 2, 1, 1)
    item = maps(1, 8)
    memory.items.data = item
    weights = memory.weights(maps(3, 2, 4, 4), temperature=0.1, shrink=1)
    found = divide(memory.recall(weights), 2, 2)
    assert torch.allclose(found, item.expand(3, 4, 8))


def test_finer_division_rebuilds_better_from_blocks_seen_before() -> None:
    seen = maps(40, 3, 8, 8)
    seen[20:] = 0.5 * seen[:20].flip(0) + 0.5 * seen[20:]
    new, errors = maps(10, 3, 8, 8, seed=1), []
    for divisions in (1, 2, 4, 8):
        memory = BlockMemory((3, 8, 8), divisions, 1, 2000)
        blocks = divide(seen, divisions, divisions).flatten(0, 1)
        memory.items = torch.nn.Parameter(blocks)
        found = memory.recall(memory.weights(new, temperature=0.01, shrink=0))
        errors.append(float((found - new).square().mean().detach()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_entropy_of_known_weights() -> None:
    half = torch.tensor([[0.5, 0.5, 0], [1, 0, 0]])
    assert float(entropy(half)) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_perplexity_counts_the_items_in_use() -> None:
    assert perplexity(torch.tensor([3.0, 3, 3, 3])) == pytest.approx(4)
    assert perplexity(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    # one of two by nine tenths: exp(-0.9 ln 0.9 - 0.1 ln 0.1)
    assert perplexity(torch.tensor([0.9, 0.1])) == pytest.approx(1.384, abs=1e-3)


def test_a_site_says_how_many_items_are_in_use(
    plants: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = FeatureConfig(**support.options(support.write_weights(tmp_path / "w.safetensors")))
    detector = create("daad", extractor=FeatureExtractor(config), blocks=support.BLOCKS,
                      train=support.QUICK_ADAM)  # fmt: skip
    site = detector.prepare(read_set(plants / "alder").train)
    with caplog.at_level("INFO"):
        site.end("student")
        used = site.usage()
        assert all(1 <= count <= support.BLOCKS.items for count in used)
        assert f"items in use by level: {used[0]:.1f}" in caplog.text
        assert "blocks.temperature" not in caplog.text
        for memory in site.net.student.memories:  # equal ones share
            memory.items.data = torch.ones_like(memory.items)
        assert site.usage() == pytest.approx([support.BLOCKS.items] * 2)
        monkeypatch.setattr(site, "usage", lambda: [1.5, 4.0])
        site.end("student")
    assert f"answers with 1.5 of its {support.BLOCKS.items} items" in caplog.text
    site.close()


def test_nothing_passes_by_the_memories() -> None:
    one = student(items=1)
    first, other = ([maps(2, *shape, seed=s) for shape in SHAPES] for s in (0, 1))
    for a, b, shape in zip(one.eval()(first), one(other), SHAPES, strict=True):
        assert a.shape == (2, *shape)
        assert torch.equal(a, b)
    several = student().eval()
    assert not torch.equal(several(first)[0], several(other)[0])


def test_every_memory_learns() -> None:
    net = student(adversary=0.1)
    sum(m.square().mean() for m in net([maps(2, *shape) for shape in SHAPES])).backward()
    for memory in net.memories:
        assert float(memory.items.grad.abs().sum()) > 0


def test_the_critic_falls_and_the_student_climbs() -> None:
    x = torch.ones(3, requires_grad=True)
    (reversed_gradient(x, 0.5) * torch.tensor([1.0, 2, 3])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.5, -1, -1.5]

    net = student(adversary=0.1)
    assert net.critic is not None
    teacher = [maps(4, *shape) for shape in SHAPES]
    rebuilt = [(0.5 * m).requires_grad_() for m in teacher]
    loss = adversarial_loss(net.critic, teacher, rebuilt, adversary=0.1, match=0)
    both = [torch.cat(pair) for pair in zip(teacher, rebuilt, strict=True)]
    logits = net.critic(both)[1]
    by_hand = torch.cat(
        [-torch.log(torch.sigmoid(logits[:4])), -torch.log(1 - torch.sigmoid(logits[4:]))]
    )
    assert float(loss.detach()) == pytest.approx(float(by_hand.mean().detach()), rel=1e-5)
    (plain,) = torch.autograd.grad(by_hand.mean(), rebuilt[0], retain_graph=True)
    (turned,) = torch.autograd.grad(loss, rebuilt[0])
    assert torch.allclose(turned, -0.1 * plain, atol=1e-9)


def test_matching_representations_moves_the_student_alone() -> None:
    net = student(adversary=0.1)
    assert net.critic is not None
    teacher = [maps(4, *shape) for shape in SHAPES]
    rebuilt = [(0.5 * m).requires_grad_() for m in teacher]
    net.critic.frozen(rebuilt).square().mean().backward()
    assert rebuilt[0].grad is not None
    assert all(p.grad is None for p in net.critic.parameters())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"items": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"shrink": -1.0}, "shrink"),
        ({"depth": 4}, "does not divide 6 channels"),
        ({"divisions": (2, 2, 2)}, "one for all, or 2"),
    ],
)
def test_impossible_options_are_named(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        student(**wrong)
