"""What a compiled layer list proves: attention fused into one kernel, and what runs in which precision."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.layers import Layer, Tensor

CORE = ("scores", "softmax", "context", "core")  # nodes of `<block>.attn.` that one fused kernel does
_MHA = re.compile(r"mha|flash_?attention", re.IGNORECASE)
_MOVES = frozenset(
    {"Move", "Mov", "Tran", "Tra", "Resh", "Res", "Cast", "Cas", "Repl", "Rep"}
)  # operations, as names abbreviate them
_BESIDE = _MOVES | {"Mul", "Slic", "Sli", "Conc", "Con", "Add", "Min", "Max", "Roun", "Rou"}  # scales, biases, Q/DQ
_IDLE = frozenset({"kgen", "Reformat", "NoOp", "Constant", "shape_call", "signal", "wait", "runtime_function"})


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
