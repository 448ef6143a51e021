"""Multiply-adds of a graph, node by node, from inferred shapes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from export import surgery

if TYPE_CHECKING:
    import onnx


def multiply_adds(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """Node name -> multiply-adds of one pass at `batch`, for Conv, MatMul, Gemm and Attention; others count as none."""
    shape = surgery.shapes(model, batch)
    found = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            out, weight = shape[node.output[0]], shape[node.input[1]]  # (B, O, H, W), (O, C / groups, k, k)
            found[node.name] = prod(out) * prod(weight[1:])
        elif node.op_type in ("MatMul", "Gemm"):
            found[node.name] = prod(shape[node.output[0]]) * shape[node.input[0]][-1]
        elif node.op_type == "Attention":
            b, h, t, d = shape[node.input[0]]
            found[node.name] = 2 * b * h * t * shape[node.input[1]][2] * d
    return found
