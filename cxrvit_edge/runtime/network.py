"""What a parsed TensorRT network asks for, by the names of its ONNX nodes: the edge needs no onnx for it."""

from __future__ import annotations

from typing import Any

from cxrvit_edge.runtime.fusion import CORE, Sources
from cxrvit_edge.runtime.layers import nodes_of


def sources(trt: Any, network: Any) -> Sources:
    """Weighted nodes and attention blocks of a parsed network, by the names of its ONNX nodes."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    kinds = trt.LayerType
    through = _kinds(kinds, "SHUFFLE", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "SQUEEZE", "UNSQUEEZE")
    pointwise = through | _kinds(kinds, "ELEMENTWISE", "SCALE", "UNARY", "SELECT")

    def behind(layer: Any, index: int, passing: set[Any]) -> Any:
        """The layer that feeds an input, past those of `passing` kinds (by their first input)."""
        while True:
            tensor = layer.get_input(index)
            layer = made.get(tensor.name) if tensor is not None else None
            if layer is None or layer.type not in passing:
                return layer
            index = 0

    def weighted(layer: Any) -> bool:
        return any((source := behind(layer, i, through)) and source.type == kinds.CONSTANT for i in range(2))

    convolutions, matmuls = dict[str, None](), dict[str, None]()
    blocks: dict[str, dict[str, None]] = {}
    for layer in layers:
        name = _node(layer)
        if layer.type in _kinds(kinds, "CONVOLUTION", "DECONVOLUTION"):
            convolutions[name] = None
        elif layer.type == kinds.MATRIX_MULTIPLY and weighted(layer):
            matmuls[name] = None
        block, _, part = name.partition(".attn.")
        if part and layer.type != kinds.CONSTANT:  # those have the names of the weights
            blocks.setdefault(block, {})
            if part in CORE:
                blocks[block][name] = None
        elif layer.type == kinds.SOFTMAX:  # attention under a name that is not ours
            scores = behind(layer, 0, pointwise)
            if scores is not None and scores.type == kinds.MATRIX_MULTIPLY and not weighted(scores):
                blocks[name] = {_node(scores): None, name: None}
        elif layer.type in _kinds(kinds, "ATTENTION", "ATTENTION_OUTPUT"):
            blocks[name] = {name: None}
    return Sources(tuple(convolutions), tuple(matmuls), {block: tuple(core) for block, core in blocks.items()})


def _kinds(kinds: Any, *names: str) -> set[Any]:
    return {getattr(kinds, name) for name in names if hasattr(kinds, name)}


def _node(layer: Any) -> str:
    return (nodes_of(getattr(layer, "metadata", "") or "") or (layer.name,))[0]
