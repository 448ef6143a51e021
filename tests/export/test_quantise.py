"""Q/DQ pairs: where they stand, what they hold, and that one set of INT8 weights serves both forms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_graphs as small
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto
from small_bundle import Exported

from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from export import ranges, surgery
from export.exact import Yardstick
from export.fp16 import to_half
from export.quantise import (
    FLOAT_NODES,
    LEVELS,
    Form,
    Scale,
    half_up,
    quantisable,
    quantise,
    round_weight,
    tensors,
    weighted_nodes,
)

FORMS: tuple[Form, ...] = ("tensorrt", "onnxruntime")


def int8(model: onnx.ModelProto, form: Form, images: list[NDArray[np.float32]]) -> onnx.ModelProto:
    found = ranges.collect(model, tensors(model, form), images)
    made = surgery.copy(model)
    quantise(made, {w.node for w in quantisable(model)}, ranges.scales(found, "minmax", form=form), form)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.fixture(scope="module")
def made() -> dict[Form, onnx.ModelProto]:
    """The little graph in both forms."""
    return {form: int8(small.small(), form, small.images(4)) for form in FORMS}


@pytest.fixture(scope="module")
def tiny(exported: Exported) -> dict[Form, onnx.ModelProto]:
    """The tiny network in both forms."""
    with np.load(exported.bundle / "golden_inputs.npz") as stored:
        films = (stored["inputs"][:, None, None].astype(np.float32) - 128) / 64  # (4, 1, 1, S, S)
    return {form: int8(exported.graph, form, list(films)) for form in FORMS}


@given(st.floats(1e-12, 6e4))
def test_half_up_is_the_least_half_that_is_not_under(value: float) -> None:
    found = half_up(np.array(value))
    assert found.dtype == np.float32 and found.shape == ()
    half = np.float16(found)
    assert float(half) == float(found), "a half holds it"
    assert float(found) >= value
    assert float(np.nextafter(half, np.float16(0))) < value


def test_half_up_leaves_halves_alone() -> None:
    halves = np.arange(1, 31_000, 7, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(half_up(halves.astype(np.float64)), halves.astype(np.float32))


WEIGHTS = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=st.floats(-1e4, 1e4, width=32))


@given(WEIGHTS)
def test_a_rounded_weight_is_at_most_half_a_step_off(weight: NDArray[np.float32]) -> None:
    values, scale = round_weight(weight)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert values.shape == weight.shape and scale.shape == (len(weight),)
    assert (scale > 0).all() and np.abs(values.astype(int)).max() <= LEVELS
    step = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    assert (np.abs(values * step - weight) <= step * (0.5 + 1e-5)).all()
    np.testing.assert_array_equal(scale, scale.astype(np.float16))


def test_a_channel_has_a_step_of_its_own_and_a_dead_one_stays_zero() -> None:
    weight = np.stack([np.linspace(-1, 1, 9), np.linspace(-100, 100, 9), np.zeros(9)]).astype(np.float32)
    values, scale = round_weight(weight)
    assert scale[1] / scale[0] == pytest.approx(100, rel=1e-3)
    assert (values[0] == values[1]).all() and not values[2].any()


def test_weighted_nodes_of_the_tiny_network(exported: Exported) -> None:
    found = {w.node: w for w in weighted_nodes(exported.graph)}
    kinds = Counter(n.op_type for n in exported.graph.graph.node)
    assert len(found) == kinds["Conv"] + kinds["Gemm"] + kinds["MatMul"] - 2, "scores and context have no weight"
    assert set(found) >= set(FLOAT_NODES)
    assert {w.node for w in quantisable(exported.graph)} == set(found) - set(FLOAT_NODES)
    fc1, conv1 = found["encoder.blocks.0.fc1"], found["backbone.features.denseblock1.denselayer2.conv1"]
    assert (fc1.weight, fc1.transposed) == ("encoder.blocks.0.fc1.weight", True)
    assert not conv1.transposed
    made = surgery.producers(exported.graph)
    assert made[conv1.activation].op_type == made[conv1.result].op_type == "Relu"
    assert made[fc1.activation].name == "encoder.blocks.0.norm2"


def pairs(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Rounded activation -> its QuantizeLinear and its DequantizeLinear."""
    read = surgery.consumers(model)
    found = {}
    for q in [n for n in model.graph.node if n.op_type == "QuantizeLinear"]:
        (dq,) = read[q.output[0]]
        assert dq.op_type == "DequantizeLinear" and list(dq.input[1:]) == list(q.input[1:])
        assert q.input[0] not in found, "rounded twice"
        found[q.input[0]] = q, dq
    return found


@pytest.mark.parametrize("form", FORMS)
def test_scales_are_scalars_and_zero_is_zero(form: Form, tiny: dict[Form, onnx.ModelProto]) -> None:
    model = tiny[form]
    stored = surgery.weights(model)
    found = pairs(model)
    assert len(found) == len(tensors_of(form, tiny))
    for q, _ in found.values():
        scale, zero = stored[q.input[1]], stored[q.input[2]]
        assert scale.shape == zero.shape == ()
        assert scale.dtype == np.float32 and scale == scale.astype(np.float16) > 0
        assert zero == 0 and not q.attribute
    kinds = {str(stored[q.input[2]].dtype) for q, _ in found.values()}
    assert kinds == ({"int8"} if form == "tensorrt" else {"int8", "uint8"})


def tensors_of(form: Form, tiny: dict[Form, onnx.ModelProto]) -> set[str]:
    """Activations that the Q/DQ graph itself says should be rounded, by the nodes that read INT8 weights."""
    model = tiny[form]
    wanted = set()
    made, read = surgery.producers(model), surgery.consumers(model)
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight.dq"):
            wanted.add(node.input[0])
            if form == "onnxruntime" and node.op_type == "Conv":
                after = read[node.output[0]]
                relu = len(after) == 1 and after[0].op_type == "Relu"
                wanted.add((after[0] if relu else node).output[0] + ".dq")
    assert all(made[name].op_type == "DequantizeLinear" for name in wanted)
    return wanted


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_int8_per_output_and_biases_float(form: Form, tiny: dict[Form, onnx.ModelProto]) -> None:
    model = tiny[form]
    stored, made = surgery.weights(model), surgery.producers(model)
    nodes = {n.name: n for n in model.graph.node}
    assert not quantisable(model), "all of their weights are DequantizeLinear's now"
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(".int8")]
    assert len(weights) == 131 + 4
    for dq in weights:
        value, scale, zero = (stored[name] for name in dq.input)
        axis = surgery.attributes(dq)["axis"]
        node = nodes[dq.input[0].removesuffix(".weight.int8")]
        assert axis == (0 if node.op_type == "Conv" else 1)
        assert value.dtype == zero.dtype == np.int8 and not zero.any()
        assert scale.shape == zero.shape == (value.shape[axis],)
        assert node.input[1] == dq.output[0] and made[node.input[0]].op_type == "DequantizeLinear"
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            assert stored[node.input[2]].dtype == np.float32
    assert not [n.name for n in model.graph.node if n.op_type.endswith("Linear") and ".bias" in n.input[0]]


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("form", FORMS)
def test_it_loads_and_runs_in_onnx_runtime_whatever_the_opset(form: Form, opset: int) -> None:
    """At 23 a pair between a convolution and a Reshape would be carried across with the wrong type."""
    model = small.small()
    model.opset_import[0].version = opset
    made = int8(model, form, small.images(4))
    assert ("encoder.embed.out" in pairs(made)) == (form == "onnxruntime" and opset == 20)
    session = OnnxRuntimeSession(made.SerializeToString(), precision="int8")
    (image,) = small.images(1)
    outputs = [o for o in session.run(image) if o is not None]  # this graph gives no embedding
    for found, expected in zip(outputs, small.run(model, image), strict=True):
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_float_nodes_are_untouched(exported: Exported, tiny: dict[Form, onnx.ModelProto]) -> None:
    before = {n.name: n for n in exported.graph.graph.node}
    after = {n.name: n for n in tiny["tensorrt"].graph.node}
    old, new = surgery.weights(exported.graph), surgery.weights(tiny["tensorrt"])
    for name in FLOAT_NODES:
        assert after[name] == before[name]
        for weight in after[name].input[1:]:
            np.testing.assert_array_equal(new[weight], old[weight])
    assert after["diagnosis"].input[0] == "embedding"
    for form in ("tensorrt", "onnxruntime"):
        assert not [n.name for n in tiny[form].graph.node if n.op_type == "QuantizeLinear" and "embedding" in n.input]
    for name in ("scores", "softmax", "context"):
        assert after[f"encoder.blocks.0.attn.{name}"] == before[f"encoder.blocks.0.attn.{name}"]


def test_an_activation_of_several_readers_is_rounded_once(tiny: dict[Form, onnx.ModelProto]) -> None:
    model = tiny["tensorrt"]
    nodes = {n.name: n for n in model.graph.node}
    shared = nodes["encoder.embed"].input[0]
    assert nodes["lungs.top.0"].input[0] == shared and shared.endswith(".dq")
    assert shared.removesuffix(".dq") in pairs(model)


@pytest.mark.parametrize("form", FORMS)
def test_a_concatenation_is_rounded_only_for_a_weighted_reader(form: Form, tiny: dict[Form, onnx.ModelProto]) -> None:
    """The batch norms that read it too read it as it is; ONNX Runtime fuses no convolution whose pair they share."""
    model = tiny[form]
    made, read = surgery.producers(model), surgery.consumers(model)
    rounded = [name for name in pairs(model) if made[name].op_type == "Concat"]
    for name in rounded:
        readers = read[f"{name}.dq"]
        assert readers and {n.op_type for n in readers} == {"Conv"}
    firsts = {n.name for name in rounded for n in read[f"{name}.dq"]}
    assert firsts == {f"lungs.{k}{s}.0" for k in ("skip", "up") for s in (16, 8, 4)}
    norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert len(norms) == 62 and sum(made[n.input[0]].op_type == "Concat" for n in norms) == 58


def test_both_forms_hold_the_same_weights(tiny: dict[Form, onnx.ModelProto]) -> None:
    first, second = (surgery.weights(tiny[form]) for form in FORMS)
    names = [n for n in first if n.endswith((".weight.int8", ".weight.scale"))]
    assert names == [n for n in second if n.endswith((".weight.int8", ".weight.scale"))]
    assert len(names) == 2 * (131 + 4)
    for name in names:
        assert first[name].tobytes() == second[name].tobytes() and first[name].dtype == second[name].dtype
    assert not {n for n in first if n.removesuffix(".int8") != n and n.removesuffix(".int8") in first}


@pytest.mark.parametrize("form", FORMS)
def test_quantising_nothing_changes_nothing(form: Form, exported: Exported) -> None:
    for model in (small.small(), surgery.copy(exported.graph)):
        before = model.SerializeToString(deterministic=True)
        quantise(model, (), {}, form)
        assert model.SerializeToString(deterministic=True) == before


def test_an_image_may_be_rounded_too() -> None:
    model = small.small()
    quantise(model, {"backbone.features.conv0"}, {"image": Scale(4.0, False)}, "tensorrt")
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node[:2]] == ["QuantizeLinear", "DequantizeLinear"]
    (image,) = small.images(1, seed=3)
    step = np.float32(half_up(np.array(4 / 127)))
    assert np.abs(image).max() > 127 * step, "some of it is clipped"
    rounded = (np.clip(np.rint(image / step), -128, 127) * step).astype(np.float32)
    values, scale = round_weight(surgery.weights(small.small())["backbone.features.conv0.weight"].astype(np.float32))
    float_ = small.small()
    surgery.set_weight(float_, "backbone.features.conv0.weight", values * scale.reshape(-1, 1, 1, 1))
    for a, b in zip(small.run(model, image), small.run(float_, rounded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_close_to_float32_and_not_equal(form: Form, made: dict[Form, onnx.ModelProto]) -> None:
    images = small.images(8, seed=9)
    found = Yardstick(small.small(), images, 1.0, small.POINTS).measure(made[form])
    assert 0 < found.logits_rms < 0.2 and 0 < found.maps < 0.02 and 0 < found.probability < 0.1


def test_the_two_types_compute_the_same(made: dict[Form, onnx.ModelProto]) -> None:
    """The graph with FP16 between its pairs rounds as the float32 one does, up to values that lie on a step's edge."""
    half = surgery.copy(made["tensorrt"])
    to_half(half)
    onnx.checker.check_model(half, full_check=True)
    full, rounded = surgery.weights(made["tensorrt"]), surgery.weights(half)
    scales = [n for n in full if n.endswith(".scale")]
    assert len(scales) > 20
    for name in scales:
        assert rounded[name].dtype == np.float16 and rounded[name].shape == full[name].shape
        np.testing.assert_array_equal(rounded[name], full[name])
    batch = np.concatenate(small.images(8, seed=9))
    reference = small.run(small.small(), batch)
    for a, b, float_ in zip(small.run(made["tensorrt"], batch), small.run(half, batch), reference, strict=True):
        between, cost = np.sqrt(((a - b) ** 2).mean()), np.sqrt(((a - float_) ** 2).mean())
        assert 0 < between < 0.8 * cost, "nearer to each other than to float32"
    levels = [n.output[0] for n in made["tensorrt"].graph.node if n.op_type == "QuantizeLinear"]
    whole = surgery.copy(made["tensorrt"])
    for model in (whole, half):
        for name in levels:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.INT8, None))
    off = {
        name: np.abs(a.astype(int) - b)
        for name, a, b in zip(
            levels, small.run(whole, batch, tuple(levels)), small.run(half, batch, tuple(levels)), strict=True
        )
    }
    assert off[levels[0]].max() <= 1 and off[levels[0]].mean() < 0.03, "before errors add up"
    assert min((o <= 1).mean() for o in off.values()) > 0.95


def test_onnxruntime_fuses_every_convolution(tiny: dict[Form, onnx.ModelProto], tmp_path: Path) -> None:
    import onnxruntime as ort

    counts = {}
    for form in FORMS:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / f"{form}.onnx")
        ort.InferenceSession(tiny[form].SerializeToString(), options, providers=["CPUExecutionProvider"])
        counts[form] = Counter(n.op_type for n in onnx.load(tmp_path / f"{form}.onnx").graph.node)
    assert counts["onnxruntime"]["QLinearConv"] == 131
    assert counts["onnxruntime"]["Conv"] + counts["onnxruntime"]["FusedConv"] == 3, "the image and two heads"
    assert counts["tensorrt"]["QLinearConv"] < 20, "which is why there are two forms"


def test_activations_that_are_never_negative_are_uint8(tiny: dict[Form, onnx.ModelProto]) -> None:
    model = tiny["onnxruntime"]
    made, types = surgery.producers(model), {t.name: t.data_type for t in model.graph.initializer}
    kinds: dict[str, set[int]] = {}
    for name, (q, _) in pairs(model).items():
        kinds.setdefault(made[name].op_type, set()).add(types[q.input[2]])
    assert kinds["Relu"] == {TensorProto.UINT8}
    assert kinds["LayerNormalization"] == kinds["Conv"] == {TensorProto.INT8}
    ort, trt = (float(surgery.weights(tiny[form])["relu_1.scale"]) for form in ("onnxruntime", "tensorrt"))
    ratio = ort / trt
    assert ratio == pytest.approx(127 / 255, rel=2e-3), "the same range in twice the steps"
