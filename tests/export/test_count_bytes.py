"""Bytes, kinds and parts of a graph against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_bundle import SIZE, Exported, config

from export.count import PARTS, Work, count, multiply_adds, parts


def quantised() -> onnx.ModelProto:
    """x -> Q/DQ -> Conv, its weight INT8 -> Relu -> Q/DQ -> MatMul, its weight stored in FP16 and cast."""
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w8": np.ones((10, 4, 3, 3), np.int8),
        "m16": np.ones((6, 7), np.float16),
    }
    node = helper.make_node
    nodes = [
        node("DequantizeLinear", ["w8", "s", "z"], ["w"], "backbone.w.dq"),
        node("Cast", ["m16"], ["m"], "cast", to=TensorProto.FLOAT),
        node("QuantizeLinear", ["x", "s", "z"], ["xq"], "xq"),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "xd"),
        node("Conv", ["xd", "w"], ["y"], "backbone.conv", pads=[1] * 4),
        node("Relu", ["y"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "s", "z"], ["rq"], "rq"),
        node("DequantizeLinear", ["rq", "s", "z"], ["rd"], "rd"),
        node("MatMul", ["rd", "m"], ["out"], "encoder.product"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ("batch", 4, 8, 6)), ("out", ("batch", 10, 8, 7)))
    ]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("batch", [1, 3])
def test_quantised_tensors_move_as_int8_and_casts_of_weights_are_folded(batch: int) -> None:
    found = count(quantised(), batch)
    x, y, out = batch * 4 * 8 * 6, batch * 10 * 8 * 6, batch * 10 * 8 * 7  # elements
    assert found.nodes == (
        Work("backbone", "int8", y * 4 * 9, 10 * 4 * 9, x + 4 * y),  # reads INT8, writes float32
        Work("backbone", "fp32", 0, 0, 4 * y + y),  # writes what is quantised at once
        Work("transformer", "fp32", out * 6, 4 * 6 * 7, y + 4 * out),  # reads INT8; one factor alone is not INT8
    )
    assert found.operations == 2 * (y * 36 + out * 6)
    assert found.by_kind() == {"int8": 2 * y * 36, "fp32": 2 * out * 6}
    assert found.weights == 10 * 4 * 9 + 4 * 6 * 7
    assert found.least == found.weights + 4 * (x + out)
    assert found.moved == sum(n.weights + n.activations for n in found.nodes)


def test_a_weight_that_two_nodes_read_is_held_once() -> None:
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["y"], ""), node("MatMul", ["y", "w"], ["z"], "")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, (5, 4)) for n in ("x", "z")]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float16), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    found = count(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert found.weights == 2 * 16
    assert [n.weights for n in found.nodes] == [32, 32]
    assert found.by_kind() == {"fp16": 2 * 2 * 5 * 16}  # nodes without a name are counted each
    assert {n.part for n in found.nodes} == {""}


def test_gemm_with_its_first_factor_transposed() -> None:
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transA=1)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (3, 5)), ("y", (5, 7)))]
    weight = numpy_helper.from_array(np.ones((3, 7), np.float32), "w")
    graph = helper.make_graph([gemm], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert multiply_adds(model) == {"gemm": 5 * 7 * 3}


def test_parts_of_the_tiny_network(exported: Exported) -> None:
    model = exported.graph
    found = count(model)
    assert 2 * sum(multiply_adds(model).values()) == found.operations
    assert sum(2 * found.of(part).multiply_adds for part in PARTS) == found.operations  # every product has a part
    assert min(found.of(part).multiply_adds for part in PARTS) > 0
    where = dict(zip((n.name for n in model.graph.node), parts(model), strict=True))
    assert set(where.values()) == set(PARTS)
    for prefix, part in (("backbone.", "backbone"), ("encoder.", "transformer"), ("lungs.", "heads")):
        assert {p for name, p in where.items() if name.startswith(prefix)} == {part}
    kinds = {n.name: n.op_type for n in model.graph.node}
    assert {where[name] for name, kind in kinds.items() if kind == "Resize"} == {"heads"}  # none of them is named
    ends = 4 * (
        SIZE * SIZE + 3 + 3 * (SIZE // 2) ** 2 + config().width
    )  # image; logits; a map and two masks; embedding
    assert found.least == found.weights + ends
    doubled = count(model, 2)
    assert doubled.operations == 2 * found.operations
    assert doubled.weights == found.weights
    assert doubled.least - doubled.weights == 2 * ends
