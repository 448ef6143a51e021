"""ROC points, paired DeLong, rank correlation, calibration and agreement against slow implementations written here."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxrvit_edge.calibration_metrics import bland_altman, brier, ece, reliability
from cxrvit_edge.metrics import auc, delong_difference, kendall_tau, roc_points, softmax, spearman

# Few levels, so that ties are common.
paired = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30)
pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=25)
answers = st.lists(st.tuples(st.integers(0, 2), *[st.integers(0, 20)] * 3), min_size=1, max_size=40)


def kernel(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


@given(paired)
def test_paired_delong_equals_the_slow_one(sample: list[tuple[bool, int, int]]) -> None:
    """DeLong et al. 1988 by the covariance matrices of the structural components, pair by pair."""
    positive = np.array([s[0] for s in sample])
    scores = [np.array([s[i] for s in sample], float) for i in (1, 2)]
    found = delong_difference(positive, *scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        assert math.isnan(found.low)
        return
    theta, v10, v01 = [], [], []
    for s in scores:
        x, y = s[positive], s[~positive]
        v10.append([sum(kernel(a, b) for b in y) / n for a in x])
        v01.append([sum(kernel(a, b) for a in x) / m for b in y])
        theta.append(sum(v10[-1]) / m)
    covariance = np.cov(np.array(v10)) / m + np.cov(np.array(v01)) / n
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    half = NormalDist().inv_cdf(0.975) * math.sqrt(max(variance, 0.0))
    expected = theta[1] - theta[0]
    np.testing.assert_allclose(
        (found.value, found.low, found.high), (expected, expected - half, expected + half), atol=1e-7
    )


@given(paired, st.sampled_from([3, 5, 200]))
def test_roc_points_are_on_the_curve(sample: list[tuple[bool, int, int]], most: int) -> None:
    positive, score = np.array([s[0] for s in sample]), np.array([s[1] for s in sample], float)
    found = roc_points(positive, score, most=most)
    if positive.all() or not positive.any():
        assert found == []
        return
    assert found[0] == (0.0, 0.0)
    assert found[-1] == (1.0, 1.0)
    assert 2 <= len(found) <= most
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    at = {
        (float((score[~positive] >= t).mean()), float((score[positive] >= t).mean())) for t in [*set(score), math.inf]
    }
    assert all(any(math.dist(p, q) < 1e-12 for q in at) for p in found)
    if most == 200:
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(found))
        assert area == pytest.approx(auc(positive, score), abs=1e-12)


def test_a_long_curve_keeps_its_shape_in_two_hundred_points() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.4
    score = rng.normal(size=20_000) + positive
    found = roc_points(positive, score)
    assert 150 < len(found) <= 200
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(found))
    assert area == pytest.approx(auc(positive, score), abs=2e-4)


def slow_ranks(x: NDArray[np.float64]) -> list[float]:
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


@given(pairs)
def test_rank_correlations_equal_the_slow_ones(sample: list[tuple[int, int]]) -> None:
    a, b = (np.array([s[i] for s in sample], float) for i in (0, 1))
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert math.isnan(spearman(a, b))
        assert math.isnan(kendall_tau(a, b))
        return
    assert spearman(a, b) == pytest.approx(np.corrcoef(slow_ranks(a), slow_ranks(b))[0, 1], abs=1e-12)
    n, concordant, tied_a, tied_b = len(a), 0, 0, 0
    for i in range(n):
        for j in range(i):
            x, y = a[i] - a[j], b[i] - b[j]
            concordant += int(np.sign(x) * np.sign(y))
            tied_a += int(x == 0)
            tied_b += int(y == 0)
    all_pairs = n * (n - 1) // 2
    expected = concordant / math.sqrt((all_pairs - tied_a) * (all_pairs - tied_b))
    assert kendall_tau(a, b) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_of_nothing_is_not_invented() -> None:
    nothing = np.zeros(0)
    assert math.isnan(spearman(nothing, nothing))
    assert math.isnan(kendall_tau(nothing, nothing))


@given(answers, st.sampled_from([1, 4, 15]))
def test_calibration_equals_the_slow_one(sample: list[tuple[int, ...]], bins: int) -> None:
    labels = np.array([s[0] for s in sample])
    p = softmax(np.array([s[1:] for s in sample], float) / 4)
    squares = [sum((q - (k == y)) ** 2 for k, q in enumerate(row)) for y, row in zip(labels, p, strict=True)]
    assert brier(labels, p) == pytest.approx(sum(squares) / len(labels), abs=1e-12)
    total, found = 0.0, reliability(labels, p, bins)
    assert sum(b.count for b in found) == len(labels)
    for b in found:
        own = [(row.max(), row.argmax() == y) for y, row in zip(labels, p, strict=True) if b.low < row.max() <= b.high]
        assert b.count == len(own)
        if own:
            confidence, right = (sum(v) / len(own) for v in zip(*own, strict=True))
            assert (b.confidence, b.accuracy) == pytest.approx((confidence, right), abs=1e-12)
            total += len(own) / len(labels) * abs(right - confidence)
    assert ece(labels, p, bins) == pytest.approx(total, abs=1e-12)


def test_certainty_is_in_the_last_bin_and_nothing_is_nan() -> None:
    sure = np.array([[1.0, 0.0, 0.0]])
    assert reliability(np.array([0]), sure)[-1].count == 1
    assert ece(np.array([0]), sure) == 0
    assert brier(np.array([1]), sure) == 2
    empty = np.zeros((0, 3))
    assert math.isnan(ece(np.zeros(0, int), empty))
    assert math.isnan(brier(np.zeros(0, int), empty))


def test_limits_of_agreement_need_two() -> None:
    one = bland_altman(np.array([2.0]), np.array([3.0]))
    assert one.bias == 1
    assert math.isnan(one.low)
    assert math.isnan(bland_altman(np.zeros(0), np.zeros(0)).bias)
