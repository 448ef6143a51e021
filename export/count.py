"""Work of a graph, node by node, from inferred shapes: multiply-adds, bytes of weights, bytes in and out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from export import surgery

if TYPE_CHECKING:
    import onnx

PARTS = ("backbone", "transformer", "heads")  # in the order in which an image passes
_PREFIXES = {"backbone": 0, "encoder": 1, "diagnosis": 2, "severity": 2, "lungs": 2}
_QUANTISED = ("QuantizeLinear", "DequantizeLinear")
_VIEWS = ("Shape", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Constant")  # move nothing
_FOR_THE_NEXT = ("Resize", "Concat", "Cast", *_QUANTISED)  # belong to the part that reads them
_BYTES = {  # onnx.TensorProto.DataType -> kind, bytes
    1: ("fp32", 4),
    2: ("int8", 1),
    3: ("int8", 1),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("fp16", 2),
    11: ("fp64", 8),
    16: ("bf16", 2),
}


@dataclass(frozen=True)
class Work:
    """Of one pass. kind: of its products, "int8" where both factors are dequantised; part: one of PARTS, or "".

    weights, activations: bytes read of constants; bytes read and written of the rest, each as it is stored: what is
    dequantised on the way in is read as INT8, what is quantised at once is written as INT8.
    """

    part: str = ""
    kind: str = ""
    multiply_adds: int = 0
    weights: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Count:
    """nodes: in graph order; weights: bytes, each constant once; ends: bytes of the graph's inputs and outputs."""

    nodes: tuple[Work, ...]
    weights: int
    ends: int

    @property
    def operations(self) -> int:
        """Two a multiply-add."""
        return 2 * sum(n.multiply_adds for n in self.nodes)

    @property
    def moved(self) -> int:
        """Bytes if every node reads its inputs from memory and writes its outputs to it."""
        return sum(n.weights + n.activations for n in self.nodes)

    @property
    def least(self) -> int:
        """Bytes that a perfect fusion would move: weights, inputs and outputs, each once."""
        return self.weights + self.ends

    def by_kind(self) -> dict[str, int]:
        """Operations in each kind of arithmetic."""
        out: dict[str, int] = {}
        for n in self.nodes:
            if n.multiply_adds:
                out[n.kind] = out.get(n.kind, 0) + 2 * n.multiply_adds
        return out

    def of(self, part: str) -> Work:
        """Sums over the nodes of a part."""
        nodes = [n for n in self.nodes if n.part == part]
        sums = (sum(getattr(n, name) for n in nodes) for name in ("multiply_adds", "weights", "activations"))
        return Work(part, "", *sums)


def multiply_adds(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """Node name -> multiply-adds of one pass at `batch`, for Conv, MatMul, Gemm and Attention; others count as none."""
    shape = surgery.shapes(model, batch)
    found = {node.name: _products(node, shape) for node in model.graph.node}
    return {name: n for name, n in found.items() if n is not None}


def _products(node: onnx.NodeProto, shape: Mapping[str, tuple[int, ...]]) -> int | None:
    if node.op_type == "Conv":
        out, weight = shape[node.output[0]], shape[node.input[1]]  # (B, O, H, W), (O, C / groups, k, k)
        return prod(out) * prod(weight[1:])
    if node.op_type in ("MatMul", "Gemm"):
        left = shape[node.input[0]]
        first = node.op_type == "Gemm" and surgery.attributes(node).get("transA")
        return prod(shape[node.output[0]]) * left[0 if first else -1]
    if node.op_type == "Attention":
        b, h, t, d = shape[node.input[0]]
        return 2 * b * h * t * shape[node.input[1]][2] * d
    return None


def count(model: onnx.ModelProto, batch: int = 1) -> Count:
    """Of one pass at `batch`. What is made of constants alone (casts of stored weights) counts as folded."""
    shape, kinds = surgery.shapes(model, batch), _kinds(model)
    made, read = surgery.producers(model), surgery.consumers(model)
    constants = {t.name for t in model.graph.initializer}
    folded = set()
    for i, node in enumerate(model.graph.node):
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
            folded.add(i)

    def stored(name: str) -> str:
        """The tensor in memory that a node reads."""
        while name in made and made[name].op_type == "DequantizeLinear":
            name = made[name].input[0]
        return name

    def size(name: str) -> int:
        return prod(shape.get(name, (0,))) * _BYTES.get(kinds.get(name, 0), ("", 4))[1]

    def written(name: str) -> int:
        users = read.get(name, [])
        if name not in outputs and users and all(u.op_type == "QuantizeLinear" for u in users):
            return size(users[0].output[0])
        return size(name)

    outputs = {o.name for o in model.graph.output}
    where = parts(model)
    held: dict[str, int] = {}  # constants that are read, each once
    nodes = []
    for i, node in enumerate(model.graph.node):
        if i in folded or node.op_type in (*_QUANTISED, *_VIEWS):
            continue
        inputs = [stored(name) for name in node.input if name]
        weights = {name: size(name) for name in inputs if name in constants}
        held |= weights
        moved = sum(size(name) for name in inputs if name not in constants) + sum(map(written, node.output))
        factors = [name for name in node.input[:2] if name]
        int8 = len(factors) == 2 and all(name in made and made[name].op_type in _QUANTISED for name in factors)
        kind = "int8" if int8 else _BYTES.get(kinds.get(node.input[0], 0), ("", 4))[0]
        nodes.append(Work(where[i], kind, _products(node, shape) or 0, sum(weights.values()), moved))
    ends = [v.name for v in (*model.graph.input, *model.graph.output) if v.name not in constants]
    return Count(tuple(nodes), sum(held.values()), sum(map(size, ends)))


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.initializer}


def parts(model: onnx.ModelProto) -> list[str]:
    """Part of each node: by its name, else by the constants that it reads, else by its neighbours; "" if none tells."""
    nodes = list(model.graph.node)
    made, read = surgery.producers(model), surgery.consumers(model)
    at = {id(node): i for i, node in enumerate(nodes)}
    index = {name: at[id(node)] for name, node in made.items()}
    users = [[at[id(u)] for name in node.output for u in read.get(name, [])] for node in nodes]
    found: list[int | None] = [_named((node.name, *(n for n in node.input if n not in made))) for node in nodes]

    def last(of: Iterable[int | None]) -> int | None:
        return max((p for p in of if p is not None), default=None)

    def forward(skip: tuple[str, ...]) -> None:
        for i, node in enumerate(nodes):
            if found[i] is None and node.op_type not in skip:
                found[i] = last(found[index[name]] for name in node.input if name in index)

    forward(_FOR_THE_NEXT)
    for i in reversed(range(len(nodes))):
        if found[i] is None:
            found[i] = min((p for u in users[i] if (p := found[u]) is not None), default=None)
    forward(())
    return ["" if p is None else PARTS[p] for p in found]


def _named(names: Iterable[str]) -> int | None:
    return next((_PREFIXES[first] for name in names if (first := name.split(".")[0]) in _PREFIXES), None)
