"""DSFormer: what selection keeps, and that the network can learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvad.errors import ConfigError, DataError
from fedvad.spectral.classify import _near, classify
from fedvad.spectral.dsformer import DSFormer, DSFormerSize, KernelSelection, TokenSelection

SMALL = DSFormerSize(dim=32, depth=2, heads=4, groups=2, kernels_at=(0,))


def test_patches_become_logits_and_one_patch_is_enough() -> None:
    network = DSFormer(30, 9).eval()
    assert network(torch.randn(2, 30, 10, 10)).shape == (2, 9)
    assert network(torch.randn(1, 30, 10, 10)).shape == (1, 9)
    assert network.train()(torch.randn(2, 30, 10, 10)).shape == (2, 9)


@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_each_token_attends_to_its_share_of_the_most_alike(norm: str) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 4, 3, 25).unbind(0)
    whole = TokenSelection(DSFormerSize(kept=1.0, qk_norm=norm))  # type: ignore[arg-type]
    axis = {"token": 3, "channel": 2}.get(norm)
    q, k = (
        (query, key) if axis is None else (F.normalize(query, dim=axis), F.normalize(key, dim=axis))
    )
    plain = (q.transpose(2, 3) @ k).softmax(3)
    whole.temperature.data = torch.ones(4, 1, 1)
    assert torch.allclose(whole.weights(query, key), plain, atol=1e-6)
    some = TokenSelection(DSFormerSize(heads=4, kept=0.5, qk_norm=norm))  # type: ignore[arg-type]
    found = some.weights(query, key)
    assert ((found > 0).sum(3) == 12).all()
    assert torch.equal(found.argmax(3), plain.argmax(3))
    assert (TokenSelection(DSFormerSize(heads=4, kept=0.01)).weights(query, key) > 0).sum(
        3
    ).max() == 1


def test_tokens_are_pixels_and_groups_of_channels() -> None:
    select = TokenSelection(DSFormerSize(dim=16, heads=2, groups=2))
    with torch.no_grad():  # attention that keeps every token as it is, values that are the input
        select.weights = lambda q, k: torch.eye(q.shape[3]).expand(*q.shape[:2], -1, -1)  # type: ignore[method-assign]
        select.qkv[0].weight.copy_(torch.eye(2).repeat(3, 1)[:, :, None, None])
        select.qkv[1].weight.zero_()
        select.qkv[1].weight[:, :, 1, 1] = 1
        select.out.weight.copy_(torch.eye(16)[:, :, None, None])
    image = torch.randn(2, 16, 3, 4)
    assert torch.allclose(select(image), image)


def test_gates_of_the_kernels_sum_to_one() -> None:
    where, which = KernelSelection(8).eval().gates(torch.randn(2, 8, 5, 5))
    assert torch.allclose(which.sum(1), torch.ones(2, 4, 1, 1))
    assert where.shape == (2, 2, 1, 5, 5)
    assert 0 < where.min() < where.max() < 1


def test_a_small_one_learns_random_labels_by_heart() -> None:
    torch.manual_seed(0)
    patches, labels = torch.randn(64, 12, 4, 4), torch.randint(0, 3, (64,))
    network = DSFormer(12, 3, SMALL)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(patches), labels))
        optimiser.step()
    found = network(patches).argmax(1)
    assert (found == labels).float().mean() >= 0.95


def test_a_labelled_scene_is_classified_from_a_few_pixels_of_each_class() -> None:
    labels = np.ones((24, 24), np.int64)
    labels[:, 8:16], labels[:, 16:] = 2, 3
    labels[0] = 0
    means = np.random.default_rng(0).uniform(0.3, 0.7, (4, 12))
    cube = means[labels] + np.random.default_rng(1).normal(0, 0.1, (24, 24, 12))
    options: dict[str, Any] = {"size": SMALL, "patch": 4, "components": 6, "per_class": 12}
    found = classify(cube, labels, epochs=12, rate=5e-3, **options)
    assert np.bincount(labels[found.trained]).tolist() == [0, 12, 12, 12]
    assert set(np.unique(found.classes)) <= {1, 2, 3}
    overall, average, kappa = found.agreement
    assert overall > 0.9
    unseen = (labels > 0) & ~found.trained
    assert overall == pytest.approx(np.mean(found.classes[unseen] == labels[unseen]))
    assert 1.5 * overall - 0.5 == pytest.approx(kappa, abs=0.01)
    assert average == pytest.approx(overall, abs=0.02)
    with pytest.raises(DataError, match="one class"):
        classify(cube, (labels == 2).astype(np.int64), **options)


def test_pixels_apart_share_none_with_the_patches_of_the_learned() -> None:
    trained = np.zeros((12, 14), np.bool_)
    trained[5, 6] = True
    near = _near(trained, 4)
    assert np.argwhere(near)[[0, -1]].tolist() == [[2, 3], [8, 9]]  # patches of 4 from -2 to +1
    assert near.sum() == 49
    assert np.array_equal(_near(trained, 1), trained)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads 8 x groups 4"):
        DSFormerSize(dim=40)
    with pytest.raises(ConfigError, match="above 0"):
        DSFormerSize(kept=0)
