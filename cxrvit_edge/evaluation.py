"""What a bundle's answers are worth over labelled images: AUC, operating points, calibration, severity, by group.

Everything is plain values for JSON: figures have four decimals, None stands for what is not defined, and "why" says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.calibration_metrics import bland_altman, reliability
from cxrvit_edge.discrimination import MEAN, UNDEFINED, Labels, by_group, discrimination, within_group
from cxrvit_edge.metrics import (
    DRAWS,
    bounded,
    number,
    plain,
    roc_points,
    softmax,
)
from cxrvit_edge.parity import Observation
from cxrvit_edge.resampling import Float, agreement, calibration, weighted_bootstrap
from cxrvit_edge.selective import figures as selective
from cxrvit_edge.studies import Study

SEVERITY = ("mse", "mae", "cc", "r2")


def accuracy(
    observations: Sequence[Observation], studies: Sequence[Study], bundle: Bundle, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """The accuracy block of report.json; `studies` are the labels of `observations`, in the same order.

    Every labelled image counts in each figure but severity, also one that triage refuses; `refused` counts these by
    code, `images` and `patients` the labelled. `sensitive` and `selective` are None for a
    bundle without. ValueError if the two differ in length.
    """
    pairs = list(zip(observations, studies, strict=True))
    known = [(o, s, s.label) for o, s in pairs if s.label is not None]
    m = bundle.manifest
    classes = m.classes
    labels = np.array([label for *_, label in known], np.int64)
    patients = [s.patient for _, s, _ in known]
    logits = np.stack([o.logits for o, *_ in known]) if known else np.zeros((0, len(classes)))
    broken = int((~np.isfinite(logits).all(1)).sum())
    out: dict[str, Any] = {
        "images": len(known),
        "patients": len(set(patients)),
        "refused": dict(sorted(Counter(o.refused for o, _ in pairs if o.refused is not None).items())),
        "classes": {name: int((labels == k).sum()) for k, name in enumerate(classes)},
    }
    with np.errstate(invalid="ignore"):
        p = softmax(logits, m.temperature)
    why = f"the network gave {broken} images values that are not finite" if broken else None
    ways = {"operating": m.operating_points}
    if m.sensitive_points is not None:
        ways["sensitive"] = m.sensitive_points
    found = discrimination(  # triage holds its thresholds against six digits
        labels, p, patients, classes, ways, reported=np.round(p, 6), draws=draws, seed=seed
    )
    out["auc"] = {name: _explained(e, labels, classes, name, why) for name, e in found["auc"].items()}
    out["operating"], out["sensitive"] = found["operating"], found.get("sensitive")
    out["roc"] = {name: [] if broken else _curve(labels == k, p[:, k]) for k, name in enumerate(classes)}
    out["calibration"] = _calibration(labels, p, patients, why, draws, seed)
    out["severity"] = severity(observations, studies, draws=draws, seed=seed)
    views = [o.view for o, *_ in known]
    sources = [s.source for _, s, _ in known]
    out["selective"] = m.selective and selective(
        labels, p, patients, sources, classes, m.selective, draws=draws, seed=seed
    )
    out["by_view"] = by_group(views, labels, p, patients, classes, draws=draws, seed=seed)
    out["by_source"] = by_group(sources, labels, p, patients, classes, draws=draws, seed=seed) if any(sources) else {}
    stated = [i for i, source in enumerate(sources) if source]
    out["within_source"] = within_group(
        [sources[i] for i in stated], labels[stated], logits[stated].astype(np.float64), [patients[i] for i in stated],
        classes, draws=draws, seed=seed,
    )  # fmt: skip
    return out


def severity(
    observations: Sequence[Observation], studies: Sequence[Study], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any] | None:
    """Score against a radiologist's on the images that have both, beside their own mean as a constant; None without.

    bland_altman: network less radiologist; low and high are the limits of agreement.
    """
    both = [(o.score, s) for o, s in zip(observations, studies, strict=True) if s.severity is not None]
    scored = [(score, s.severity, s.patient) for score, s in both if score is not None and np.isfinite(score)]
    if not scored:
        return None
    score, truth = (np.array([row[i] for row in scored], np.float64) for i in (0, 1))
    e = weighted_bootstrap(agreement(truth, score), [row[2] for row in scored], draws=draws, seed=seed)
    found = bland_altman(truth, score)
    return {
        "images": len(scored),
        "not_scored": len(both) - len(scored),
        **{name: plain(bounded(e[name])) for name in SEVERITY},
        "constant": {"score": number(truth.mean()), "mse": number(truth.var())},
        "bland_altman": {
            "bias": plain(bounded(e["bias"])),
            "low": number(found.low),
            "high": number(found.high),
            "points": [[number(x), number(y)] for x, y in found.points],
        },
    }


def _calibration(
    labels: Labels, p: Float, patients: Sequence[str], why: str | None, draws: int, seed: int
) -> dict[str, Any]:
    if why or not len(labels):
        return {"brier": UNDEFINED, "ece": UNDEFINED, "bins": [], "why": why or "no labelled image"}
    e = weighted_bootstrap(calibration(labels, p), patients, draws=draws, seed=seed)
    bins = [
        {name: number(value) for name, value in vars(b).items()} | {"count": b.count} for b in reliability(labels, p)
    ]
    ece = {**plain(e["ece"]), "low": None, "high": None}  # of resamples it is higher: their quantiles hold it rarely
    return {"brier": plain(bounded(e["brier"])), "ece": ece, "bins": bins}


def _curve(positive: NDArray[np.bool_], score: Float) -> list[list[float | None]]:
    return [[number(x), number(y)] for x, y in roc_points(positive, score)]


def _explained(
    estimate: Mapping[str, Any], labels: Labels, classes: Sequence[str], name: str, why: str | None
) -> dict[str, Any]:
    """With "why" where there is no value."""
    if estimate["value"] is not None:
        return dict(estimate)
    present = sorted(set(labels.tolist()))
    if why is None and not present:
        why = "no labelled image"
    elif why is None and len(present) == 1:
        why = f"one class only: every labelled image is {classes[present[0]]}"
    return {**estimate, "why": why or ("a class has no image" if name == MEAN else "no image of the class")}
