"""An `ExportNet` as OpenVINO IR."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.features.openvino import to_openvino
from fedvad.serving.export.graph import ExportNet


def build(net: ExportNet, sides: tuple[int, int], opset: int | None = None) -> Any:
    """The OpenVINO model, for any batch size; raises `ConfigError` if it cannot be converted.

    opset: refused, as OpenVINO's operators are those of the installed release.
    """
    if opset is not None:
        raise ConfigError("an operator set (--opset) is chosen for ONNX: use --format onnx")
    try:
        model, _ = to_openvino(net, sides, example_batch=2)
    except Exception as error:  # tracer and converter raise RuntimeError, their own types, ...
        raise ConfigError(f"this backbone cannot be expressed in OpenVINO: {error}") from error
    model.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, net.outputs, strict=True):
        output.get_tensor().set_names({name})
    return model


def files(model: Any) -> dict[str, bytes]:
    """Suffix to content of the two files; weights stay float32, but for the compact memory."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, str(path), compress_to_fp16=False)
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}


def quantise(model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any:
    """The model with its `network` part in int8, calibrated on (1, H, W, 3) images, by NNCF."""
    from fedvad.serving.export.quantise import quantised

    return quantised(model, list(images), r"__module\.head.*")


def load(path: Path) -> Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[Any]]]:
    """A model file as a function from (b, H, W, 3) images to its outputs.

    It computes in float32, whatever the processor likes.
    """
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: [np.array(value) for value in compiled([images]).values()]
