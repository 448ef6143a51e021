"""Small graphs in the form that export gives them: node names of modules, attention decomposed, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

SIZE = 64
Attention = Literal["softmax", "exponentials", "tapped"]


class _Graph:
    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self.dtype, self.rng = np.dtype(dtype), np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 100)
        return self.constant(name, (self.rng.standard_normal(shape) * scale).astype(self.dtype))

    def add(self, op: str, name: str, *inputs: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        from onnx import helper

        made = helper.make_node(op, list(inputs), outputs or [name], name, **attributes)
        self.nodes.append(made)
        return made.output[0]

    def quantised(self, x: str, scale: float | NDArray[Any], axis: int | None = None) -> str:
        """x after QuantizeLinear and DequantizeLinear."""
        if f"{x}.dq" in {n.name for n in self.nodes}:
            return f"{x}.dq"
        s = self.constant(f"{x}.scale", np.asarray(scale, self.dtype))
        zero = self.constant(f"{x}.zero", np.zeros(np.shape(scale), np.int8))
        kept = {} if axis is None else {"axis": axis}
        return self.add(
            "DequantizeLinear", f"{x}.dq", self.add("QuantizeLinear", f"{x}.q", x, s, zero, **kept), s, zero, **kept
        )

    def conv(self, name: str, x: str, a: int, b: int, kernel: int, *, int8: bool = False, stride: int = 1) -> str:
        w, bias = self.weight(f"{name}.weight", b, a, kernel, kernel), self.weight(f"{name}.bias", b)
        if int8:
            x, w = self.quantised(x, 0.05), self.quantised(w, np.full(b, 0.01), axis=0)
        pad = 0 if stride == kernel else kernel // 2
        return self.add("Conv", name, x, w, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def linear(self, name: str, x: str, a: int, b: int, *, int8: bool = False) -> str:
        w = self.weight(f"{name}.weight", a, b)
        if int8:
            x, w = self.quantised(x, 0.05), self.quantised(w, np.full(b, 0.01), axis=1)
        return self.add("Add", f"{name}.bias", self.add("MatMul", name, x, w), self.weight(f"{name}.bias.weight", b))


def make(
    path: Path,
    *,
    dtype: type[np.floating[Any]] = np.float16,
    int8: bool = False,
    blocks: int = 2,
    width: int = 128,
    heads: int = 2,
    attention: Attention = "softmax",
    unsupported: bool = False,
    seed_shift: float = 0.0,
) -> Path:
    """Write a network of one stem, `blocks` encoder blocks and the three outputs, image (B, 1, 64, 64).

    attention: how the LAST block does it. exponentials: no Softmax node; tapped: its scores leave through the map too.
    """
    import onnx
    from onnx import TensorProto, helper

    g = _Graph(dtype)
    cells, depth = (SIZE // 8) ** 2, width // heads
    half = helper.np_dtype_to_tensor_dtype(g.dtype)
    x = g.add("Cast", "image.half", "image", to=half)
    x = g.conv("backbone.features.conv0", x, 1, width, 8, stride=8)
    x = g.add("Relu", "backbone.relu0", x)
    x = g.conv("backbone.features.conv1", x, width, width, 3, int8=int8)
    corpus = g.add("Relu", "backbone.relu1", x)
    flat = g.add("Reshape", "flat", corpus, g.constant("flat.shape", np.array([0, width, cells])))
    x = g.add("Transpose", "tokens", flat, perm=[0, 2, 1])
    taps: list[str] = []
    for i in range(blocks):
        p = f"encoder.blocks.{i}"
        form = attention if i == blocks - 1 else "softmax"
        y = _norm(g, f"{p}.norm1", x, width)
        y = g.linear(f"{p}.attn.qkv", y, width, 3 * width, int8=int8)
        y = g.add("Reshape", f"{p}.view", y, g.constant(f"{p}.shape", np.array([0, cells, 3, heads, depth])))
        y = g.add("Transpose", f"{p}.permute", y, perm=[2, 0, 3, 1, 4])
        parts = [
            g.add("Gather", f"{p}.select{k}", y, g.constant(f"{p}.index{k}", np.array(k)), axis=0) for k in range(3)
        ]
        scale = g.constant(f"{p}.scale", np.asarray(depth**-0.25 + seed_shift, g.dtype))
        q = g.add("Mul", f"{p}.q", parts[0], scale)
        k = g.add("Mul", f"{p}.k", g.add("Transpose", f"{p}.kT", parts[1], perm=[0, 1, 3, 2]), scale)
        scores = g.add("MatMul", f"{p}.attn.scores", q, k)
        if form == "exponentials":
            e = g.add("Exp", f"{p}.attn.exp", scores)
            total = g.add("ReduceSum", f"{p}.attn.sum", e, g.constant(f"{p}.axes", np.array([-1])), keepdims=1)
            weights = g.add("Div", f"{p}.attn.div", e, total)
        else:
            weights = g.add("Softmax", f"{p}.attn.softmax", scores, axis=-1)
            if form == "tapped":
                taps.append(weights)
        y = g.add("MatMul", f"{p}.attn.context", weights, parts[2])
        y = g.add("Transpose", f"{p}.back", y, perm=[0, 2, 1, 3])
        y = g.add("Reshape", f"{p}.merge", y, g.constant(f"{p}.merged", np.array([0, cells, width])))
        x = g.add("Add", f"{p}.add1", x, g.linear(f"{p}.attn.proj", y, width, width, int8=int8))
        y = g.linear(f"{p}.fc1", _norm(g, f"{p}.norm2", x, width), width, 2 * width, int8=int8)
        y = g.linear(f"{p}.fc2", g.add("Relu", f"{p}.act", y), 2 * width, width, int8=int8)
        x = g.add("Add", f"{p}.add2", x, y)
    pooled = g.add("ReduceMean", "pool", x, g.constant("pool.axes", np.array([1])), keepdims=0)
    if unsupported:
        pooled = g.add("Unheard", "diagnosis.unheard", pooled, domain="example.invalid")
    logits = g.linear("diagnosis", pooled, width, 3)
    grid = g.add("Transpose", "grid.t", x, perm=[0, 2, 1])
    grid = g.add("Reshape", "grid", grid, g.constant("grid.shape", np.array([0, width, SIZE // 8, SIZE // 8])))
    maps = [_head(g, "severity.out", grid, width, 1, int8), _head(g, "lungs.out", corpus, width, 2, int8)]
    names, values = ["logits", "severity_map", "lung_mask"], [logits, *maps]
    if taps:
        names, values = [*names, "attention"], [*values, *taps]
    for name, value in zip(names, values, strict=True):
        g.add("Cast", f"{name}.full", value, outputs=[name], to=TensorProto.FLOAT)
    shapes = {"logits": [3], "severity_map": [1, 32, 32], "lung_mask": [2, 32, 32], "attention": [heads, cells, cells]}
    graph = helper.make_graph(
        g.nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *shapes[n]]) for n in names],
        g.tensors,
    )
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid("example.invalid", 1)] if unsupported else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def _norm(g: _Graph, name: str, x: str, width: int) -> str:
    ones = g.constant(f"{name}.weight", np.ones(width, g.dtype))
    return g.add("LayerNormalization", name, x, ones, g.weight(f"{name}.bias", width), axis=-1)


def _head(g: _Graph, name: str, x: str, width: int, channels: int, int8: bool) -> str:
    y = g.add("Sigmoid", f"{name}.sigmoid", g.conv(name, x, width, channels, 3, int8=int8))
    scales = g.constant(f"{name}.scales", np.array([1, 1, 4, 4], np.float32))
    return g.add("Resize", f"{name}.resize", y, "", scales, mode="linear")


def write_gpu_bundle(folder: Path, **variants: dict[str, Any]) -> Path:
    """A bundle that verifies, with a graph made by `make` for each of `variants`; its golden outputs are nothing.

    Its network has the layers of `variants`' first, so that an attention block the less is noticed.
    """
    from fakes import write_bundle
    from small_bundle import reseal

    write_bundle(folder)
    for name, options in variants.items():
        make(folder / f"{name}.onnx", **options)
    entries = {
        name: {
            "files": {"shared": f"{name}.onnx"},
            "opset": 20,
            "golden": "weights.safetensors",
            "tolerance": {"logits": 0.02, "maps": 0.002},
        }
        for name in variants
    }
    layers = next(iter(variants.values())).get("blocks", 2)
    reseal(folder, {"variants": entries, "network": {"layers": layers}})
    return folder
