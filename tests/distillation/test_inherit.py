"""A thin ResNet takes over a wide one: exactly where it has room, as well as it can where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvad.distillation.inherit import inherit, representatives
from fedvad.errors import ConfigError
from fedvad.features.compat import import_timm
from fedvad.features.tiny import TinyConfig, TinyNet

SAME = TinyConfig(64, (64, 128), (64, 128), (2, 2))
HALF = TinyConfig(16, (32, 64), (32, 64), (1, 2))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teacher(images: torch.Tensor) -> Any:
    torch.manual_seed(0)
    network = import_timm().create_model("resnet18", features_only=True, out_indices=(1, 2))
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.3)
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def _error(student: TinyNet, teacher: Any, images: torch.Tensor) -> float:
    with torch.no_grad():
        found, wanted = student(images)[-1], teacher(images)[-1]
    return float((found - wanted).square().mean() / wanted.var())


def test_with_room_for_all_it_is_the_teacher(teacher: Any, images: torch.Tensor) -> None:
    student = TinyNet(SAME, (0, 1))
    assert min(inherit(student, teacher, images, seed=0)) > 0.999
    assert _error(student, teacher, images) < 1e-3
    assert _error(student, teacher, images.flip(3)) < 0.02  # which it has not seen
    student.train()  # the statistics are those of the images
    assert _error(student, teacher, images) < 0.2


def test_what_does_not_fit_is_approximated(teacher: Any, images: torch.Tensor) -> None:
    student = TinyNet(HALF, (1,))
    before = [p.clone() for p in teacher.parameters()]
    explained = inherit(student, teacher, images, seed=0)
    assert len(explained) == 3
    assert min(explained) > 0.1
    assert not student.training
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    again = TinyNet(HALF, (1,))
    assert inherit(again, teacher, images, seed=0) == explained
    assert all(
        torch.equal(a, b)
        for a, b in zip(student.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_representatives_rebuild_the_others() -> None:
    rng = np.random.default_rng(0)
    three = rng.normal(size=(500, 3)) * [3, 1, 2]
    mixed = three @ rng.normal(size=(3, 4))
    values = torch.from_numpy(np.concatenate([mixed, three, np.ones((500, 1))], 1)).float()
    chosen = representatives(values, 3)
    assert chosen == sorted(set(chosen))
    assert 7 not in chosen  # constant
    left = np.linalg.lstsq(values[:, chosen].numpy(), values[:, :7].numpy(), rcond=None)[1]
    assert left.max() < 1e-3
    assert sorted(representatives(values, 8)) == list(range(8))


@pytest.mark.parametrize(("config", "message"), [
    (TinyConfig(65, (32, 64), (32, 64), (1, 1)), "64 channels of the stem"),
    (TinyConfig(16, (65, 64), (32, 64), (1, 1)), "64 channels in layer1"),
    (TinyConfig(16, (32, 64), (32, 129), (1, 1)), "128 channels in layer2"),
    (TinyConfig(16, (32, 64), (32, 64), (1, 3)), "2 blocks in layer2"),
    (TinyConfig(16, (32, 64, 128), (32, 64, 96), (1, 1, 1)), "no other"),
])  # fmt: skip
def test_what_cannot_be_taken_over_is_refused(
    teacher: Any, images: torch.Tensor, config: TinyConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        inherit(TinyNet(config, (len(config.widths) - 1,)), teacher, images, seed=0)


def test_bottleneck_blocks_are_refused(images: torch.Tensor) -> None:
    network = import_timm().create_model("resnet50", features_only=True, out_indices=(1, 2))
    with pytest.raises(ConfigError, match="resnet18 or resnet34"):
        inherit(TinyNet(HALF, (1,)), network, images, seed=0)
