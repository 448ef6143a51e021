"""AUC of a variant beside the reference's, and their difference with an interval paired over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import Estimate, cluster_bootstrap, delong, mean_auc

Array = NDArray[np.float64]
DRAWS = 2000


def auc_table(
    truth: Sequence[int | None],
    reference: Array,
    variant: Array,
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    draws: int | None = None,
) -> dict[str, Any]:
    """Over the labelled images; probabilities (N, K) each.

    {class: {reference, variant: DeLong, difference: cluster bootstrap over patients, 2000 draws}, "mean": {reference,
    variant: values, difference}, "per_cent": of the reference's mean AUC}; an estimate is {value, low, high}.
    """
    draws = DRAWS if draws is None else draws
    known = np.array([i for i, t in enumerate(truth) if t is not None], np.intp)
    labels = np.array([truth[i] for i in known], np.int64)
    who = [patients[i] for i in known]
    a, b = reference[known], variant[known]
    gaps = [_Gap(labels == k, a[:, k], b[:, k]) for k in range(len(classes))]
    out: dict[str, Any] = {}
    for k, name in enumerate(classes):
        out[name] = {
            "reference": _estimate(labels == k, a[:, k]),
            "variant": _estimate(labels == k, b[:, k]),
            "difference": vars(cluster_bootstrap(gaps[k], who, draws=draws)),
        }
    means = [mean_auc(labels, x) if np.isfinite(x).all() else float("nan") for x in (a, b)]
    mean = cluster_bootstrap(lambda i: float(np.mean([gap(i) for gap in gaps])), who, draws=draws)
    out["mean"] = {"reference": means[0], "variant": means[1], "difference": vars(mean)}
    out["per_cent"] = 100 * means[1] / means[0] if means[0] else float("nan")
    return out


class _Gap:
    """AUC of the variant less the reference's over images drawn with replacement: which pairs each gets right, once."""

    def __init__(self, positive: NDArray[np.bool_], reference: Array, variant: Array) -> None:
        self._positive = positive
        self._right = _right(positive, variant) - _right(positive, reference)  # (P, N)

    def __call__(self, drawn: NDArray[np.intp]) -> float:
        times = np.bincount(drawn, minlength=len(self._positive)).astype(np.float64)
        p, n = times[self._positive], times[~self._positive]
        pairs = p.sum() * n.sum()
        return float(p @ self._right @ n / pairs) if pairs else float("nan")


def _right(positive: NDArray[np.bool_], score: Array) -> Array:
    """(P, N): 1 where the positive scores higher, 0.5 in a tie; NaN throughout if a score is none."""
    if not np.isfinite(score).all():
        return np.full((int(positive.sum()), int((~positive).sum())), np.nan)
    a, b = score[positive][:, None], score[~positive][None]
    return (a > b) + 0.5 * (a == b)


def _estimate(positive: NDArray[np.bool_], score: Array) -> dict[str, float]:
    if not np.isfinite(score).all():
        return vars(Estimate(float("nan"), float("nan"), float("nan")))
    return vars(delong(positive, score))
