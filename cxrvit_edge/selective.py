"""What prediction sets are worth over labelled images: coverage, how many name one class, risk against coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Selective
from cxrvit_edge.decision import prediction_sets
from cxrvit_edge.metrics import DRAWS, Estimate, Plain, exact, plain
from cxrvit_edge.resampling import Float, ratio, weighted_bootstrap

Bool = NDArray[np.bool_]
GUARANTEE = (
    "That the true class is in the set so often is promised only of films exchangeable with those that the threshold "
    "was chosen on, over all classes together: not of one class or source, and not at another hospital."
)


def figures(
    labels: NDArray[np.integer],
    probabilities: Float,
    patients: Sequence[str],
    sources: Sequence[str],
    classes: Sequence[str],
    selective: Selective,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Labels (N,), calibrated probabilities (N, K) -> plain values for JSON, intervals over patients.

    coverage: share of images whose class is in the set; single: of those with a set of one class; accuracy of the label
    on all and, accuracy_single, on those; aurc: area under the curve of risk against coverage by top probability
    (Geifman et al. 2019), 0 is best. by_class, by_source: {images, coverage, single}. None throughout where
    probabilities are not finite or there is no image.
    """
    whole = np.ones(len(labels), bool)
    sets = prediction_sets(probabilities, selective.threshold)
    covered, single = sets[np.arange(len(labels)), labels], sets.sum(1) == 1
    right = probabilities.argmax(1) == labels
    groups = {("by_class", name): labels == k for k, name in enumerate(classes)}
    groups |= {("by_source", s): np.array([own == s for own in sources]) for s in sorted({s for s in sources if s})}
    shares: dict[tuple[str, ...], tuple[Bool, Bool]] = {  # hits, out of
        ("coverage",): (covered, whole),
        ("single",): (single, whole),
        ("accuracy",): (right, whole),
        ("accuracy_single",): (right, single),
    }
    for group, own in groups.items():
        shares |= {(*group, "coverage"): (covered, own), (*group, "single"): (single, own)}
    estimates = (
        _estimates(shares, _area(right, probabilities.max(1)), patients, draws, seed) if _sound(probabilities) else {}
    )

    def of(*name: str) -> Plain:
        return plain(estimates.get(name, Estimate(*(float("nan"),) * 3)))

    out: dict[str, Any] = {"alpha": selective.alpha, "threshold": selective.threshold, "images": len(labels)}
    out |= {name: of(name) for name in ("coverage", "single", "accuracy", "accuracy_single", "aurc")}
    for kind in ("by_class", "by_source"):
        out[kind] = {
            name: {"images": int(own.sum()), **{share: of(kind, name, share) for share in ("coverage", "single")}}
            for (of_kind, name), own in groups.items()
            if of_kind == kind
        }
    return out


def _sound(probabilities: Float) -> bool:
    return bool(len(probabilities) and np.isfinite(probabilities).all())


def _estimates(
    shares: dict[tuple[str, ...], tuple[Bool, Bool]],
    area: Callable[[Float], Float],
    patients: Sequence[str],
    draws: int,
    seed: int,
) -> dict[tuple[str, ...], Estimate]:
    of = np.stack([whole for _, whole in shares.values()], axis=1)  # (N, figures)
    hits = np.stack([part for part, _ in shares.values()], axis=1) & of

    def measure(weights: Float) -> dict[str, Float]:
        found = ratio(weights @ hits, weights @ of)  # (D, figures)
        return {str(i): found[:, i] for i in range(len(shares))} | {"aurc": area(weights)}

    e = weighted_bootstrap(measure, patients, draws=draws, seed=seed)
    out: dict[tuple[str, ...], Estimate] = {("aurc",): e["aurc"]}
    for i, (name, (_, whole)) in enumerate(shares.items()):
        out[name] = exact(e[str(i)], len({patients[int(row)] for row in np.flatnonzero(whole)}))
    return out


def _area(right: Bool, confidence: Float) -> Callable[[Float], Float]:
    """Mean, over the images, of the error among those at least as confident; of weighted images."""
    order = np.argsort(-confidence, kind="stable")
    last = np.searchsorted(-confidence[order], -confidence[order], side="right") - 1  # of equal confidence all at once
    wrong = ~right[order]

    def area(weights: Float) -> Float:
        w = weights[:, order]
        risk = ratio(np.cumsum(w * wrong, axis=1)[:, last], np.cumsum(w, axis=1)[:, last])
        return ratio((w * np.where(w > 0, risk, 0.0)).sum(1), w.sum(1))

    return area
