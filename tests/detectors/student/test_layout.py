from __future__ import annotations

import pytest
import torch

from fedvad.detectors.student.layout import memory_format


def net(channels: int, kernel: int, stride: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 8, kernel, stride=stride))


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "form"),
    [
        (4, 1, 2, torch.contiguous_format),  # what ends the process without AVX-512
        (7, 1, 2, torch.contiguous_format),
        (8, 1, 2, torch.channels_last),
        (4, 1, 1, torch.channels_last),
        (3, 3, 2, torch.channels_last),
    ],
)
def test_few_channels_of_a_strided_pointwise_layer_come_first(channels, kernel, stride, form):
    assert memory_format(net(channels, kernel, stride)) == form
