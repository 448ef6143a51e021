"""The readable graph: names of modules, attention in the form that fuses, and the same outputs as before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import quant_graphs
import small_bundle as small
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from small_bundle import Exported

from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet
from export import graph, surgery
from export.quantise import weighted_nodes
from export.tidy import tidy

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LAYERS = 2
CORE = ("scores", "softmax", "context")


class Traced(NamedTuple):
    """The graph as the exporter gives it, and after tidy."""

    before: onnx.ModelProto
    after: onnx.ModelProto


def traced(net: TriageNet, opset: int) -> Traced:
    seen = []

    def keep(model: onnx.ModelProto) -> None:
        seen.append(surgery.copy(model))
        tidy(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "tidy", keep)
        after = graph.trace(net, opset=opset)
    return Traced(seen[0], after)


@pytest.fixture(scope="module")
def net() -> TriageNet:
    """As it is before training: every scale 1, every bias 0."""
    torch.manual_seed(0)
    return fold(TriageNet(replace(small.config(), layers=LAYERS)).eval())


@pytest.fixture(scope="module")
def models(net: TriageNet) -> Traced:
    return traced(net, graph.OPSET)


@pytest.fixture(scope="module")
def model(models: Traced) -> onnx.ModelProto:
    return models.after


def behind(model: onnx.ModelProto, tensor: str, stop: str) -> list[onnx.NodeProto]:
    """Nodes upstream of `tensor`, up to the node named `stop`."""
    made, found, queue = surgery.producers(model), {}, [tensor]
    while queue:
        node = made.get(queue.pop())
        if node is not None and node.name != stop and node.name not in found:
            found[node.name] = node
            queue += node.input
    return list(found.values())


def test_each_node_has_a_name_and_each_weight_its_module(exported: Exported) -> None:
    nodes = exported.graph.graph.node
    names = {n.name: n for n in nodes}
    assert len(names) == len(nodes) and all(names)
    with safe_open(exported.bundle / "weights.safetensors", "np") as stored:
        weights = [k for k in stored.keys() if k.endswith(".weight")]  # noqa: SIM118
        shapes = {k: stored.get_slice(k).get_shape() for k in weights}
    assert len(weights) > 190
    for weight, shape in shapes.items():
        kind = names[weight.removesuffix(".weight")].op_type
        assert kind in (("Conv", "MatMul", "Gemm") if len(shape) > 1 else ("BatchNormalization", "LayerNormalization"))
    for w in weighted_nodes(exported.graph):
        assert w.weight == f"{w.node}.weight"
        if w.transposed:
            assert names[f"{w.weight}.T"].op_type == "Transpose"
            assert names[f"{w.node}.bias"].input[0] == names[w.node].output[0]


def test_attention_of_a_trained_network_is_in_the_form_that_fuses(exported: Exported) -> None:
    names = {n.name: n for n in exported.graph.graph.node}
    scores, softmax, context = (names[f"encoder.blocks.0.attn.{part}"] for part in CORE)
    assert (scores.op_type, softmax.op_type, context.op_type) == ("MatMul", "Softmax", "MatMul")
    assert softmax.input[0] == scores.output[0] and context.input[0] == softmax.output[0]
    kinds = Counter(n.op_type for n in behind(exported.graph, scores.output[0], "encoder.blocks.0.attn.qkv.bias"))
    assert kinds == {"MatMul": 1, "Mul": 2, "Gather": 2, "Transpose": 2, "Reshape": 1}
    shapes = [n for n in exported.graph.graph.node if n.op_type == "Shape"]
    assert {n.input[0] for n in shapes} <= {"image"}


def key_transpose(third: str = "Mul") -> onnx.ModelProto:
    """Keys (B, 2, 5, 4) as the exporter turns them: flattened by shapes that the graph computes, and back."""
    numbers = {
        "first": [0, 1],
        "last": [2, 4],
        "ends": [-1, 1],
        "end": [1 << 60],
        "flat": [-1],
        "two": [2],
        "four": [4],
    }
    tensors = [numpy_helper.from_array(np.array(v), k) for k, v in numbers.items()]
    tensors.append(numpy_helper.from_array(np.array([0.5], np.float32), "root"))
    starts = [numpy_helper.from_array(np.array([v]), f"at{v}") for v in range(4)]
    nodes = [
        helper.make_node("Shape", ["k"], ["shape"], "s"),
        helper.make_node("Slice", ["shape", "at2", "at3"], ["rows"], "s2"),
        helper.make_node("Slice", ["shape", "at3", "end"], ["columns"], "s3"),
        helper.make_node("Slice", ["shape", "at0", "at2"], ["outer"], "s1"),
        helper.make_node("Concat", ["flat", "rows", "columns"], ["flattened"], "c1", axis=0),
        helper.make_node("Reshape", ["k", "flattened"], ["k3"], "r1"),
        helper.make_node("Transpose", ["k3"], ["k3t"], "t", perm=[0, 2, 1]),
        helper.make_node("Concat", ["outer", "columns", "rows"], ["back"], "c2", axis=0),
        helper.make_node("Reshape", ["k3t", "back"], ["kt"], "r2"),
        helper.make_node(third, ["kt", "root"], ["ks"], "m"),
        helper.make_node("MatMul", ["q", "ks"], ["scores"], "mm"),
        helper.make_node("Softmax", ["scores"], ["y"], "sm", axis=-1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2, 5, 4]) for n in ("q", "k")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 5, 5])
    made = helper.make_graph(nodes, "g", ends, [out], [*tensors, *starts])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    return list(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds))


def test_keys_are_turned_by_one_transpose() -> None:
    model = key_transpose()
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 2, 5, 4)).astype(np.float32) for name in ("q", "k")}
    (expected,) = run(model, feeds)
    tidy(model)
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["Transpose", "Mul", "MatMul", "Softmax"]
    assert [t.name for t in model.graph.initializer] == ["root"], "the shapes went with their nodes"
    np.testing.assert_array_equal(run(model, feeds)[0], expected)


def test_another_readers_reshape_is_left() -> None:
    """The pattern is the keys' only if a scale follows."""
    model = key_transpose("Add")
    tidy(model)
    assert Counter(n.op_type for n in model.graph.node)["Reshape"] == 2


def test_tidy_again_changes_nothing(exported: Exported) -> None:
    for model in (quant_graphs.small(), surgery.copy(exported.graph)):
        names = [n.name for n in model.graph.node]
        again = surgery.copy(model)
        tidy(again)
        assert [n.name for n in again.graph.node] == names


def test_a_weight_that_two_nodes_read_gives_two_names() -> None:
    model = quant_graphs.small()
    tidied = surgery.copy(model)
    product = next(n for n in tidied.graph.node if n.name == "encoder.blocks.0.fc2")
    twin = helper.make_node("MatMul", list(product.input), ["twin"], "encoder.blocks.0.fc2")
    tidied.graph.node.append(twin)
    tidied.graph.output.append(helper.make_tensor_value_info("twin", TensorProto.FLOAT, None))
    tidy(tidied)
    names = [n.name for n in tidied.graph.node]
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_every_node_has_a_name_of_its_own(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_parameters_were_shared(model: onnx.ModelProto) -> None:
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert len({n.input[1] for n in norms}) < len(norms)


@pytest.mark.slow
def test_nodes_are_named_after_their_own_modules(net: TriageNet, model: onnx.ModelProto) -> None:
    kinds = {name: type(module).__name__ for name, module in net.named_modules()}
    named = {node.name: node.op_type for node in model.graph.node}
    for name, kind in kinds.items():
        if kind in ("BatchNorm2d", "LayerNorm") and not name.startswith("pcam."):
            assert named[name] == {"BatchNorm2d": "BatchNormalization", "LayerNorm": "LayerNormalization"}[kind]
    for i in range(LAYERS):
        for part in CORE:
            assert f"encoder.blocks.{i}.attn.{part}" in named
        assert named[f"encoder.blocks.{i}.attn.qkv.bias"] == "Add"
    for w in weighted_nodes(model):
        assert w.weight == f"{w.node}.weight"


@pytest.mark.slow
def test_it_is_the_network_and_the_graph_before(net: TriageNet, models: Traced) -> None:
    image = np.random.default_rng(0).standard_normal((2, 1, small.SIZE, small.SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image))
    before, after = (run(m, {"image": image}) for m in models)
    for old, new, want in zip(before, after, expected, strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
        np.testing.assert_allclose(new, want.numpy(), atol=1e-4)


@pytest.mark.slow
def test_no_shape_of_the_keys_is_computed(models: Traced) -> None:
    before, after = (Counter(n.op_type for n in m.graph.node) for m in models)
    assert before["Shape"] + before["Slice"] > after["Shape"] + after["Slice"], "the exporter did"
    for i in range(LAYERS):
        kinds = {n.op_type for n in behind(models.after, _scores(models.after, i), f"encoder.blocks.{i}.attn.qkv.bias")}
        assert kinds == {"MatMul", "Mul", "Gather", "Transpose", "Reshape"}


def _scores(model: onnx.ModelProto, block: int) -> str:
    return next(n.output[0] for n in model.graph.node if n.name == f"encoder.blocks.{block}.attn.scores")


@pytest.mark.slow
def test_opset_23_has_one_attention_node_a_block(net: TriageNet) -> None:
    before, model = traced(net, graph.ATTENTION_OPSET)
    assert model.opset_import[0].version == 23
    cores = [n.name for n in model.graph.node if n.op_type == "Attention"]
    assert cores == [f"encoder.blocks.{i}.attn.core" for i in range(LAYERS)]
    assert "Softmax" not in {n.op_type for n in model.graph.node}
    names = [n.name for n in model.graph.node]
    assert len(names) == len(set(names))
    image = np.random.default_rng(0).standard_normal((1, 1, small.SIZE, small.SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image))
    for old, new, want in zip(run(before, {"image": image}), run(model, {"image": image}), expected, strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
        np.testing.assert_allclose(new, want.numpy(), atol=1e-4)
