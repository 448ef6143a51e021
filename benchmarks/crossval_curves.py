"""What the plots of the model card show beside the figures of a crossval.json, with bands over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.calibration_metrics import BINS, bin_of, reliability
from cxrvit_edge.decision import prediction_sets
from cxrvit_edge.discrimination import LEAST_IMAGES
from cxrvit_edge.metrics import DRAWS, bounded, exact, number, plain, softmax
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.resampling import Auc, Float, calibration, ratio, resamples, weighted_bootstrap
from export.decisions import ALPHA, fit_temperature, selective
from train.predict import Predictions
from train.severity_eval import CUTS, brixia_scores, zone_truth

RATES = np.linspace(0, 1, 101)  # false positive rates of a ROC curve
SHARES = np.linspace(0.05, 1, 96)  # of films decided, on a curve of risk and coverage
ZONES = tuple(f"{row} {side}" for row in ("upper", "middle", "lower") for side in ("image-left", "image-right"))
Bool = NDArray[np.bool_]
Lines = Callable[[Float], Float]  # weights (D, N) -> (D, G)


def curves(p: Predictions, fold: Sequence[int], known: NDArray[np.intp], pairs: Sequence[str]) -> dict[str, Any]:
    """p, and the fold of each prediction; known: rows that the diagnosis is judged on; pairs: of auc_within_source.

    Temperature and prediction sets of a fold are chosen on the out-of-fold logits of the other folds, so that what is
    said of them is out of fold too. Plain values for JSON.
    """
    out: dict[str, Any] = {}
    if known.size:
        out |= _diagnosis(p, np.asarray(fold)[known], known, pairs)
    if np.isfinite(p.scores).any():
        found = {f"brixia>={t:g}": _severity(p, t) for t in CUTS}
        out["severity"] = {cut: e for cut, e in found.items() if e}
    return out


def _diagnosis(
    p: Predictions, fold: NDArray[np.int64], known: NDArray[np.intp], pairs: Sequence[str]
) -> dict[str, Any]:
    labels, logits = p.labels[known], p.logits[known].astype(np.float64)
    patients = [p.records[int(i)].patient for i in known]
    sources = np.array([p.records[int(i)].source for i in known])
    raw = softmax(logits)
    roc = {name: _roc(labels == k, raw[:, k], patients) for k, name in enumerate(CLASSES)}
    for pair in pairs:
        source, _, classes = pair.partition(": ")
        b, a = (CLASSES.index(name) for name in classes.split(" against "))
        rows = np.flatnonzero((sources == source) & np.isin(labels, (a, b)))
        own = [patients[int(i)] for i in rows]
        roc[pair] = _roc(labels[rows] == b, logits[rows, b] - logits[rows, a], own)
    scaled, sets, temperatures = np.empty_like(raw), np.zeros(raw.shape, bool), {}
    for k in np.unique(fold):
        here, others = fold == k, fold != k
        temperatures[int(k)] = fit_temperature(labels[others], logits[others])
        scaled[here] = softmax(logits[here], temperatures[int(k)])
        chosen = selective(labels[others], softmax(logits[others], temperatures[int(k)]))
        sets[here] = prediction_sets(scaled[here], chosen.threshold)
    return {
        "roc": {"rates": _plain(RATES), "curves": roc},
        "reliability": {
            "as_trained": _reliability(labels, raw, patients),
            "scaled": {"temperatures": temperatures, **_reliability(labels, scaled, patients)},
        },
        "selective": _selective(labels, scaled, sets, patients, sources),
        "right": _right(labels, raw.argmax(1) == labels, patients, sources),
    }


def _bands(lines: Lines, patients: Sequence[str]) -> dict[str, list[float | None]]:
    """Value and 95 % bounds of each point by itself; bounds are None where fewer than half of the draws define it."""
    whole = lines(np.ones((1, len(patients))))[0]
    drawn = np.concatenate([lines(weights) for weights in resamples(patients, draws=DRAWS)])
    enough = np.isfinite(drawn).sum(0) >= len(drawn) / 2
    low, high = np.full((2, len(whole)), np.nan)
    if enough.any():
        low[enough], high[enough] = np.nanquantile(drawn[:, enough], (0.025, 0.975), axis=0)
    return {"value": _plain(whole), "low": _plain(low), "high": _plain(high)}


def _roc(positive: Bool, score: Float, patients: Sequence[str]) -> dict[str, Any]:
    """Sensitivity at RATES of false positives, on the straight lines between the corners."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # ties are passed together
    held = positive[order].astype(np.float64)

    def lines(weights: Float) -> Float:
        w = weights[:, order]
        hits, false = (np.cumsum(w * part, axis=1)[:, ends] for part in (held, 1 - held))
        return _along(RATES, ratio(false, false[:, -1:]), ratio(hits, hits[:, -1:]), start=True)

    return {"images": [int((~positive).sum()), int(positive.sum())], **_bands(lines, patients)}


def _reliability(labels: NDArray[np.int64], probabilities: Float, patients: Sequence[str]) -> dict[str, Any]:
    confidence = probabilities.max(1)
    member = np.eye(BINS)[bin_of(confidence)]
    right = (probabilities.argmax(1) == labels)[:, None] * member
    band = _bands(lambda weights: ratio(weights @ right, weights @ member), patients)
    e = weighted_bootstrap(calibration(labels, probabilities), patients)
    bins = [
        {"count": b.count, "confidence": number(b.confidence), **{k: band[k][i] for k in band}}
        for i, b in enumerate(reliability(labels, probabilities))
    ]
    return {"bins": bins, **{name: plain(value) for name, value in e.items()}}


def _selective(
    labels: NDArray[np.int64], probabilities: Float, sets: Bool, patients: Sequence[str], sources: NDArray[np.str_]
) -> dict[str, Any]:
    """Error of the label among the films decided, by top probability, and of those with a set of one class."""
    right = probabilities.argmax(1) == labels
    covered, single = sets[np.arange(len(labels)), labels], sets.sum(1) == 1
    groups = {"all": np.ones(len(labels), bool)}
    groups |= {s: sources == s for s in sorted(set(sources.tolist())) if len(set(labels[sources == s].tolist())) > 1}
    out: dict[str, Any] = {"alpha": ALPHA, "shares": _plain(SHARES), "groups": {}}
    for name, own in groups.items():
        if own.sum() < 4 * LEAST_IMAGES:
            continue
        rows = np.flatnonzero(own)
        of, n = [patients[int(i)] for i in rows], {patients[int(i)] for i in rows}
        ok, kept, held = right[rows], single[rows], covered[rows]

        def share(weights: Float, ok: Bool = ok, kept: Bool = kept, held: Bool = held) -> dict[str, Float]:
            whole, decided = weights.sum(1), weights @ kept
            return {
                "coverage": ratio(weights @ held, whole),
                "single": ratio(decided, whole),
                "error": ratio(weights @ ~ok, whole),
                "error_single": ratio(weights @ (~ok & kept), decided),
            }

        e = weighted_bootstrap(share, of)
        single_patients = len({patients[int(i)] for i in rows if single[i]})
        counted = {"error_single": single_patients}
        out["groups"][name] = {
            "images": len(rows),
            **{k: plain(exact(v, max(1, counted.get(k, len(n))))) for k, v in e.items()},
            "curve": _bands(_risk(ok, probabilities[rows].max(1)), of),
        }
    return out


def _risk(right: Bool, confidence: Float) -> Lines:
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    wrong = ~right[order]

    def lines(weights: Float) -> Float:
        w = weights[:, order]
        decided, errors = (np.cumsum(w * part, axis=1)[:, ends] for part in (1, wrong))
        return _along(SHARES, ratio(decided, decided[:, -1:]), ratio(errors, decided))

    return lines


def _along(at: Float, x: Float, y: Float, *, start: bool = False) -> Float:
    """y at `at` (G,), on straight lines between the points (x, y) of each row (D, M); start: from (0, 0).

    Points that are not finite are passed over; a row without any is NaN.
    """
    out = np.full((len(x), len(at)), np.nan)
    for row, a, b in zip(out, x, y, strict=True):
        if (finite := np.isfinite(a) & np.isfinite(b)).any():
            a, b = a[finite], b[finite]
            row[:] = np.interp(at, np.append(0.0, a) if start else a, np.append(0.0, b) if start else b)
    return out


def _right(
    labels: NDArray[np.int64], right: Bool, patients: Sequence[str], sources: NDArray[np.str_]
) -> dict[str, Any]:
    """{source: {class: share of its films that got their label}}, of five films and more."""
    out: dict[str, Any] = {}
    for source in sorted(set(sources.tolist())):
        for k, name in enumerate(CLASSES):
            rows = np.flatnonzero((sources == source) & (labels == k))
            if len(rows) < LEAST_IMAGES:
                continue
            of, ok = [patients[int(i)] for i in rows], right[rows]
            e = weighted_bootstrap(lambda w, ok=ok: {"right": ratio(w @ ok, w.sum(1))}, of)["right"]  # type: ignore[misc]
            out.setdefault(source, {})[name] = {"images": len(rows), **plain(exact(e, len(set(of))))}
    return out


def _severity(p: Predictions, cut: float) -> dict[str, Any]:
    """By score of the first radiologist, the network's and the second's; AUC of each zone."""
    zones, second = zone_truth(p.records, cut), np.full(len(p.records), np.nan)
    for i, r in enumerate(p.records):
        if r.second_brixia is not None:
            second[i] = float((r.second_brixia >= cut).sum())
    truth = brixia_scores(p.records, cut)
    known = np.flatnonzero(np.isfinite(truth) & np.isfinite(p.scores))
    if not known.size:
        return {}
    patients = [p.records[int(i)].patient for i in known]
    by_score = []
    for score in range(7):
        rows = known[truth[known] == score]
        if len(rows):
            by_score.append({"score": score, "network": _five(p.scores[rows]), "second": _five(second[rows])})
    each = {
        name: Auc(zones[known, k // 2, k % 2] == 1, p.zones[known, k // 2, k % 2].astype(np.float64))
        for k, name in enumerate(ZONES)
    }
    e = weighted_bootstrap(lambda weights: {name: area(weights) for name, area in each.items()}, patients)
    counts = {name: int((zones[known, k // 2, k % 2] == 1).sum()) for k, name in enumerate(ZONES)}
    return {
        "by_score": by_score,
        "zones": {name: {"affected": counts[name], "images": len(known), **plain(bounded(v))} for name, v in e.items()},
    }


def _five(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """Least, quartiles and largest of those that are known."""
    kept = values[np.isfinite(values)]
    return {"images": len(kept), "five": _plain(np.quantile(kept, (0, 0.25, 0.5, 0.75, 1)))} if len(kept) else None


def _plain(values: NDArray[np.floating]) -> list[float | None]:
    return [number(v) for v in values]
