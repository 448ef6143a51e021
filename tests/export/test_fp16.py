"""FP16, strongly typed: which tensors are half, what stays float32, and that the function is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_graphs as small
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from small_bundle import Exported

from cxrvit_edge.errors import BundleError
from export import surgery
from export.fp16 import affine_norms, to_half
from export.quantise import weighted_nodes


@pytest.fixture(scope="module")
def half(exported: Exported) -> onnx.ModelProto:
    model = surgery.copy(exported.graph)
    to_half(model)
    return model


@pytest.fixture(scope="module")
def films(small_bundle: Path) -> NDArray[np.float32]:
    with np.load(small_bundle / "golden_inputs.npz") as stored:
        return ((stored["inputs"][:, None].astype(np.float32) - 128) / 64).astype(np.float32)  # (4, 1, S, S)


def test_ends_are_float32_and_all_between_is_half(half: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True, data_prop=True)
    ends = [*inferred.graph.input, *inferred.graph.output]
    assert {v.type.tensor_type.elem_type for v in ends} == {TensorProto.FLOAT}
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    kinds |= {t.name: t.data_type for t in half.graph.initializer}
    inner = {name for node in half.graph.node for name in node.output} - {o.name for o in half.graph.output}
    assert inner <= set(kinds), "a tensor whose type cannot be told"
    scales = {n.input[2] for n in half.graph.node if n.op_type == "Resize"}
    assert {kinds[name] for name in scales} == {TensorProto.FLOAT}
    floats = {name: kind for name, kind in kinds.items() if kind != TensorProto.INT64 and name not in scales}
    assert set(floats.values()) == {TensorProto.FLOAT16}
    assert len(floats) > 500
    casts = [n.name for n in half.graph.node if n.op_type == "Cast"]
    assert [n.input[0] for n in half.graph.node if n.op_type == "Shape"] == ["image"]
    assert casts == ["image.half", "logits.full", "severity_map.full", "lung_mask.full", "embedding.full"]


def test_it_says_what_float32_says(exported: Exported, half: onnx.ModelProto, films: NDArray[np.float32]) -> None:
    for a, b in zip(small.run(exported.graph, films), small.run(half, films), strict=True):
        assert b.dtype == np.float32
        assert 0 < np.abs(a - b).max() < 0.1 * a.std()  # random weights magnify rounding


def test_layer_norms_keep_their_sums_in_float32(half: onnx.ModelProto) -> None:
    norms = [n for n in half.graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == 3
    assert {surgery.attributes(n).get("stash_type", 1) for n in norms} == {1}


def test_no_batch_norm_is_left_and_names_stay_apart(half: onnx.ModelProto) -> None:
    assert "BatchNormalization" not in {n.op_type for n in half.graph.node}
    names = [n.name for n in half.graph.node]
    assert len(names) == len(set(names))
    assert len(weighted_nodes(half)) > 130


def batch_norm(gamma: list[float], beta: list[float], mean: list[float], variance: list[float]) -> onnx.ModelProto:
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    tensors = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in parts.items()]
    node = helper.make_node("BatchNormalization", ["image", *parts], ["y"], "norm", epsilon=1e-5)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", len(gamma), 2, 2]) for n in ("image", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_tiny_variance_survives() -> None:
    variance = [1e-7, 1e-6, 0.0, 1.0]
    model = batch_norm([1.0, 0.5, 0.01, 2.0], [0.1, -0.2, 0.0, 1.0], [0.001, 0.0, 0.0, -3.0], variance)
    x = np.random.default_rng(0).normal(0, 0.01, (3, 4, 2, 2)).astype(np.float32)
    (expected,) = small.run(model, x, ("y",))
    to_half(model)
    (found,) = small.run(model, x, ("y",))
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)
    assert np.abs(expected[:, 0]).max() > 2, "the variance is worth a gain of 300"


def test_a_variance_is_never_rounded_before_it_is_used() -> None:
    """1e-7 has two significant bits as a half: the scale is computed from the stored value, in float64."""
    model = batch_norm([1.0], [0.0], [0.0], [1.3e-7])
    affine_norms(model)
    scale = surgery.weights(model)["norm.scale"]
    assert scale.shape == (1, 1, 1)
    assert scale.item() == pytest.approx((1.3e-7 + 1e-5) ** -0.5, rel=1e-6)


def test_a_weight_that_does_not_fit_is_named(exported: Exported) -> None:
    model = surgery.copy(exported.graph)
    name = "encoder.blocks.0.fc1.weight"
    value = surgery.weights(model)[name].copy()
    value[3, 5] = -65_520
    surgery.set_weight(model, name, value)
    with pytest.raises(BundleError, match=r"encoder\.blocks\.0\.fc1\.weight: a weight over 65504"):
        to_half(model)


def test_the_largest_half_fits() -> None:
    model = small.small()
    surgery.set_weight(model, "diagnosis.bias", np.array([65504, -65504, 1e-9], np.float32))
    to_half(model)
    np.testing.assert_array_equal(surgery.weights(model)["diagnosis.bias"], np.array([65504, -65504, 0], np.float16))


def test_a_shift_that_does_not_fit_is_named() -> None:
    model = batch_norm([1.0], [0.0], [1000.0], [0.0])
    with pytest.raises(BundleError, match=r"norm\.shift: a weight over 65504"):
        to_half(model)
