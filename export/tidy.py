"""The traced graph made readable: nodes named after their modules, attention as six nodes that every engine fuses."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from export import surgery

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "MatMul", "Gemm")
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note on a node: its modules, outermost first, and its own name
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def tidy(model: onnx.ModelProto) -> None:
    """In place. A weighted node, its Transpose and its bias Add are named after the module (`encoder.blocks.0.fc1`,
    `.weight.T`, `.bias`), a LayerNormalization or BatchNormalization likewise; the attention core is
    `encoder.blocks.N.attn.{scores,softmax,context}`, or `encoder.blocks.N.attn.core` where it is one Attention node.
    """
    _plain_key_transpose(model)
    surgery.drop_dead(model)
    stored = {t.name for t in model.graph.initializer}
    made, read = surgery.producers(model), surgery.consumers(model)
    names: dict[int, str] = {}

    def parameter(node: onnx.NodeProto, name: str) -> str:
        """`name`, or what the node's own module calls it: equal parameters of several modules are one initialiser."""
        module = _module(node)
        return f"{module}.{name.rpartition('.')[2]}" if module and len(read[name]) > 1 else name

    for node in model.graph.node:
        own = [n for n in node.input if n in stored]
        if node.op_type == "Transpose" and own:
            names[id(node)] = f"{parameter(node, own[0])}.T"
        elif node.op_type in WEIGHTED:
            source = made.get(node.input[1]) if len(node.input) > 1 else None
            weight = node.input[1] if node.input[1] in stored else source.input[0] if source is not None else ""
            if weight.endswith(".weight"):
                names[id(node)] = parameter(node, weight).removesuffix(".weight")
        elif node.op_type in ("BatchNormalization", "LayerNormalization"):
            names[id(node)] = parameter(node, node.input[1]).removesuffix(".weight")
        elif node.op_type == "Add" and own and own[0].endswith(".bias"):
            names[id(node)] = parameter(node, own[0])
    _name_attention(model, names)
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        name = names.get(id(node)) or f"{node.op_type.lower()}.{node.output[0]}"
        node.name = f"{name}.{i}" if name in taken else name
        taken.add(node.name)


def _module(node: onnx.NodeProto) -> str:
    """That the node was traced from, "" if that is not known."""
    scopes: list[str] = next((ast.literal_eval(p.value) for p in node.metadata_props if p.key == _SCOPES), [])
    return scopes[-2] if len(scopes) > 1 else ""


def _name_attention(model: onnx.ModelProto, names: dict[int, str]) -> None:
    """The two MatMuls, or the Attention, between a block's qkv and its proj."""
    made, read = surgery.producers(model), surgery.consumers(model)
    for softmax in [n for n in model.graph.node if n.op_type in ("Softmax", "Attention")]:
        block = _block_behind(softmax, names, made)
        if softmax.op_type == "Attention":
            names[id(softmax)] = f"{block}.attn.core"
            continue
        names[id(softmax)] = f"{block}.attn.softmax"
        for node in (made[softmax.input[0]], *read[softmax.output[0]]):
            if node.op_type == "MatMul":
                names[id(node)] = f"{block}.attn.{'scores' if node.output[0] == softmax.input[0] else 'context'}"


def _block_behind(node: onnx.NodeProto, names: dict[int, str], made: dict[str, onnx.NodeProto]) -> str:
    """`encoder.blocks.N` of the nearest named node upstream."""
    queue, seen = list(node.input), set()
    while queue:
        name = queue.pop(0)
        if name in seen or name not in made:
            continue
        seen.add(name)
        before = made[name]
        if match := _BLOCK.match(names.get(id(before), "")):
            return f"encoder.blocks.{match.group(1)}"
        queue += before.input
    return "encoder.blocks.unknown"


def _plain_key_transpose(model: onnx.ModelProto) -> None:
    """Reshape, Transpose (0, 2, 1), Reshape around the keys, with the shapes that feed them -> one Transpose."""
    from onnx import helper

    made, read = surgery.producers(model), surgery.consumers(model)
    for last in model.graph.node:
        if last.op_type != "Reshape":
            continue
        middle = made.get(last.input[0])
        if middle is None or middle.op_type != "Transpose" or surgery.attributes(middle).get("perm") != [0, 2, 1]:
            continue
        first = made.get(middle.input[0])
        if first is None or first.op_type != "Reshape" or any(n.op_type != "Mul" for n in read[last.output[0]]):
            continue
        del last.attribute[:]
        last.op_type = "Transpose"
        last.attribute.append(helper.make_attribute("perm", [0, 1, 3, 2]))
        keys = first.input[0]
        del last.input[:]
        last.input.append(keys)
