"""Small tools on an ONNX graph: who makes a tensor, who reads it, weights as arrays, what nobody reads dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.generic]


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(model)
    return out


def opset(model: onnx.ModelProto) -> int:
    """Of the standard operators."""
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensor -> the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> the nodes that read it, in graph order; a node that reads it twice is named once."""
    out: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                out[name].append(node)
    return out


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Initialisers that hold their data, by name."""
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not t.external_data}


def set_weight(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Replace the initialiser `name`, or add it."""
    from onnx import numpy_helper

    value = np.asarray(value)
    tensor = numpy_helper.from_array(
        value.copy(order="C"), name
    )  # a scalar stays one: [1] is another shape to TensorRT
    for old in model.graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def rewire(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let `nodes` read `new` where they read `old`."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def drop_dead(model: onnx.ModelProto) -> None:
    """Remove nodes, initialisers and shape notes that no output depends on."""
    needed = {o.name for o in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    replace_nodes(model, reversed(kept))
    tensors = [t for t in model.graph.initializer if t.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    notes = [v for v in model.graph.value_info if v.name in needed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(notes)


def forget_shapes(model: onnx.ModelProto) -> None:
    """Drop the notes on inner tensors, which a change of type makes wrong."""
    del model.graph.value_info[:]


def shapes(model: onnx.ModelProto, batch: int = 1) -> Mapping[str, tuple[int, ...]]:
    """Shape of every tensor at a batch size, by ONNX shape inference with data propagation."""
    import onnx

    fixed = copy(model)
    forget_shapes(fixed)
    for value in (*fixed.graph.input, *fixed.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if dim.dim_param or not dim.dim_value:
            dim.dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    known = {}
    for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        known[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
    known |= {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    return known
