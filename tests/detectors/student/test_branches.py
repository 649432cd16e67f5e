"""Backbones taken apart give the same maps, share what they should, and freeze what they must."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedvad.detectors.student.branches import Branch, PaSTeNet, STFPMNet, build_net, reinitialise
from fedvad.detectors.student.loss import cosine_loss
from fedvad.detectors.student.parameters import buffers_of, parameters_of
from fedvad.detectors.student.training import TrainConfig, train_student
from fedvad.errors import ConfigError
from fedvad.features.architecture import Architecture
from fedvad.features.backbones import build_backbone
from fedvad.features.compat import import_timm
from fedvad.features.mcunet import build_mcunet
from fedvad.features.modules import BlockTaps, Headed

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
MCUNET_LAYERS, TINY_LAYERS = (3, 5), (1, 2)
TIMM = {
    "test_resnet": (1, 2),
    "test_efficientnet": (1, 2, 3),
    "mobilenetv2_035": (1, 2),
    "mobilenetv3_small_050": (0, 1, 2),
    "convnext_atto": (1, 2),
}
_networks: dict[str, nn.Module] = {}


def network(name: str) -> nn.Module:
    """A tapped backbone with seeded random weights, as `build_backbone` would give it."""
    if name not in _networks:
        if name == "mcunet_in3":
            made: nn.Module = BlockTaps(build_mcunet(name), MCUNET_LAYERS)
        elif name == "tiny":
            made = Architecture.of("tiny", TINY_LAYERS).build()
        else:
            made = import_timm().create_model(name, features_only=True, out_indices=TIMM[name])
        reinitialise(made, seed=5)
        _networks[name] = made.eval()
    return _networks[name]


def layers(name: str) -> tuple[int, ...]:
    return {"mcunet_in3": MCUNET_LAYERS, "tiny": TINY_LAYERS}.get(name) or TIMM[name]


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [*TIMM, "mcunet_in3", "tiny"])
@pytest.mark.parametrize("bootstrap", [None, -1])
class TestEveryFamily:
    def test_the_teacher_gives_the_backbones_own_maps(
        self, name: str, bootstrap: int | None
    ) -> None:
        net = build_net(network(name), layers(name), bootstrap=bootstrap, seed=1)
        with torch.inference_mode():
            expected = network(name)(IMAGES)
            teacher, student = net(IMAGES)
        assert _difference(teacher, expected) == 0
        assert [m.shape for m in student] == [m.shape for m in expected]

    def test_from_shared_of_shared_is_forward(self, name: str, bootstrap: int | None) -> None:
        net = build_net(network(name), layers(name), bootstrap=bootstrap, seed=1)
        with torch.inference_mode():
            teacher, student = net.from_shared(net.shared(IMAGES))
            whole = net(IMAGES)
        assert _difference(teacher, whole[0]) <= 1e-6
        assert _difference(student, whole[1]) <= 1e-6

    def test_the_student_starts_unlike_the_teacher_at_every_level(
        self, name: str, bootstrap: int | None
    ) -> None:
        net = build_net(network(name), layers(name), bootstrap=bootstrap, seed=1)
        with torch.inference_mode():
            teacher, student = net(IMAGES)
        for t, s in zip(teacher, student, strict=True):
            assert torch.isfinite(s).all()
            assert float((t - s).abs().mean()) > 0.05 * float(t.abs().mean())


def test_stfpm_shares_nothing_and_paste_the_first_layers() -> None:
    whole = build_net(network("mcunet_in3"), (3, 5), bootstrap=-1, seed=1)
    assert isinstance(whole, STFPMNet)
    assert whole.shared(IMAGES) is IMAGES
    assert len(whole.teacher.steps) == 2 + 6  # stem, its norm, blocks 0..5
    shared = build_net(network("mcunet_in3"), (3, 5), bootstrap=2, seed=1)
    assert type(shared) is PaSTeNet
    assert len(shared.trunk) == 2 + 3  # type: ignore[arg-type]
    assert shared.teacher.taps == (0, 2)
    assert shared.shared(IMAGES).shape == (2, 16, 16, 16)


def test_the_bundled_backbone_is_taken_apart_without_its_heads() -> None:
    bundled = build_backbone("fedvad-tiny")
    net = build_net(bundled.network, bundled.layers, seed=1)
    assert not any(isinstance(m, Headed) for m in net.modules())
    with torch.inference_mode():
        bare, _ = net(IMAGES)
        headed = [h(m) for h, m in zip(bundled.network.heads, bare, strict=True)]  # type: ignore[union-attr,arg-type]
        assert _difference(headed, bundled.network(IMAGES)) < 1e-4


def test_layer_zero_is_shared_when_asked_for() -> None:
    """0 is a layer; only -1 means none."""
    net = build_net(network("mcunet_in3"), (3, 5), bootstrap=0, seed=1)
    assert type(net) is PaSTeNet
    assert net.shared(IMAGES).shape == (2, 8, 32, 32)


def test_the_default_bootstrap_is_the_layer_before_the_first_tap() -> None:
    default = build_net(network("mcunet_in3"), (3, 5), seed=1)
    explicit = build_net(network("mcunet_in3"), (3, 5), bootstrap=2, seed=1)
    assert parameters_of(default).keys() == parameters_of(explicit).keys()


def test_a_resnets_pooling_belongs_to_the_shared_stem() -> None:
    net = build_net(network("test_resnet"), (1, 2), bootstrap=0, seed=1)
    assert net.shared(IMAGES).shape[2:] == (16, 16)


def test_everything_after_the_last_tap_is_dropped() -> None:
    net = build_net(network("mcunet_in3"), (3,), bootstrap=-1, seed=1)
    assert len(net.teacher.steps) == len(net.student.steps) == 2 + 4


@pytest.mark.parametrize("bootstrap", [3, 4, 17, -2])
def test_a_bootstrap_that_is_not_before_the_first_tap_is_refused(bootstrap: int) -> None:
    with pytest.raises(ConfigError, match=r"must lie in -1\.\.2"):
        build_net(network("mcunet_in3"), (3, 5), bootstrap=bootstrap, seed=1)


@pytest.mark.parametrize("taps", [(3, 6), (), (-1, 3)])
def test_layers_the_backbone_does_not_have_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="layers"):
        build_net(network("mcunet_in3"), taps, seed=1)


def test_a_backbone_without_layers_to_train_is_refused() -> None:
    bank = build_backbone("filterbank")
    with pytest.raises(ConfigError, match="Choose fedvad-tiny"):
        build_net(bank.network, bank.layers, seed=1)


def test_the_backbone_is_left_as_it_was() -> None:
    own = copy.deepcopy(network("test_efficientnet"))
    before = {k: v.clone() for k, v in own.state_dict().items()}
    net = build_net(own, (1, 2), seed=1)
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.add_(1)
    for key, value in own.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_seed_decides_the_students_weights() -> None:
    def weights(seed: int) -> dict[str, Any]:
        return parameters_of(build_net(network("test_efficientnet"), (1, 2), seed=seed).student)

    torch.manual_seed(1)
    first = weights(7)
    torch.manual_seed(2)
    again, other = weights(7), weights(8)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert any((other[name] != array).any() for name, array in first.items())


def test_random_weights_keep_the_scale_in_depthwise_and_plain_convolutions() -> None:
    stack = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2, groups=64), nn.ReLU(),
        nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64),
    )  # fmt: skip
    reinitialise(stack, seed=3)
    weights = parameters_of(stack)
    assert weights["0.weight"].std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert weights["2.weight"].std() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert not weights["0.bias"].any()
    assert (weights["5.weight"] == 1).all()


def test_training_moves_neither_trunk_nor_teacher_nor_their_statistics() -> None:
    net = build_net(network("test_efficientnet"), (1, 2), seed=1)
    frozen = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("student.")}
    learned = parameters_of(net.student) | buffers_of(net.student)

    def loss(x: Tensor) -> Tensor:
        net.train()  # as a loop that knows nothing of frozen parts would
        return cosine_loss(*net(x))

    config = TrainConfig(epochs=2, learning_rate=0.1, warmup=0)
    train_student(net, loss, lambda _: [IMAGES, IMAGES.flip(3)], config, seed=0)
    state = net.state_dict()
    for key, value in frozen.items():
        assert torch.equal(value, state[key]), key
    after = parameters_of(net.student) | buffers_of(net.student)
    assert all((after[k] != v).any() for k, v in learned.items())


def test_train_leaves_frozen_parts_in_eval_mode_and_without_gradients() -> None:
    net = build_net(network("test_efficientnet"), (1, 2), seed=1).train()
    assert all(not m.training for m in [*net.trunk.modules(), *net.teacher.modules()])
    assert all(m.training for m in net.student.modules())
    assert set(parameters_of(net)) == {f"student.{n}" for n in parameters_of(net.student)}
    assert not any(m.training for m in net.eval().modules())


def test_bootstrap_minus_one_equals_stfpm_given_the_same_weights() -> None:
    paste = build_net(network("test_efficientnet"), (1, 2), bootstrap=-1, seed=1)
    stfpm = STFPMNet(paste.teacher, paste.student)
    by_hand = PaSTeNet(nn.Identity(), paste.teacher, paste.student)
    with torch.inference_mode():
        for net in (stfpm, by_hand):
            for found, expected in zip(net(IMAGES), paste(IMAGES), strict=True):
                assert _difference(found, expected) == 0


@settings(max_examples=20)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_branch_gives_the_outputs_after_its_taps(case: tuple[int, set[int]]) -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    length, taps = case
    outputs = Branch([Add() for _ in range(length)], sorted(taps))(torch.zeros(1))
    assert [int(o) for o in outputs] == [t + 1 for t in sorted(taps)]
