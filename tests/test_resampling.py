"""Figures of weighted images against the plain ones on the images drawn: the very draws, the very bounds."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrvit_edge import metrics, resampling
from cxrvit_edge.calibration_metrics import brier, ece
from cxrvit_edge.metrics import Index, auc, cluster_bootstrap, rates, severity, softmax, threshold_at_sensitivity
from cxrvit_edge.resampling import Auc, Float, Rates, RatesAtSensitivity, agreement, calibration, resamples

DRAWS = 25
# (patient, label, three scores of few levels, radiologist's score)
films = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2), *[st.integers(0, 4)] * 3, st.integers(0, 6)),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60)
@given(films, st.integers(0, 3), st.sampled_from([1, 7, 1 << 20]))
def test_weighted_figures_equal_those_of_the_images_drawn(sample: list[tuple[int, ...]], seed: int, block: int) -> None:
    patients = [str(s[0]) for s in sample]
    labels = np.array([s[1] for s in sample])
    p = softmax(np.array([s[2:5] for s in sample], float))
    truth, score = np.array([s[5] for s in sample], float), np.array([s[2] for s in sample]) * 1.5

    def slow(i: Index) -> dict[str, float]:
        y, q = labels[i], p[i]
        found = {"brier": brier(y, q), "ece": ece(y, q)}
        for k in range(3):
            own = threshold_at_sensitivity(y == k, q[:, k], 0.8)
            found[f"auc {k}"] = auc(y == k, q[:, k])
            for way, threshold in (("fixed", 0.4), ("own", own)):
                at = rates(y == k, q[:, k], threshold)
                found |= {f"{way} {k} {rate}": v for rate, v in zip(metrics.RATES, at, strict=True)}
        found |= {**vars(severity(truth[i], score[i]))}
        return {**found, "bias": float((score[i] - truth[i]).mean())}

    areas = [Auc(labels == k, p[:, k]) for k in range(3)]
    ways: dict[str, list[Rates] | list[RatesAtSensitivity]] = {
        "fixed": [Rates(labels == k, p[:, k], 0.4) for k in range(3)],
        "own": [RatesAtSensitivity(labels == k, p[:, k], 0.8) for k in range(3)],
    }
    calibrated, agreed = calibration(labels, p), agreement(truth, score)

    def fast(weights: Float) -> dict[str, Float]:
        found = {**calibrated(weights), **agreed(weights)}
        for k in range(3):
            found[f"auc {k}"] = areas[k](weights)
            for way, measured in ways.items():
                at = measured[k](weights)
                found |= {f"{way} {k} {rate}": v for rate, v in zip(metrics.RATES, at, strict=True)}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "BLOCK", block)  # in one block or many
        found = resampling.weighted_bootstrap(fast, patients, draws=DRAWS, seed=seed)
    expected = metrics.bootstrap(slow, patients, draws=DRAWS, seed=seed)
    assert set(found) == set(expected)
    for name, e in expected.items():
        exact = name.startswith(("auc", "fixed", "own"))
        np.testing.assert_allclose(
            astuple(found[name]), astuple(e), rtol=0, atol=1e-15 if exact else 1e-12, err_msg=name
        )


def test_draws_are_those_of_the_plain_bootstrap() -> None:
    patients = ["a", "b", "a", "c", "d", "d", "e"]
    drawn: list[np.ndarray] = []

    def record(i: Index) -> float:
        drawn.append(np.bincount(i, minlength=len(patients)))
        return 0.0

    cluster_bootstrap(record, patients, draws=40, seed=5)
    np.testing.assert_array_equal(np.concatenate(list(resamples(patients, draws=40, seed=5))), drawn[:-1])


def test_a_figure_that_most_draws_leave_undefined_has_no_bounds() -> None:
    def measure(weights: Float) -> dict[str, Float]:
        return {"rare": np.where((weights == 1).all(1), 1.0, np.nan)}

    found = resampling.weighted_bootstrap(measure, list("abcdefgh"), draws=50)["rare"]
    assert found.value == 1
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_scores_that_are_not_finite_give_no_figure() -> None:
    positive, score = np.array([True, False, True]), np.array([0.1, np.nan, 0.4])
    weights = np.ones((2, 3))
    assert np.isnan(Auc(positive, score)(weights)).all()
    assert all(np.isnan(v).all() for v in Rates(positive, score, 0.2)(weights))
    assert all(np.isnan(v).all() for v in Rates(positive, np.arange(3.0), float("nan"))(weights))
