"""HyperSIGMA: sampling attention, enhancement, tiles, pre-training, and the recipe on a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedvad.data.cubes.reading import read_scene
from fedvad.errors import ConfigError, DataError, WeightsError
from fedvad.spectral.areas import areas
from fedvad.spectral.attention import Block, SamplingAttention
from fedvad.spectral.hypersigma import class_weights, hypersigma, mixed, starts, stitched
from fedvad.spectral.masked import pretrain
from fedvad.spectral.published import load_branch
from fedvad.spectral.rx import rx
from fedvad.spectral.sigma import SIZES, Branch, Enhancement, SigmaNet, SigmaSize

SMALL = SigmaSize(16, 2, 2, 3, 2, 9, (1, 2), width=8)


def _attention(offset: tuple[float, float]) -> SamplingAttention:
    torch.manual_seed(0)
    attend = SamplingAttention(8, heads=2, points=3)
    with torch.no_grad():
        attend.offsets.bias.copy_(torch.tensor(offset).repeat(6))
    return attend


def test_points_at_the_query_give_its_own_value() -> None:
    attend, tokens = _attention((0, 0)), torch.randn(2, 20, 8)
    value = attend.qkv(tokens)[:, :, 16:]
    assert torch.allclose(attend(tokens, (4, 5), sparse=True), attend.out(value), atol=1e-5)


def test_points_a_cell_away_give_the_neighbour_s_value() -> None:
    attend, tokens = _attention((1, 2)), torch.randn(1, 20, 8)
    value = attend.qkv(tokens)[0, :, 16:].unflatten(0, (4, 5))
    found = attend(tokens, (4, 5), sparse=True)[0].unflatten(0, (4, 5))
    assert torch.allclose(found[:2, :4], attend.out(value[2:, 1:]), atol=1e-5)
    assert torch.allclose(found[3], attend.out(torch.zeros(8)).expand(5, 8), atol=1e-5)


def test_at_first_each_head_looks_along_a_ray_of_its_own() -> None:
    places = SamplingAttention(8, heads=4, points=2)._places(torch.zeros(1, 25, 8), (5, 5))
    cells = (places[:, 12] + 1) / 2 * 5 - 0.5
    assert torch.allclose(cells[0], torch.tensor([[3.0, 2], [4, 2]]), atol=1e-5)
    assert torch.allclose(cells[1], torch.tensor([[2.0, 3], [2, 4]]), atol=1e-5)


def test_offsets_can_begin_near_the_query_and_apart_from_each_other() -> None:
    torch.manual_seed(0)
    places = SamplingAttention(8, heads=4, points=2, offsets="near")._places(
        torch.randn(1, 25, 8), (5, 5)
    )
    cells = ((places[:, 12] + 1) / 2 * 5 - 0.5).detach()
    assert float((cells - 2).abs().max()) < 2  # as the rays' second points are
    assert float((cells[:, 0] - cells[:, 1]).abs().min()) > 0


def test_training_leaves_out_a_share_of_what_blocks_add() -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, heads=2, points=3, drop=0.25), torch.randn(1, 6, 8)
    batch = tokens.expand(400, -1, -1)
    whole = block.eval()(tokens, (2, 3), sparse=False)
    seen = block.train()(batch, (2, 3), sparse=False)
    assert len(seen.unique(dim=0)) == 4  # with either part, both or none
    assert torch.equal(block.eval()(batch[:1], (2, 3), sparse=False), whole)
    block.train()
    added = block._kept(torch.ones(4000, 2, 3))
    assert set(added.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert float(added.mean()) == pytest.approx(1, abs=0.05)  # the same in the mean
    assert (added == added[:, :1, :1]).all()  # a whole image at a time
    size = SigmaSize(16, 3, 2, 3, 2, 9, (1, 2), width=8, drop=0.1)
    rates = [part.drop for part in Branch(5, (3, 3), size).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1])
    assert (SIZES["base"].drop, SIZES["tiny"].drop) == (0.1, 0)


def test_full_attention_is_softmax_over_all_tokens() -> None:
    attend, tokens = _attention((0, 0)), torch.randn(1, 6, 8)
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in attend.qkv(tokens).chunk(3, 2))
    weights = (q @ k.transpose(2, 3) / 2).softmax(3)
    expected = attend.out((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attend(tokens, (2, 3), sparse=False), expected, atol=1e-5)


def test_without_a_gate_the_map_stays() -> None:
    enhance, image = Enhancement(9, 8), torch.randn(1, 8, 3, 3)
    spectrum = torch.rand(1, 9, 8)
    with torch.no_grad():
        enhance.gate[0].weight.fill_(1)
        enhance.gate[2].weight.fill_(-1e4)  # sigmoid 0
    assert torch.equal(enhance(image, spectrum), image)


@pytest.mark.parametrize("side", [32, 33, 48, 100])
def test_tiles_cover_every_pixel(side: int) -> None:
    corners = [(y, 0) for y in starts(side, 32, 16)]
    whole = stitched([np.ones((32, 4))] * len(corners), corners, (side, 4))
    assert (whole == 1).all()


def test_pre_training_learns_to_draw_what_is_hidden() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    shift = torch.arange(20.0)[:, None, None] / 4
    tiles = torch.stack([(y / 2 + shift).sin() + (x / 3).cos() * step for step in (1, 2)])
    losses = pretrain(SigmaNet(20, 8, SMALL), tiles, tiles, epochs=15, rate=5e-3)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.real
@pytest.mark.slow
def test_a_real_scene_is_refined_and_not_spoilt(shared: Path) -> None:
    scene = read_scene(shared / "data/hyperspectral/abu-airport-2.mat")
    assert scene.mask is not None
    seed, refined = (areas(score(scene.cube), scene.mask) for score in (rx, hypersigma))
    assert seed is not None
    assert refined is not None
    # 0.840 and 0.905, with a standard deviation of 0.007 over seeds
    assert refined.auc1 > seed.auc1 + 0.03


@pytest.mark.parametrize("branches", ["both", "spatial"])
def test_a_scene_is_refined_the_same_for_one_seed(branches: str) -> None:
    rng = np.random.default_rng(0)
    cube = rng.normal(size=(34, 36, 12))
    cube[5:8, 6:8] += 4
    options: dict[str, Any] = {
        "size": SMALL, "tile": 12, "overlap": 0, "pretraining": 1, "epochs": 4, "rate": 1e-2,
        "components": None, "branches": branches, "score": "margin",
    }  # fmt: skip
    found, again = (hypersigma(cube, **options) for _ in "ab")
    assert np.array_equal(found, again)
    # two of the six odd pixels are labelled; the others are found by likeness
    assert found[5:8, 6:8].min() > np.quantile(found, 0.98)


def test_classes_weigh_as_their_pixels_and_the_logit_alone_is_a_map() -> None:
    labels = np.array([0] * 90 + [1] * 10 + [255] * 50, np.uint8)
    assert class_weights(labels, "none").tolist() == [1, 1]
    assert class_weights(labels, "sqrt").tolist() == pytest.approx([0.5, 1.5])
    assert class_weights(labels, "inverse").tolist() == pytest.approx([0.2, 1.8])
    cube = np.random.default_rng(0).normal(size=(34, 36, 12))
    options: dict[str, Any] = {
        "size": SMALL, "tile": 34, "overlap": 0, "pretraining": 0, "epochs": 2,
        "components": 4, "branches": "spatial",
    }  # fmt: skip
    margin, logit = (hypersigma(cube, score=score, **options) for score in ("margin", "logit"))
    assert not np.allclose(margin, logit)
    heavy = hypersigma(cube, score="margin", balance="inverse", **options)
    assert heavy.mean() > margin.mean()  # what is rare weighs more
    with pytest.raises(ConfigError, match="none, sqrt, inverse"):
        hypersigma(cube, balance="log")  # type: ignore[arg-type]


def test_a_mixed_map_has_the_seed_s_values_in_the_order_of_both() -> None:
    refined, coarse = np.array([[0.0, 5, 1, 3]]), np.array([[2.0, 9, 7, 1]])
    # ranks 1 4 2 3 and 2 4 3 1: sums 3, 8, 5, 4
    assert mixed(refined, coarse).tolist() == [[1, 9, 7, 2]]


def test_every_size_is_of_one_shape() -> None:
    assert [SIZES[name].dim for name in ("base", "large", "huge")] == [768, 1024, 1280]
    with pytest.raises(ConfigError, match="square"):
        SigmaSize(16, 2, 2, 3, 2, 10, (1,))
    with pytest.raises(ConfigError, match="1 to depth 2"):
        SigmaSize(16, 2, 2, 3, 2, 9, (3,))
    with pytest.raises(ConfigError, match="ring or near"):
        SigmaSize(16, 2, 2, 3, 2, 9, (1,), offsets="zero")  # type: ignore[arg-type]


def test_wrong_calls_say_what_is_right() -> None:
    cube = np.random.default_rng(0).normal(size=(20, 20, 5))
    with pytest.raises(DataError, match="at least 1000 pixels"):
        hypersigma(cube)
    with pytest.raises(ConfigError, match="tiny, base"):
        hypersigma(cube, size="small")
    with pytest.raises(DataError, match="coarse map"):
        hypersigma(cube, coarse=np.zeros((20, 19)))
    with pytest.raises(ConfigError, match="overlap is 32"):
        hypersigma(cube, overlap=32)


def _published(branch: Branch) -> dict[str, torch.Tensor]:
    """A branch's values under the public code's names, of pre-training: full attention."""
    names = {
        "before": "norm1",
        "between": "norm2",
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "layers.0": "mlp.fc1",
        "layers.2": "mlp.fc2",
    }
    found = {"module.pos_embed": branch.places.detach().clone()}
    for name, value in branch.blocks.state_dict().items():
        number, rest = name.split(".", 1)
        part, kind = rest.rsplit(".", 1)
        if part in names:
            found[f"module.blocks.{number}.{names[part]}.{kind}"] = value.clone()
    return found


def test_published_weights_are_those_of_the_branch(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs, ours = Branch(7, (3, 3), SMALL), Branch(5, (3, 3), SMALL)
    file = tmp_path / "spectral.safetensors"
    save_file(_published(theirs), file)
    load_branch(ours, file)
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        tokens = torch.randn(1, 9, 16)
        assert torch.equal(mine(tokens, (3, 3), sparse=False), other(tokens, (3, 3), sparse=False))
    assert torch.equal(ours.places, theirs.places)
    wide = Branch(5, (6, 6), SMALL)
    load_branch(wide, file)
    assert wide.places.shape == (1, 36, 16)
    # bicubic keeps the mean of what it enlarges, nearly
    assert torch.allclose(wide.places.mean(1), theirs.places.mean(1), atol=0.02)


def test_published_weights_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "spectral.safetensors"
    save_file(_published(Branch(7, (3, 3), SMALL)), file)
    with pytest.raises(WeightsError, match=r"depth 4 and dim 64.*it is of depth 2 and dim 16"):
        load_branch(Branch(7, (6, 6), SIZES["tiny"]), file)
    torch.save({"a": torch.zeros(1)}, tmp_path / "spectral.pth")
    with pytest.raises(WeightsError, match="pickle"):
        load_branch(Branch(7, (3, 3), SMALL), tmp_path / "spectral.pth")
    with pytest.raises(ConfigError, match="spatial"):
        hypersigma(np.zeros((40, 40, 5)), branches="spatial", spectral_weights=file)
