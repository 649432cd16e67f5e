"""Engines that run the descriptor graph: OpenVINO on CPU, torch as the reference and on GPUs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.features.config import Engine

if TYPE_CHECKING:
    import openvino
    import torch

Tag = TypeVar("Tag")
Descriptors = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]

_IN_FLIGHT = 2  # batches that OpenVINO works on at once


class DescriptorEngine(Protocol):
    """Runs (b, H, W, 3) uint8 images to (b, h, w, d) float32 descriptors."""

    batch_size: int

    def run(self, batches: Iterable[tuple[Tag, Images]]) -> Iterator[tuple[Tag, Descriptors]]:
        """Descriptors of each tagged batch, in the order given; reads ahead by a few batches."""
        ...


def check_engine(kind: str, device: str) -> None:
    """Raise `ConfigError` unless the engine exists and its device is present; nothing is built."""
    if kind not in get_args(Engine):
        raise ConfigError(f"unknown engine {kind!r}; choose openvino or torch")
    if not isinstance(device, str):
        raise ConfigError(f"device is {device!r}; give a name like 'cpu' or 'cuda'")
    if device == "cpu":
        return
    if kind == "openvino":
        raise ConfigError(f"engine openvino runs on the CPU; for {device!r} use --engine torch")
    kinds = device.partition(":")[0]
    if kinds == "cpu" or not re.fullmatch(r"[a-z]+(:[0-9]+)?", device):
        raise ConfigError(f"device {device!r} is not available; choose cpu, cuda, cuda:1 or mps")
    import torch

    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is not available; choose cpu, cuda, cuda:1 or mps"
        ) from error
    try:
        torch.zeros(1, device=place).cpu()  # some devices fail only when used
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        count = torch.cuda.device_count() if kinds == "cuda" else 0
        raise ConfigError(
            f"device {device!r} is not available here"
            + (f" ({count} CUDA device{'s' * (count != 1)} found)" if kinds == "cuda" else "")
            + "; use --device cpu"
        ) from error


def make_engine(
    network: torch.nn.Module,
    *,
    image_size: int | tuple[int, int],
    kind: Engine,
    device: str = "cpu",
) -> DescriptorEngine:
    """An engine of `kind` over a descriptor graph.

    Raises `ConfigError` for OpenVINO on a device other than the CPU, or an absent device.
    """
    check_engine(kind, device)
    if kind == "openvino":
        return OpenVinoEngine(network, image_size=image_size)
    return TorchEngine(network, device=device)


class TorchEngine:
    """Eager PyTorch on any of its devices: the reference that other engines are tested against."""

    def __init__(self, network: torch.nn.Module, *, device: str = "cpu") -> None:
        import torch

        self.batch_size = 8 if device == "cpu" else 32
        check_engine("torch", device)
        self._device = torch.device(device)
        self._network = network.eval().to(self._device)

    def run(self, batches: Iterable[tuple[Tag, Images]]) -> Iterator[tuple[Tag, Descriptors]]:
        """See `DescriptorEngine.run`."""
        import torch
        from torch.backends import cudnn

        for tag, images in batches:
            # TensorFloat-32, on by default for convolutions, keeps only ten bits
            with torch.inference_mode(), cudnn.flags(allow_tf32=False):
                out = self._network(torch.from_numpy(images).to(self._device))
            yield tag, out.contiguous().cpu().numpy()


class OpenVinoEngine:
    """OpenVINO in float32 on the CPU; batches in flight keep every core busy."""

    def __init__(self, network: torch.nn.Module, *, image_size: int | tuple[int, int]) -> None:
        import openvino

        from fedvad.features.openvino import to_openvino

        self.batch_size = 4
        model, self._weights = to_openvino(network, image_size)
        # f32: a lower precision would move distances, and with them stored thresholds
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._new_request: Callable[[], openvino.InferRequest] = self._compiled.create_infer_request

    def run(self, batches: Iterable[tuple[Tag, Images]]) -> Iterator[tuple[Tag, Descriptors]]:
        """See `DescriptorEngine.run`."""
        # no callbacks: they would run Python in OpenVINO's threads, and that has crashed processes
        requests = [self._new_request() for _ in range(_IN_FLIGHT)]
        busy: deque[tuple[Tag, openvino.InferRequest]] = deque()
        try:
            for number, (tag, images) in enumerate(batches):
                done = _oldest(busy) if len(busy) == _IN_FLIGHT else None
                request = requests[number % _IN_FLIGHT]
                request.start_async([images])
                busy.append((tag, request))
                if done is not None:
                    yield done
            while busy:
                yield _oldest(busy)
        finally:  # also when the caller stops early
            for _, request in busy:
                request.wait()


def _oldest(busy: deque[tuple[Tag, openvino.InferRequest]]) -> tuple[Tag, Descriptors]:
    tag, request = busy.popleft()
    request.wait()
    return tag, np.array(request.get_output_tensor(0).data)
