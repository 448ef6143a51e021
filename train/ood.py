"""Fitting `cxrvit_edge.ood`: which embeddings are familiar, and from where on a film is unlike them all.

Fitted to the labelled films of the training split that published weights may learn from; the threshold lets all but a
share of the validation films stay under it. How many films of a source that the fit did not see are over it is told,
since another hospital's films are what it will meet: the network itself has learned from that source, so a hospital
that neither has seen may lie farther off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.ood import Familiar
from train.data.manifest import REUSABLE
from train.data.record import Record

Float64 = NDArray[np.float64]
Say = Callable[[str], None]
METHOD = "class-conditional Mahalanobis distance, one shrunk covariance, and the rest outside its components"
DIMENSIONS = 16  # chosen by benchmarks/ood.py
FLOOR = 0.01  # of the embeddings' standard deviation: what the rounding of FP16 and INT8 may move is no evidence
SHARE = 0.02  # of the validation films may be over the threshold


@dataclass(frozen=True)
class Fitted:
    """record: how it was fitted and what is over its threshold, for the manifest."""

    familiar: Familiar
    record: dict[str, Any]


def ledoit_wolf(x: Float64) -> tuple[Float64, float]:
    """Covariance of centred rows x (n, p), shrunk to the identity times their mean variance, and the shrinkage in 0-1.

    Ledoit and Wolf, J. Multivariate Anal. 88 (2004) 365: the shrinkage that has the least expected squared error.
    """
    n, p = x.shape
    plain = x.T @ x / n
    level = float(np.trace(plain)) / p
    apart = float(((plain - level * np.eye(p)) ** 2).sum())
    error = float(((x**2).sum(axis=1) ** 2).sum()) / n**2 - float((plain**2).sum()) / n
    shrinkage = min(max(error / apart, 0.0), 1.0) if apart > 0 else 1.0
    return (1 - shrinkage) * plain + shrinkage * level * np.eye(p), shrinkage


def fit_familiar(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    dimensions: int = DIMENSIONS,
    floor: float = FLOOR,
    shrinkage: float | None = None,
    residual: bool = True,
) -> tuple[Familiar, float]:
    """(N, D), (N,) -> a fit whose threshold is infinite, and the shrinkage.

    dimensions: at most N - 1 and D are used; floor: its square is added to every variance, in units of that of all
    values; shrinkage: by Ledoit and Wolf if None; residual: whether what lies outside the components counts.
    """
    x = np.asarray(embeddings, np.float64)
    k = max(1, min(dimensions, len(x) - 1, x.shape[1]))
    centre, least = x.mean(axis=0), (floor * float(x.std())) ** 2
    x = x - centre
    axes = np.linalg.svd(x, full_matrices=False)[2][:k].T  # (D, k)
    p = x @ axes
    classes = sorted(set(labels.tolist()))
    means = np.stack([p[labels == c].mean(axis=0) for c in classes])  # (C, k)
    inside = p - means[np.searchsorted(classes, labels)]
    if shrinkage is None:
        covariance, shrinkage = ledoit_wolf(inside)
    else:
        plain = inside.T @ inside / len(inside)
        covariance = (1 - shrinkage) * plain + shrinkage * np.trace(plain) / k * np.eye(k)
    values, vectors = np.linalg.eigh(covariance + least * np.eye(k))
    whiten = vectors / np.sqrt(np.maximum(values, 1e-12))
    rest = 0.0
    if residual and k < x.shape[1]:
        rest = float((x**2).sum() - (p**2).sum()) / (len(x) * (x.shape[1] - k)) + least
    centre, axes, whiten, means = (np.asarray(v, np.float32) for v in (centre, axes, whiten, means @ whiten))
    return Familiar(centre, axes, whiten, means, max(rest, 0.0), float("inf")), shrinkage


def threshold(scores: Float64, share: float) -> float:
    """The least reported score that at most `share` of `scores` are over."""
    ordered = np.sort(scores)
    return float(np.ceil(ordered[len(ordered) - 1 - int(share * len(ordered))] * 1e4) / 1e4)


def fit(records: Sequence[Record], embeddings: NDArray[np.floating], say: Say, share: float = SHARE) -> Fitted | None:
    """Of films of train and val, an embedding (N, D) each. None, having said why, if there is nothing to fit."""
    label = np.array([-1 if r.label is None else r.label for r in records])
    learned = np.array([r.split == "train" and r.reuse in REUSABLE for r in records]) & (label >= 0)
    val = np.array([r.split == "val" for r in records])
    source = np.array([r.source for r in records])
    if learned.sum() < 2 or not val.any():
        say("familiar films: no labelled film to learn from, or none in val; there will be no score")
        return None

    def judged(fitted: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> tuple[Familiar, Float64, float]:
        found, shrinkage = fit_familiar(embeddings[fitted], label[fitted])
        scores = found.scores(embeddings)
        return replace(found, threshold=threshold(scores[chosen], share)), scores, shrinkage

    def over(scores: Float64, found: Familiar, rows: NDArray[np.bool_]) -> dict[str, Any]:
        return {"images": int(rows.sum()), "over": round(float((scores[rows] > found.threshold).mean()), 4)}

    familiar, scores, shrinkage = judged(learned, val)
    left_out = {}
    for name in sorted(set(source.tolist())):
        here = source == name
        if (learned & ~here).sum() < 2 or not (val & ~here).any():
            continue
        found, its, _ = judged(learned & ~here, val & ~here)
        left_out[name] = over(its, found, here)
        say(f"familiar films without {name}: {left_out[name]['over']:.0%} of its {here.sum()} films are over")
    record = {
        "method": METHOD,
        "threshold": familiar.threshold,
        "share": share,
        "dimensions": familiar.axes.shape[1],
        "shrinkage": round(shrinkage, 4),
        "floor": FLOOR,
        "films": int(learned.sum()),
        "val": over(scores, familiar, val),
        "left_out": left_out,
    }
    say(f"familiar films: threshold {familiar.threshold:.2f}, {record['val']['over']:.1%} of val over it")
    if left_out and max(one["over"] for one in left_out.values()) > 0.5:
        say("familiar films: most films of some source are unlike all others; so may be those of another hospital")
    return Fitted(familiar, record)
