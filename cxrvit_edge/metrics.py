"""AUC with DeLong's interval, paired cluster bootstrap over patients, severity metrics. numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval; NaN where it is not defined (one class only)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _midranks(x: Array) -> Array:
    order = np.argsort(x, kind="stable")
    ranks = np.empty(len(x))
    ordered = x[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    for start, stop in itertools.pairwise(edges):
        ranks[order[start:stop]] = 0.5 * (start + stop - 1) + 1
    return ranks


def auc(positive: NDArray[np.bool_], score: Array) -> float:
    """Area under the ROC curve, ties counted half; NaN if a class is empty."""
    m = int(positive.sum())
    n = len(positive) - m
    if m == 0 or n == 0:
        return float("nan")
    return float((_midranks(score)[positive].sum() - m * (m + 1) / 2) / (m * n))


def delong(positive: NDArray[np.bool_], score: Array, *, level: float = 0.95) -> Estimate:
    """AUC with DeLong's interval (DeLong et al. 1988, by midranks as Sun and Xu 2014); images taken as independent."""
    value = auc(positive, score)
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        return Estimate(value, float("nan"), float("nan"))
    pooled = _midranks(score)
    v10 = (pooled[positive] - _midranks(score[positive])) / n
    v01 = 1.0 - (pooled[~positive] - _midranks(score[~positive])) / m
    half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt(v10.var(ddof=1) / m + v01.var(ddof=1) / n)
    return Estimate(value, max(0.0, value - float(half)), min(1.0, value + float(half)))


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Percentile interval of `statistic(indices)` under resampling of whole clusters (patients).

    Draws in which it is undefined (a class missing) are left out. A difference computed inside `statistic` is paired.
    """
    if not len(clusters):
        return Estimate(float("nan"), float("nan"), float("nan"))
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(member, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(member))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = rng.integers(len(names), size=len(names))
        values.append(statistic(np.concatenate([groups[c] for c in chosen])))
    drawn = np.asarray(values, float)
    drawn = drawn[np.isfinite(drawn)]
    value = statistic(np.arange(len(member)))
    if drawn.size < draws / 2:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def softmax(logits: Array, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, K) of logits (N, K) over a temperature."""
    z = logits.astype(np.float64) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def mean_auc(labels: NDArray[np.integer], probabilities: Array) -> float:
    """Mean one-vs-rest AUC over the columns of probabilities (N, K)."""
    return float(np.mean([auc(labels == k, probabilities[:, k]) for k in range(probabilities.shape[1])]))


def threshold_at_sensitivity(positive: NDArray[np.bool_], score: Array, sensitivity: float = 0.80) -> float:
    """Largest threshold t with sensitivity of (score >= t) at least `sensitivity`; NaN without positives."""
    hits = np.sort(score[positive])[::-1]
    if hits.size == 0:
        return float("nan")
    needed = int(np.ceil(sensitivity * hits.size - 1e-9))  # 0.55 x 100 is a little over 55 in binary
    return float(hits[max(needed, 1) - 1])


@dataclass(frozen=True)
class Severity:
    """Agreement of a severity score with its reference (paper, section 4.4)."""

    mse: float
    mae: float
    cc: float
    r2: float


def severity(truth: Array, score: Array) -> Severity:
    error = score - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    varied = truth.std() > 0 and score.std() > 0
    return Severity(
        mse=float((error**2).mean()),
        mae=float(np.abs(error).mean()),
        cc=float(np.corrcoef(truth, score)[0, 1]) if varied else float("nan"),
        r2=1 - float((error**2).sum()) / spread if spread else float("nan"),
    )


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total
