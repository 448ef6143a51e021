"""Figures on small published tables, against what published implementations print of them."""

from __future__ import annotations

import numpy as np
import pytest

from cxrvit_edge.calibration_metrics import bland_altman, brier, ece
from cxrvit_edge.metrics import cluster_bootstrap, delong, delong_difference, kendall_tau, spearman
from cxrvit_edge.resampling import Auc, Float, weighted_bootstrap

# 43 of the 49 patients of DeLong, DeLong and Clarke-Pearson 1988 (those with all three tests), as SAS/STAT's manual
# prints them (PROC LOGISTIC, example "Comparing Receiver Operating Characteristic Curves"): albumin, total protein,
# Krebs-Goplerud score, outcome.
OVARIAN = np.fromstring(
    """3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
    3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
    2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
    3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
    3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1""",
    sep=" ",
).reshape(43, 4)
POSITIVE = OVARIAN[:, 3] == 1
TESTS = {"albumin": OVARIAN[:, 0], "protein": OVARIAN[:, 1], "score": 10 - OVARIAN[:, 2]}


@pytest.mark.parametrize(
    ("test", "printed"),
    [
        ("albumin", (0.5548815600, 0.7365591398, 0.9182367196)),
        ("protein", (0.4517602095, 0.6478494624, 0.8439387153)),
        ("score", (0.5242798012, 0.7258064516, 0.9273331020)),
    ],
)
def test_delong_as_proc_prints_it(test: str, printed: tuple[float, float, float]) -> None:
    """ci.auc of pROC 1.18.0 (Robin et al. 2011) on R 4.2.2."""
    found = delong(POSITIVE, TESTS[test])
    assert (found.low, found.value, found.high) == pytest.approx(printed, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "printed"),
    [
        ("score", "albumin", (-0.1761173687, 0.1976227451)),
        ("score", "protein", (-0.2829880156, 0.1270740371)),
        ("protein", "albumin", (-0.02063911092, 0.19805846576)),
    ],
)
def test_the_paired_difference_as_proc_prints_it(a: str, b: str, printed: tuple[float, float]) -> None:
    """Interval of roc.test(method = "delong", paired = TRUE), pROC 1.18.0."""
    found = delong_difference(POSITIVE, TESTS[a], TESTS[b])
    assert (found.low, found.high) == pytest.approx(printed, abs=1e-9)
    back = delong_difference(POSITIVE, TESTS[b], TESTS[a])
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-12)


@pytest.mark.parametrize(
    ("test", "printed"), [("albumin", (0.5443548387, 0.9049773756)), ("score", (0.5127840909, 0.9113352596))]
)
def test_the_bootstrap_of_an_auc_as_proc_prints_it(test: str, printed: tuple[float, float]) -> None:
    """ci.auc(method = "bootstrap", boot.n = 50000, boot.stratified = FALSE), pROC 1.18.0: a draw's noise is 0.002."""
    area = Auc(POSITIVE, TESTS[test])

    def measure(weights: Float) -> dict[str, Float]:
        return {"auc": area(weights)}

    found = weighted_bootstrap(measure, [str(i) for i in range(43)], draws=20_000)["auc"]
    assert (found.low, found.high) == pytest.approx(printed, abs=0.005)


def test_the_bootstrap_of_efron_and_tibshirani() -> None:
    """Survival of seven treated mice (An Introduction to the Bootstrap, 1993, table 2.2, B without end).

    Standard errors of the mean 23.36 and of the median 37.83; 20,000 draws estimate them to about half a per cent.
    """
    days = np.array([94.0, 197, 16, 38, 99, 141, 23])
    for statistic, published in ((np.mean, 23.36), (np.median, 37.83)):
        drawn: list[float] = []

        def record(i: np.ndarray, statistic: object = statistic, drawn: list[float] = drawn) -> float:
            drawn.append(float(statistic(days[i])))  # type: ignore[operator]
            return drawn[-1]

        cluster_bootstrap(record, list("abcdefg"), draws=20_000)
        assert np.std(drawn[:-1]) == pytest.approx(published, rel=0.02)


# Peak expiratory flow, l/min, of 17 people by two meters: Bland and Altman, Lancet 1986, table I (first readings).
LARGE = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427], float)
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451], float)


def test_bland_and_altmans_own_example() -> None:
    """The paper has a mean difference of -2.1, a standard deviation of 38.8 and, at two of them, -79.7 and 75.5."""
    found = bland_altman(MINI, LARGE, width=2)
    assert (round(found.bias, 1), round(found.sd, 1)) == (-2.1, 38.8)
    assert (found.low, found.high) == pytest.approx((-79.7, 75.5), abs=0.1)  # which the paper takes from -2.1 and 38.8
    assert found.points[0] == (503.0, -18.0)
    usual = bland_altman(MINI, LARGE)
    assert (usual.low, usual.high) == pytest.approx((-78.0969, 73.8616), abs=2e-3)


def test_calibration_error_as_torchmetrics_documents_it() -> None:
    """The example of MulticlassCalibrationError(num_classes=3, n_bins=3, norm='l1'): 0.2000."""
    p = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    assert ece(np.array([0, 1, 2, 0]), p, bins=3) == pytest.approx(0.2, abs=5e-5)


def test_brier_score_as_scikit_learn_documents_it() -> None:
    """brier_score_loss(["eggs", "ham", "spam"], ...) of scikit-learn 1.9: 0.146..."""
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])
    assert brier(np.array([0, 1, 2]), p) == pytest.approx(0.1466666666666667, abs=1e-12)


def test_rank_correlations_as_scipy_documents_them() -> None:
    """The examples of scipy.stats.spearmanr and, with ties, kendalltau."""
    assert spearman(np.arange(1.0, 6), np.array([5.0, 6, 7, 8, 7])) == pytest.approx(0.8207826816681233, abs=1e-12)
    tau = kendall_tau(np.array([12.0, 2, 1, 12, 2]), np.array([1.0, 4, 7, 1, 0]))
    assert tau == pytest.approx(-0.47140452079103173, abs=1e-12)
