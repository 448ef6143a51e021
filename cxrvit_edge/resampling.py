"""The cluster bootstrap over patients, a block of resamples at a time: figures as sums over weighted images.

A resample is a row of weights: how often it holds each image. Draws are those of `metrics.cluster_bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.calibration_metrics import BINS, bin_of, brier_each
from cxrvit_edge.metrics import DRAWS, Estimate, percentile

Float = NDArray[np.float64]
Measure = Callable[[Float], Mapping[str, Float]]  # weights (D, N) -> figures (D,) by name
BLOCK = 1 << 20  # weights at a time: 8 MB
LEAST_VARIANCE = 1e-13  # of scores of 0-6: what rounding leaves of none


def weighted_bootstrap(
    measure: Measure, patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimate]:
    """`metrics.bootstrap` of weighted figures: the same draws, the same bounds; at least one image."""
    whole = measure(np.ones((1, len(patients))))
    drawn: dict[str, list[Float]] = {name: [] for name in whole}
    for weights in resamples(patients, draws=draws, seed=seed):
        for name, values in measure(weights).items():
            drawn[name].append(values)
    return {
        name: percentile(float(value[0]), np.concatenate(drawn[name]) if draws else np.zeros(0))
        for name, value in whole.items()
    }


def resamples(patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> Iterator[Float]:
    """Blocks of weights (D, N), `draws` rows in all."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // len(patients))
    for start in range(0, draws, rows):
        drawn = [
            np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(min(rows, draws - start))
        ]
        yield np.stack(drawn).astype(np.float64)[:, member]


def ratio(part: Float, whole: Float) -> Float:
    """NaN where there is no whole."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


class Auc:
    """AUC of weighted images, (D,); NaN where a class has no weight, and throughout if a score is not finite."""

    def __init__(self, positive: NDArray[np.bool_], score: NDArray[np.floating]) -> None:
        self._finite = bool(np.isfinite(score).all())
        self._positive = np.flatnonzero(positive)
        negative = np.flatnonzero(~positive)
        self._negative = negative[np.argsort(score[negative], kind="stable")]
        ordered = score[self._negative]
        self._under = np.searchsorted(ordered, score[self._positive], side="left")  # negatives below each positive
        self._upto = np.searchsorted(ordered, score[self._positive], side="right")

    def __call__(self, weights: Float) -> Float:
        if not self._finite:
            return np.full(len(weights), np.nan)
        p = weights[:, self._positive]
        n = _running(weights[:, self._negative])
        pairs = (p * (n[:, self._under] + n[:, self._upto])).sum(1) / 2
        return ratio(pairs, p.sum(1) * n[:, -1])


class Rates:
    """Sensitivity, specificity and accuracy at one threshold, (D,) each; NaN where there is nothing to count."""

    def __init__(self, positive: NDArray[np.bool_], score: NDArray[np.floating], threshold: float) -> None:
        self._positive = positive.astype(np.float64)
        self._right = ((score >= threshold) == positive).astype(np.float64)
        self._defined = bool(np.isfinite(threshold) and np.isfinite(score).all())

    def __call__(self, weights: Float) -> tuple[Float, Float, Float]:
        if not self._defined:
            return (np.full(len(weights), np.nan),) * 3
        hits, p = weights @ (self._right * self._positive), weights @ self._positive
        right, whole = weights @ self._right, weights.sum(1)
        return ratio(hits, p), ratio(right - hits, whole - p), ratio(right, whole)


class RatesAtSensitivity:
    """`Rates` at the threshold that each resample would choose: the largest with at least `sensitivity`."""

    def __init__(self, positive: NDArray[np.bool_], score: NDArray[np.floating], sensitivity: float) -> None:
        self._sensitivity = sensitivity
        groups = (np.flatnonzero(positive), np.flatnonzero(~positive))
        self._positive, self._negative = (g[np.argsort(-score[g], kind="stable")] for g in groups)
        hits = score[self._positive]
        self._flagged = [np.searchsorted(-score[g], -hits, side="right") for g in (self._positive, self._negative)]

    def __call__(self, weights: Float) -> tuple[Float, Float, Float]:
        p, n = _running(weights[:, self._positive]), _running(weights[:, self._negative])
        positives, negatives, rows = p[:, -1], n[:, -1], np.arange(len(weights))
        needed = np.maximum(np.ceil(self._sensitivity * positives - 1e-9), 1)
        if not len(self._positive):
            return (np.full(len(weights), np.nan),) * 3
        at = (p[:, 1:] >= needed[:, None]).argmax(1)
        hits, false = p[rows, self._flagged[0][at]], n[rows, self._flagged[1][at]]
        found = (
            ratio(hits, positives),
            ratio(negatives - false, negatives),
            ratio(hits + negatives - false, positives + negatives),
        )
        sensitivity, specificity, accuracy = (np.where(positives > 0, x, np.nan) for x in found)
        return sensitivity, specificity, accuracy


def calibration(labels: NDArray[np.integer], probabilities: NDArray[np.floating], bins: int = BINS) -> Measure:
    """Brier score and ECE as `brier` and `ece`."""
    confidence = probabilities.max(1).astype(np.float64)
    each = (
        np.eye(bins)[bin_of(confidence, bins)] * ((probabilities.argmax(1) == labels) - confidence)[:, None]
    )  # (N, B)
    squares = brier_each(labels, probabilities)

    def measure(weights: Float) -> dict[str, Float]:
        whole = weights.sum(1)
        return {"brier": ratio(weights @ squares, whole), "ece": ratio(np.abs(weights @ each).sum(1), whole)}

    return measure


def agreement(truth: Float, score: Float) -> Measure:
    """mse, mae, cc and r2 as `metrics.severity`, and `bias`, the mean of score - truth; scores of 0-6."""
    error = score - truth
    t, s = truth - truth.mean(), score - score.mean()  # about their means: sums of squares keep their digits

    def measure(weights: Float) -> dict[str, Float]:
        whole = weights.sum(1)

        def mean(x: Float) -> Float:
            return ratio(weights @ x, whole)

        spread_t, spread_s = mean(t * t) - mean(t) ** 2, mean(s * s) - mean(s) ** 2
        spread_t, spread_s = (np.where(x > LEAST_VARIANCE, x, np.nan) for x in (spread_t, spread_s))
        mse = mean(error**2)
        return {
            "mse": mse,
            "mae": mean(np.abs(error)),
            "cc": (mean(t * s) - mean(t) * mean(s)) / np.sqrt(spread_t * spread_s),
            "r2": 1 - mse / spread_t,
            "bias": mean(error),
        }

    return measure


def _running(weights: Float) -> Float:
    """(D, N) -> (D, N + 1): weight of the first 0, 1, ... N."""
    out = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=out[:, 1:])
    return out
