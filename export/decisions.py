"""What is chosen on the validation split: temperature, operating points, prediction sets, the input guard's bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Guard, Selective
from cxrvit_edge.decision import MILLION
from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import softmax, threshold_at_sensitivity

SENSITIVITY = 0.80  # the paper's, section 4.4
SENSITIVE = 0.95
ALPHA = 0.10  # share of films whose class a prediction set may lack


def fit_temperature(labels: NDArray[np.integer], logits: NDArray[np.floating]) -> float:
    """Temperature in [0.25, 8] of least negative log likelihood (Guo et al. 2017), by golden-section search."""

    def loss(t: float) -> float:
        p = softmax(logits, float(np.exp(t)))
        return -float(np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())

    low, high, ratio = np.log(0.25), np.log(8.0), (np.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return round(float(np.exp((low + high) / 2)), 4)


def operating_points(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    sensitivity: float = SENSITIVITY,
) -> dict[str, float]:
    """Per class the largest threshold with at least that sensitivity, midway to the next lower score.

    On a score itself, the last bit of another back end's arithmetic would move that image to the other side.
    UsageError if a class has no image.
    """
    out = {}
    for k, name in enumerate(classes):
        if not (labels == k).any():
            raise UsageError(f"no {name} image in the validation split: an operating point needs some")
        threshold = threshold_at_sensitivity(labels == k, probabilities[:, k], sensitivity)
        lower = probabilities[:, k][probabilities[:, k] < threshold]
        threshold = (threshold + float(lower.max(initial=0.0))) / 2
        out[name] = float(np.floor(threshold * 1e6) / 1e6)  # probabilities are reported to six digits
    return out


def selective(labels: NDArray[np.integer], probabilities: NDArray[np.floating], alpha: float = ALPHA) -> Selective:
    """Threshold of split-conformal prediction sets (Vovk et al. 2005), scores 1 - p of the label: LAC.

    The ceil((n + 1)(1 - alpha))-th smallest score, midway to the next higher for the same reason as operating points;
    1, which is every class, where there are too few images for that rank. UsageError without an image.
    """
    if not len(labels):
        raise UsageError("no labelled image in the validation split: prediction sets need some")
    own = probabilities[np.arange(len(labels)), labels]
    scores = np.sort(MILLION - np.rint(own * MILLION).astype(np.int64))  # of probabilities as they are reported
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    if rank > len(scores):
        return Selective(alpha, 1.0, len(scores))
    score = int(scores[rank - 1])
    higher = int(scores[scores > score].min(initial=MILLION))
    return Selective(alpha, (score + higher) // 2 / MILLION, len(scores))


def guard(areas: NDArray[np.floating], confidences: NDArray[np.floating]) -> Guard:
    """Bounds that every validation image with lungs passes: half the least area, 0.05 under the least confidence.

    Never under 1 % of the image and 0.5, so that an image without lungs on the validation split opens no door.
    """
    area = float(np.clip(0.5 * areas.min(), 0.01, 0.10))
    return Guard(round(area, 4), round(max(0.5, float(confidences.min()) - 0.05), 4))


def refused(
    bounds: Guard, areas: NDArray[np.floating], confidences: NDArray[np.floating], separations: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """(N,) whether the guard turns each away; a separation of NaN is none."""
    small = (areas < bounds.least_lungs) | (confidences < bounds.least_confidence)
    return np.asarray(small | (separations < bounds.least_separation))
