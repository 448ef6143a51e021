"""Explicit Q/DQ: INT8 weights per output channel, symmetric per-tensor activations, biases left in float.

Where the pairs stand decides what an engine makes of them, and the compiled layer list says what it made (measured with
TensorRT-RTX 1.7, tests/export/test_quantise_engine.py): on what a weighted node reads, after the pre-activation
BatchNormalization and ReLU, so that concatenation, scale, shift, ReLU and rounding become one kernel that reads FP16
and writes INT8; never on a concatenation, whose growing list of features stays in FP16. A scale is a scalar: of shape
[1] it counts as per-channel and every convolution falls back to FP16.

ONNX Runtime's CPU fuses another form of the same INT8 weights: a pair on the result of each convolution too, and
activations that are never negative as UINT8, so that ReLU is the clipping at zero and eight bits are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from export import surgery

if TYPE_CHECKING:
    import onnx

Form = Literal["tensorrt", "onnxruntime"]
LEVELS = 127
UNSIGNED_LEVELS = 255
FLOAT_NODES = (
    "backbone.features.conv0",
    "diagnosis",
    "severity.out",
    "lungs.out",
)  # image and heads: little work, much harm


@dataclass(frozen=True)
class Weighted:
    """A node that multiplies by a constant weight.

    node: its name; weight: name of the stored initialiser; activation, result: the tensors it reads and, after its ReLU
    if it has one, gives; transposed: its weight is stored (out, in) and read through a Transpose.
    """

    node: str
    weight: str
    activation: str
    result: str
    transposed: bool


@dataclass(frozen=True)
class Scale:
    """Step of one rounded tensor. unsigned: never negative, so UINT8 is worth it where it can be used."""

    largest: float
    unsigned: bool


def weighted_nodes(model: onnx.ModelProto) -> list[Weighted]:
    """In graph order."""
    stored = {t.name for t in model.graph.initializer}
    made, read = surgery.producers(model), surgery.consumers(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        weight, transposed = node.input[1], False
        if weight not in stored and weight in made and made[weight].op_type == "Transpose":
            weight, transposed = made[weight].input[0], True
        if weight not in stored:
            continue  # attention's own products
        result, after = node.output[0], read.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "Relu":
            result = after[0].output[0]
        found.append(Weighted(node.name, weight, node.input[0], result, transposed))
    return found


def quantisable(model: onnx.ModelProto) -> list[Weighted]:
    """Weighted nodes that may become INT8."""
    return [w for w in weighted_nodes(model) if w.node not in FLOAT_NODES]


def tensors(model: onnx.ModelProto, form: Form) -> list[str]:
    """Tensors whose range the form needs."""
    found = []
    for w in quantisable(model):
        found.append(w.activation)
        if form == "onnxruntime" and _rounds_result(model, w):
            found.append(w.result)
    return list(dict.fromkeys(found))


def half_up(scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """The least half-precision number that is not under `scale`: graphs in FP16 and in float32 then share it."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half)
    return half.astype(np.float32)


def round_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(out, ...) -> INT8 values and scales (out,), symmetric in -127..127."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(1).astype(np.float64)
    scale = half_up(np.maximum(largest, 1e-5) / LEVELS)
    values = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(values, -LEVELS, LEVELS).astype(np.int8), scale


def quantise(model: onnx.ModelProto, nodes: Collection[str], scales: Mapping[str, Scale], form: Form) -> None:
    """In place, of a float32 graph: Q/DQ around every weighted node named in `nodes`.

    The INT8 weights become initialisers `<weight>.int8`, (in, out) where the node reads its weight transposed; both
    forms give the same ones. `scales` must hold every tensor of `tensors(model, form)` that these nodes touch.
    """
    stored = surgery.weights(model)
    chosen = {w.node: w for w in weighted_nodes(model) if w.node in nodes}
    wanted = {w.activation for w in chosen.values()}
    results = {w.result for w in chosen.values() if form == "onnxruntime" and _rounds_result(model, w)}
    wanted |= results
    out: list[onnx.NodeProto] = [
        n for t in model.graph.input if t.name in wanted for n in _pair(model, t.name, scales, form)
    ]
    for node in model.graph.node:
        w = chosen.get(node.name)
        if w is not None:
            out.append(_dequantised_weight(model, w, stored[w.weight].astype(np.float32)))
            node.input[1] = f"{w.weight}.dq"
        for i, name in enumerate(node.input):
            if name in results or (name in wanted and w is not None and i == 0):
                node.input[i] = f"{name}.dq"
        out.append(node)
        for name in node.output:
            if name in wanted:
                out += _pair(model, name, scales, form)
    surgery.replace_nodes(model, out)
    surgery.drop_dead(model)


def _rounds_result(model: onnx.ModelProto, w: Weighted) -> bool:
    """A convolution's, for ONNX Runtime.

    From opset 21 on not in front of a node that only moves data: its QDQPropagationTransformer carries the pair across
    with the wrong type, and the graph does not load (1.32).
    """
    if not any(n.name == w.node and n.op_type == "Conv" for n in model.graph.node):
        return False
    after = surgery.consumers(model).get(w.result, [])
    return surgery.opset(model) < 21 or not any(n.op_type in ("Reshape", "Transpose", "MaxPool") for n in after)


def _dequantised_weight(model: onnx.ModelProto, w: Weighted, weight: NDArray[np.float32]) -> onnx.NodeProto:
    from onnx import helper

    values, scale = round_weight(weight)
    axis = 0
    if w.transposed:
        values, axis = values.T, 1
    names = [f"{w.weight}.int8", f"{w.weight}.scale", f"{w.weight}.zero"]
    surgery.set_weight(model, names[0], values)
    surgery.set_weight(model, names[1], scale)
    surgery.set_weight(model, names[2], np.zeros(len(scale), np.int8))
    return helper.make_node("DequantizeLinear", names, [f"{w.weight}.dq"], name=f"{w.weight}.dq", axis=axis)


def _pair(model: onnx.ModelProto, tensor: str, scales: Mapping[str, Scale], form: Form) -> Iterable[onnx.NodeProto]:
    from onnx import helper

    s = scales[tensor]
    unsigned = s.unsigned and form == "onnxruntime"
    levels = UNSIGNED_LEVELS if unsigned else LEVELS
    surgery.set_weight(model, f"{tensor}.scale", half_up(np.array(max(s.largest, 1e-5) / levels)))
    surgery.set_weight(model, f"{tensor}.zero", np.array(0, np.uint8 if unsigned else np.int8))
    parameters = [f"{tensor}.scale", f"{tensor}.zero"]
    yield helper.make_node("QuantizeLinear", [tensor, *parameters], [f"{tensor}.q"], name=f"{tensor}.q")
    yield helper.make_node("DequantizeLinear", [f"{tensor}.q", *parameters], [f"{tensor}.dq"], name=f"{tensor}.dq")
