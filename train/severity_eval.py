"""Figures of the severity score (paper, section 4.4) beside a constant predictor and a second radiologist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import DRAWS, Index, bootstrap, number, plain, severity
from cxrvit_edge.resampling import Auc, Float, Measure, ratio, weighted_bootstrap
from cxrvit_edge.resampling import agreement as agreement_of
from train.data.record import Record
from train.predict import Predictions

CUTS = (1.0, 2.0)  # a Brixia zone of 0-3 counts as affected from here; the paper does not say where it cut
FIGURES = ("mse", "mae", "cc", "r2")
Scores = NDArray[np.float64]


def zone_truth(records: Sequence[Record], threshold: float = 1.0) -> NDArray[np.float64]:
    """(N, 3, 2) of 0 or 1, NaN where unknown: zones as a radiologist scored them so, else Brixia's at `threshold`."""
    out = np.full((len(records), 3, 2), np.nan)
    for row, r in zip(out, records, strict=True):
        if r.brixia is not None:
            row[:] = r.brixia >= threshold
        if r.zones is not None:
            known = np.isfinite(r.zones)
            row[known] = r.zones[known]
    return out


def brixia_scores(records: Sequence[Record], threshold: float = 1.0) -> Scores:
    """(N,) affected zones counted: the paper's 0-6 score; NaN where a zone is unknown."""
    return np.asarray(zone_truth(records, threshold).sum((1, 2)))


def training_mean(records: Sequence[Record], threshold: float = 1.0) -> float:
    """Mean score of the training split: what a predictor that never looks would say; NaN if none is scored."""
    scores = brixia_scores([r for r in records if r.split == "train"], threshold)
    scores = scores[np.isfinite(scores)]
    return float(scores.mean()) if scores.size else float("nan")


def agreement(truth: Scores, score: Scores) -> dict[str, float]:
    s = severity(truth, score)
    return {"mse": s.mse, "mae": s.mae, "cc": s.cc, "r2": s.r2}


Constant = float | Mapping[Path, float]  # one score, or one for each image by its path (of the fold it lies in)


def severity_figures(
    p: Predictions, threshold: float, constant: Constant = float("nan"), *, draws: int = DRAWS
) -> dict[str, Any]:
    """Score against Brixia zones cut at `threshold`, as plain values for JSON, with intervals over patients.

    images: scored by a radiologist and by the network; no_lungs: by the first alone. constant: always the given score
    (the training mean), gain: its MSE less the network's, on the same draws. zone_auc: of the zones' values against
    affected or not, all zones together; zone_auc_mean: the mean of that of each zone. radiologists: the second against
    the first, and the network against the first, on the images that both scored.
    """
    zones = zone_truth(p.records, threshold)
    truth, score = zones.sum((1, 2)), p.scores
    known = np.flatnonzero(np.isfinite(truth) & np.isfinite(score))
    out: dict[str, Any] = {
        "images": int(known.size),
        "no_lungs": int((np.isfinite(truth) & ~np.isfinite(score)).sum()),
    }
    if not known.size:
        return out
    records = [p.records[int(i)] for i in known]
    t, s, z, v = truth[known], score[known], zones[known], p.zones[known].astype(np.float64)
    c = np.array([constant[r.path] if isinstance(constant, Mapping) else constant for r in records])
    network, by_zone = agreement_of(t, s), zone_auc(z, v)

    def measure(weights: Float) -> dict[str, Float]:
        found, whole = network(weights), weights.sum(1)
        still = {
            "constant mse": ratio(weights @ (t - c) ** 2, whole),
            "constant mae": ratio(weights @ np.abs(t - c), whole),
        }
        return {**found, **still, "gain": still["constant mse"] - found["mse"], **by_zone(weights)}

    e = weighted_bootstrap(measure, [r.patient for r in records], draws=draws)
    out.update({name: plain(e[name]) for name in FIGURES})
    out["constant"] = {
        "score": number(float(c.mean())),
        "mse": plain(e["constant mse"]),
        "mae": plain(e["constant mae"]),
        "gain": plain(e["gain"]),
    }
    out["zone_auc"] = plain(e["zone auc"])
    out["zone_auc_mean"] = plain(e["mean zone auc"])
    out["radiologists"] = radiologists(records, s, threshold, draws=draws)
    return out


def zone_auc(truth: Scores, value: Scores) -> Measure:
    """`zone auc` over all zones together and `mean zone auc` over each zone's own; truth, value (N, 3, 2).

    The mean is over the zones that are affected in some of the images and not in others.
    """
    together = Auc(truth.ravel() == 1, value.ravel())
    z, v = truth.reshape(len(truth), 6) == 1, value.reshape(len(value), 6)
    each = [Auc(z[:, k], v[:, k]) for k in range(6) if z[:, k].any() and not z[:, k].all()]

    def measure(weights: Float) -> dict[str, Float]:
        single = [area(weights) for area in each] or [np.full(len(weights), np.nan)]
        return {"zone auc": together(np.repeat(weights, 6, axis=1)), "mean zone auc": np.mean(single, axis=0)}

    return measure


def radiologists(
    records: Sequence[Record], score: Scores, threshold: float, *, draws: int = DRAWS
) -> dict[str, Any] | None:
    """The second radiologist (a junior's Brixia) and the network's score, each against the first; None if one alone."""
    both = [i for i, r in enumerate(records) if r.brixia is not None and r.second_brixia is not None]
    if not both:
        return None
    first, second = (
        np.array([float((getattr(records[i], who) >= threshold).sum()) for i in both])
        for who in ("brixia", "second_brixia")
    )
    ours = score[both]

    def measure(i: Index) -> dict[str, float]:
        of_second, of_network = agreement(first[i], second[i]), agreement(first[i], ours[i])
        return {
            **{f"second {k}": v for k, v in of_second.items()},
            **{f"network {k}": v for k, v in of_network.items()},
            "excess": of_network["mse"] - of_second["mse"],
        }

    e = bootstrap(measure, [records[i].patient for i in both], draws=draws)
    return {
        "images": len(both),
        "second_against_first": {k: plain(e[f"second {k}"]) for k in FIGURES},
        "network_against_first": {k: plain(e[f"network {k}"]) for k in FIGURES},
        "excess_mse": plain(e["excess"]),
    }
