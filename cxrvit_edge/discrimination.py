"""How classes are told apart: AUC and rates at thresholds with intervals over patients, pooled and by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import DRAWS, RATES, Plain, bounded, delong, exact, number, plain, threshold_at_sensitivity
from cxrvit_edge.resampling import Auc, Float, Rates, RatesAtSensitivity, weighted_bootstrap

SENSITIVITY = 0.80  # the paper's, section 4.4
LEAST_IMAGES = 5  # of each class inside a group: with fewer a bootstrap interval says nothing
CHOSEN = "chosen"  # thresholds of SENSITIVITY on these very images, again in each resample
MEAN = "mean"
UNDEFINED: Plain = {"value": None, "low": None, "high": None}
Labels = NDArray[np.int64]
Points = Mapping[str, float]


def discrimination(
    labels: Labels,
    probabilities: Float,
    patients: Sequence[str],
    classes: Sequence[str],
    ways: Mapping[str, Points | str],
    *,
    reported: Float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """{auc, and each of `ways`: rates at its thresholds} by class and their mean; labels (N,), probabilities (N, K).

    auc has DeLong's interval and, as cluster_low and cluster_high, that of the bootstrap over patients; a mean the
    latter alone. A way is {class: threshold}, or CHOSEN. reported: what thresholds are held against, if it is another
    than probabilities. An AUC of 1 has no interval, a rate of 0 or 1 the exact one of as many patients.
    """
    positive = [labels == k for k in range(len(classes))]
    scores = list(probabilities.T)
    flagged = list((probabilities if reported is None else reported).T)
    areas = [Auc(own, s) for own, s in zip(positive, scores, strict=True)]
    thresholds = {
        way: (chosen_thresholds(labels, probabilities, classes) if isinstance(points, str) else points)
        for way, points in ways.items()
    }
    at = {
        way: [
            RatesAtSensitivity(own, s, SENSITIVITY)
            if isinstance(points, str)
            else Rates(own, s, points.get(name, float("nan")))
            for name, own, s in zip(classes, positive, flagged, strict=True)
        ]
        for way, points in ways.items()
    }

    def measure(weights: Float) -> dict[str, Float]:
        found = {f"auc {name}": area(weights) for name, area in zip(classes, areas, strict=True)}
        for way, measured in at.items():
            for name, of_class in zip(classes, measured, strict=True):
                found |= {f"{way} {name} {rate}": v for rate, v in zip(RATES, of_class(weights), strict=True)}
            for rate in RATES:
                found[f"{way} {MEAN} {rate}"] = np.mean([found[f"{way} {name} {rate}"] for name in classes], axis=0)
        found[f"auc {MEAN}"] = np.mean([found[f"auc {name}"] for name in classes], axis=0)
        return found

    e = weighted_bootstrap(measure, patients, draws=draws, seed=seed) if len(labels) else {}
    estimates = {name: plain(bounded(value)) for name, value in e.items()}
    for way in at:
        for name, own in zip(classes, positive, strict=True):
            for rate, counted in zip(RATES, (own, ~own, np.ones(len(own), bool)), strict=True):
                key = f"{way} {name} {rate}"
                if key in e:
                    clusters = len({patients[int(i)] for i in np.flatnonzero(counted)})
                    estimates[key] = plain(exact(e[key], clusters))
    area = {}
    for name, own, score in zip(classes, positive, scores, strict=True):
        over = estimates.get(f"auc {name}", UNDEFINED)
        single = plain(bounded(delong(own, score))) if np.isfinite(score).all() and len(labels) else UNDEFINED
        area[name] = {**single, "cluster_low": over["low"], "cluster_high": over["high"]}
    out: dict[str, Any] = {"auc": {**area, MEAN: estimates.get(f"auc {MEAN}", UNDEFINED)}}
    for way, points in thresholds.items():
        out[way] = {
            name: {
                **({} if name == MEAN else {"threshold": number(points.get(name, float("nan")))}),
                **{rate: estimates.get(f"{way} {name} {rate}", UNDEFINED) for rate in RATES},
            }
            for name in (*classes, MEAN)
        }
    return out


def chosen_thresholds(labels: Labels, probabilities: Float, classes: Sequence[str]) -> dict[str, float]:
    """Per class the largest threshold with a sensitivity of at least 80 %; NaN without an image of the class."""
    return {
        name: threshold_at_sensitivity(labels == k, probabilities[:, k], SENSITIVITY) for k, name in enumerate(classes)
    }


def by_group(
    groups: Sequence[str],
    labels: Labels,
    probabilities: Float,
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """{group: {images, auc: {class or mean: estimate over patients}}}; the mean only where every class has one."""
    out = {}
    for group, rows in _members(groups).items():
        own, p = labels[rows], probabilities[rows]
        areas = {name: Auc(own == k, p[:, k]) for k, name in enumerate(classes) if _enough(own == k)}

        def measure(weights: Float, areas: Mapping[str, Auc] = areas) -> dict[str, Float]:
            found = {name: area(weights) for name, area in areas.items()}
            return {**found, MEAN: np.mean(list(found.values()), axis=0)} if len(found) == len(classes) else found

        e = weighted_bootstrap(measure, [patients[int(i)] for i in rows], draws=draws, seed=seed) if areas else {}
        few = {**UNDEFINED, "why": f"fewer than {LEAST_IMAGES} images of the class, or of the others"}
        estimates = {name: plain(bounded(e[name])) if name in e else few for name in classes}
        lacking = {**UNDEFINED, "why": "not every class has one"}
        estimates[MEAN] = plain(bounded(e[MEAN])) if MEAN in e else lacking
        if not np.isfinite(p).all():
            estimates = {name: {**UNDEFINED, "why": "values that are not finite"} for name in estimates}
        out[group or "not stated"] = {"images": len(rows), "auc": estimates}
    return out


def within_group(
    groups: Sequence[str],
    labels: Labels,
    logits: Float,
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """AUC of each pair of classes, by the difference of their logits, inside each group with five images of both."""
    out: dict[str, Any] = {}
    for group, rows in _members(groups).items():
        chosen = rows[labels[rows] >= 0]
        for a, b in combinations(sorted(set(labels[chosen].tolist())), 2):
            pair = chosen[np.isin(labels[chosen], (a, b))]
            counts = [int((labels[pair] == k).sum()) for k in (a, b)]
            if min(counts) < LEAST_IMAGES:
                continue
            with np.errstate(invalid="ignore"):
                area = Auc(labels[pair] == b, logits[pair, b] - logits[pair, a])
            measured = weighted_bootstrap(
                lambda weights, area=area: {"auc": area(weights)},  # type: ignore[misc]
                [patients[int(i)] for i in pair],
                draws=draws,
                seed=seed,
            )
            out[f"{group}: {classes[b]} against {classes[a]}"] = {**plain(bounded(measured["auc"])), "images": counts}
    return out


def _members(groups: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """Rows of each group, groups by name."""
    rows: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    return {group: np.array(rows[group], np.intp) for group in sorted(rows)}


def _enough(positive: NDArray[np.bool_]) -> bool:
    return min(int(positive.sum()), int((~positive).sum())) >= LEAST_IMAGES
