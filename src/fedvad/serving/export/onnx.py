"""An `ExportNet` as ONNX."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedvad.errors import ConfigError
from fedvad.serving.export.graph import ExportNet

__all__ = ["build", "files", "quantise", "run"]

# the oldest operator set with all that is used: runtimes since 2022 have it
_OPSET = 17


def build(net: ExportNet, image_size: int) -> Any:
    """The ONNX model, for any batch size; raises `ConfigError` if it cannot be expressed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  before the work, as the result will be tried
    except ImportError as error:
        raise ConfigError("ONNX needs more packages: pip install 'fedvad[export]'") from error
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    names = list(net.outputs)
    try:
        with tempfile.TemporaryDirectory(prefix="fedvad-export-") as folder:
            path = Path(folder) / "model.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces a successor of this exporter
                # not that successor: it takes seconds for each backbone, and folds the compact
                # memory into a larger one. torch's upper bound keeps this one available.
                torch.onnx.export(
                    net.eval(),
                    (example,),
                    path,
                    input_names=["images"],
                    output_names=names,
                    dynamic_axes={name: {0: "batch"} for name in ("images", *names)},
                    opset_version=_OPSET,
                    do_constant_folding=False,
                    dynamo=False,
                )
            model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # exporters raise RuntimeError, ValueError, their own types, ...
        raise ConfigError(f"this backbone cannot be expressed in ONNX: {error}") from error
    model.producer_name = "fedvad"
    return model


def files(model: Any) -> dict[str, bytes]:
    """Suffix to content of the one file."""
    return {".onnx": model.SerializeToString()}


def quantise(model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any:
    """The model with its `network` part in int8, calibrated on (1, S, S, 3) images, by NNCF."""
    from fedvad.serving.export.quantise import quantised

    return quantised(model, [{"images": image} for image in images], r"/head/.*")


def run(path: Path, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
    """Outputs of a model file for (b, S, S, 3) images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(None, {"images": images})
    return outputs
