from __future__ import annotations

import json

import pytest

from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.fusion import Sources, fusion, require_fused
from cxrvit_edge.runtime.layers import Layer, Tensor, nodes_of, parse, parse_json

P = "encoder.blocks.0.attn"
CORE = (f"{P}.scores", f"{P}.softmax", f"{P}.context")
SOURCES = Sources(("stem", "next"), (f"{P}.qkv",), {"encoder.blocks.0": CORE})
HALF = Tensor("x", (-1, 257, 64), "Half", "")
LINE = (
    "Name: _gemm_mha_v2_myl0_221, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,257,64], Strides: [64,-1,1], "
    "StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }, { Name: b, "
    "Dimensions: [-1,64,257], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: "
    "[ { Name: c, Dimensions: [-1,257,64], Datatype: Int8, Format: (Linear) Row major, linear format }], TacticName: "
    f"_gemm_mha_v2_0x34, StreamId: 0, Metadata: [ONNX Layer: {CORE[2]}]\x1f[ONNX Layer: {CORE[1]}]\x1f"
    f"[ONNX Layer: {CORE[0]}]"
)


def layer(name: str, nodes: tuple[str, ...], kind: str = "kgen", **more: object) -> Layer:
    return Layer(name, kind, (HALF,), (HALF,), onnx_nodes=nodes, **more)  # type: ignore[arg-type]


def test_a_line_gives_its_parts() -> None:
    (found,) = parse(["Layers:", LINE, "Name: not a layer"])
    assert (found.name, found.type, found.tactic) == ("_gemm_mha_v2_myl0_221", "kgen", "_gemm_mha_v2_0x34")
    assert [t.dims for t in found.inputs] == [(-1, 257, 64), (-1, 64, 257)] and found.constants == ()
    assert found.inputs[0].format == "(Arbitrary) Format with stride order = [1,2,0]"
    assert found.outputs == (Tensor("c", (-1, 257, 64), "Int8", "(Linear) Row major, linear format"),)
    assert set(found.onnx_nodes) == set(CORE)


def test_fields_of_other_versions_are_no_obstacle() -> None:
    ten = (
        "Name: {ForeignNode[a...b]}, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,3,8,8], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: "
        "y, Location: Device, Dimensions: [1,8,8,8], Format/Datatype: Row major linear FP16 format }], ParameterType: "
        "Convolution, Kernel: [1,1], Weights: {Type: Int8, Count: 24}, Novelty: 3, TacticValue: 0x00"
    )
    (found,) = parse([ten])
    assert found.name == "{ForeignNode[a...b]}" and found.inputs[0].datatype == "Int8"
    assert found.outputs[0].datatype == "Half" and found.tactic == "" and found.onnx_nodes == ()


def test_weights_among_the_inputs_are_told_apart() -> None:
    line = (
        "Name: mm, LayerType: gemm, Inputs: [ { Name: __mye116_dconst, Dimensions: [64,64], Format/Datatype: Int8 }, "
        "{ Name: x, Dimensions: [9,64], Format/Datatype: Half }], Outputs: [], TacticName: t, StreamId: 0, "
        f"Metadata: [ONNX Layer: {P}.qkv]"
    )
    (found,) = parse([line])
    assert [t.name for t in found.inputs] == ["x"] and [t.name for t in found.constants] == ["__mye116_dconst"]
    assert fusion([found], SOURCES).nodes[f"{P}.qkv"] == "Half"  # weights that are unpacked, not multiplied in Int8


def test_the_inspectors_json_gives_the_same_layers() -> None:
    tensors = [{"Name": "x", "Dimensions": [-1, 8], "Format/Datatype": "Row major linear FP32"}]
    entry = {"Name": "mm", "LayerType": "gemm", "Inputs": tensors, "Outputs": tensors, "TacticName": "t", "StreamId": 0}
    text = json.dumps({"Layers": [{**entry, "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}], "Bindings": ["x"]})
    (found,) = parse([text])
    assert found.inputs == (Tensor("x", (-1, 8), "Float", "Row major linear FP32"),)
    assert (found.type, found.tactic, found.onnx_nodes) == ("gemm", "t", ("a", "b"))
    newer = {**entry, "Inputs": [{"Name": "x", "Dimensions": [-1, 8], "Datatype": "Half", "Format": "Row major"}]}
    assert parse_json(json.dumps({"Layers": [newer], "I/O Tensors": []}))[0].inputs[0].datatype == "Half"
    with pytest.raises(EngineError, match="names of its layers only"):
        parse_json('{"Layers": ["mm"], "Bindings": []}')
    with pytest.raises(EngineError, match="not understood"):
        parse_json("mm\n")


def test_names_of_nodes_in_metadata() -> None:
    assert nodes_of("[ONNX Layer: a.b]\x1f[ONNX Layer: c]__gemm_from_conv1x1") == ("a.b", "c")
    assert nodes_of("") == ()


def test_attention_is_fused_only_if_one_kernel_does_it() -> None:
    whole = layer("_gemm_mha_v2_myl0_1", CORE)
    found = fusion([whole], SOURCES)
    assert found.fused == 1 and found.precisions == ["Half"]
    require_fused(found, where="x")
    moved = layer("__myl_MoveReshTran_myl0_2", (f"{P}.context",))  # what follows may carry a node's name
    assert fusion([whole, moved], SOURCES).fused == 1
    for others in (
        [layer("__myl_MaxrSubExpSumDivMul_myl0_2", (f"{P}.softmax",))],
        [layer("mm_myl0_2", (f"{P}.scores",), "gemm")],
        [layer("_gemm_mha_v2_myl0_2", (f"{P}.context",))],  # two kernels are not one
        [layer("__myl_MulMinMaxRounEtc_myl0_2", (f"{P}.softmax",))],  # Etc hides what else it does
    ):
        assert fusion([whole, *others], SOURCES).fused == 0
    assert fusion([layer("__myl_MulAdd_myl0_1", CORE)], SOURCES).fused == 0
    assert fusion([], SOURCES).fused == 0


def test_the_error_names_blocks_and_what_became_of_them() -> None:
    apart = [layer(f"mm{i}", (node,), "gemm") for i, node in enumerate(CORE)]
    with pytest.raises(EngineError, match=r"g.onnx: .* 1 of 1 blocks \(encoder.blocks.0 became gemm mm0, gemm mm1, "):
        require_fused(fusion(apart, SOURCES), where="g.onnx")
    with pytest.raises(EngineError, match="1 attention blocks found in the graph, the network has 2"):
        require_fused(fusion([layer("_gemm_mha_v2", CORE)], SOURCES), where="g.onnx", least=2)
    with pytest.raises(EngineError, match="0 attention blocks found"):
        require_fused(fusion([], Sources((), (), {})), where="g.onnx")


def test_precision_is_that_of_the_product() -> None:
    int8, weights = Tensor("a", (1, 64), "Int8", ""), Tensor("w", (64, 64), "Int8", "")
    alpha = Tensor("alpha", (1,), "Float", "")
    layers = [
        Layer("stem_0", "correlation", (int8,), (Tensor("y", (), "Float", ""),), (weights, alpha), "", ("stem",)),
        Layer("__myl_MulAdd_1", "kgen", (HALF,), (int8,), (alpha,), "", ("stem",)),  # its epilogue requantises
        Layer("next_2", "correlation", (HALF,), (HALF,), (weights, alpha), "", ("next",)),  # weights only: Half
        Layer("__myl_Cast_3", "kgen", (HALF,), (HALF,)),
        Layer("Reformatting CopyNode", "Reformat", (HALF,), (int8,)),
    ]
    found = fusion(layers, SOURCES)
    assert found.nodes == {"stem": "Int8", "next": "Half", f"{P}.qkv": "unknown"}
    assert found.convolutions == {"Half": 1, "Int8": 1} and found.int8_outputs == {"Float": 1}
    assert (found.layers, found.reformats, found.requantisations) == (5, 2, 1)


def test_sources_survive_the_sidecar() -> None:
    assert Sources.from_dict(json.loads(json.dumps(SOURCES.to_dict()))) == SOURCES
