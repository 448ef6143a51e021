"""Multiply-adds against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import quant_graphs as small
from onnx import TensorProto, helper, numpy_helper
from small_bundle import SIZE, Exported

from export.count import multiply_adds

Shape = tuple[int | str, ...]


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, Shape], out: Shape, weights: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()]
    end = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, out)
    tensors = [numpy_helper.from_array(np.zeros(v, np.float32), k) for k, v in weights.items()]
    made = helper.make_graph(nodes, "g", ends, [end], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])


@pytest.mark.parametrize("batch", [1, 4])
def test_two_nodes(batch: int) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv", strides=[2, 2], pads=[1] * 4, group=2)
    relu = helper.make_node("Relu", ["y"], ["r"], "relu")
    product = helper.make_node("MatMul", ["r", "m"], ["z"], "matmul")
    weights = {"w": (10, 2, 3, 3), "m": (3, 7)}
    model = graph([conv, relu, product], {"x": ("batch", 4, 8, 6)}, ("batch", 10, 4, 7), weights)
    found = multiply_adds(model, batch)
    # 10 maps of 4 x 3, each value of 2 channels (one of two groups) times 9; then 10 x 4 rows of 3 to 7
    assert found == {"conv": batch * 10 * 4 * 3 * 2 * 9, "matmul": batch * 10 * 4 * 3 * 7}


def test_attention_is_two_products() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "core")
    model = graph([node], {"q": (1, 2, 5, 8), "k": (1, 2, 7, 8), "v": (1, 2, 7, 8)}, (1, 2, 5, 8), {})
    assert multiply_adds(model) == {"core": 2 * 5 * 7 * 8 + 2 * 5 * 7 * 8}  # 2 heads


def test_the_tiny_network(exported: Exported) -> None:
    found = multiply_adds(exported.graph)
    side = SIZE // 2
    assert found["backbone.features.conv0"] == 64 * side * side * 7 * 7
    assert found["backbone.features.denseblock1.denselayer1.conv1"] == (side // 2) ** 2 * 64 * 128
    tokens, width = (SIZE // 32) ** 2 + 1, 48
    assert found["encoder.blocks.0.attn.qkv"] == tokens * width * 3 * width
    assert found["encoder.blocks.0.attn.scores"] == found["encoder.blocks.0.attn.context"] == tokens**2 * width
    assert found["diagnosis"] == 3 * width
    kinds = {n.name: n.op_type for n in exported.graph.graph.node}
    assert {kinds[name] for name in found} == {"Conv", "MatMul", "Gemm"}
    assert min(found.values()) > 0
    twice = multiply_adds(exported.graph, 2)
    assert twice == {name: 2 * n for name, n in found.items()}


def test_other_nodes_count_as_none() -> None:
    model = small.small()
    kinds = {n.name: n.op_type for n in model.graph.node}
    assert {kinds[n] for n in multiply_adds(model)} == {"Conv", "MatMul", "Gemm"}
