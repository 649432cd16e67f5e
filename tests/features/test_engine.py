"""Engines: OpenVINO against torch, order, ragged batches, errors and early ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from fedvad.errors import ConfigError
from fedvad.features.cache import DescriptorCache
from fedvad.features.config import Engine, FeatureConfig
from fedvad.features.engine import (
    DescriptorEngine,
    OpenVinoEngine,
    TorchEngine,
    has_bf16,
    make_engine,
)
from fedvad.features.extractor import FeatureExtractor
from fedvad.features.modules import DescriptorNet

SIDE = 64
Images = npt.NDArray[np.uint8]


def _images(n: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


def _network(backbone: str, weights: Path | None = None) -> DescriptorNet:
    return FeatureExtractor(FeatureConfig(backbone, weights=weights, image_size=SIDE)).network


@pytest.fixture(scope="module")
def bank() -> DescriptorNet:
    return _network("filterbank")


@pytest.fixture(scope="module")
def engines(bank: DescriptorNet) -> dict[str, DescriptorEngine]:
    return {
        "openvino": make_engine(bank, image_size=SIDE, kind="openvino"),
        "torch": make_engine(bank, image_size=SIDE, kind="torch"),
    }


@pytest.fixture(params=["openvino", "torch"])
def engine(
    request: pytest.FixtureRequest, engines: dict[str, DescriptorEngine]
) -> DescriptorEngine:
    return engines[request.param]


def _run(engine: DescriptorEngine, images: Images, step: int) -> npt.NDArray[np.float32]:
    batches = ((s, images[s : s + step]) for s in range(0, len(images), step))
    return np.concatenate([out for _, out in engine.run(batches)])


def _assert_agree(
    made: DescriptorEngine, torch_engine: DescriptorEngine, network: DescriptorNet
) -> None:
    images = _images(3)
    openvino, reference = _run(made, images, 3), _run(torch_engine, images, 3)
    assert openvino.shape == reference.shape == (3, *network.grid, network.dim)
    assert openvino.dtype == reference.dtype == np.float32
    assert np.linalg.norm(openvino - reference) < 1e-3 * np.linalg.norm(reference)
    assert np.abs(openvino - reference).max() < 1e-3 * np.abs(reference).max()


def test_openvino_agrees_with_torch(
    engines: dict[str, DescriptorEngine], bank: DescriptorNet
) -> None:
    _assert_agree(engines["openvino"], engines["torch"], bank)


@pytest.mark.real
@pytest.mark.parametrize("backbone", ["resnet18", "mcunet_in3"])
def test_openvino_agrees_with_torch_on(backbone: str, weights: dict[str, Path]) -> None:
    network = _network(backbone, weights[backbone])
    _assert_agree(OpenVinoEngine(network, image_size=SIDE), TorchEngine(network), network)


def test_ragged_last_batch_and_batch_invariance(engine: DescriptorEngine) -> None:
    images = _images(11)
    whole = _run(engine, images, 11)
    for step in (1, 4, 8):
        np.testing.assert_allclose(_run(engine, images, step), whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_order_and_tags(engine: DescriptorEngine) -> None:
    images = _images(10)
    sizes = [3, 1, 1, 4, 1]  # short ones could overtake long ones
    starts = np.cumsum([0, *sizes])
    tags = [object() for _ in sizes]
    batches = [(tag, images[a:b]) for tag, a, b in zip(tags, starts[:-1], starts[1:], strict=True)]
    found = list(engine.run(batches))
    assert [tag for tag, _ in found] == tags
    assert [len(out) for _, out in found] == sizes
    reference = _run(engine, images, 10)
    together = np.concatenate([out for _, out in found])
    np.testing.assert_allclose(together, reference, rtol=1e-4, atol=1e-5)


def test_outputs_are_the_callers_own(engine: DescriptorEngine) -> None:
    first, *_ = [out for _, out in engine.run([(0, _images(1))])]
    kept = first.copy()
    list(engine.run([(i, 255 - _images(1)) for i in range(4)]))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.c_contiguous


def test_no_batches(engine: DescriptorEngine) -> None:
    assert list(engine.run([])) == []


def test_error_in_the_middle_of_the_input_propagates(engine: DescriptorEngine) -> None:
    images = _images(4)

    def broken() -> Iterator[tuple[int, Images]]:
        for i in range(3):
            yield i, images
        raise KeyError("the disk went away")

    for _ in range(5):
        with pytest.raises(KeyError, match="the disk went away"):
            list(engine.run(broken()))
    assert len(list(engine.run([(0, images)]))) == 1  # usable as before


def test_caller_may_stop_early(engine: DescriptorEngine) -> None:
    images = _images(4)
    for _ in range(5):
        left = iter(range(1000))
        running = engine.run((i, images) for i in left)
        assert next(running)[0] == 0
        running.close()  # type: ignore[attr-defined]
        assert len(list(left)) >= 990
    assert len(list(engine.run([(0, images)]))) == 1


def test_input_is_read_lazily(engine: DescriptorEngine) -> None:
    images = _images(1)
    asked = []

    def counted() -> Iterator[tuple[int, Images]]:
        for i in range(50):
            asked.append(i)
            yield i, images

    running = engine.run(counted())
    next(running)
    assert len(asked) <= 10


def test_image_wise_normalisation_is_in_the_graph() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.avg_pool2d(x, 8)]

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    network = DescriptorNet(Mean(), mean=mean, std=std, pool=1, image_size=32).eval()
    images = np.full((1, 32, 32, 3), (255, 51, 0), np.uint8)
    expected = [(1 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0 - 0.3) / 2]
    for made in (TorchEngine(network), OpenVinoEngine(network, image_size=32)):
        out = _run(made, images, 1)
        assert out.shape == (1, 4, 4, 3)
        np.testing.assert_allclose(out.reshape(-1, 3), np.tile(expected, (16, 1)), atol=1e-6)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", "", "hpu"])
def test_unknown_or_absent_device(device: str, bank: DescriptorNet) -> None:
    with pytest.raises(ConfigError, match="is not available"):
        make_engine(bank, image_size=SIDE, kind="torch", device=device)
    assert bank.get_buffer("scale").device.type == "cpu"  # left where it was


@pytest.mark.parametrize("device", ["cuda", "GPU"])
def test_openvino_is_for_the_cpu(device: str, bank: DescriptorNet) -> None:
    with pytest.raises(ConfigError, match="--engine torch"):
        make_engine(bank, image_size=SIDE, kind="openvino", device=device)


def test_bfloat16_is_near_float32(bank: DescriptorNet, tmp_path: Path) -> None:
    """Within what eight bits of a factor give, and never mistaken for float32 in the cache."""
    if not has_bf16():
        pytest.skip("this processor has no instructions for bfloat16")
    images = _images(3)
    found, exact = (
        _run(make_engine(bank, image_size=SIDE, kind=kind), images, 2)
        for kind in ("openvino-bf16", "openvino")
    )
    assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
    path = tmp_path / "image.png"
    Image.fromarray(images[0]).save(path)
    cache = DescriptorCache(tmp_path / "cache")
    made: list[Any] = []
    kinds: list[Engine] = ["openvino", "openvino-bf16", "openvino-bf16"]
    for engine in kinds:
        extractor = FeatureExtractor(
            FeatureConfig("filterbank", image_size=SIDE, engine=engine), cache
        )
        made.append(next(iter(extractor.stream([path]))).descriptors)
        assert extractor.computed == (len(made) < 3)
    assert (made[0] != made[1]).any()
    assert (made[1] == made[2]).all()


def test_a_processor_without_bfloat16(bank: DescriptorNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvad.features.engine.has_bf16", lambda: False)
    with pytest.raises(ConfigError, match=r"--engine openvino$"):
        make_engine(bank, image_size=SIDE, kind="openvino-bf16")


def test_unknown_engine(bank: DescriptorNet) -> None:
    kind: Any = "tensorrt"
    with pytest.raises(ConfigError, match="openvino-bf16 or torch"):
        make_engine(bank, image_size=SIDE, kind=kind)


def test_openvino_sends_no_usage_report(
    monkeypatch: pytest.MonkeyPatch, bank: DescriptorNet
) -> None:
    """Plants and hospitals allow no traffic; `openvino.convert_model` makes some by default."""
    import openvino_telemetry

    def sent(*_: object, **__: object) -> None:
        raise AssertionError("a usage report was sent")

    monkeypatch.setattr(openvino_telemetry.Telemetry, "__init__", sent)
    for name in ("send_event", "start_session", "end_session", "send_error"):
        monkeypatch.setattr(openvino_telemetry.Telemetry, name, sent)
    assert _run(make_engine(bank, image_size=SIDE, kind="openvino"), _images(1), 1).any()
