"""The compiled layer list of an engine, and what it proves: fused attention, and what runs in which precision.

The builder prints the list when it compiles with detailed verbosity; the engine inspector gives the same as JSON.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxrvit_edge.errors import EngineError

CORE = ("scores", "softmax", "context", "core")  # nodes of `<block>.attn.` that one fused kernel does
_MHA = re.compile(r"mha|flash_?attention", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_CONSTANT = re.compile(r"dconst|constant|_const\b")
_FIELD = re.compile(r"([A-Za-z][A-Za-z/]*):(?: |$)")
_MOVES = frozenset(
    {"Move", "Mov", "Tran", "Tra", "Resh", "Res", "Cast", "Cas", "Repl", "Rep"}
)  # operations, as names abbreviate them
_BESIDE = _MOVES | {"Mul", "Slic", "Sli", "Conc", "Con", "Add", "Min", "Max", "Roun", "Rou"}  # scales, biases, Q/DQ
_IDLE = frozenset({"kgen", "Reformat", "NoOp", "Constant", "shape_call", "signal", "wait", "runtime_function"})


@dataclass(frozen=True)
class Tensor:
    """datatype: Float, Half, Int8 and so on as TensorRT names them, "" where it does not say."""

    name: str
    dims: tuple[int, ...]
    datatype: str
    format: str


@dataclass(frozen=True)
class Layer:
    """One step of the compiled engine. onnx_nodes: the nodes of the graph that it came from."""

    name: str
    type: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    tactic: str = ""
    onnx_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """What a graph asks for, by node names, before it is compiled.

    blocks: attention block -> its nodes that a fused kernel takes in; matmuls: those with a weight.
    """

    convolutions: tuple[str, ...]
    matmuls: tuple[str, ...]
    blocks: Mapping[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, Any]:
        blocks = {name: list(nodes) for name, nodes in self.blocks.items()}
        return {"convolutions": list(self.convolutions), "matmuls": list(self.matmuls), "blocks": blocks}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Sources:
        blocks = {str(name): tuple(map(str, nodes)) for name, nodes in raw["blocks"].items()}
        return cls(tuple(map(str, raw["convolutions"])), tuple(map(str, raw["matmuls"])), blocks)


@dataclass(frozen=True)
class Block:
    """An encoder block's attention. precision: of the fused kernel; layers: what it became, `type name` each."""

    name: str
    fused: bool
    precision: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Fusion:
    """What a layer list shows.

    nodes: weighted ONNX node -> datatype that it runs in; convolutions, matmuls: how many in each; reformats: layers
    that only move, cast or lay out anew; requantisations: generated kernels that take another type and give Int8;
    int8_outputs: what the Int8 convolutions and MatMuls hand on.
    """

    blocks: tuple[Block, ...]
    convolutions: Mapping[str, int]
    matmuls: Mapping[str, int]
    layers: int
    reformats: int
    requantisations: int
    int8_outputs: Mapping[str, int]
    nodes: Mapping[str, str]

    @property
    def fused(self) -> int:
        return sum(block.fused for block in self.blocks)

    @property
    def precisions(self) -> list[str]:
        """Of the fused blocks."""
        return sorted({block.precision for block in self.blocks if block.fused})

    def summary(self) -> dict[str, Any]:
        return {
            "attention_fused": f"{self.fused} of {len(self.blocks)}",
            "attention_precision": ", ".join(self.precisions) or None,
            "blocks": {b.name: f"fused, {b.precision}" if b.fused else " + ".join(b.layers) for b in self.blocks},
            "convolutions": dict(self.convolutions),
            "matmuls": dict(self.matmuls),
            "layers": self.layers,
            "reformats": self.reformats,
            "requantisations": self.requantisations,
            "int8_outputs": dict(self.int8_outputs),
        }


def is_layer_line(line: str) -> bool:
    return line.startswith("Name: ") and ", LayerType: " in line


def parse(lines: Sequence[str]) -> list[Layer]:
    """Layers of the lines that the builder printed, or of one text of JSON; lines of another kind are passed over."""
    if len(lines) == 1 and lines[0].lstrip().startswith("{"):
        return parse_json(lines[0])
    return [_layer(_fields(line)) for line in lines if is_layer_line(line)]


def parse_json(text: str) -> list[Layer]:
    """Layers of the engine inspector's JSON. EngineError if it is none, or was built without detailed verbosity."""
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine inspector's answer is not understood ({error}); update cxrvit-edge") from error
    if any(not isinstance(entry, Mapping) for entry in entries):
        raise EngineError("the engine holds the names of its layers only: build it again with `cxrvit-edge build`")
    return [_layer(entry) for entry in entries]


def fusion(layers: Sequence[Layer], sources: Sources) -> Fusion:
    """What the compiled layers made of the graph's blocks and weighted nodes."""
    by_node: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for node in layer.onnx_nodes:
            by_node[node].append(layer)
    computed = {node: _compute(by_node[node]) for node in (*sources.convolutions, *sources.matmuls)}
    nodes = {node: _precision(layer) if layer else "unknown" for node, layer in computed.items()}
    int8 = {layer.name: layer for layer in computed.values() if layer and _precision(layer) == "Int8"}
    return Fusion(
        blocks=tuple(_block(name, core, by_node) for name, core in sources.blocks.items()),
        convolutions=_counted(nodes[n] for n in sources.convolutions),
        matmuls=_counted(nodes[n] for n in sources.matmuls),
        layers=len(layers),
        reformats=sum(_only(layer, _MOVES) for layer in layers),
        requantisations=sum(map(_requantises, layers)),
        int8_outputs=_counted(layer.outputs[0].datatype for layer in int8.values() if layer.outputs),
        nodes=nodes,
    )


def require_fused(found: Fusion, *, where: str, least: int = 0) -> None:
    """EngineError that names the blocks whose attention is no fused kernel, and what it became.

    least: blocks that the network has; fewer in the graph means that attention was not even recognised there.
    """
    if len(found.blocks) < max(least, 1):
        raise EngineError(
            f"{where}: {len(found.blocks)} attention blocks found in the graph, the network has {max(least, 1)}; "
            "attention is not in a form that fuses: export the bundle again"
        )
    if unfused := [b for b in found.blocks if not b.fused]:
        told = "; ".join(f"{b.name} became {', '.join(b.layers) or 'nothing that can be found'}" for b in unfused)
        raise EngineError(
            f"{where}: attention is not one fused kernel in {len(unfused)} of {len(found.blocks)} blocks ({told}); "
            "export the bundle again, or take the engine as it is with --no-require-fused-attention"
        )


def nodes_of(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes in a layer's metadata."""
    return tuple(dict.fromkeys(_NODE.findall(metadata)))


def _block(name: str, core: Sequence[str], by_node: Mapping[str, Sequence[Layer]]) -> Block:
    """Fused: one attention kernel, and whatever else carries the nodes' names only scales or moves."""
    met = list({layer.name: layer for node in core for layer in by_node.get(node, ())}.values())
    kernels = [layer for layer in met if _is_mha(layer)]
    fused = len(kernels) == 1 and all(layer is kernels[0] or _only(layer, _BESIDE) for layer in met)
    precision = kernels[0].inputs[0].datatype if fused and kernels[0].inputs else ""
    return Block(name, fused, precision, tuple(f"{layer.type} {layer.name}" for layer in met))


def _is_mha(layer: Layer) -> bool:
    return bool(_MHA.search(f"{layer.name} {layer.tactic}")) or "attention" in layer.type.lower()


def _compute(layers: Sequence[Layer]) -> Layer | None:
    """Of the layers that share in a weighted node, the one that multiplies; the others come before and after it."""
    if not layers:
        return None
    return max(layers, key=lambda layer: (layer.type not in _IDLE, max((_size(c) for c in layer.constants), default=0)))


def _precision(layer: Layer) -> str:
    """Int8 only if both sides of the product are: Int8 weights that meet Half are unpacked, not multiplied."""
    inputs = [t.datatype for t in layer.inputs]
    weights = max(layer.constants, key=_size, default=None)
    if "Int8" in inputs and (weights is None or weights.datatype == "Int8"):
        return "Int8"
    others = [datatype for datatype in inputs if datatype != "Int8"] or inputs
    return others[0] if others else "unknown"


def _size(tensor: Tensor) -> int:
    total = 1
    for dim in tensor.dims:
        total *= max(dim, 1)
    return total


def _only(layer: Layer, ops: frozenset[str]) -> bool:
    """A copy, or a generated kernel of no other operations than `ops`: its name lists them, cut off by Etc."""
    if layer.type.lower().startswith(("reformat", "copy", "noop", "shuffle")):
        return True
    named = re.match(r"__myl_([A-Za-z]+?)_", layer.name)
    return layer.type == "kgen" and named is not None and ops.issuperset(re.findall(r"[A-Z][a-z]+", named[1]))


def _requantises(layer: Layer) -> bool:
    kinds = {t.datatype for t in layer.inputs}
    return layer.type == "kgen" and bool(kinds - {"Int8"}) and any(t.datatype == "Int8" for t in layer.outputs)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _layer(fields: Mapping[str, Any]) -> Layer:
    inputs, constants = _tensors(fields.get("Inputs")), _tensors(fields.get("Constants"))
    if "Constants" not in fields:  # TensorRT 10 lists them as inputs
        constants = tuple(t for t in inputs if _CONSTANT.search(t.name))
        inputs = tuple(t for t in inputs if t not in constants)
    return Layer(
        name=str(fields.get("Name", "")),
        type=str(fields.get("LayerType", "")),
        inputs=inputs,
        outputs=_tensors(fields.get("Outputs")),
        constants=constants,
        tactic=str(fields.get("TacticName", "")),
        onnx_nodes=nodes_of(str(fields.get("Metadata", ""))),
    )


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, str):
        value = [_fields(inner) for inner in _braced(value)]
    return tuple(_tensor(entry) for entry in value or () if isinstance(entry, Mapping))


def _tensor(fields: Mapping[str, Any]) -> Tensor:
    both = str(fields.get("Format/Datatype", ""))
    dims = fields.get("Dimensions", ())
    if isinstance(dims, str):
        dims = re.findall(r"-?\d+", dims)
    datatype = str(fields.get("Datatype", "")) or _datatype(both)
    return Tensor(str(fields.get("Name", "")), tuple(map(int, dims)), datatype, str(fields.get("Format", both)))


def _datatype(text: str) -> str:
    """Of TensorRT 10's words for a format, such as `Thirty-two wide channel vectorized row major Int8 format`."""
    words = (("bf16|bfloat", "BFloat16"), ("fp16|half|float16", "Half"), ("int8", "Int8"), ("fp8", "FP8"))
    more = (("int32", "Int32"), ("int64", "Int64"), ("bool", "Bool"), ("fp32|float", "Float"))
    return next((name for pattern, name in (*words, *more) if re.search(pattern, text, re.IGNORECASE)), "")


def _fields(text: str) -> dict[str, str]:
    """`Key: value, Key: value` -> both, where a value may hold commas inside brackets."""
    fields: dict[str, str] = {}
    last = ""
    for part in _split(text):
        if found := _FIELD.match(part):
            last = found[1]
            fields[last] = part[found.end() :]
        elif last:  # a comma inside a value
            fields[last] += f", {part}"
    return fields


def _split(text: str) -> Iterator[str]:
    """At ", " outside brackets."""
    depth = start = 0
    for i, c in enumerate(text):
        if c in "[{(":
            depth += 1
        elif c in "]})":
            depth = max(0, depth - 1)
        elif c == "," and not depth and text.startswith(", ", i):
            yield text[start:i]
            start = i + 2
    yield text[start:]


def _braced(text: str) -> Iterator[str]:
    """The inside of each outermost {...}."""
    depth = start = 0
    for i, c in enumerate(text):
        if c == "{":
            depth += 1
            start = i + 1 if depth == 1 else start
        elif c == "}" and depth:
            depth -= 1
            if not depth:
                yield text[start:i].strip()
