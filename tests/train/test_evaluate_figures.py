"""Figures of P10 counted by hand: operating points, groups, findings, severity beside a constant and a radiologist."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxrvit_edge.metrics import auc, bootstrap, cluster_bootstrap, delong, rates
from cxrvit_edge.model.config import CLASSES, FINDINGS
from train.data.record import Record
from train.diagnosis_eval import diagnosis, findings, thresholds
from train.evaluate import figures_of
from train.predict import Predictions
from train.severity_eval import brixia_scores, severity_figures, training_mean, zone_truth

NAN = float("nan")
DRAWS = 60


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=24))
def test_threshold_is_the_largest_that_reaches_80_per_cent(rows: list[tuple[bool, int]]) -> None:
    """By brute force over every threshold that could be meant."""
    positive = np.array([r[0] for r in rows])
    p = np.array([r[1] for r in rows]) / 7
    probabilities = np.stack([p, 1 - p, np.zeros_like(p)], 1)
    found = thresholds(np.where(positive, 0, 1), probabilities)["normal"]
    if not positive.any():
        assert np.isnan(found)
        assert np.isnan(rates(positive, p, found)).all()
        return
    reaching = [t for t in sorted(set(p)) if (p[positive] >= t).sum() * 5 >= 4 * positive.sum()]
    assert found == max(reaching)
    sensitivity, specificity, accuracy = rates(positive, p, found)
    assert sensitivity == (p[positive] >= found).mean() >= 0.8
    assert accuracy == np.mean([(v >= found) == y for v, y in zip(p, positive, strict=True)])
    assert np.isnan(specificity) if positive.all() else specificity == (p[~positive] < found).mean()


LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 0])
P = np.array(
    [
        [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25], [0.3, 0.4, 0.3],
        [0.1, 0.2, 0.7], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2], [0.45, 0.35, 0.2],
    ]
)  # fmt: skip
PATIENTS = ["a", "a", "b", "c", "d", "e", "f", "f", "g", "h"]


def test_diagnosis_has_both_intervals_and_both_thresholds() -> None:
    fixed = {"normal": 0.42, "other_infection": 0.3, "covid19": 0.55}
    found = diagnosis(LABELS, P, PATIENTS, fixed, draws=DRAWS)
    assert found["images"] == 10
    assert found["classes"] == {"normal": 4, "other_infection": 3, "covid19": 3}
    assert found["patients"] == 8
    own = thresholds(LABELS, P)
    for k, name in enumerate(CLASSES):
        positive = np.equal(LABELS, k)
        e = delong(positive, P[:, k])
        over = cluster_bootstrap(lambda i, k=k: auc(LABELS[i] == k, P[i, k]), PATIENTS, draws=DRAWS)  # type: ignore[misc]
        expected = (e.value, e.low, e.high, over.low, over.high)
        assert tuple(found["auc"][name].values()) == tuple(round(v, 4) for v in expected)
        for way, points in (("own", own), ("fixed", fixed)):
            at = found[way][name]
            assert at["threshold"] == pytest.approx(points[name], abs=5e-5)
            flagged = P[:, k] >= points[name]
            assert at["sensitivity"]["value"] == pytest.approx(flagged[positive].mean(), abs=5e-5)
            assert at["specificity"]["value"] == pytest.approx((~flagged[~positive]).mean(), abs=5e-5)
            assert at["accuracy"]["value"] == pytest.approx((flagged == positive).mean(), abs=5e-5)
        assert found["own"][name]["sensitivity"]["value"] >= 0.8
    for way in ("own", "fixed"):
        mean = np.mean([found[way][name]["accuracy"]["value"] for name in CLASSES])
        assert found[way]["mean"]["accuracy"]["value"] == pytest.approx(mean, abs=1e-4)
    mean = np.mean([found["auc"][name]["value"] for name in CLASSES])
    assert found["auc"]["mean"]["value"] == pytest.approx(mean, abs=1e-4)
    assert diagnosis(LABELS, P, PATIENTS, None, draws=DRAWS)["fixed"] is None


def test_one_bootstrap_serves_many_figures() -> None:
    """Bounds equal those of a bootstrap of each figure alone; one that most draws leave undefined has none."""
    x = np.arange(10.0)
    found = bootstrap(lambda i: {"mean": x[i].mean(), "rare": 1.0 if len(set(i)) == 10 else NAN}, PATIENTS, draws=DRAWS)
    alone = cluster_bootstrap(lambda i: float(x[i].mean()), PATIENTS, draws=DRAWS)
    assert astuple(found["mean"]) == pytest.approx(astuple(alone))
    assert found["rare"].value == 1.0
    assert np.isnan(found["rare"].low)


def test_findings_leave_out_what_is_not_known() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (10, 10)).astype(np.float32)
    truth[:4, 3] = NAN
    truth[:, 7] = NAN
    truth[:, 8] = 1
    logits = rng.normal(size=(10, 10)).astype(np.float32)
    found = findings(truth, logits, PATIENTS, draws=DRAWS)
    assert found[FINDINGS[3]]["positive"] + found[FINDINGS[3]]["negative"] == 6
    assert found[FINDINGS[3]]["value"] == pytest.approx(auc(truth[4:, 3] == 1, logits[4:, 3]), abs=5e-5)
    assert found[FINDINGS[7]] == {"positive": 0, "negative": 0}
    assert found[FINDINGS[8]] == {"positive": 10, "negative": 0}
    defined = [k for k in range(10) if k not in (7, 8)]
    assert found["mean"]["over"] == [FINDINGS[k] for k in defined]
    each = [auc(truth[np.isfinite(truth[:, k]), k] == 1, logits[np.isfinite(truth[:, k]), k]) for k in defined]
    assert found["mean"]["value"] == pytest.approx(np.mean(each), abs=5e-5)
    nothing = findings(np.full((2, 10), NAN, np.float32), logits[:2], ["a", "b"], draws=DRAWS)
    assert nothing["mean"]["value"] is None


def scored(n: int, **values: object) -> Record:
    return Record(Path(f"{n}.png"), "s", f"p{n}", "test", **values)  # type: ignore[arg-type]


def zones(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(3, 2)


def test_zones_scored_as_such_win_over_brixia() -> None:
    records = [
        scored(0, brixia=zones(0, 1, 2, 3, 0, 0)),
        scored(1, brixia=zones(3, 3, 3, 3, 3, 3), zones=zones(0, 0, 0, 0, 0, 1)),
        scored(2, brixia=zones(3, 3, 3, 3, 3, 3), zones=zones(0, NAN, NAN, NAN, NAN, NAN)),
        scored(3, zones=zones(1, NAN, 0, 0, 0, 0)),
        scored(4),
    ]
    np.testing.assert_array_equal(brixia_scores(records), [3, 1, 5, NAN, NAN])
    np.testing.assert_array_equal(brixia_scores(records, 2.0), [2, 1, 5, NAN, NAN])
    assert np.isnan(zone_truth(records)[3]).sum() == 1


def test_severity_beside_the_training_mean_and_the_second_radiologist() -> None:
    rng = np.random.default_rng(3)
    n = 9
    first, second = (rng.integers(0, 4, (n, 3, 2)).astype(np.float32) for _ in range(2))
    records = [scored(i, brixia=first[i], second_brixia=second[i] if i < 7 else None) for i in range(n)]
    said = rng.random((n, 3, 2)).astype(np.float32)
    said[8] = NAN  # no lungs found
    p = Predictions(records, np.zeros((n, 3), np.float32), said, np.full(n, NAN, np.float32))
    train = [replace(r, split="train") for r in records[:2]]
    constant = training_mean([*records, *train])
    assert constant == np.mean([(first[i] >= 1).sum() for i in (0, 1)])
    assert np.isnan(training_mean(records))
    found = severity_figures(p, 1.0, constant, draws=DRAWS)
    t, s = (first[:8] >= 1).sum((1, 2)).astype(float), said[:8].sum((1, 2)).astype(float)
    assert (found["images"], found["no_lungs"]) == (8, 1)
    assert found["mse"]["value"] == pytest.approx(((t - s) ** 2).mean(), abs=5e-5)
    assert found["mae"]["value"] == pytest.approx(np.abs(t - s).mean(), abs=5e-5)
    assert found["cc"]["value"] == pytest.approx(np.corrcoef(t, s)[0, 1], abs=5e-5)
    assert found["r2"]["value"] == pytest.approx(1 - ((t - s) ** 2).sum() / ((t - t.mean()) ** 2).sum(), abs=5e-5)
    assert found["constant"]["score"] == pytest.approx(constant)
    assert found["constant"]["mse"]["value"] == pytest.approx(((t - constant) ** 2).mean(), abs=5e-5)
    gain = ((t - constant) ** 2).mean() - ((t - s) ** 2).mean()
    assert found["constant"]["gain"]["value"] == pytest.approx(gain, abs=5e-5)
    truth = (first[:8] >= 1).ravel()
    pairs = [
        (a > b) + (a == b) / 2 for a in said[:8].ravel()[truth] for b in said[:8].ravel()[~truth]
    ]  # of a zone that is affected and one that is not
    assert found["zone_auc"]["value"] == pytest.approx(np.mean(pairs), abs=5e-5)
    both = found["radiologists"]
    a, b = (first[:7] >= 1).sum((1, 2)), (second[:7] >= 1).sum((1, 2))
    assert both["images"] == 7
    assert both["second_against_first"]["mse"]["value"] == pytest.approx(((a - b) ** 2).mean(), abs=5e-5)
    assert both["network_against_first"]["mse"]["value"] == pytest.approx(((t - s)[:7] ** 2).mean(), abs=5e-5)
    assert both["excess_mse"]["value"] == pytest.approx(((t - s)[:7] ** 2).mean() - ((a - b) ** 2).mean(), abs=1e-4)
    assert severity_figures(p, 1.0, draws=DRAWS)["constant"]["score"] is None


@settings(max_examples=15, deadline=None)
@given(arrays(np.int64, 12, elements=st.integers(-1, 2)), st.integers(0, 3))
def test_json_has_no_nan_whatever_is_missing(labels: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = [
        Record(
            Path(f"{i}.png"), f"s{i % 3}", f"p{i // 2}", "test", view=("PA", "AP", "AP Supine")[i % 3],
            label=None if y < 0 else int(y), brixia=zones(*rng.integers(0, 4, 6)) if rng.random() < 0.3 else None,
            lungs_kind="v7" if i % 4 == 0 else None,
        )
        for i, y in enumerate(labels)
    ]  # fmt: skip
    said = rng.random((12, 3, 2)).astype(np.float32)
    said[rng.random(12) < 0.3] = NAN
    dice = np.where(np.arange(12) % 4 == 0, 0.5, NAN).astype(np.float32)
    p = Predictions(records, rng.normal(size=(12, 3)).astype(np.float32), said, dice, np.zeros((12, 10), np.float32))
    found = figures_of(p, ("diagnosis", "severity", "lungs", "findings"), draws=8)
    json.dumps(found, allow_nan=False)
    assert set(found["groups"]["view"]) == {"PA", "AP", "AP Supine", "AP, all"}
    assert found["groups"]["view"]["AP, all"]["images"] == 8
    assert found["groups"]["source"]["s0"]["images"] == 4
    assert found["groups"]["source and view"]["s1, AP"]["images"] == 4
    assert found["lung_dice"]["v7"] == {"images": 3, "value": 0.5, "low": 0.5, "high": 0.5}
