"""Figures of the diagnosis and of the findings (paper, section 4.4): AUC one against the rest, operating points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.discrimination import CHOSEN, chosen_thresholds, discrimination, within_group
from cxrvit_edge.metrics import DRAWS, Index, auc, bootstrap, delong, number, plain
from cxrvit_edge.model.config import CLASSES, FINDINGS
from train.data.record import Record

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def thresholds(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """Per class the largest threshold with a sensitivity of at least 80 %; NaN without an image of the class."""
    return chosen_thresholds(labels, probabilities, CLASSES)


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

    ways: dict[str, Mapping[str, float] | str] = {"own": CHOSEN, "fixed": fixed or {}}
    out |= discrimination(labels, probabilities, patients, CLASSES, ways, draws=draws)
    return out if fixed is not None else {**out, "fixed": None}


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


def within_source(
    records: Sequence[Record], logits: NDArray[np.float64], *, by_view: bool = False, draws: int = DRAWS
) -> dict[str, Any]:
    """AUC of each pair of classes inside each source with five images of both: there the source gives nothing away.

    by_view: inside each source and view, PA or AP (AP Supine with it), so that the view gives nothing away either.
    """
    groups = {i: group for i, r in enumerate(records) if (group := group_of(r, by_view=by_view)) is not None}
    chosen = [records[i] for i in groups]
    labels = np.array([-1 if r.label is None else r.label for r in chosen], np.int64)
    patients = [r.patient for r in chosen]
    return within_group(list(groups.values()), labels, logits[list(groups)], patients, CLASSES, draws=draws)


def group_of(r: Record, *, by_view: bool = False) -> str | None:
    """Its source, or source and view; None for a view that is neither PA nor AP."""
    if not by_view:
        return r.source
    return f"{r.source}, {r.view[:2]}" if r.view.startswith(("PA", "AP")) else None
