"""The choice of estimator, migration and blocks: what was tried is on record, and the best of it is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import quant_graphs as small

from cxrvit_edge.errors import UsageError
from export import surgery
from export.parity import Bounds
from export.quantise import FLOAT_NODES, quantisable, quantise, tensors, weighted_nodes
from export.ranges import ESTIMATORS
from export.recipe import FINALISTS, PERCENTILES, Candidate, Int8Options, Recipe, _spread, candidates, choose
from export.sensitivity import units

LOOSE = Bounds(100, 1.0, 1.0, 6.0)
NEVER = Bounds(-1, -1, -1, -1)
FC = "encoder.blocks.0.fc"
FORMS = ("tensorrt", "onnxruntime")


def chosen(model: onnx.ModelProto, **options: Any) -> tuple[Recipe, list[str]]:
    said: list[str] = []
    options = {"bounds": LOOSE, "search_images": 4, "sensitivity_images": 0, **options}
    made = choose(
        model, small.images(5), small.images(9, seed=4), 1.3, small.POINTS, Int8Options(**options), said.append
    )
    json.dumps(made.record, allow_nan=False)
    return made, said


def figures(tried: Mapping[str, Any], on: str) -> dict[str, tuple[int, float]]:
    return {name: (t[on]["flips"], t[on]["logits_rms"]) for name, t in tried.items() if on in t}


@pytest.fixture(scope="module")
def auto() -> tuple[Recipe, list[str]]:
    return chosen(small.small())


def test_candidates() -> None:
    every = list(candidates(Int8Options()))
    assert len(every) == len(set(every)) == 2 * (len(ESTIMATORS) - 1 + len(PERCENTILES))
    assert {c.smooth for c in every} == {0.0, 0.5}
    assert {c.percentile for c in every if c.estimator == "percentile"} == set(PERCENTILES)
    assert len({str(c) for c in every}) == len(every), "each has words of its own in the record"
    assert list(candidates(Int8Options(estimator="mse", smooth=0.25))) == [Candidate("mse", 99.999, 0.25)]
    own = list(candidates(Int8Options(estimator="percentile", percentile=99.5)))
    assert [str(c) for c in own] == ["percentile 99.5", "percentile 99.5, smoothing 0.5"]


def test_everything_tried_is_on_record(auto: tuple[Recipe, list[str]]) -> None:
    record, said = auto[0].record, auto[1]
    names = {f"tensorrt, {c}" for c in candidates(Int8Options())}
    tried = record["tried"]
    assert {n for n in tried if n.startswith("tensorrt")} == names
    for form in FORMS:
        mine = {k: v for k, v in tried.items() if k.startswith(form)}
        assert all(set(v["some"]) == {"flips", "logits_rms", "probability"} for v in mine.values())
        assert len(figures(mine, "all of val")) == FINALISTS
        for name in mine:
            assert any(line.startswith(f"{name}, some: ") for line in said)
    assert (record["search_images"], record["finalist_images"]) == (4, 9)


@pytest.fixture(scope="module", params=[0, 100])
def allowed(request: pytest.FixtureRequest, auto: tuple[Recipe, list[str]]) -> tuple[int, dict[str, Any]]:
    """Flips allowed, and the record then."""
    n: int = request.param
    return n, auto[0].record if n == LOOSE.flips else chosen(small.small(), bounds=replace(LOOSE, flips=n))[0].record


@pytest.mark.parametrize("form", FORMS)
def test_the_least_rms_of_those_within_the_flips(form: str, allowed: tuple[int, dict[str, Any]]) -> None:
    most, record = allowed
    mine = {k: v for k, v in record["tried"].items() if k.startswith(form)}
    some, whole = (
        {name: (max(0, flips - most), rms) for name, (flips, rms) in figures(mine, on).items()}
        for on in ("some", "all of val")
    )
    assert len(set(some.values())) > 3, "they differ"
    assert sorted(some[name] for name in whole) == sorted(some.values())[:FINALISTS]
    assert whole[f"{form}, {record['range'][form]}"] == min(whole.values())


def test_both_forms_share_weights_and_migration(auto: tuple[Recipe, list[str]]) -> None:
    words = auto[0].record["range"]
    assert ("smoothing" in words["tensorrt"]) == ("smoothing" in words["onnxruntime"])
    assert {k.partition(", smoothing")[1] for k in auto[0].record["tried"] if k.startswith("onnxruntime")} == {
        words["tensorrt"].partition(", smoothing")[1]
    }


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_a_recipe_can_be_followed(smooth: float) -> None:
    made, _ = chosen(small.small(), smooth=smooth, estimator="mse")
    assert made.nodes == {w.node for w in quantisable(made.model)}
    record = made.record
    assert record["int8_operations"] == len(made.nodes) == record["operations"] - len(FLOAT_NODES)
    assert sorted(record["fp16_nodes"]) == sorted(FLOAT_NODES)
    assert 0.5 < record["int8_multiply_adds"] < 1
    image = np.concatenate(small.images(2, seed=6))
    float_ = small.run(small.small(), image)
    for a, b in zip(float_, small.run(made.model, image), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for form in made.scales:
        assert set(made.scales[form]) >= set(tensors(made.model, form))
        graph = surgery.copy(made.model)
        quantise(graph, made.nodes, made.scales[form], form)
        onnx.checker.check_model(graph, full_check=True)
        assert 0 < np.abs(small.run(graph, image)[0] - float_[0]).max() < 0.5


def test_costs_are_measured_if_asked_for_or_needed() -> None:
    options: dict[str, Any] = {"estimator": "minmax", "smooth": 0.0}
    spared, _ = chosen(small.small(), **options)
    assert spared.record["costs"] == {} and [r["within"] for r in spared.record["ladder"]] == [True, True]
    asked, said = chosen(small.small(), sensitivity_images=2, **options)
    assert set(asked.record["costs"]) == set(units(small.small()))
    assert any("of its nearest bound" in line and "transition1" in line for line in said)
    assert asked.nodes == spared.nodes
    needed, _ = chosen(small.small(), bounds=replace(LOOSE, logits_rms=0.01), **options)
    assert set(needed.record["costs"]) == set(units(small.small()))


@pytest.fixture
def poisoned() -> onnx.ModelProto:
    """The MLP's first weights have a column that no scale per output can hold beside the others."""
    model = small.small()
    small.poison(model, "encoder.blocks.0.norm2", f"{FC}1.weight", 3, 1e3)
    return model


def test_the_harmed_block_stays_in_fp16(poisoned: onnx.ModelProto) -> None:
    tight = replace(LOOSE, logits_rms=0.15)
    made, said = chosen(poisoned, estimator="minmax", smooth=0.0, bounds=tight, sensitivity_images=4)
    assert next(iter(made.record["costs"])) == FC
    first = [r for r in made.record["ladder"] if r["form"] == "tensorrt"]
    assert [r["kept"] for r in first] == [[], [FC]]
    assert [r["within"] for r in first] == [False, True]
    assert made.nodes == {w.node for w in quantisable(poisoned)} - {f"{FC}1", f"{FC}2"}
    assert set(made.record["fp16_nodes"]) == {*FLOAT_NODES, f"{FC}1", f"{FC}2"}
    assert any(f"{FC} in FP16" in line for line in said)


def test_migration_heals_it_instead(poisoned: onnx.ModelProto) -> None:
    tight = replace(LOOSE, logits_rms=0.15)
    made, _ = chosen(poisoned, estimator="minmax", bounds=tight)
    assert set(made.record["range"].values()) == {"minmax, smoothing 0.5"}
    assert made.nodes == {w.node for w in quantisable(poisoned)}
    rms = {name: t["some"]["logits_rms"] for name, t in made.record["tried"].items()}
    assert rms["tensorrt, minmax, smoothing 0.5"] < 0.3 * rms["tensorrt, minmax"]


def test_a_matrix_that_stays_in_fp16_keeps_its_weight() -> None:
    """The other norm's migration stays."""
    model = small.small()
    name = "encoder.blocks.0.fc2.weight"  # reads a GELU: no migration can help it
    harmed = surgery.weights(model)[name].copy()
    harmed[:, 0] = 3e4
    surgery.set_weight(model, name, harmed)
    bias = surgery.weights(model)["encoder.blocks.0.fc1.bias"].copy()
    bias[0] = -30  # and what it would multiply is 0
    surgery.set_weight(model, "encoder.blocks.0.fc1.bias", bias)
    tight = replace(LOOSE, logits_rms=0.2)
    made, _ = chosen(model, estimator="minmax", smooth=0.5, bounds=tight, sensitivity_images=4)
    assert [r["kept"] for r in made.record["ladder"]][:2] == [[], [FC]]
    old, new = surgery.weights(model), surgery.weights(made.model)
    assert new[f"{FC}1.weight"].tobytes() == old[f"{FC}1.weight"].tobytes()
    assert not np.array_equal(new["encoder.blocks.0.attn.qkv.weight"], old["encoder.blocks.0.attn.qkv.weight"])
    image = small.images(1, seed=6)[0]
    for a, b in zip(small.run(model, image), small.run(made.model, image), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_bounds_that_nothing_meets_leave_everything_in_fp16(smooth: float) -> None:
    model = small.small()
    made, _ = chosen(model, estimator="minmax", smooth=smooth, bounds=NEVER)
    assert made.nodes == frozenset()
    assert not any(r["within"] for r in made.record["ladder"])
    assert made.record["ladder"][-1]["operations"] == made.record["int8_operations"] == 0
    assert made.record["fp16_nodes"] == [w.node for w in weighted_nodes(model)]
    assert made.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_the_graph_given_is_not_changed(poisoned: onnx.ModelProto) -> None:
    before = poisoned.SerializeToString(deterministic=True)
    chosen(poisoned, estimator="minmax")
    assert poisoned.SerializeToString(deterministic=True) == before


def test_an_image_that_overflows_is_refused() -> None:
    bad = small.images(1)
    bad[0][0, 0, 0, 0] = np.inf
    with pytest.raises(UsageError, match="not finite on a calibration image"):
        choose(small.small(), bad, small.images(2), 1.0, small.POINTS, Int8Options(), lambda _: None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"estimator": "histogram"}, "--range histogram: choose auto, minmax, entropy, percentile, mse"),
        ({"smooth": 1.0}, "--smooth 1.0: "),
        ({"smooth": -0.1}, "--smooth -0.1: "),
        ({"smooth": float("nan")}, "--smooth nan: "),
        ({"percentile": 50}, "--percentile 50: "),
        ({"percentile": 100.1}, "--percentile 100.1: "),
        ({"percentile": float("nan")}, "--percentile nan: "),
        ({"search_images": 0}, "--search-images must be at least 1"),
        ({"sensitivity_images": -1}, "--sensitivity-images at least 0"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as failed:
        Int8Options(**options)
    assert named in str(failed.value)


def test_images_are_spread_over_the_list() -> None:
    images = [np.full((1, 1, 1, 1), i, np.float32) for i in range(10)]
    assert [int(i.item()) for i in _spread(images, 4)] == [0, 2, 5, 7]
    assert _spread(images, 10) == _spread(images, 99) == images
