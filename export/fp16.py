"""float32 graph -> the same graph in FP16, strongly typed: casts at its two ends, every weight in half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cxrvit_edge.errors import BundleError
from export import surgery

if TYPE_CHECKING:
    import onnx

HALF_MAX = 65504.0


def to_half(model: onnx.ModelProto) -> None:
    """In place. BatchNormalization becomes a Mul and an Add whose constants are computed in float64.

    Inputs and outputs stay float32. LayerNormalization keeps stash_type float32: its statistics do not round.
    BundleError if a weight does not fit.
    """
    from onnx import TensorProto, helper

    affine_norms(model)
    surgery.forget_shapes(model)
    full = {n.input[2] for n in model.graph.node if n.op_type == "Resize" and len(n.input) > 2}  # the standard's type
    for name, value in surgery.weights(model).items():
        if value.dtype == np.float32 and name not in full:
            with np.errstate(over="ignore"):
                half = value.astype(np.float16)
            if not np.isfinite(half).all():
                raise BundleError(f"{name}: a weight over {HALF_MAX:.0f} does not fit FP16; train with weight decay")
            surgery.set_weight(model, name, half)
    nodes = list(model.graph.node)
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    heads, tails = [], []
    for value in model.graph.input:
        cast = f"{value.name}.half"
        surgery.rewire([n for n in nodes if n.op_type != "Shape"], value.name, cast)
        heads.append(helper.make_node("Cast", [value.name], [cast], name=cast, to=TensorProto.FLOAT16))
    for value in model.graph.output:
        inner = f"{value.name}.half"
        surgery.rewire(nodes, value.name, inner)
        for node in nodes:
            for i, name in enumerate(node.output):
                if name == value.name:
                    node.output[i] = inner
        tails.append(helper.make_node("Cast", [inner], [value.name], name=f"{value.name}.full", to=TensorProto.FLOAT))
    surgery.replace_nodes(model, [*heads, *nodes, *tails])


def affine_norms(model: onnx.ModelProto) -> None:
    """BatchNormalization -> Mul, Add with constants (C, 1, 1): a variance of 1e-6 has no half, its scale has."""
    from onnx import helper

    constants = surgery.weights(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in node.input[1:5])
        epsilon = surgery.attributes(node).get("epsilon", 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)  # type: ignore[operator]
        for name, value in ((f"{node.name}.scale", scale), (f"{node.name}.shift", beta - mean * scale)):
            surgery.set_weight(model, name, value.astype(np.float32).reshape(-1, 1, 1))
        product = f"{node.output[0]}.scaled"
        nodes += [
            helper.make_node("Mul", [node.input[0], f"{node.name}.scale"], [product], name=f"{node.name}.mul"),
            helper.make_node("Add", [product, f"{node.name}.shift"], [node.output[0]], name=f"{node.name}.add"),
        ]
    surgery.replace_nodes(model, nodes)
    surgery.drop_dead(model)
