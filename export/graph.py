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

import numpy as np
import torch
from numpy.typing import NDArray

from cxrvit_edge.errors import BundleError
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.runtime.session import Outputs
from export import surgery
from export.tidy import tidy

if TYPE_CHECKING:
    import onnx
    from onnxscript import ir

OPSET = 20
ATTENTION_OPSET = 23  # the first with Attention
OUTPUTS = Outputs._fields
FOLD_LIMIT = 4096  # elements: shapes and scalars are folded, weights keep their names and layout


def trace(net: TriageNet, *, opset: int = OPSET) -> onnx.ModelProto:
    """float32 graph `image` (B, 1, S, S) -> OUTPUTS, dynamic in B, tidy, initialisers named as in the state dict.

    From opset 23 attention is one ONNX Attention node, which TensorRT reads from 10.14 on.
    """
    from onnxscript import ir

    image = torch.zeros(2, 1, net.config.image_size, net.config.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            net.eval(),
            (image,),
            dynamo=True,
            opset_version=opset,
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
    tidy(proto)
    g = proto.graph
    for part in (proto, g, *g.node, *g.value_info, *g.input, *g.output, *g.initializer):
        part.ClearField("metadata_props")  # stack traces of the machine it was traced on
        part.ClearField("doc_string")
    return proto


def _simplify(model: ir.Model) -> None:
    """The exporter's own clean-up, but weights are not transposed ahead: they keep the layout they are stored in."""
    from onnxscript import optimizer

    optimizer.optimize_ir(model, should_fold=lambda node: False if node.op_type == "Transpose" else None)


def save(model: onnx.ModelProto, path: Path, *weights: str) -> None:
    """Write `path`, its weights as external data in the files `weights` beside it; checked. `model` is left alone."""
    import onnx

    out = surgery.copy(model)
    refer_to_weights(out, *(path.with_name(name) for name in weights))
    onnx.save(out, path)
    onnx.checker.check_model(str(path))


def refer_to_weights(model: onnx.ModelProto, *files: Path) -> None:
    """Replace each initialiser that one of `files` (safetensors) holds by external data at its place there.

    A float32 initialiser whose value is stored in FP16 is read through a Cast, which runtimes fold when they load; one
    whose value or type is stored otherwise stays in the graph if it is small. BundleError if it is not, or if a file
    holds another shape or value under its name.
    """
    import onnx
    from onnx import TensorProto, helper

    stored = {name: (file, *entry) for file in files for name, entry in _entries(file).items()}
    types = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT, "I8": TensorProto.INT8}
    arrays = surgery.weights(model)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        value = arrays[tensor.name]
        if tensor.name not in stored:
            if value.size > FOLD_LIMIT:
                names = ", ".join(f.name for f in files)
                raise BundleError(f"{names}: no {tensor.name!r}, which the graph needs; export from one checkpoint")
            kept.append(tensor)
            continue
        file, kind, offset, there = stored[tensor.name]
        if there.shape != value.shape:
            raise BundleError(
                f"{file}: {tensor.name!r} has shape {list(there.shape)}, the graph wants {list(value.shape)}"
            )
        narrower = value.dtype.itemsize < there.dtype.itemsize  # rounded for this graph: a bias, a normalisation
        if narrower and value.size <= FOLD_LIMIT:
            kept.append(tensor)
            continue
        if not np.array_equal(there.astype(value.dtype), value):
            raise BundleError(f"{file}: {tensor.name!r} has other values than the graph; export from one checkpoint")
        external = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=types[kind])
        external.data_location = TensorProto.EXTERNAL
        for key, text in (("location", file.name), ("offset", offset), ("length", there.nbytes)):
            external.external_data.add(key=key, value=str(text))
        kept.append(external)
        if external.data_type != tensor.data_type:
            cast = f"{tensor.name}.cast"
            casts.append(helper.make_node("Cast", [tensor.name], [cast], name=cast, to=tensor.data_type))
            surgery.rewire(model.graph.node, tensor.name, cast)
    surgery.forget_shapes(model)  # some were of the type before
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    surgery.replace_nodes(model, [*casts, *model.graph.node])


def _entries(path: Path) -> dict[str, tuple[str, int, NDArray[np.generic]]]:
    """Name -> type, offset in the file, value (a view of the mapped file), of each tensor in a safetensors file."""
    kinds = {"F16": np.float16, "F32": np.float32, "I8": np.int8}
    header, start = read_header(path)
    data = np.memmap(path, np.uint8, mode="r")
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] in kinds:
            value = data[start + first : start + last].view(kinds[entry["dtype"]]).reshape(entry["shape"])
            found[name] = (entry["dtype"], start + first, value)
    return found


def read_header(path: Path) -> tuple[Mapping[str, dict], int]:
    """Entries of a safetensors file and the offset where its data begins (8 + the header's length)."""
    with path.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length
