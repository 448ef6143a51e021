"""The graph: every weight once, in weights.safetensors, and nothing of the machine that traced it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.numpy import load_file
from small_bundle import SIZE, Exported

from cxrvit_edge.bundle import WEIGHTS
from cxrvit_edge.errors import BundleError
from export import graph
from export.fp16 import to_half


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> onnx.ModelProto:
    return onnx.load(small_bundle / "fp32.onnx", load_external_data=False)


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_each_weight_is_its_bytes_in_the_one_file(small_bundle: Path, model: onnx.ModelProto) -> None:
    data = (small_bundle / WEIGHTS).read_bytes()
    stored = load_file(small_bundle / WEIGHTS)
    seen: dict[int, str] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = external(tensor)
        assert place["location"] == WEIGHTS
        first = int(place["offset"])
        found = data[first : first + int(place["length"])]
        value = stored[tensor.name]
        assert found == value.tobytes(), tensor.name
        assert list(tensor.dims) == list(value.shape)
        assert onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) == value.dtype
        assert first not in seen, f"{tensor.name} and {seen[first]} are one"
        seen[first] = tensor.name
    used = {stored[name].tobytes() for name in seen.values()}  # what is equal, as the means of settled norms, is one
    assert all(value.tobytes() in used for value in stored.values()), "a weight that the graph does not use"


def test_nothing_large_stays_in_the_graph(small_bundle: Path, model: onnx.ModelProto) -> None:
    inside = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    inside += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    assert max(math.prod(t.dims) for t in inside) <= 64, "shapes and scalars only"
    assert (small_bundle / "fp32.onnx").stat().st_size < 0.02 * (small_bundle / WEIGHTS).stat().st_size


def test_half_weights_are_cast_once_and_used_nowhere_else(model: onnx.ModelProto) -> None:
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert {"backbone.features.conv0.weight", "encoder.blocks.0.attn.qkv.weight", "diagnosis.weight"} <= half
    users = {name: [n for n in model.graph.node if name in n.input] for name in half}
    for name, nodes in users.items():
        assert [n.op_type for n in nodes] == ["Cast"], name
        assert nodes[0].attribute[0].i == TensorProto.FLOAT


def test_what_a_runtime_sees(small_bundle: Path, model: onnx.ModelProto, tmp_path: Path) -> None:
    for name in ("fp32.onnx", WEIGHTS):  # the checker refuses weights that other tests' copies are hard links to
        shutil.copyfile(small_bundle / name, tmp_path / name)
    onnx.checker.check_model(str(tmp_path / "fp32.onnx"), full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.functions
    half = SIZE // 2

    def shape(value: onnx.ValueInfoProto) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    (image,) = model.graph.input
    batch = shape(image)[0]
    assert isinstance(batch, str), "the batch is free"
    assert (image.name, shape(image)) == ("image", [batch, 1, SIZE, SIZE])
    assert {o.name: shape(o) for o in model.graph.output} == {
        "logits": [batch, 3],
        "severity_map": [batch, 1, half, half],
        "lung_mask": [batch, 2, half, half],
        "embedding": [batch, 48],
    }
    for value in (image, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert not {"Attention", "ScaledDotProductAttention", "Dropout"} & {n.op_type for n in model.graph.node}


def test_nothing_of_the_machine_is_inside(small_bundle: Path, model: onnx.ModelProto) -> None:
    g = model.graph
    for part in (model, g, *g.node, *g.input, *g.output, *g.value_info, *g.initializer):
        assert not part.metadata_props
        assert not part.doc_string
    data = (small_bundle / "fp32.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"Traceback", str(Path(__file__).parents[2]).encode()):
        assert trace not in data


def test_header_is_read_as_safetensors_reads_it(small_bundle: Path) -> None:
    header, start = graph.read_header(small_bundle / WEIGHTS)
    stored = load_file(small_bundle / WEIGHTS)
    assert {k: tuple(v["shape"]) for k, v in header.items()} == {k: v.shape for k, v in stored.items()}
    last = max(v["data_offsets"][1] for v in header.values())
    assert start + last == (small_bundle / WEIGHTS).stat().st_size
    assert start % 8 == 0


def copied(exported: Exported) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(exported.graph)
    return model


def test_the_traced_graph_is_float32_and_named_as_the_network(exported: Exported) -> None:
    large = {t.name: t for t in exported.graph.graph.initializer if math.prod(t.dims) > graph.FOLD_LIMIT}
    stored = load_file(exported.bundle / WEIGHTS)
    assert set(large) <= set(stored)
    for name, tensor in large.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), stored[name].astype(np.float32))


def write_other(path: Path, source: Path, change: dict[str, torch.Tensor | None]) -> Path:
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file

    tensors = {k: v for k, v in {**load(source), **change}.items() if v is not None}
    save_file(tensors, path)
    return path


def test_weights_of_another_checkpoint_are_refused(exported: Exported, tmp_path: Path) -> None:
    name = "encoder.blocks.0.attn.qkv.weight"
    missing = write_other(tmp_path / "a.safetensors", exported.bundle / WEIGHTS, {name: None})
    with pytest.raises(BundleError, match=rf"no '{name}', which the graph needs"):
        graph.refer_to_weights(copied(exported), missing)
    other = write_other(tmp_path / "b.safetensors", exported.bundle / WEIGHTS, {name: torch.zeros(3, 4)})
    with pytest.raises(BundleError, match=rf"'{name}' has shape \[3, 4\], the graph wants \[144, 48\]"):
        graph.refer_to_weights(copied(exported), other)


def test_weights_of_another_value_are_refused(exported: Exported, tmp_path: Path) -> None:
    name = "encoder.blocks.0.attn.qkv.weight"
    changed = torch.from_numpy(load_file(exported.bundle / WEIGHTS)[name].copy())
    changed[0, 0] += 1
    other = write_other(tmp_path / "c.safetensors", exported.bundle / WEIGHTS, {name: changed})
    with pytest.raises(BundleError, match=rf"'{name}' has other values"):
        graph.refer_to_weights(copied(exported), other)


def test_half_graph_reads_half_weights_as_they_are(exported: Exported) -> None:
    """What is stored in half needs no cast; what is stored in float32 is small, and is rounded in the graph."""
    model = copied(exported)
    to_half(model)
    graph.refer_to_weights(model, exported.bundle / WEIGHTS)
    assert not [n for n in model.graph.node if n.name.endswith(".cast")]
    external_ = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert external_ == {k for k, v in load_file(exported.bundle / WEIGHTS).items() if v.dtype == np.float16}
    assert all(math.prod(t.dims) <= graph.FOLD_LIMIT for t in model.graph.initializer if t.name not in external_)
