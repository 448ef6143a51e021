"""Outputs of a network to what a person reads: probabilities, flags, zones, priority, and the way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cxrvit_edge.bundle import Bundle, Manifest
from cxrvit_edge.decision import SENSITIVITIES, USUAL, Rule
from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.findings import SCHEMA, Finding, Severity, check_lungs, judge
from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.radiograph import View
from cxrvit_edge.runtime.session import Float32, Outputs, joined

CLASSES = ("normal", "other_infection", "covid19")
SIDE = 96
WHOLE = Geometry.fit(2 * SIDE, 2 * SIDE, 2 * SIDE, "pad")


def make_bundle(**changes: Any) -> Bundle:
    graphs = sorted(set(changes.get("views", {"any": "shared"}).values()))
    raw = {
        "schema": 1,
        "name": "test",
        "classes": list(CLASSES),
        "preprocessing": {"size": 2 * SIDE},
        "operating_points": {"normal": 0.5, "other_infection": 0.4, "covid19": 0.3},
        "temperature": 1.0,
        "views": {"any": "shared"},
        "weights": dict.fromkeys(graphs, "w"),
        "variants": {},
        "files": {"w": "0", "golden": "0"},
        "guard": {"least_lungs": 0.05, "least_confidence": 0.7},
        "golden_inputs": "golden",
        "intended_use": "tests",
        "priority": {
            "flagged": ["covid19", "other_infection"],
            "urgent_score": 3.0,
            "order": ["urgent", "review", "elevated", "routine"],
        },
        **changes,
    }
    return Bundle(Path("nowhere"), Manifest.from_dict(raw, "test"), "0" * 64)


BUNDLE = make_bundle()
TWO_VIEWS = make_bundle(views={"PA": "upright", "AP": "supine"})


def lungs(inside: float = 0.9) -> Float32:
    """(2, S, S): two upright boxes, 36 rows each, of different heights on the film."""
    mask = np.full((2, SIDE, SIDE), 0.01, np.float32)
    mask[0, 12:48, 10:40] = inside
    mask[1, 24:60, 56:86] = inside
    return mask


def outputs(
    probabilities: tuple[float, float, float] = (0.2, 0.3, 0.5), level: float = 0.0, mask: Float32 | None = None
) -> Outputs:
    """A batch of one; the severity map is `level` everywhere."""
    mask = lungs() if mask is None else mask
    logits = np.log(np.array([probabilities], np.float64)).astype(np.float32)
    return Outputs(logits, np.full((1, 1, SIDE, SIDE), level, np.float32), mask[None])


def put(values: Outputs, name: str, where: tuple[int, ...], value: float) -> Outputs:
    changed = getattr(values, name).copy()
    changed[where] = value
    return values._replace(**{name: changed})


@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=3),
    temperature=st.floats(0.25, 8.0),
    points=st.lists(st.integers(0, 10**6), min_size=3, max_size=3),
)
def test_probabilities_label_and_flags_agree(logits: list[float], temperature: float, points: list[int]) -> None:
    thresholds = dict(zip(CLASSES, (p / 1e6 for p in points), strict=True))
    bundle = make_bundle(temperature=temperature, operating_points=thresholds)
    out = outputs()._replace(logits=np.array([logits], np.float32))
    found = judge(out, 0, bundle, "PA", WHOLE)
    p = np.array([found.probabilities[name] for name in CLASSES])
    assert abs(p.sum() - 1) <= 1.5e-6 + 1e-12  # each is rounded to six digits
    assert ((p >= 0) & (p <= 1)).all()
    scaled = np.array(logits) / temperature
    np.testing.assert_allclose(p, np.exp(scaled - np.logaddexp.reduce(scaled)), rtol=0, atol=5.1e-7)
    assert found.probabilities[found.label] == p.max()
    assert logits[CLASSES.index(found.label)] >= max(logits) - 1e-9
    assert found.flags == {name: found.probabilities[name] >= thresholds[name] for name in CLASSES}


def test_temperature_softens_and_keeps_the_label() -> None:
    hot, plain = (judge(outputs(), 0, make_bundle(temperature=t), "PA", WHOLE) for t in (4.0, 1.0))
    assert plain.probabilities == {"normal": 0.2, "other_infection": 0.3, "covid19": 0.5}
    assert hot.label == plain.label == "covid19"
    assert 1 / 3 < hot.probabilities["covid19"] < 0.42


@pytest.mark.parametrize(("threshold", "flagged"), [(0.5, True), (0.500001, False), (0.499999, True)])
def test_a_flag_is_raised_at_its_threshold(threshold: float, flagged: bool) -> None:
    bundle = make_bundle(operating_points={"normal": 0.9, "other_infection": 0.9, "covid19": threshold})
    out = outputs()._replace(logits=np.array([[0.0, -60.0, 0.0]], np.float32))
    assert judge(out, 0, bundle, "PA", WHOLE).flags["covid19"] is flagged


def test_the_row_that_is_asked_for_is_judged() -> None:
    first, second = outputs((0.8, 0.1, 0.1), 0.2), outputs((0.1, 0.1, 0.8), 0.9)
    both = joined([first, second])
    assert judge(both, 0, BUNDLE, "PA", WHOLE) == judge(first, 0, BUNDLE, "PA", WHOLE)
    assert judge(both, 1, BUNDLE, "PA", WHOLE) == judge(second, 0, BUNDLE, "PA", WHOLE)


COVID, OTHER, NORMAL = (0.3, 0.3, 0.4), (0.45, 0.45, 0.1), (0.8, 0.1, 0.1)
ALONE = np.concatenate([lungs()[:1], np.zeros((1, SIDE, SIDE), np.float32)])  # one lung: no zones


@pytest.mark.parametrize(
    ("probabilities", "level", "mask", "bundle", "view", "priority"),
    [
        (COVID, 0.5, None, BUNDLE, "PA", "urgent"),  # a score of exactly 3
        (COVID, 0.51, None, BUNDLE, "unknown", "urgent"),
        (COVID, 0.4999, None, BUNDLE, "PA", "elevated"),
        (OTHER, 0.9, None, BUNDLE, "AP", "urgent"),
        (OTHER, 0.1, None, BUNDLE, "AP", "elevated"),
        (NORMAL, 0.9, None, BUNDLE, "PA", "routine"),  # normal is flagged too, and raises nothing
        (NORMAL, 0.0, None, BUNDLE, "unknown", "routine"),
        (COVID, 0.9, ALONE, BUNDLE, "PA", "review"),
        (NORMAL, 0.0, ALONE, BUNDLE, "PA", "review"),
        (COVID, 0.9, None, TWO_VIEWS, "unknown", "review"),
        (NORMAL, 0.0, None, TWO_VIEWS, "unknown", "review"),
        (COVID, 0.9, None, TWO_VIEWS, "PA", "urgent"),
        (COVID, 0.1, None, TWO_VIEWS, "AP", "elevated"),
        (NORMAL, 0.9, None, TWO_VIEWS, "AP", "routine"),
    ],
)
def test_priority_table(
    probabilities: tuple[float, float, float],
    level: float,
    mask: Float32 | None,
    bundle: Bundle,
    view: View,
    priority: str,
) -> None:
    found = judge(outputs(probabilities, level, mask), 0, bundle, view, WHOLE)
    assert found.priority == priority
    assert found.priority in bundle.manifest.priority.order


def test_priority_is_the_bundles_table() -> None:
    table = {"flagged": ["other_infection"], "urgent_score": 1.2, "order": ["urgent", "elevated", "routine", "review"]}
    bundle = make_bundle(priority=table)
    assert judge(outputs(COVID, 0.9), 0, bundle, "PA", WHOLE).priority == "routine"
    assert judge(outputs(OTHER, 0.2), 0, bundle, "PA", WHOLE).priority == "urgent"


SETS = {"method": "lac", "alpha": 0.1, "threshold": 0.7, "images": 99}  # a class is possible from 0.3 on
BOTH = make_bundle(sensitive_points={"normal": 0.2, "other_infection": 0.1, "covid19": 0.05}, selective=SETS)


@pytest.mark.parametrize(
    ("probabilities", "rule", "flagged", "possible", "priority"),
    [
        ((0.93, 0.04, 0.03), USUAL, ["normal"], ["normal"], "routine"),
        ((0.93, 0.04, 0.03), Rule(95, True), ["normal"], ["normal"], "routine"),
        ((0.79, 0.12, 0.09), USUAL, ["normal"], ["normal"], "routine"),
        ((0.79, 0.12, 0.09), Rule(95), ["normal", "other_infection", "covid19"], ["normal"], "urgent"),
        ((0.5, 0.38, 0.12), USUAL, ["normal"], ["normal", "other_infection"], "routine"),
        (
            (0.5, 0.38, 0.12),
            Rule(95),
            ["normal", "other_infection", "covid19"],
            ["normal", "other_infection"],
            "urgent",
        ),
        ((0.5, 0.38, 0.12), Rule(80, True), ["normal"], ["normal", "other_infection"], "review"),
        ((0.05, 0.3, 0.65), Rule(80, True), ["covid19"], ["other_infection", "covid19"], "review"),
        ((0.05, 0.299999, 0.650001), Rule(80, True), ["covid19"], ["covid19"], "urgent"),
    ],
)
def test_a_rule_makes_flags_and_priority_and_the_set_is_the_same(
    probabilities: tuple[float, float, float], rule: Rule, flagged: list[str], possible: list[str], priority: str
) -> None:
    found = judge(outputs(probabilities, level=0.9), 0, BOTH, "PA", WHOLE, rule=rule)
    assert [name for name, on in found.flags.items() if on] == flagged
    assert found.prediction_set == tuple(possible)
    assert found.priority == priority


def test_without_a_likely_class_every_class_is_possible() -> None:
    strict = make_bundle(selective={**SETS, "threshold": 0.2})
    found = judge(outputs((0.5, 0.38, 0.12)), 0, strict, "PA", WHOLE, rule=Rule(80, True))
    assert (found.prediction_set, found.priority) == (CLASSES, "review")


def test_a_bundle_without_sets_says_nothing_of_them() -> None:
    assert judge(outputs(), 0, BUNDLE, "PA", WHOLE).prediction_set is None
    assert (BUNDLE.manifest.sensitive_points, BUNDLE.manifest.selective) == (None, None)


def test_zones_are_where_the_map_is_high() -> None:
    """Lungs of 36 rows: upper to row 15, middle to 24; the image-right lung begins twelve rows lower."""
    out = outputs(level=0.125)
    for row, column, value in ((12, 10, 0.25), (47, 39, 0.75), (24 + 15, 60, 0.5), (5, 5, 1.0), (13, 60, 1.0)):
        out.severity_map[0, 0, row, column] = value
    found = judge(out, 0, BUNDLE, "PA", WHOLE).severity
    assert found.zones == ((0.25, 0.125), (0.125, 0.5), (0.75, 0.125))
    assert found.score == 1.875


def test_without_both_lungs_there_is_no_score() -> None:
    assert judge(outputs(mask=ALONE), 0, BUNDLE, "PA", WHOLE).severity == Severity(None, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "where"), [("logits", (0, 1)), ("severity_map", (0, 0, 90, 90)), ("lung_mask", (0, 1, 0, 95))]
)
def test_what_is_not_finite_is_not_judged(name: str, where: tuple[int, ...], value: float) -> None:
    with pytest.raises(InputError, match="not finite") as caught:
        judge(put(outputs(), name, where, value), 0, BUNDLE, "PA", WHOLE)
    assert caught.value.reason is Reason.NOT_FINITE
    assert caught.value.reason.status == "failed"


@pytest.mark.parametrize("mask", [np.zeros((2, SIDE, SIDE), np.float32), lungs(0.49), lungs(0.69)])
def test_no_lungs_or_faint_ones_are_no_chest(mask: Float32) -> None:
    with pytest.raises(InputError, match="no lungs found") as caught:
        judge(outputs(mask=mask), 0, BUNDLE, "PA", WHOLE)
    assert caught.value.reason is Reason.NOT_A_CHEST
    assert caught.value.reason.status == "rejected"


def test_bounds_of_the_guard_themselves_pass() -> None:
    mask = lungs(0.75)
    area = float((mask >= 0.5).any(0).mean())
    check_lungs(mask, make_bundle(guard={"least_lungs": area, "least_confidence": 0.75}), WHOLE)
    for guard in (
        {"least_lungs": area + 1e-6, "least_confidence": 0.75},
        {"least_lungs": area, "least_confidence": 0.7501},
    ):
        with pytest.raises(InputError):
            check_lungs(mask, make_bundle(guard=guard), WHOLE)


def test_area_is_a_share_of_the_radiograph_not_of_its_padding() -> None:
    """The same lungs on a film twice as wide as high fill twice the share of it."""
    mask = np.zeros((2, SIDE, SIDE), np.float32)
    mask[0, 40:56, 20:36] = mask[1, 40:56, 60:76] = 0.9
    share = 2 * 16 * 16 / SIDE**2
    bundle = make_bundle(guard={"least_lungs": 1.5 * share, "least_confidence": 0.5})
    check_lungs(mask, bundle, Geometry.fit(100, 200, 2 * SIDE, "pad"))
    with pytest.raises(InputError):
        check_lungs(mask, bundle, Geometry.fit(200, 200, 2 * SIDE, "pad"))


text = st.text(st.characters(codec=None), max_size=12)  # surrogates too: names that are no UTF-8
unit = st.floats(0, 1).map(lambda v: round(v, 6))
zones = st.lists(st.tuples(unit, unit), min_size=3, max_size=3).map(tuple)
severities = st.just(Severity()) | st.builds(Severity, unit, zones) | st.none()
findings = st.builds(
    Finding,
    file=text,
    status=st.sampled_from(["ok", "rejected", "failed"]),
    sha256=st.none() | text,
    size=st.none() | st.integers(0, 2**50),
    mtime_ns=st.none() | st.integers(0, 2**63),
    reason=st.none() | st.fixed_dictionaries({"code": text, "message": text}),
    warnings=st.lists(text, max_size=3).map(tuple),
    view=st.sampled_from(["PA", "AP", "lateral", "unknown"]),
    probabilities=st.none() | st.dictionaries(st.sampled_from(CLASSES), unit),
    label=st.none() | st.sampled_from(CLASSES),
    flags=st.none() | st.dictionaries(st.sampled_from(CLASSES), st.booleans()),
    prediction_set=st.none() | st.lists(st.sampled_from(CLASSES), unique=True).map(tuple),
    severity=severities,
    priority=st.sampled_from(["urgent", "review", "elevated", "routine"]),
    timings_ms=st.dictionaries(text, unit),
    bundle=text,
    backend=text,
    precision=text,
    sensitivity=st.sampled_from(SENSITIVITIES),
    selective=st.booleans(),
)


@given(findings)
def test_a_finding_survives_json(finding: Finding) -> None:
    line = json.dumps(finding.to_dict())
    assert "\n" not in line
    assert line.isascii()
    assert Finding.from_dict(json.loads(line)) == finding


def test_a_line_has_the_contracts_fields() -> None:
    found = judge(outputs(level=0.5), 0, BUNDLE, "PA", WHOLE)
    finding = replace(Finding("a.png", "ok", view="PA"), **vars(found))
    line = finding.to_dict()
    assert list(line) == [
        "schema", "file", "status", "sha256", "size", "mtime_ns", "reason", "warnings", "view", "probabilities",
        "label", "flags", "prediction_set", "severity", "priority", "ood", "timings_ms", "bundle", "backend",
        "precision", "sensitivity", "selective",
    ]  # fmt: skip
    assert json.loads(json.dumps(line))["severity"] == {"score": 3.0, "zones": [[0.5, 0.5]] * 3}
    assert json.loads(json.dumps(Finding("b.png", "failed").to_dict()))["severity"] is None


def test_fields_of_a_later_version_are_passed_over() -> None:
    line = {**Finding("a.png", "failed").to_dict(), "uncertainty": 0.1}
    assert Finding.from_dict(line) == Finding("a.png", "failed")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"schema": SCHEMA + 1, "file": "a", "status": "ok"},
        {"schema": SCHEMA, "file": "a"},
        {"schema": SCHEMA, "status": "ok"},
        {"schema": SCHEMA, "file": "a", "status": "ok", "severity": 3},
        {"schema": SCHEMA, "file": "a", "status": "ok", "severity": {"score": 3}},
        {"schema": SCHEMA, "file": "a", "status": "ok", "severity": {"score": 3, "zones": [1, 2]}},
        {"schema": SCHEMA, "file": "a", "status": "ok", "warnings": 3},
        {"schema": SCHEMA, "file": "a", "status": "ok", "prediction_set": "normal"},
    ],
    ids=str,
)
def test_a_line_that_is_none_of_ours(line: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schema|no finding"):
        Finding.from_dict(line)


@given(st.floats(0, 1), st.floats(0, 1))
def test_score_is_the_sum_of_the_zones_that_are_shown(a: float, b: float) -> None:
    assume(a != b)
    out = outputs()
    out.severity_map[0, 0, :, : SIDE // 2], out.severity_map[0, 0, :, SIDE // 2 :] = a, b
    found = judge(out, 0, BUNDLE, "PA", WHOLE).severity
    assert found.zones is not None
    assert found.score == pytest.approx(sum(map(sum, found.zones)), abs=1e-9)
    assert found.score == pytest.approx(3 * a + 3 * b, abs=6 * 5.1e-5)
