"""SmoothQuant-style migration (Xiao et al. 2023): what is hard to round moves from activations into weights, exactly.

A channel j of a LayerNormalization is divided by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), the columns j of the
matrices that read it are multiplied by it. The division goes into gamma and beta, so nothing is added to the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from export import surgery
from export.quantise import weighted_nodes
from export.ranges import Range

if TYPE_CHECKING:
    import onnx

LIMIT = 100.0  # s stays within 1/LIMIT and LIMIT: gamma and weights must still fit FP16


def migrate(model: onnx.ModelProto, ranges: Mapping[str, Range], alpha: float, nodes: Collection[str]) -> list[str]:
    """In place, of a float32 graph, with alpha in (0, 1); returns the activations that are new.

    Only where every reader of a LayerNormalization is among `nodes`, which become INT8: a weight that stays in FP16
    keeps its stored value.
    """
    stored, read = surgery.weights(model), surgery.consumers(model)
    by_node = {w.node: w for w in weighted_nodes(model) if w.transposed and w.node in nodes}
    changed = []
    for norm in model.graph.node:
        readers = [by_node.get(n.name) for n in read.get(norm.output[0], [])]
        if norm.op_type != "LayerNormalization" or not readers or None in readers:
            continue
        matrices = [w for w in readers if w is not None]
        channel_max = ranges[norm.output[0]].channel_max
        assert channel_max is not None
        largest = np.maximum(channel_max.astype(np.float64), 1e-5)
        weight = np.max([np.abs(stored[w.weight]).max(0) for w in matrices], axis=0).astype(np.float64)
        s = largest**alpha / np.maximum(weight, 1e-5) ** (1 - alpha)
        s = np.clip(s / np.exp(np.log(s).mean()), 1 / LIMIT, LIMIT)
        for i, part in ((1, "weight"), (2, "bias")):
            name = f"{norm.name}.{part}.migrated"  # equal parameters may be one initialiser of several nodes
            surgery.set_weight(model, name, (stored[norm.input[i]] / s).astype(np.float32))
            norm.input[i] = name
        for w in matrices:
            surgery.set_weight(model, w.weight, (stored[w.weight] * s).astype(np.float32))
        tensor = f"{norm.output[0]}.migrated"  # other values, so another name: graphs are compared by them
        surgery.rewire(read[norm.output[0]], norm.output[0], tensor)
        norm.output[0] = tensor
        changed.append(tensor)
    surgery.drop_dead(model)
    return changed
