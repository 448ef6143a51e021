"""The first layer that departs is the one that was harmed, and nothing that follows from it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cxrvit_edge.bundle import WEIGHTS
from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.model import checkpoint
from export import debug
from export.debug import WORST, first_departure

pytest.importorskip("polygraphy", reason="polygraphy, of the export extra, is not installed")


@pytest.fixture(scope="module")
def image(small_bundle: Path) -> NDArray[np.float32]:
    with np.load(small_bundle / "golden_inputs.npz") as stored:
        before = stored["inputs"][:1]
    return ((before[:, None].astype(np.float32) - 128) / 64).astype(np.float32)  # (1, 1, S, S)


@pytest.fixture
def variant(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the fp32 graph beside its weights, to be harmed."""
    for name in ("fp32.onnx", WEIGHTS):
        shutil.copyfile(small_bundle / name, tmp_path / name)
    return (tmp_path / "fp32.onnx").rename(tmp_path / "variant.onnx")


def change(path: Path, harm: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    harm(model)
    onnx.save(model, path)


def reads(model: onnx.ModelProto, weight: str) -> onnx.NodeProto:
    """The node that multiplies by a weight, behind its cast and transpose."""
    name, found = weight, None
    while found is None or found.op_type in ("Cast", "Transpose"):
        found = next(n for n in model.graph.node if name in n.input)
        name = found.output[0]
    return found


def put_before(model: onnx.ModelProto, node: onnx.NodeProto, *inserted: onnx.NodeProto) -> None:
    """Feed node's first input through `inserted`; all other tensors keep their names."""
    at = list(model.graph.node).index(node)
    node.input[0] = inserted[-1].output[0]
    for n in reversed(inserted):
        model.graph.node.insert(at, n)


def test_the_same_graph_departs_nowhere(small_bundle: Path, variant: Path, image: NDArray[np.float32]) -> None:
    assert first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.0) is None


def test_a_harmed_weight_names_its_layer(
    small_bundle: Path, variant: Path, image: NDArray[np.float32], tmp_path: Path
) -> None:
    module = "backbone.features.denseblock3.denselayer9.conv2"
    tensors, config, extra = checkpoint.load(variant.parent / WEIGHTS)
    before = (variant.parent / WEIGHTS).stat().st_size
    tensors[f"{module}.weight"] = tensors[f"{module}.weight"] * 1.25
    checkpoint.save(variant.parent / WEIGHTS, tensors, config, extra)
    assert (variant.parent / WEIGHTS).stat().st_size == before, "every other weight lies where it lay"
    found = first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=1e-3, folder=tmp_path / "debug")
    assert found is not None
    assert (found.module, found.op, found.arrived) == (module, "Conv", 0.0)
    assert found.difference == pytest.approx(0.25, rel=0.3)  # RMS over standard deviation: the mean is not nothing
    with (tmp_path / "debug" / "variant.departures.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert WORST <= len(rows) <= WORST + 1
    (first,) = [r for r in rows if r["first"] == "yes"]
    assert (first["module"], first["tensor"]) == (module, found.tensor)
    differences = [float(r["difference"]) for r in rows if r["first"] != "yes"]
    assert differences == sorted(differences, reverse=True)
    assert min(float(r["difference"]) for r in rows) > 0


def quantised(factor: float) -> Callable[[onnx.ModelProto], None]:
    """Q/DQ before each layer of a block, its scale right everywhere but in the last, where it is off by `factor`."""

    def harm(model: onnx.ModelProto) -> None:
        names = [f"encoder.blocks.0.{part}" for part in ("attn.qkv", "attn.proj", "fc1", "fc2")]
        model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
        for name in names:
            node = reads(model, f"{name}.weight")
            peak = {"attn.qkv": 4.0, "attn.proj": 3.0, "fc1": 4.0, "fc2": 2.0}[name.removeprefix("encoder.blocks.0.")]
            scale = np.float32(peak / 127 * (factor if name == names[-1] else 1))
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            quantise = helper.make_node("QuantizeLinear", [node.input[0], f"{name}.scale", "zero"], [f"{name}.q"])
            back = helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.scale", "zero"], [f"{name}.dq"])
            put_before(model, node, quantise, back)

    return harm


def test_a_wrong_scale_names_the_layer_that_reads_it(
    small_bundle: Path, variant: Path, image: NDArray[np.float32]
) -> None:
    """Rounding to INT8 everywhere is under the tolerance; a scale off by a factor of fifty is not."""
    change(variant, quantised(1 / 50))
    found = first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.2)
    assert found is not None
    assert found.module == "encoder.blocks.0.fc2"
    assert 0 < found.arrived < 0.2 < found.difference
    good = variant.with_name("good.onnx")
    shutil.copyfile(small_bundle / "fp32.onnx", good)
    change(good, quantised(1.0))
    assert first_departure(small_bundle / "fp32.onnx", good, image, tolerance=0.2) is None


def test_half_tensors_are_compared(small_bundle: Path, variant: Path, image: NDArray[np.float32]) -> None:
    def harm(model: onnx.ModelProto) -> None:
        """One tensor in FP16, of the same name; what follows is float32 again."""
        relu = next(n for n in model.graph.node if n.op_type == "Relu")
        name, at = relu.output[0], list(model.graph.node).index(relu)
        for node in model.graph.node:
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = "back"
        relu.output[0] = "whole"
        model.graph.node.insert(at + 1, helper.make_node("Cast", ["whole"], [name], to=TensorProto.FLOAT16))
        model.graph.node.insert(at + 2, helper.make_node("Cast", [name], ["back"], to=TensorProto.FLOAT))
        notes = [v for v in model.graph.value_info if v.name != name]
        del model.graph.value_info[:]
        model.graph.value_info.extend(notes)

    change(variant, harm)
    found = first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=1e-6)
    assert found is not None
    assert (found.op, found.arrived) == ("Relu", 0.0)
    assert 1e-5 < found.difference < 1e-3


def test_what_is_not_finite_departs(small_bundle: Path, variant: Path, image: NDArray[np.float32]) -> None:
    def harm(model: onnx.ModelProto) -> None:
        node = reads(model, "diagnosis.weight")
        model.graph.initializer.append(numpy_helper.from_array(np.float32(np.inf), "infinite"))
        put_before(model, node, helper.make_node("Mul", [node.input[0], "infinite"], ["over"]))

    change(variant, harm)
    found = first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=1e30)
    assert found is not None
    assert (found.module, found.tensor) == ("diagnosis", "logits")
    assert not np.isfinite(found.difference)


def test_parts_of_a_graph_give_what_the_whole_gives(
    small_bundle: Path, variant: Path, image: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(variant, quantised(1 / 50))
    whole = first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.2)
    runs: list[list[str]] = []
    fetch = debug._differences

    def counted(paths: Sequence[Path], graphs: Sequence[onnx.ModelProto], names: list[str], tensor: Any) -> Any:
        runs.append(names)
        return fetch(paths, graphs, names, tensor)

    monkeypatch.setattr(debug, "CHUNK", 1 << 20)
    monkeypatch.setattr(debug, "_differences", counted)
    assert first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.2) == whole
    assert len(runs) > 2
    names = [name for run in runs for name in run]
    assert len(names) == len(set(names))


def test_graphs_that_share_nothing(small_bundle: Path, variant: Path, image: NDArray[np.float32]) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name and name != "image" and not any(name == t.name for t in model.graph.initializer):
                        names[i] = f"{name}.other"
        for output in model.graph.output:
            output.name += ".other"

    change(variant, rename)
    with pytest.raises(UsageError, match=r"variant\.onnx: shares no tensor name with .*fp32\.onnx"):
        first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.1)


def test_a_graph_that_does_not_load_is_named(small_bundle: Path, variant: Path, image: NDArray[np.float32]) -> None:
    (variant.parent / WEIGHTS).write_bytes(b"short")
    with pytest.raises(EngineError, match=r"variant\.onnx: .*cannot"):
        first_departure(small_bundle / "fp32.onnx", variant, image, tolerance=0.1)
