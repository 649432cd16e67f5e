"""An `ExportNet` as OpenVINO IR."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedvad.errors import ConfigError
from fedvad.features.openvino import to_openvino
from fedvad.serving.export.graph import ExportNet

__all__ = ["build", "files", "quantise", "run"]


def build(net: ExportNet, image_size: int) -> Any:
    """The OpenVINO model, for any batch size; raises `ConfigError` if it cannot be converted."""
    try:
        model, _ = to_openvino(net, image_size, example_batch=2)
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
    """The model with its `network` part in int8, calibrated on (1, S, S, 3) images, by NNCF."""
    from fedvad.serving.export.quantise import quantised

    return quantised(model, list(images), r"__module\.head.*")


def run(path: Path, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
    """Outputs of a model file for (b, S, S, 3) images, in float32 whatever the processor likes."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled([images]).values()]
