"""int8 by NNCF: the backbone's values are coarser, the memory search is left alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedvad.detectors.memory.generator import Generator
from fedvad.detectors.scoring import ScoringConfig
from fedvad.errors import ConfigError
from fedvad.features.modules import DescriptorNet
from fedvad.memory.bank import MemoryBank
from fedvad.serving.export import onnx, openvino
from fedvad.serving.export.graph import ExportNet, MemoryHead
from fedvad.serving.export.quantise import quantised

SIDE = 32


class _Network(torch.nn.Module):
    """Two random convolutions with one map each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


@pytest.fixture(scope="module")
def net() -> ExportNet:
    with torch.random.fork_rng():
        network = DescriptorNet(
            _Network(), mean=(0.5,) * 3, std=(0.25,) * 3, pool=3, image_size=SIDE
        )
    network.eval().requires_grad_(False)
    rows = np.random.default_rng(0).random((40, network.dim), dtype=np.float32)
    bank = MemoryBank(rows, np.ones(40), np.zeros(40, np.float32))
    head = MemoryHead(
        bank, Generator.identity(bank.dim), ScoringConfig(), grid=network.grid, threshold=1.0
    )
    return ExportNet(network, head)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


def _write(files: dict[str, bytes], folder: Path) -> Path:
    for suffix, content in files.items():
        (folder / f"model{suffix}").write_bytes(content)
    return folder / ("model.onnx" if ".onnx" in files else "model.xml")


def _quantisers(model: Any) -> list[str]:
    if hasattr(model, "graph"):
        return [n.name for n in model.graph.node if n.op_type == "QuantizeLinear"]
    ops = model.get_ops()
    return [op.get_friendly_name() for op in ops if op.get_type_name() == "FakeQuantize"]


@pytest.mark.slow  # to import NNCF
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_only_the_backbone_is_quantised(
    format: str, net: ExportNet, images: npt.NDArray[np.uint8], tmp_path: Path, capfd: Any
) -> None:
    pytest.importorskip("nncf")
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    backend = {"onnx": onnx, "openvino": openvino}[format]
    with torch.inference_mode():
        wanted = net(torch.from_numpy(images))[0].numpy()
    model = backend.quantise(backend.build(net, (SIDE, SIDE)), [image[None] for image in images])
    assert capfd.readouterr().out == ""
    names = _quantisers(model)
    assert len(names) >= 2
    assert not any("head" in name for name in names)
    score = backend.load(_write(backend.files(model), tmp_path))(images)[0]
    assert not np.allclose(score, wanted, rtol=1e-6)
    np.testing.assert_allclose(score, wanted, rtol=0.05)


def test_a_refusal_of_nncf_is_reported(monkeypatch: Any) -> None:
    nncf = pytest.importorskip("nncf")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(nncf, "quantize", refuse)
    with pytest.raises(ConfigError, match=r"no such operation.*without int8"):
        quantised(object(), [np.zeros(1)], ".*")


def test_missing_nncf_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"fedvad\[export\]"):
        quantised(object(), [], ".*")
