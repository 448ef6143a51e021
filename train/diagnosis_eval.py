"""Figures of the diagnosis and of the findings (paper, section 4.4): AUC one against the rest, operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import auc, cluster_bootstrap, delong, threshold_at_sensitivity
from cxrvit_edge.model.config import CLASSES, FINDINGS
from train.data.record import Record
from train.intervals import DRAWS, Index, bootstrap, number, plain

SENSITIVITY = 0.80  # the paper's, section 4.4
LEAST_IMAGES = 5  # of each class inside a source: with fewer a bootstrap interval says nothing
RATES = ("sensitivity", "specificity", "accuracy")
Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def thresholds(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Per class the largest threshold with a sensitivity of at least 80 %; NaN without an image of the class."""
    return {
        name: threshold_at_sensitivity(labels == k, probabilities[:, k], SENSITIVITY) for k, name in enumerate(CLASSES)
    }


def rates(positive: NDArray[np.bool_], score: NDArray[np.float64], threshold: float) -> tuple[float, float, float]:
    """Sensitivity, specificity and accuracy of score >= threshold; NaN where there is nothing to count."""
    if not np.isfinite(threshold) or not positive.size:
        return (float("nan"),) * 3
    flagged = score >= threshold
    return _share(flagged[positive]), _share(~flagged[~positive]), _share(flagged == positive)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else float("nan")


def diagnosis(
    labels: Labels,
    probabilities: Probabilities,
    patients: Sequence[str],
    fixed: Mapping[str, float] | None = None,
    *,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """labels (N,) in 0-2, probabilities (N, 3), thresholds chosen elsewhere (on val) -> plain values for JSON.

    auc: by class with DeLong's interval and, as cluster_low and cluster_high, the bootstrap's over patients; the mean
    with the latter alone. own: at thresholds chosen on these images, as in the paper, chosen again in each resample;
    fixed: at those given, null without any.
    """
    counts = {name: int((labels == k).sum()) for k, name in enumerate(CLASSES)}
    out: dict[str, Any] = {"images": int(labels.size), "classes": counts, "patients": len(set(patients))}
    if not labels.size:
        return out

    def measure(i: Index) -> dict[str, float]:
        y, p = labels[i], probabilities[i]
        found: dict[str, float] = {f"auc {name}": auc(y == k, p[:, k]) for k, name in enumerate(CLASSES)}
        chosen = {"own": thresholds(y, p), "fixed": fixed or {}}
        for k, name in enumerate(CLASSES):
            for way, points in chosen.items():
                at = rates(y == k, p[:, k], points.get(name, float("nan")))
                found.update({f"{way} {name} {rate}": v for rate, v in zip(RATES, at, strict=True)})
        found["auc mean"] = _mean(found[f"auc {name}"] for name in CLASSES)
        for way in chosen:
            for rate in RATES:
                found[f"{way} mean {rate}"] = _mean(found[f"{way} {name} {rate}"] for name in CLASSES)
        return found

    e = bootstrap(measure, patients, draws=draws)
    out["auc"] = {}
    for k, name in enumerate(CLASSES):
        over_patients = e[f"auc {name}"]
        out["auc"][name] = {
            **plain(delong(labels == k, probabilities[:, k])),
            "cluster_low": number(over_patients.low),
            "cluster_high": number(over_patients.high),
        }
    out["auc"]["mean"] = plain(e["auc mean"])
    own = thresholds(labels, probabilities)
    for way, points in (("own", own), ("fixed", fixed)):
        out[way] = None if points is None else {
            name: {
                **({} if name == "mean" else {"threshold": number(points.get(name, float("nan")))}),
                **{rate: plain(e[f"{way} {name} {rate}"]) for rate in RATES},
            }
            for name in (*CLASSES, "mean")
        }  # fmt: skip
    return out


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))  # NaN if one is


def findings(
    truth: NDArray[np.float32], logits: NDArray[np.float32], patients: Sequence[str], *, draws: int = DRAWS
) -> dict[str, Any]:
    """truth (N, 10) of 0, 1 or NaN, logits (N, 10) -> AUC of each finding with both intervals, and their mean.

    The mean is over the findings that have images with and without; `over` names them.
    """
    known = np.isfinite(truth)
    defined = [
        k for k in range(len(FINDINGS)) if (truth[known[:, k], k] == 1).any() and (truth[known[:, k], k] == 0).any()
    ]
    out: dict[str, Any] = {
        name: {"positive": int((truth[:, k] == 1).sum()), "negative": int((truth[:, k] == 0).sum())}
        for k, name in enumerate(FINDINGS)
    }

    def one(i: Index, k: int) -> float:
        i = i[known[i, k]]
        return auc(truth[i, k] == 1, logits[i, k])

    def measure(i: Index) -> dict[str, float]:
        found = {FINDINGS[k]: one(i, k) for k in defined}
        return {**found, "mean": _mean(found.values())}

    if not defined:
        return {**out, "mean": {"value": None, "low": None, "high": None, "over": []}}
    e = bootstrap(measure, patients, draws=draws)
    for k in defined:
        name, rows = FINDINGS[k], known[:, k]
        out[name] |= plain(delong(truth[rows, k] == 1, logits[rows, k]))
        out[name] |= {"cluster_low": number(e[name].low), "cluster_high": number(e[name].high)}
    return {**out, "mean": {**plain(e["mean"]), "over": [FINDINGS[k] for k in defined]}}


def within_source(records: Sequence[Record], logits: NDArray[np.float64], *, draws: int = DRAWS) -> dict[str, Any]:
    """AUC of each pair of classes inside each source with five images of both: there the source gives nothing away."""
    labels = np.array([-1 if r.label is None else r.label for r in records])
    sources = np.array([r.source for r in records])
    out: dict[str, Any] = {}
    for source in sorted(set(sources)):
        chosen = np.flatnonzero(sources == source)
        for a, b in combinations(sorted(set(labels[chosen])), 2):
            pair = chosen[np.isin(labels[chosen], (a, b))]
            counts = [int((labels[pair] == k).sum()) for k in (a, b)]
            if min(counts) < LEAST_IMAGES:
                continue
            margin = logits[pair, b] - logits[pair, a]
            interval = cluster_bootstrap(
                lambda i, pair=pair, margin=margin, b=b: auc(labels[pair][i] == b, margin[i]),  # type: ignore[misc]
                [records[int(i)].patient for i in pair],
                draws=draws,
            )
            out[f"{source}: {CLASSES[b]} against {CLASSES[a]}"] = {**plain(interval), "images": counts}
    return out
