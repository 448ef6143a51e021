"""Network -> ONNX graph whose weights stay in weights.safetensors.

Opset 20, attention decomposed: the form that ONNX Runtime, TensorRT 10.3 to 11 and RTX all read and fuse.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cxrvit_edge.errors import BundleError
from cxrvit_edge.model.triage_net import TriageNet

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir

OPSET = 20
OUTPUTS = ("logits", "severity_map", "lung_mask")
FOLD_LIMIT = 4096  # elements: shapes and scalars are folded, weights keep their names and layout


def trace(net: TriageNet) -> onnx.ModelProto:
    """float32 graph `image` (B, 1, S, S) -> OUTPUTS, dynamic in B, initialisers named as in the state dict."""
    from onnxscript import ir

    image = torch.zeros(2, 1, net.config.image_size, net.config.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            net.eval(),
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _simplify(model)
    proto = ir.to_proto(model)
    g = proto.graph
    for part in (proto, g, *g.node, *g.value_info, *g.input, *g.output, *g.initializer):
        part.ClearField("metadata_props")  # stack traces of the machine it was traced on
        part.ClearField("doc_string")
    return proto


def _simplify(model: ir.Model) -> None:
    """The exporter's own clean-up, but weights are not transposed ahead: they keep the layout they are stored in."""
    from onnxscript import optimizer

    optimizer.optimize_ir(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)


def refer_to_weights(model: onnx.ModelProto, weights: Path, *, cast_to: int) -> None:
    """Replace each initialiser that `weights` holds by external data at its place there, cast to `cast_to`.

    BundleError if one is missing there or of another shape. Casts of constants are folded when a runtime loads.
    """
    import onnx
    from onnx import TensorProto, helper

    header, start = read_header(weights)
    types = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT, "I8": TensorProto.INT8}
    kept, casts = [], []
    for tensor in model.graph.initializer:
        entry = header.get(tensor.name)
        if entry is None:
            if _elements(tensor) > FOLD_LIMIT:
                raise BundleError(
                    f"{weights}: holds no {tensor.name!r}, which the graph needs; export from one checkpoint"
                )
            kept.append(tensor)
            continue
        if list(tensor.dims) != list(entry["shape"]):
            raise BundleError(
                f"{weights}: {tensor.name!r} has shape {entry['shape']}, the graph wants {list(tensor.dims)}"
            )
        first, last = entry["data_offsets"]
        external = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=types[entry["dtype"]])
        external.data_location = TensorProto.EXTERNAL
        for key, value in (("location", weights.name), ("offset", start + first), ("length", last - first)):
            external.external_data.add(key=key, value=str(value))
        kept.append(external)
        if external.data_type != cast_to:
            cast = f"{tensor.name}.cast"
            casts.append(helper.make_node("Cast", [tensor.name], [cast], name=cast, to=cast_to))
            for node in model.graph.node:
                for i, name in enumerate(node.input):
                    if name == tensor.name:
                        node.input[i] = cast
    names = {tensor.name for tensor in kept}
    shapes = [v for v in model.graph.value_info if v.name not in names]  # theirs were of the type before
    del model.graph.value_info[:]
    model.graph.value_info.extend(shapes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def read_header(path: Path) -> tuple[Mapping[str, dict], int]:
    """Entries of a safetensors file and the offset where its data begins (8 + the header's length)."""
    with path.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _elements(tensor: onnx.TensorProto) -> int:
    n = 1
    for d in tensor.dims:
        n *= d
    return n
