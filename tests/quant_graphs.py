"""A float32 graph as export traces and tidies it, in little: one dense block, one encoder block, the three outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE, WIDTH, HEADS = 32, 16, 2
STEM, GROWTH = 8, 4
TOKENS = (SIZE // 4) ** 2
POINTS = {"normal": 0.5, "other": 0.4, "covid": 0.3}
OUTPUTS = ("logits", "severity_map", "lung_mask")


class _Graph:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        gain = 1.4 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2
        return self.constant(name, (self.rng.standard_normal(shape) * gain).astype(np.float32))

    def add(self, op: str, output: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name or f"{op.lower()}.{output}", **attributes))
        return output

    def conv(self, name: str, x: str, a: int, b: int, kernel: int, stride: int = 1, *, bias: bool = True) -> str:
        inputs = [x, self.weight(f"{name}.weight", b, a, kernel, kernel)]
        inputs += [self.weight(f"{name}.bias", b)] if bias else []
        out = f"{name}.out"
        return self.add("Conv", out, *inputs, name=name, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def relu(self, x: str) -> str:
        return self.add("Relu", f"{x}.relu", x)

    def batch_norm(self, name: str, x: str, channels: int) -> str:
        gamma = self.constant(f"{name}.weight", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        mean = self.weight(f"{name}.running_mean", channels)
        variance = self.constant(f"{name}.running_var", self.rng.uniform(0.5, 2, channels).astype(np.float32))
        beta = self.weight(f"{name}.bias", channels)
        return self.relu(self.add("BatchNormalization", f"{name}.out", x, gamma, beta, mean, variance, name=name))

    def layer_norm(self, name: str, x: str) -> str:
        gamma = self.constant(f"{name}.weight", self.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
        beta = self.weight(f"{name}.bias", WIDTH)
        return self.add("LayerNormalization", f"{name}.out", x, gamma, beta, name=name, axis=-1)

    def linear(self, name: str, x: str, a: int, b: int) -> str:
        stored = self.weight(f"{name}.weight", b, a)
        turned = self.add("Transpose", f"{name}.turned", stored, name=f"{name}.weight.T", perm=[1, 0])
        product = self.add("MatMul", f"{name}.product", x, turned, name=name)
        return self.add("Add", f"{name}.out", product, self.weight(f"{name}.bias", b), name=f"{name}.bias")

    def attention(self, x: str) -> str:
        block = "encoder.blocks.0.attn"
        shape = self.constant("heads", np.array([0, 0, 3, HEADS, WIDTH // HEADS]))
        parts = self.add("Reshape", "qkv.split", self.linear(f"{block}.qkv", x, WIDTH, 3 * WIDTH), shape)
        parts = self.add("Transpose", "qkv.turned", parts, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.add("Gather", n, parts, self.constant(f"{n}.i", np.array(i))) for i, n in enumerate("qkv"))
        root = self.constant("root", np.array([(WIDTH // HEADS) ** -0.25], np.float32))
        q = self.add("Mul", "q.scaled", q, root)
        k = self.add("Mul", "k.scaled", self.add("Transpose", "k.turned", k, perm=[0, 1, 3, 2]), root)
        scores = self.add("MatMul", "scores", q, k, name=f"{block}.scores")
        weights = self.add("Softmax", "attended", scores, name=f"{block}.softmax", axis=-1)
        context = self.add("MatMul", "context", weights, v, name=f"{block}.context")
        context = self.add("Transpose", "context.turned", context, perm=[0, 2, 1, 3])
        joined = self.add("Reshape", "context.joined", context, self.constant("joined", np.array([0, 0, WIDTH])))
        return self.linear(f"{block}.proj", joined, WIDTH, WIDTH)


def small() -> onnx.ModelProto:
    """image (B, 1, SIZE, SIZE) -> logits (B, 3), severity_map (B, 1, 16, 16), lung_mask (B, 2, 16, 16)."""
    g = _Graph()
    x = g.relu(g.conv("backbone.features.conv0", "image", 1, STEM, 7, 2))
    for i in (1, 2):
        name, channels = f"backbone.features.denseblock1.denselayer{i}", STEM + (i - 1) * GROWTH
        y = g.relu(g.conv(f"{name}.conv1", g.batch_norm(f"{name}.norm1", x, channels), channels, 2 * GROWTH, 1))
        x = g.add("Concat", f"cat{i}", x, g.conv(f"{name}.conv2", y, 2 * GROWTH, GROWTH, 3, bias=False), axis=1)
    channels, name = STEM + 2 * GROWTH, "backbone.features.transition1"
    mask = g.conv("lungs.out", g.relu(g.conv("lungs.skip4.0", x, channels, 8, 1)), 8, 2, 1)
    g.add("Sigmoid", "lung_mask", mask)
    y = g.conv(f"{name}.conv", g.batch_norm(f"{name}.norm", x, channels), channels, WIDTH, 1, bias=False)
    y = g.add("AveragePool", "pooled", y, kernel_shape=[2, 2], strides=[2, 2])
    y = g.conv("encoder.embed", y, WIDTH, WIDTH, 1)
    y = g.add("Reshape", "flat", y, g.constant("flat.shape", np.array([0, WIDTH, TOKENS])))
    y = g.add("Transpose", "tokens", y, perm=[0, 2, 1])
    y = g.add("Add", "attended.sum", y, g.attention(g.layer_norm("encoder.blocks.0.norm1", y)))
    z = g.linear("encoder.blocks.0.fc1", g.layer_norm("encoder.blocks.0.norm2", y), WIDTH, 4 * WIDTH)
    z = g.linear("encoder.blocks.0.fc2", g.add("Gelu", "gelu", z), 4 * WIDTH, WIDTH)
    y = g.layer_norm("encoder.norm", g.add("Add", "encoded", y, z))
    pooled = g.add("ReduceMean", "mean", y, g.constant("axes", np.array([1])), keepdims=0)
    head = [g.weight("diagnosis.weight", 3, WIDTH), g.weight("diagnosis.bias", 3)]
    g.add("Gemm", "logits", pooled, *head, name="diagnosis", transB=1)
    y = g.add("Transpose", "turned", y, perm=[0, 2, 1])
    y = g.add("Reshape", "map", y, g.constant("map.shape", np.array([0, WIDTH, SIZE // 4, SIZE // 4])))
    y = g.relu(g.conv("severity.blocks.0.0", y, WIDTH, 8, 3))
    y = g.add("Resize", "wide", y, "", g.constant("wide.scales", np.array([1, 1, 2, 2], np.float32)), mode="linear")
    g.add("Sigmoid", "severity_map", g.conv("severity.out", y, 8, 1, 3))
    shapes = {"image": (1, SIZE, SIZE), "logits": (3,), "severity_map": (1, 16, 16), "lung_mask": (2, 16, 16)}
    ends = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, ["batch", *s]) for k, s in shapes.items()}
    graph = helper.make_graph(g.nodes, "small", [ends["image"]], [ends[k] for k in OUTPUTS], g.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(n: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """n of (1, 1, SIZE, SIZE): noise of several grains, as bright and as varied as preprocessed films."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        layers = [np.kron(rng.standard_normal((SIZE // k, SIZE // k)), np.ones((k, k))) for k in (1, 4, 16)]
        found.append(np.sum(layers, 0).astype(np.float32)[None, None])
    return found


def run(model: onnx.ModelProto, batch: NDArray[np.float32], names: tuple[str, ...] = OUTPUTS) -> list[NDArray[Any]]:
    """Outputs in the graph's own exact arithmetic."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"image": batch}))


def poison(model: onnx.ModelProto, norm: str, weight: str, channel: int, factor: float) -> None:
    """The same function with a channel of `norm` (of gamma and beta) divided and its column of `weight` multiplied.

    A factor over 1 harms the weight's INT8 steps, one under 1 those of the activation.
    """
    from export import surgery

    stored: dict[str, Any] = dict(surgery.weights(model))
    for part in ("weight", "bias"):
        value = stored[f"{norm}.{part}"].copy()
        value[channel] /= factor
        surgery.set_weight(model, f"{norm}.{part}", value)
    value = stored[weight].copy()
    value[:, channel] *= factor
    surgery.set_weight(model, weight, value)
