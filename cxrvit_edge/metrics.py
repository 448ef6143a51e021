"""AUC with DeLong's interval, paired cluster bootstrap over patients, rates, rank correlation, severity. numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Index = NDArray[np.intp]
Plain = dict[str, float | None]
DRAWS = 2000
RATES = ("sensitivity", "specificity", "accuracy")


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
    if min(positive.sum(), (~positive).sum()) < 2:
        return Estimate(value, float("nan"), float("nan"))
    half = _half_width(*_components(positive, score), level)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def delong_difference(positive: NDArray[np.bool_], a: Array, b: Array, *, level: float = 0.95) -> Estimate:
    """AUC of b less that of a over the same images, with DeLong's interval for correlated curves."""
    value = auc(positive, b) - auc(positive, a)
    if min(positive.sum(), (~positive).sum()) < 2:
        return Estimate(value, float("nan"), float("nan"))
    (a10, a01), (b10, b01) = _components(positive, a), _components(positive, b)
    half = _half_width(b10 - a10, b01 - a01, level)
    return Estimate(value, value - half, value + half)


def _components(positive: NDArray[np.bool_], score: Array) -> tuple[Array, Array]:
    """Share of negatives below each positive, and of positives above each negative; ties half."""
    m, n = int(positive.sum()), int((~positive).sum())
    pooled = _midranks(score)
    v10 = (pooled[positive] - _midranks(score[positive])) / n
    v01 = 1.0 - (pooled[~positive] - _midranks(score[~positive])) / m
    return v10, v01


def _half_width(v10: Array, v01: Array, level: float) -> float:
    variance = v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01)
    return NormalDist().inv_cdf(0.5 + level / 2) * float(np.sqrt(variance))


def roc_points(positive: NDArray[np.bool_], score: Array, *, most: int = 200) -> list[tuple[float, float]]:
    """(false positive rate, sensitivity) from (0, 0) to (1, 1), corners of the empirical curve; none without a class.

    At most `most` of them: of more, those nearest to equal steps along the curve.
    """
    m = int(positive.sum())
    n = len(positive) - m
    if m == 0 or n == 0:
        return []
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(score[order][1:] != score[order][:-1], True))  # the last image of each score
    hits = np.concatenate([[0], np.cumsum(positive[order])[ends]])
    false = np.concatenate([[0], np.cumsum(~positive[order])[ends]])
    turn = np.diff(hits)[1:] * np.diff(false)[:-1] != np.diff(hits)[:-1] * np.diff(false)[1:]
    kept = np.flatnonzero(np.concatenate([[True], turn, [True]]))
    if len(kept) > most:
        walked = false[kept] / n + hits[kept] / m
        kept = kept[np.unique(np.searchsorted(walked, np.linspace(0, 2, most)).clip(0, len(kept) - 1))]
    return [(float(x), float(y)) for x, y in zip(false[kept] / n, hits[kept] / m, strict=True)]


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


def bootstrap(
    measure: Callable[[Index], Mapping[str, float]], patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """cluster_bootstrap of every figure of `measure(indices)`, all on the same draws; at least one image.

    Bounds are NaN where fewer than half of the draws define a figure.
    """
    names = list(measure(np.arange(len(patients))))
    rows: list[list[float]] = []

    def record(i: Index) -> float:
        figures = measure(i)
        rows.append([figures[name] for name in names])
        return 0.0

    cluster_bootstrap(record, patients, draws=draws, seed=seed)
    whole, drawn = rows[-1], np.asarray(rows[:-1], float)  # the last call is of the images themselves
    return {name: percentile(value, column) for name, value, column in zip(names, whole, drawn.T, strict=True)}


def percentile(value: float, drawn: Array) -> Estimate:
    """95 % interval of the draws (D,) of a figure; bounds are NaN where fewer than half of them define it."""
    kept = drawn[np.isfinite(drawn)]
    if len(kept) < max(1.0, len(drawn) / 2):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(kept, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def bounded(e: Estimate) -> Estimate:
    """Without bounds if they are one: where no resample differs (one patient only, or classes that do not overlap) they
    say nothing of other images."""
    return Estimate(e.value, float("nan"), float("nan")) if e.low == e.high else e


def exact(e: Estimate, patients: int) -> Estimate:
    """A rate whose resamples do not differ, with the interval of Clopper and Pearson 1934 of so many patients."""
    if e.low != e.high or e.value not in (0.0, 1.0):
        return bounded(e)
    least = 0.025 ** (1 / patients)
    return Estimate(e.value, least, 1.0) if e.value else Estimate(e.value, 0.0, 1 - least)


def number(value: float) -> float | None:
    """Four decimals; None for what is not defined, since JSON has no NaN."""
    return round(float(value), 4) if np.isfinite(value) else None


def plain(e: Estimate) -> Plain:
    return {"value": number(e.value), "low": number(e.low), "high": number(e.high)}


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


def rates(positive: NDArray[np.bool_], score: Array, threshold: float) -> tuple[float, float, float]:
    """Sensitivity, specificity and accuracy of score >= threshold; NaN where there is nothing to count."""
    if not np.isfinite(threshold) or not positive.size:
        return (float("nan"),) * 3
    flagged = score >= threshold
    return _share(flagged[positive]), _share(~flagged[~positive]), _share(flagged == positive)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else float("nan")


def spearman(a: Array, b: Array) -> float:
    """Rank correlation, ties averaged; NaN if either is constant or empty."""
    if not len(a):
        return float("nan")
    x, y = (ranks - ranks.mean() for ranks in (_midranks(a), _midranks(b)))
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float(x @ y) / spread if spread else float("nan")


def kendall_tau(a: Array, b: Array) -> float:
    """Kendall's tau-b: pairs in the same order less those in the other, corrected for ties; NaN if either is constant.

    Time goes with the square of the length: a second at 20,000.
    """
    agree, in_a, in_b = 0.0, 0, 0
    for i in range(len(a) - 1):
        x, y = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        agree += float(x @ y)
        in_a += int(np.count_nonzero(x))
        in_b += int(np.count_nonzero(y))
    return agree / float(np.sqrt(float(in_a) * in_b)) if in_a and in_b else float("nan")


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
