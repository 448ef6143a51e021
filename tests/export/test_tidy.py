"""Names of nodes where several modules have equal parameters, which the exporter makes one initialiser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import small_bundle as small
import torch

from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet
from export import graph, surgery
from export.exact import run_exact
from export.quantise import weighted_nodes

pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.slow]
LAYERS = 2


@pytest.fixture(scope="module")
def net() -> TriageNet:
    """As it is before training: every scale 1, every bias 0."""
    torch.manual_seed(0)
    return fold(TriageNet(replace(small.config(), layers=LAYERS)).eval())


@pytest.fixture(scope="module")
def model(net: TriageNet) -> onnx.ModelProto:
    return graph.trace(net)


def test_every_node_has_a_name_of_its_own(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_parameters_were_shared(model: onnx.ModelProto) -> None:
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert len({n.input[1] for n in norms}) < len(norms)


def test_nodes_are_named_after_their_own_modules(net: TriageNet, model: onnx.ModelProto) -> None:
    kinds = {name: type(module).__name__ for name, module in net.named_modules()}
    named = {node.name: node.op_type for node in model.graph.node}
    for name, kind in kinds.items():
        if kind in ("BatchNorm2d", "LayerNorm") and not name.startswith("pcam."):
            assert named[name] == {"BatchNorm2d": "BatchNormalization", "LayerNorm": "LayerNormalization"}[kind]
    for i in range(LAYERS):
        for part in ("scores", "softmax", "context"):
            assert f"encoder.blocks.{i}.attn.{part}" in named
        assert named[f"encoder.blocks.{i}.attn.qkv.bias"] == "Add"
    for w in weighted_nodes(model):
        assert w.weight == f"{w.node}.weight"


def test_it_is_the_network(net: TriageNet, model: onnx.ModelProto) -> None:
    image = np.random.default_rng(0).standard_normal((1, 1, small.SIZE, small.SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image))
    for found, want in zip(run_exact(surgery.copy(model), image), expected, strict=True):
        np.testing.assert_allclose(found, want.numpy(), atol=1e-4)
