"""What TensorRT for RTX makes of the pairs, read from the layer list of engines built without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_graphs as small
from small_bundle import Exported

from cxrvit_edge.runtime.builder import Compiled, compile_onnx
from cxrvit_edge.runtime.fusion import Fusion, fusion
from cxrvit_edge.runtime.layers import Layer, parse
from export import ranges, surgery
from export.fp16 import to_half
from export.quantise import FLOAT_NODES, quantisable, quantise, tensors

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be compiled")


def int8(model: onnx.ModelProto, images: list[np.ndarray]) -> onnx.ModelProto:
    scales = ranges.scales(ranges.collect(model, tensors(model, "tensorrt"), images), "minmax", form="tensorrt")
    made = surgery.copy(model)
    quantise(made, {w.node for w in quantisable(model)}, scales, "tensorrt")
    to_half(made)
    return made


def compiled(model: onnx.ModelProto, folder: Path) -> Compiled:
    onnx.save(model, folder / "int8.onnx")
    return compile_onnx(folder / "int8.onnx", backend="tensorrt-rtx", sm="86")


@pytest.fixture(scope="module")
def graph(exported: Exported) -> onnx.ModelProto:
    with np.load(exported.bundle / "golden_inputs.npz") as stored:
        films = (stored["inputs"][:, None, None].astype(np.float32) - 128) / 64  # (4, 1, 1, S, S)
    return int8(exported.graph, list(films))


@pytest.fixture(scope="module")
def engine(graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The tiny network's, for sm86."""
    return compiled(graph, tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def layers(engine: Compiled) -> list[Layer]:
    return parse(engine.lines)


def of(layers: list[Layer], node: str) -> list[Layer]:
    return [layer for layer in layers if node in layer.onnx_nodes]


def test_every_quantised_node_runs_in_int8(exported: Exported, engine: Compiled, layers: list[Layer]) -> None:
    found = fusion(layers, engine.sources)
    wanted = {w.node for w in quantisable(exported.graph)}
    assert {name for name, kind in found.nodes.items() if kind == "Int8"} == wanted
    assert {name: kind for name, kind in found.nodes.items() if kind != "Int8"} == dict.fromkeys(FLOAT_NODES, "Half")
    assert found.convolutions == {"Half": 3, "Int8": 131} and found.matmuls == {"Half": 1, "Int8": 4}


def test_attention_is_fused_in_half(engine: Compiled, layers: list[Layer]) -> None:
    found = fusion(layers, engine.sources)
    assert [b.name for b in found.blocks] == ["encoder.blocks.0"]
    assert found.fused == 1 and found.precisions == ["Half"]


def test_scale_shift_relu_and_rounding_are_one_kernel(graph: onnx.ModelProto, layers: list[Layer]) -> None:
    """Of a dense layer after a concatenation: it joins, normalises, clips, rounds, and what it writes is Int8."""
    made = surgery.producers(graph)
    seen = 0
    for quantiser in [n for n in graph.graph.node if n.op_type == "QuantizeLinear"]:
        relu = made[quantiser.input[0]]
        add = made.get(relu.input[0]) if relu.op_type == "Relu" else None
        if add is None or not add.name.endswith("norm1.add"):
            continue
        mul = made[add.input[0]]
        (kernel,) = of(layers, quantiser.name)
        assert kernel.type == "kgen"
        assert {mul.name, add.name, relu.name} <= set(kernel.onnx_nodes), quantiser.name
        assert "Int8" in {t.datatype for t in kernel.outputs}
        if (join := made[mul.input[0]]).op_type == "Concat":
            assert join.name in kernel.onnx_nodes
            assert "Half" in {t.datatype for t in kernel.inputs}
            seen += 1
        conv = next(n for n in graph.graph.node if n.input[0] == quantiser.output[0].removesuffix(".q") + ".dq")
        compute = [layer for layer in of(layers, conv.name) if layer.type == "correlation"]
        assert len(compute) == 1
        written = {t.name for t in kernel.outputs if t.datatype == "Int8"}
        assert {t.name for t in compute[0].inputs} <= written, "nothing stands between"
    assert seen == 58 - 4, "all dense layers but the first of each block"


def test_no_rounding_stands_alone_but_for_the_skips(layers: list[Layer]) -> None:
    """A kernel of nothing but rounding costs a pass over memory. The lung decoder's skips read whole lists."""
    alone = [layer for layer in layers if layer.onnx_nodes and all(n.endswith(".q") for n in layer.onnx_nodes)]
    made = {n for layer in alone for n in layer.onnx_nodes}
    assert all(re.fullmatch(r"cat_\d+\.q", n) for n in made), made
    assert len(alone) <= 3
    assert not [layer.name for layer in layers if "quantize" in layer.type.lower()]


def shaped(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The same graph with the scales and zero points of all activations in another shape."""
    made = surgery.copy(model)
    stored = surgery.weights(made)
    for node in [n for n in made.graph.node if n.op_type == "QuantizeLinear"]:
        for name in node.input[1:]:
            surgery.set_weight(made, name, stored[name].reshape(shape))
    return made


def test_a_scale_of_shape_1_drops_every_convolution_to_half(tmp_path: Path) -> None:
    """The same numbers: as a scalar a scale is per tensor, as a list of one it counts as per channel."""
    model = int8(small.small(), small.images(3))
    found: dict[tuple[int, ...], Fusion] = {}
    for shape in ((), (1,)):
        made = compiled(shaped(model, shape), tmp_path)
        found[shape] = fusion(parse(made.lines), made.sources)
    floats = sum(name != "diagnosis" for name in FLOAT_NODES)
    total = sum(found[()].convolutions.values())
    assert found[()].convolutions == {"Half": floats, "Int8": total - floats}
    assert found[(1,)].convolutions == {"Half": total}
