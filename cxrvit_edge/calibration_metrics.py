"""Calibration of probabilities (Brier score, reliability, ECE) and agreement of two measurements (Bland and Altman)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Labels = NDArray[np.integer]
BINS = 15  # Guo et al. 2017
LIMITS = 1.96  # standard deviations: 95 % of normal differences


@dataclass(frozen=True)
class Bin:
    """Images whose top probability is over low, up to and with high; means are NaN without one."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Agreement:
    """Mean difference b - a with its 95 % limits of agreement; points: (mean of both, difference) of each pair."""

    bias: float
    low: float
    high: float
    sd: float
    points: list[tuple[float, float]]


def brier_each(labels: Labels, probabilities: Array) -> NDArray[np.float64]:
    """Squared distance of each row of probabilities (N, K) from its label's, (N,) in 0-2."""
    truth = np.eye(probabilities.shape[1])[labels]
    return np.asarray(((probabilities - truth) ** 2).sum(1), np.float64)


def brier(labels: Labels, probabilities: Array) -> float:
    """Brier score over all classes, 0-2 (Brier 1950); NaN without an image."""
    return float(brier_each(labels, probabilities).mean()) if len(labels) else float("nan")


def bin_of(confidence: Array, bins: int = BINS) -> NDArray[np.intp]:
    """Number of the equal-width bin of (0, 1], closed above; 0 is in the first."""
    return (np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1).clip(0, bins - 1)


def reliability(labels: Labels, probabilities: Array, bins: int = BINS) -> list[Bin]:
    """Share of right answers beside the top probability, in equal-width bins of it."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    member, edges = bin_of(confidence, bins), np.linspace(0, 1, bins + 1)
    out = []
    for i in range(bins):
        own = member == i
        means = (float(confidence[own].mean()), float(right[own].mean())) if own.any() else (float("nan"),) * 2
        out.append(Bin(float(edges[i]), float(edges[i + 1]), int(own.sum()), *means))
    return out


def ece(labels: Labels, probabilities: Array, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean gap of a bin by its share of the images; NaN without one."""
    found = [b for b in reliability(labels, probabilities, bins) if b.count]
    return float(sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(labels)) if found else float("nan")


def bland_altman(a: Array, b: Array, *, width: float = LIMITS) -> Agreement:
    """Bland and Altman 1986: limits are the bias plus and minus `width` standard deviations; NaN under two pairs."""
    difference, mean = b - a, (a + b) / 2
    bias = float(difference.mean()) if len(a) else float("nan")
    sd = float(difference.std(ddof=1)) if len(a) > 1 else float("nan")
    points = [(float(x), float(y)) for x, y in zip(mean, difference, strict=True)]
    return Agreement(bias, bias - width * sd, bias + width * sd, sd, points)
