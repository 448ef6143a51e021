"""Migration: the same function, flatter channels, and only where INT8 follows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import quant_graphs as small
from numpy.typing import NDArray
from small_bundle import Exported

from export import ranges, surgery
from export.exact import Yardstick
from export.migrate import LIMIT, migrate
from export.quantise import quantisable, quantise, tensors, weighted_nodes

NORM1, NORM2 = "encoder.blocks.0.norm1", "encoder.blocks.0.norm2"
QKV, FC1 = "encoder.blocks.0.attn.qkv", "encoder.blocks.0.fc1"
Ranges = dict[str, ranges.Range]


def collected(model: onnx.ModelProto, images: list[NDArray[np.float32]]) -> Ranges:
    return ranges.collect(model, tensors(model, "tensorrt"), images)


def every(model: onnx.ModelProto) -> set[str]:
    return {w.node for w in quantisable(model)}


def activation(model: onnx.ModelProto, node: str) -> str:
    return next(w.activation for w in weighted_nodes(model) if w.node == node)


def with_outlier(norm: str = NORM2, weight: str = f"{FC1}.weight") -> onnx.ModelProto:
    """One channel of a LayerNorm is a hundred times larger than the others; its weights are as much smaller."""
    model = small.small()
    small.poison(model, norm, weight, 5, 0.01)
    return model


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_the_function_is_the_same(alpha: float) -> None:
    model, images = with_outlier(), small.images(6)
    moved = surgery.copy(model)
    changed = migrate(moved, collected(model, images), alpha, every(model))
    onnx.checker.check_model(moved, full_check=True)
    assert changed == [activation(moved, QKV), activation(moved, FC1)]
    batch = np.concatenate(small.images(4, seed=8))
    for a, b in zip(small.run(model, batch), small.run(moved, batch), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert [n.name for n in moved.graph.node] == [n.name for n in model.graph.node], "nothing is added to the graph"


def test_the_tiny_network_is_the_same(exported: Exported) -> None:
    with np.load(exported.bundle / "golden_inputs.npz") as stored:
        films = ((stored["inputs"][:, None].astype(np.float32) - 128) / 64).astype(np.float32)
    moved = surgery.copy(exported.graph)
    changed = migrate(moved, collected(moved, [f[None] for f in films]), 0.5, every(moved))
    assert len(changed) == 2, "norm1 and norm2; nothing weighted reads the last norm alone"
    for a, b in zip(small.run(exported.graph, films), small.run(moved, films), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_channels_become_flatter() -> None:
    model, images = with_outlier(), small.images(6)
    before = collected(model, images)
    moved = surgery.copy(model)
    changed = migrate(moved, before, 0.5, every(model))
    after = ranges.collect(moved, changed, images)[activation(moved, FC1)].channel_max
    first = before[activation(model, FC1)].channel_max
    assert first is not None and after is not None
    assert first.argmax() == 5
    assert first.max() / np.median(first) > 30
    assert after.max() / np.median(after) < 0.2 * first.max() / np.median(first)


@pytest.mark.parametrize("alpha", [0.5, 0.7])
def test_int8_loses_less(alpha: float) -> None:
    model, images = with_outlier(), small.images(8)
    before = collected(model, images)
    moved = surgery.copy(model)
    after = {**before, **ranges.collect(moved, migrate(moved, before, alpha, every(model)), images)}
    yardstick = Yardstick(model, small.images(8, seed=5), 1.0, small.POINTS)
    cost = []
    for graph, found in ((model, before), (moved, after)):
        step = surgery.copy(graph)
        quantise(step, {FC1}, ranges.scales(found, "minmax", form="tensorrt"), "tensorrt")
        cost.append(yardstick.measure(step))
    assert cost[1].logits_rms < 0.5 * cost[0].logits_rms
    assert cost[1].maps < cost[0].maps


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_alpha_is_the_weights_share(alpha: float) -> None:
    """Largest x and w of a channel become (x w)^(1 - alpha) and (x w)^alpha, up to one factor (Xiao et al. 2023)."""
    model, images = small.small(), small.images(6)
    before = collected(model, images)
    moved = surgery.copy(model)
    after = ranges.collect(moved, migrate(moved, before, alpha, every(model)), images)
    x, y = before[activation(model, FC1)].channel_max, after[activation(moved, FC1)].channel_max
    w, v = (np.abs(surgery.weights(m)[f"{FC1}.weight"]).max(0) for m in (model, moved))
    assert x is not None and y is not None
    for found, share in ((y, 1 - alpha), (v, alpha)):
        ratio = found / (x * w) ** share
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_nothing_moves_where_a_reader_stays_float() -> None:
    model, images = with_outlier(), small.images(4)
    found = collected(model, images)
    moved = surgery.copy(model)
    changed = migrate(moved, found, 0.5, every(model) - {QKV})
    assert changed == [activation(moved, FC1)]
    old, new = surgery.weights(model), surgery.weights(moved)
    for name in (f"{NORM1}.weight", f"{NORM1}.bias", f"{QKV}.weight"):
        assert new[name].tobytes() == old[name].tobytes()
    assert not np.array_equal(new[f"{FC1}.weight"], old[f"{FC1}.weight"])
    untouched = surgery.copy(model)
    assert migrate(untouched, found, 0.5, ()) == []
    assert untouched.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_norm_with_a_float_reader_beside_stays() -> None:
    """A residual that starts at the norm itself reads it too, and cannot be divided."""
    model = small.small()
    (add,) = [n for n in model.graph.node if n.name == "add.encoded"]
    add.input[0] = activation(model, FC1)
    moved = surgery.copy(model)
    assert migrate(moved, collected(model, small.images(2)), 0.5, every(model)) == [activation(moved, QKV)]


def test_two_matrices_may_read_one_norm() -> None:
    model, images = with_outlier(NORM1, f"{QKV}.weight"), small.images(4)
    surgery.rewire([n for n in model.graph.node if n.name == FC1], activation(model, FC1), activation(model, QKV))
    surgery.drop_dead(model)
    moved = surgery.copy(model)
    found = collected(model, images)
    assert migrate(moved, found, 0.5, every(model) - {FC1}) == []
    assert migrate(moved, found, 0.5, every(model)) == [activation(moved, QKV)] == [activation(moved, FC1)]
    batch = np.concatenate(small.images(4, seed=8))
    for a, b in zip(small.run(model, batch), small.run(moved, batch), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_parameters_that_norms_share_are_not_corrupted() -> None:
    """The exporter makes equal gammas one initialiser: each norm is divided by its own, the last norm by nothing."""
    model, images = small.small(), small.images(4)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.input[1], node.input[2] = f"{NORM1}.weight", f"{NORM1}.bias"
    surgery.drop_dead(model)
    moved = surgery.copy(model)
    assert len(migrate(moved, collected(model, images), 0.5, every(model))) == 2
    read = [tuple(n.input[1:]) for n in moved.graph.node if n.op_type == "LayerNormalization"]
    assert len(set(read)) == 3
    assert read[2] == (f"{NORM1}.weight", f"{NORM1}.bias")
    batch = np.concatenate(small.images(4, seed=8))
    for a, b in zip(small.run(model, batch), small.run(moved, batch), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_factors_stay_within_bounds() -> None:
    """A dead channel and a huge one: gamma and weights must still fit FP16."""
    model, images = small.small(), small.images(4)
    gamma = surgery.weights(model)[f"{NORM2}.weight"].copy()
    beta = surgery.weights(model)[f"{NORM2}.bias"].copy()
    gamma[0] = beta[0] = 0
    gamma[1] = 1e4
    surgery.set_weight(model, f"{NORM2}.weight", gamma)
    surgery.set_weight(model, f"{NORM2}.bias", beta)
    moved = surgery.copy(model)
    migrate(moved, collected(model, images), 0.9, every(model))
    old, new = (surgery.weights(m)[f"{FC1}.weight"].astype(np.float64) for m in (model, moved))
    factor = (new / old).mean(0)
    assert factor.min() == pytest.approx(1 / LIMIT, rel=1e-4)
    assert factor.max() == pytest.approx(LIMIT, rel=1e-4)
    assert np.isfinite(new).all()
    np.testing.assert_allclose(new / old, factor[None].repeat(len(new), 0), rtol=1e-4)
