"""An `ExportNet` as ONNX, with constants computed where that makes the file no larger."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedvad.errors import ConfigError
from fedvad.serving.export.graph import ExportNet

# from the oldest operator set with all that is used to the newest that torch's exporter writes
OPSETS = range(14, 21)
_USUAL = 17  # runtimes since 2022 have it


def build(net: ExportNet, sides: tuple[int, int], opset: int | None = None) -> Any:
    """The ONNX model, for any batch size, with constants folded.

    opset: operator set, in `OPSETS`; None for 17. Raises `ConfigError` for
    another one, and for a network that cannot be expressed.
    """
    opset = _USUAL if opset is None else opset
    if opset not in OPSETS:
        raise ConfigError(
            f"ONNX operator set {opset} cannot be written: choose {OPSETS[0]} to {OPSETS[-1]}"
        )
    try:
        import onnx
        import onnxruntime  # noqa: F401  before the work, as the result will be tried
    except ImportError as error:
        raise ConfigError("ONNX needs more packages: pip install 'fedvad[export]'") from error
    example = torch.zeros(2, *sides, 3, dtype=torch.uint8)
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
                    opset_version=opset,
                    do_constant_folding=False,
                    dynamo=False,
                )
            model = onnx.load(path)
        fold_constants(model)
        _declare_shapes(model, net.head.grid)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # exporters raise RuntimeError, ValueError, their own types, ...
        raise ConfigError(f"this backbone cannot be expressed in ONNX: {error}") from error
    model.producer_name = "fedvad"
    return model


def _declare_shapes(model: Any, grid: tuple[int, int]) -> None:
    """Say what is known of the outputs' shapes; torch names their sizes after its own nodes."""
    shapes = {"map": ("batch", *grid), "score": ("batch",), "anomalous": ("batch",)}
    for output in model.graph.output:
        shape = output.type.tensor_type.shape
        shape.ClearField("dim")
        for size in shapes[output.name]:
            shape.dim.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))


def files(model: Any) -> dict[str, bytes]:
    """Suffix to content of the one file."""
    return {".onnx": model.SerializeToString()}


def quantise(model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any:
    """The model with its `network` part in int8, calibrated on (1, H, W, 3) images, by NNCF."""
    from fedvad.serving.export.quantise import quantised

    return quantised(model, [{"images": image} for image in images], r"/head/.*")


def load(path: Path) -> Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[Any]]]:
    """A model file as a function from (b, H, W, 3) images to its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: list(session.run(None, {"images": images}))


_SMALL = 1024  # bytes that a constant may cost


def fold_constants(model: Any) -> None:
    """Replace nodes of constant inputs by their results, in place.

    Some runtimes (TensorRT, OpenCV) ask for numbers such as the K of TopK, which torch writes as a
    reshaped constant. A result larger than 1 kB is only stored in place of its inputs, and what is
    stored in float16 stays so: the memory of a detector must not be written twice, or at twice its
    size.
    """
    from onnx import numpy_helper

    graph = model.graph
    if any(part.HasField("g") for node in graph.node for part in node.attribute):
        return  # bodies of branches and loops take constants from outside by name
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    results = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    kept, made = [], {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in results:
            renamed[node.output[0]] = node.input[0]
            uses[node.input[0]] += uses[node.output[0]] - 1
            continue
        values = [constants.get(name) for name in node.input if name]
        known = [value for value in values if value is not None]
        found = None
        if node.op_type == "Constant" or (values and len(known) == len(values)):
            found = _result(model, node, constants)
        if found is None:
            kept.append(node)
            continue
        constants[node.output[0]] = found
        if node.op_type != "Constant" and found.nbytes > _SMALL:
            stored = sum(v.nbytes for v in known)
            shared = any(uses[name] > 1 for name in node.input)
            if found.nbytes > stored or shared or any(v.dtype == np.float16 for v in known):
                del constants[node.output[0]]
                kept.append(node)
                continue
        made[node.output[0]] = found
    needed = {name for node in kept for name in node.input} | results
    del graph.node[:]
    graph.node.extend(kept)
    stored_before = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(stored_before)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in made.items() if name in needed
    )


def _result(model: Any, node: Any, constants: dict[str, Any]) -> Any:
    """What a node of one output gives for constant inputs; None for several outputs."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    if len(node.output) != 1:
        return None
    stored = [numpy_helper.from_array(constants[name], name) for name in node.input if name]
    outputs = [helper.make_empty_tensor_value_info(node.output[0])]
    alone = helper.make_graph([node], "constant", [], outputs, stored)
    whole = helper.make_model(alone, opset_imports=model.opset_import)
    return np.asarray(ReferenceEvaluator(whole).run(None, {})[0])
