"""From a torch module to an OpenVINO model, without OpenVINO's report to its makers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def to_openvino(
    network: torch.nn.Module, image_size: int | tuple[int, int], *, example_batch: int = 1
) -> tuple[Any, Any]:
    """The `openvino.Model` of a module that takes (b, H, W, 3) uint8 images, for any b.

    Does what `openvino.convert_model` does, less the usage report that it sends over the network.
    The second value holds the weights that the model may share: keep it as long as the model is
    used. Raises what the tracer and the converter raise. Source: ours.
    """
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    example = torch.zeros(example_batch, height, width, 3, dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor of its tracer
        # traced here, because the decoder's own tracing runs the network twice more to check
        traced = torch.jit.trace(network.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced)
    frontend = FrontEndManager().load_by_framework("pytorch")
    loaded = frontend.load(decoder)
    images = loaded.get_inputs()[0]
    loaded.set_partial_shape(images, openvino.PartialShape([-1, height, width, 3]))
    loaded.set_element_type(images, openvino.Type.u8)
    return frontend.convert(loaded), decoder
