"""Costs of blocks and the ladder, on a graph with one block that INT8 harms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import quant_graphs as small
from small_bundle import Exported

from export import ranges, surgery
from export.exact import Measured, Yardstick
from export.parity import BOUNDS
from export.quantise import FLOAT_NODES, Scale, quantisable, quantise, tensors
from export.sensitivity import _steps, costs, ladder, unit, units

BLOCK = "backbone.features.denseblock1.denselayer2"
LAST = ("lungs.skip4", "severity.blocks.0")  # the logits do not depend on them


@pytest.fixture(scope="module")
def poisoned() -> onnx.ModelProto:
    """One input channel of a dense layer's first weights is ten thousand times larger: the others round to zero."""
    model = small.small()
    small.poison(model, f"{BLOCK}.norm1", f"{BLOCK}.conv1.weight", 0, 1e4)
    return model


def yardstick(model: onnx.ModelProto, n: int = 6) -> Yardstick:
    return Yardstick(model, small.images(n, seed=2), 1.0, small.POINTS)


def scales(model: onnx.ModelProto, form: str = "tensorrt") -> dict[str, Scale]:
    found = ranges.collect(model, tensors(model, "onnxruntime"), small.images(6))
    return ranges.scales(found, "minmax", form=form)  # type: ignore[arg-type]


def test_units_are_a_partition(exported: Exported) -> None:
    for model in (small.small(), exported.graph):
        parts = units(model)
        nodes = [n for part in parts.values() for n in part]
        assert len(nodes) == len(set(nodes)) > 0
        assert set(nodes) == {w.node for w in quantisable(model)}
        assert not set(nodes) & set(FLOAT_NODES)
        assert all(unit(n) == name for name, part in parts.items() for n in part)


def test_units_are_blocks(exported: Exported) -> None:
    parts = units(exported.graph)
    assert parts["backbone.features.denseblock3.denselayer24"] == [
        f"backbone.features.denseblock3.denselayer24.conv{i}" for i in (1, 2)
    ]
    assert parts["backbone.features.transition3"] == ["backbone.features.transition3.conv"]
    assert parts["encoder.blocks.0.attn"] == [f"encoder.blocks.0.attn.{n}" for n in ("qkv", "proj")]
    assert parts["encoder.blocks.0.fc"] == ["encoder.blocks.0.fc1", "encoder.blocks.0.fc2"]
    assert parts["encoder.embed"] == ["encoder.embed"] and parts["lungs.up2"] == ["lungs.up2.0"]
    assert len([p for p in parts if "denselayer" in p]) == 6 + 12 + 24 + 16
    assert unit("head.of.another") == "head.of.another"


def test_the_harmed_block_is_the_worst(poisoned: onnx.ModelProto) -> None:
    told: list[tuple[int, int]] = []
    found = costs(poisoned, scales(poisoned), yardstick(poisoned), progress=lambda *done: told.append(done))
    assert set(found) == set(units(poisoned))
    assert next(iter(found)) == BLOCK
    assert list(found.values()) == sorted(found.values(), reverse=True)
    others = [v for k, v in found.items() if k != BLOCK]
    assert found[BLOCK] > 5 * max(others)
    assert {found[name] for name in LAST} == {0}
    assert min(v for k, v in found.items() if k not in LAST) > 0
    assert told == [(i, len(found)) for i in range(1, len(found) + 1)]


def test_a_cost_is_that_of_the_block_alone(poisoned: onnx.ModelProto) -> None:
    alone, steps, y = surgery.copy(poisoned), scales(poisoned), yardstick(poisoned)
    name = "encoder.blocks.0.attn"  # two nodes
    quantise(alone, units(poisoned)[name], steps, "tensorrt")
    assert costs(poisoned, steps, y)[name] == y.measure(alone).logits_rms


def test_what_is_not_a_number_is_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.small()
    y = yardstick(model, 1)
    values = iter([0.1, np.nan, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0])
    monkeypatch.setattr(y, "measure", lambda model: Measured(0, next(values), 0.0, 0.0))
    found = costs(model, scales(model), y)
    assert next(iter(found)) == list(units(model))[1]


def test_the_ladder_keeps_the_harmed_block_first_and_stops(poisoned: onnx.ModelProto) -> None:
    steps, y = scales(poisoned), yardstick(poisoned)
    order = list(costs(poisoned, steps, y))
    found = list(ladder(poisoned, steps, y, order, lambda m: m.logits_rms < 0.1))
    assert [r.kept for r in found] == [(), (BLOCK,)]
    assert [r.within for r in found] == [False, True]
    assert found[0].logits_rms > 0.2 > 0.1 > found[1].logits_rms
    assert [r.operations for r in found] == [found[0].of, found[0].of - 2]
    assert found[0].of == len(quantisable(poisoned))
    assert 1 > found[0].multiply_adds > found[1].multiply_adds > 0
    assert f"{BLOCK} in FP16" in str(found[1]) and "FP16" not in str(found[0])
    assert found[1].to_dict()["kept"] == [BLOCK]


def test_the_ladder_is_one_rung_where_all_is_well(poisoned: onnx.ModelProto) -> None:
    y = yardstick(poisoned)
    (rung,) = ladder(poisoned, scales(poisoned), y, list(units(poisoned)), lambda m: True)
    assert rung.kept == () and rung.within


def test_the_ladder_ends_with_everything_in_fp16(poisoned: onnx.ModelProto) -> None:
    steps, y = scales(poisoned), yardstick(poisoned)
    order = list(costs(poisoned, steps, y))
    found = list(ladder(poisoned, steps, y, order, lambda m: False))
    assert [len(r.kept) for r in found] == [0, 1, 2, 3, 4, 6, 8]
    assert all(r.kept == tuple(order[: len(r.kept)]) and not r.within for r in found)
    assert (found[-1].operations, found[-1].multiply_adds) == (0, 0)
    assert (found[-1].flips, found[-1].logits_rms, found[-1].probability) == (0, 0, 0)
    assert [r.operations for r in found] == sorted((r.operations for r in found), reverse=True)


def test_the_ladder_of_onnx_runtimes_form(poisoned: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured by its integer kernels, whose sums depart from exact arithmetic."""
    steps, y = scales(poisoned, "onnxruntime"), yardstick(poisoned)
    measure, arithmetic = y.measure, []

    def noted(model: onnx.ModelProto, *, exact: bool = True) -> Measured:
        arithmetic.append(exact)
        return measure(model, exact=exact)

    monkeypatch.setattr(y, "measure", noted)
    found = list(ladder(poisoned, steps, y, [BLOCK], lambda m: m.logits_rms < 0.1, "onnxruntime"))
    assert [r.kept for r in found] == [(), (BLOCK,)]
    assert found[1].within and found[0].logits_rms > 0.2
    assert arithmetic == [False, False]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8, 75, 200])
def test_steps_begin_with_none_and_end_with_all(n: int) -> None:
    found = list(_steps(n))
    assert found[0] == 0 and found[-1] == n
    assert found == sorted(set(found))
    assert len(found) < 25


@pytest.mark.parametrize(
    ("measured", "share", "within"),
    [
        (Measured(3, 0.01, 0.01, 0.0, 0.01), 0.5, True),
        (Measured(0, 0.001, 0.001, 0.0, 0.075), 1.5, False),
        (Measured(4, 0.0, 0.0, 0.0, 0.0), 0.0, False),
        (Measured(0, 0.0, np.nan, 0.0, 0.0), np.nan, False),
    ],
)
def test_the_nearest_bound_counts(measured: Measured, share: float, within: bool) -> None:
    bounds = BOUNDS["int8"]
    np.testing.assert_allclose(measured.share(bounds), share)
    assert measured.within(bounds) is within
