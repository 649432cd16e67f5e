"""Bytes and multiplications, against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from fedvad.detectors.student.aand.amplify import Gate
from fedvad.detectors.student.aand.options import AmplifyConfig
from fedvad.detectors.student.branches import build_net
from fedvad.detectors.student.cost import macs, memory
from tests.detectors.student.test_branches import network

TOY = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Conv2d(8, 8, 5, padding=2, groups=4, bias=False),
)  # fmt: skip


def test_macs_of_two_convolutions_agree_with_the_count_by_hand() -> None:
    # 16 x 20 inputs: 8 x 10 positions, 8 channels, 3 x 3 x 3 products; then 2 x 5 x 5 products
    by_hand = 8 * 10 * 8 * 27 + 8 * 10 * 8 * 50
    assert macs(TOY, torch.zeros(1, 3, 16, 20)) == by_hand
    assert macs(TOY, torch.zeros(4, 3, 16, 20)) == 4 * by_hand
    assert macs(nn.Linear(7, 5), torch.zeros(2, 7)) == 2 * 35


def test_products_outside_of_layers_count_too() -> None:
    gate = Gate((16, 4, 6), AmplifyConfig(items=5))
    query = macs(gate.query, torch.zeros(1, 16, 4, 6))
    assert macs(gate, torch.zeros(1, 16, 4, 6)) == query + 4 * 6 * 10 * 16


def test_counting_leaves_the_network_as_it_was() -> None:
    TOY.train()
    before = {k: v.clone() for k, v in TOY.state_dict().items()}
    macs(TOY, torch.ones(1, 3, 16, 16))
    assert TOY.training
    assert all(torch.equal(before[k], v) for k, v in TOY.state_dict().items())
    assert not any(m._forward_hooks for m in TOY.modules())


def test_memory_keeps_parameters_and_buffers_apart() -> None:
    found = memory(TOY)
    assert found.parameters == 4 * (8 * 27 + 8 + 16 + 8 * 50)
    assert found.buffers == 4 * 16 + 8  # the counter of batches is an int64
    assert found.total == found.parameters + found.buffers


def test_what_is_shared_counts_once() -> None:
    assert memory(TOY, TOY, TOY[0]) == memory(TOY)
    half = memory(TOY[0]).parameters
    assert memory(nn.ModuleList([TOY[0], TOY[0]])).parameters == half


def test_paste_needs_less_than_stfpm_by_exactly_the_trunk() -> None:
    stfpm = build_net(network("mcunet_in3"), (3, 5), bootstrap=-1, seed=0)
    paste = build_net(network("mcunet_in3"), (3, 5), bootstrap=2, seed=0)
    trunk = memory(paste.trunk)
    assert trunk.parameters > 0
    assert memory(paste).parameters == memory(stfpm).parameters - trunk.parameters
    assert memory(paste).buffers == memory(stfpm).buffers - trunk.buffers
    image = torch.zeros(1, 3, 64, 64)
    assert macs(stfpm, image) == 2 * macs(stfpm.teacher, image)
    assert macs(paste, image) == macs(stfpm, image) - macs(paste.trunk, image)


def test_the_bytes_of_mcunet_are_those_of_its_table() -> None:
    """Weights of stem and blocks 0..3, added up from the block table of the specification."""

    def block(kernel: int, mid: int, cin: int, cout: int, expands: bool = True) -> int:
        expand = cin * mid + 2 * mid if expands else 0
        return expand + kernel * kernel * mid + 2 * mid + mid * cout + 2 * cout

    weights = 3 * 16 * 9 + 2 * 16 + block(3, 16, 16, 8, expands=False)
    weights += block(7, 24, 8, 16) + block(3, 80, 16, 16) + block(7, 80, 16, 16)
    net = build_net(network("mcunet_in3"), (3,), bootstrap=-1, seed=0)
    assert memory(net).parameters == 2 * 4 * weights
