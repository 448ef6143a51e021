"""AUC of a variant beside the reference's, and their difference with an interval paired over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import DRAWS, Estimate, bounded, delong, mean_auc
from cxrvit_edge.resampling import Auc, weighted_bootstrap

Array = NDArray[np.float64]


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
    found = _differences(labels, a, b, who, draws)
    out: dict[str, Any] = {}
    for k, name in enumerate(classes):
        out[name] = {
            "reference": _estimate(labels == k, a[:, k]),
            "variant": _estimate(labels == k, b[:, k]),
            "difference": vars(found[str(k)]),
        }
    means = [mean_auc(labels, x) if np.isfinite(x).all() else float("nan") for x in (a, b)]
    out["mean"] = {"reference": means[0], "variant": means[1], "difference": vars(found["mean"])}
    out["per_cent"] = 100 * means[1] / means[0] if means[0] else float("nan")
    return out


def _differences(
    labels: NDArray[np.int64], a: Array, b: Array, patients: Sequence[str], draws: int
) -> dict[str, Estimate]:
    """AUC of b less that of a of each class, by its number, and of their mean."""
    classes = range(a.shape[1])
    if not len(labels):
        return {name: Estimate(float("nan"), float("nan"), float("nan")) for name in (*map(str, classes), "mean")}
    areas = [(Auc(labels == k, a[:, k]), Auc(labels == k, b[:, k])) for k in classes]

    def measure(weights: Array) -> dict[str, Array]:
        gaps = [variant(weights) - reference(weights) for reference, variant in areas]
        return {**{str(k): gap for k, gap in enumerate(gaps)}, "mean": np.mean(gaps, axis=0)}

    return weighted_bootstrap(measure, patients, draws=draws)


def _estimate(positive: NDArray[np.bool_], score: Array) -> dict[str, float]:
    if not np.isfinite(score).all():
        return vars(Estimate(float("nan"), float("nan"), float("nan")))
    return vars(bounded(delong(positive, score)))
