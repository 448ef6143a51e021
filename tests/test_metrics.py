"""AUC, intervals and severity figures against slow implementations written here, and one published table."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cxrvit_edge import metrics
from cxrvit_edge.metrics import Estimate, auc, cluster_bootstrap, delong, dice, mean_auc, threshold_at_sensitivity

# Few score levels, so that ties are common.
samples = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40)


def arrays(sample: list[tuple[bool, int]]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.array([p for p, _ in sample], bool), np.array([s for _, s in sample], float)


def kernel(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


@given(samples)
def test_auc_counts_pairs(sample: list[tuple[bool, int]]) -> None:
    positive, score = arrays(sample)
    pairs = [kernel(a, b) for a in score[positive] for b in score[~positive]]
    if pairs:
        assert auc(positive, score) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    else:
        assert math.isnan(auc(positive, score))


@given(samples)
def test_auc_depends_on_ranks_only_and_mirrors(sample: list[tuple[bool, int]]) -> None:
    positive, score = arrays(sample)
    value = auc(positive, score)
    np.testing.assert_equal(auc(positive, np.exp(score)), value)
    np.testing.assert_allclose(auc(positive, -score), 1 - value)


def slow_delong(positive: NDArray[np.bool_], score: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """DeLong, DeLong and Clarke-Pearson 1988 by its structural components, pair by pair."""
    x, y = score[positive], score[~positive]
    m, n = len(x), len(y)
    theta = sum(kernel(a, b) for a in x for b in y) / (m * n)
    v10 = [sum(kernel(a, b) for b in y) / n for a in x]
    v01 = [sum(kernel(a, b) for a in x) / m for b in y]
    s10 = sum((v - theta) ** 2 for v in v10) / (m - 1)
    s01 = sum((v - theta) ** 2 for v in v01) / (n - 1)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(s10 / m + s01 / n)
    return theta, max(0.0, theta - half), min(1.0, theta + half)


@given(samples, st.sampled_from([0.8, 0.95, 0.99]))
def test_delong_equals_the_slow_one(sample: list[tuple[bool, int]], level: float) -> None:
    positive, score = arrays(sample)
    found = delong(positive, score, level=level)
    if min(positive.sum(), (~positive).sum()) < 2:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        np.testing.assert_allclose(
            (found.value, found.low, found.high), slow_delong(positive, score, level), rtol=0, atol=1e-12
        )


def test_delong_on_a_published_table() -> None:
    """Ratings of 109 CT images, Hanley and McNeil 1982, table I.

    Stata's manual ([R] roctab, DeLong is its default) prints area 0.8932, 95 % interval 0.83295 to 0.95339.
    """
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    score = np.concatenate([np.repeat(np.arange(1.0, 6.0), normal), np.repeat(np.arange(1.0, 6.0), abnormal)])
    positive = np.arange(109) >= 58
    found = delong(positive, score)
    assert round(found.value, 4) == 0.8932
    assert (round(found.low, 5), round(found.high, 5)) == (0.83295, 0.95339)


def test_one_class_has_no_auc() -> None:
    score = np.array([0.1, 0.4, 0.9])
    for positive in (np.ones(3, bool), np.zeros(3, bool), np.zeros(0, bool)):
        estimate = delong(positive, score[: len(positive)])
        assert all(math.isnan(v) for v in (estimate.value, estimate.low, estimate.high))


def test_estimate_prints_three_decimals() -> None:
    assert str(Estimate(0.93211, 0.90049, 0.9999)) == "0.932 [0.900, 1.000]"


PATIENTS = ["a", "b", "a", "c", "d", "d", "e", "f", "g", "h", "h", "h"]
POSITIVE = np.array([1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0], bool)
SCORE = np.array([0.9, 0.4, 0.5, 0.5, 0.3, 0.1, 0.2, 0.8, 0.6, 0.7, 0.2, 0.35])


def test_bootstrap_is_seeded() -> None:
    def figure(seed: int) -> Estimate:
        return cluster_bootstrap(lambda i: auc(POSITIVE[i], SCORE[i]), PATIENTS, draws=200, seed=seed)

    assert figure(3) == figure(3)
    assert figure(3) != figure(4)
    assert figure(3).value == auc(POSITIVE, SCORE)
    assert figure(3).low < figure(3).value < figure(3).high


def test_bootstrap_draws_whole_patients() -> None:
    sizes = {name: PATIENTS.count(name) for name in PATIENTS}
    drawn: list[int] = []

    def statistic(index: NDArray[np.intp]) -> float:
        counts = dict.fromkeys(sizes, 0)
        for i in index:
            counts[PATIENTS[i]] += 1
        assert all(counts[name] % sizes[name] == 0 for name in sizes)
        drawn.append(sum(counts[name] // sizes[name] for name in sizes))
        for i in range(len(PATIENTS)):  # every image of a patient as often as the others
            assert (index == i).sum() == counts[PATIENTS[i]] // sizes[PATIENTS[i]]
        return float(len(index))

    cluster_bootstrap(statistic, PATIENTS, draws=50)
    assert set(drawn) == {len(sizes)}


def test_bootstrap_of_two_patients_has_the_binomial_quantiles() -> None:
    """Two patients with means 0 and 1: draws are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    values = np.array([0.0, 0.0, 1.0, 1.0])

    def figure(level: float) -> tuple[float, float]:
        e = cluster_bootstrap(lambda i: float(values[i].mean()), ["x", "x", "y", "y"], draws=2000, level=level)
        return e.low, e.high

    assert figure(0.95) == (0.0, 1.0)
    assert figure(0.70) == (0.0, 1.0)  # quantiles 0.15 and 0.85
    assert figure(0.40) == (0.5, 0.5)


def test_a_paired_difference_of_equals_is_zero() -> None:
    same = cluster_bootstrap(lambda i: auc(POSITIVE[i], SCORE[i]) - auc(POSITIVE[i], SCORE[i]), PATIENTS, draws=300)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_pairing_is_kept_inside_a_draw() -> None:
    """A score shifted by a constant differs by exactly that in every draw: unpaired resampling would spread it."""
    shifted = SCORE + 0.25
    e = cluster_bootstrap(lambda i: float(shifted[i].mean() - SCORE[i].mean()), PATIENTS, draws=300)
    np.testing.assert_allclose((e.low, e.high), 0.25, atol=1e-12)


def test_bootstrap_without_a_class_or_a_patient_is_nan() -> None:
    one_class = cluster_bootstrap(lambda i: auc(np.ones(len(i), bool), SCORE[i]), PATIENTS, draws=20)
    nobody = cluster_bootstrap(lambda i: auc(POSITIVE[i], SCORE[i]), [], draws=20)
    for e in (one_class, nobody):
        assert all(math.isnan(v) for v in (e.value, e.low, e.high))


def test_mean_auc_is_the_mean_of_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 3, 60), rng.random((60, 3))
    assert mean_auc(labels, p) == pytest.approx(sum(auc(labels == k, p[:, k]) for k in range(3)) / 3)
    assert math.isnan(mean_auc(np.zeros(5, int), p[:5]))


@given(samples, st.integers(1, 100))
def test_threshold_is_the_largest_that_reaches_the_sensitivity(sample: list[tuple[bool, int]], percent: int) -> None:
    positive, score = arrays(sample)
    score = score / 7
    found = threshold_at_sensitivity(positive, score, percent / 100)
    hits = score[positive]
    if not hits.size:
        assert math.isnan(found)
        return
    need = Fraction(percent, 100)
    reaching = [t for t in hits if Fraction(int((hits >= t).sum()), hits.size) >= need]
    assert found == max(reaching)


def test_threshold_is_not_moved_by_binary_fractions() -> None:
    """0.55 x 100 is 55.000000000000007 in floating point: 55 of 100 positives reach it, not 56."""
    score = np.arange(100) / 100
    assert threshold_at_sensitivity(np.ones(100, bool), score, 0.55) == 0.45


def test_severity_figures() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 7, 50).astype(float)
    score = np.clip(truth + rng.normal(0, 1, 50), 0, 6)
    found = metrics.severity(truth, score)
    n, mt, ms = 50, sum(truth) / 50, sum(score) / 50
    errors = [s - t for s, t in zip(score, truth, strict=True)]
    st_ = math.sqrt(sum((t - mt) ** 2 for t in truth))
    ss_ = math.sqrt(sum((s - ms) ** 2 for s in score))
    covariance = sum((t - mt) * (s - ms) for t, s in zip(truth, score, strict=True))
    assert found.mse == pytest.approx(sum(e * e for e in errors) / n)
    assert found.mae == pytest.approx(sum(abs(e) for e in errors) / n)
    assert found.cc == pytest.approx(covariance / (st_ * ss_))
    assert found.r2 == pytest.approx(1 - sum(e * e for e in errors) / st_**2)


def test_severity_of_constants_is_not_invented() -> None:
    flat = metrics.severity(np.full(4, 3.0), np.array([3.0, 3.0, 2.0, 4.0]))
    assert flat.mse == 0.5
    assert math.isnan(flat.cc)
    assert math.isnan(flat.r2)
    constant_score = metrics.severity(np.array([1.0, 2.0, 3.0]), np.full(3, 2.0))
    assert math.isnan(constant_score.cc)
    assert constant_score.r2 == 0.0


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_dice_counts_pixels(a: int, b: int) -> None:
    bits_a, bits_b = {i for i in range(16) if a >> i & 1}, {i for i in range(16) if b >> i & 1}
    grid_a = np.array([i in bits_a for i in range(16)]).reshape(4, 4)
    grid_b = np.array([i in bits_b for i in range(16)]).reshape(4, 4)
    expected = 2 * len(bits_a & bits_b) / (len(bits_a) + len(bits_b)) if bits_a or bits_b else 1.0
    assert dice(grid_a, grid_b) == pytest.approx(expected)
