"""Constants of an ONNX model computed before it is written, where that makes it no larger."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

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
