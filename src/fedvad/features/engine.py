"""Engines that run the descriptor graph: OpenVINO on CPU, torch as the reference and on GPUs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

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

BF16 = "openvino-bf16"  # the engine that multiplies in bfloat16
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
        raise ConfigError(f"unknown engine {kind!r}; choose openvino, openvino-bf16 or torch")
    if not isinstance(device, str):
        raise ConfigError(f"device is {device!r}; give a name like 'cpu' or 'cuda'")
    if kind == BF16 and not has_bf16():
        raise ConfigError(
            "this processor has no instructions for bfloat16 (avx512_bf16 or amx_bf16), which "
            f"engine {kind} needs; use --engine openvino"
        )
    if device == "cpu":
        return
    if kind != "torch":
        raise ConfigError(f"engine {kind} runs on the CPU; for {device!r} use --engine torch")
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


@cache
def has_bf16() -> bool:
    """Whether OpenVINO multiplies bfloat16 in hardware on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
    if kind != "torch":
        return OpenVinoEngine(
            network, image_size=image_size, precision="bf16" if kind == BF16 else "f32"
        )
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
    """OpenVINO on the CPU; batches in flight keep every core busy.

    precision: in which it multiplies, `f32` or `bf16`; sums and results are float32.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        image_size: int | tuple[int, int],
        precision: Literal["f32", "bf16"] = "f32",
    ) -> None:
        import openvino

        from fedvad.features.openvino import to_openvino

        self.batch_size = 4
        model, self._weights = to_openvino(network, image_size)
        # said, as OpenVINO's own choice depends on the processor and would move stored thresholds
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
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
