"""Figures of a cross-validation's pooled predictions, and of their difference from another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np

from cxrvit_edge.discrimination import LEAST_IMAGES, MEAN
from cxrvit_edge.metrics import DRAWS, Plain, number, plain
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.resampling import Auc, Float, Measure, ratio, weighted_bootstrap
from train.data.record import Record
from train.diagnosis_eval import group_of, within_source
from train.evaluate import CAVEAT, figures_of, judged
from train.lungs_eval import lung_dice_by_source
from train.predict import Predictions
from train.severity_eval import CUTS, brixia_scores, training_mean, zone_auc, zone_truth
from train.tables import aligned, interval


def figures(
    p: Predictions, splits: Sequence[Sequence[Record]], tasks: Sequence[str], *, view: str = "any", draws: int = DRAWS
) -> dict[str, Any]:
    """`figures_of` the predictions, each out of fold, with what else a cross-validation tells; plain values for JSON.

    splits: for each prediction the records as its fold split them; the constant that a severity score stands beside is
    the mean over that fold's train, of any licence.
    """
    means = {id(s): {t: training_mean(s, t) for t in CUTS} for s in splits}
    constants = {t: {r.path: means[id(s)][t] for r, s in zip(p.records, splits, strict=True)} for t in CUTS}
    out = figures_of(p, tasks, constants=cast(Any, constants), view=view, draws=draws)
    if "diagnosis" in tasks:
        known = judged(p, view)
        out["auc_within_source_and_view"] = within_source(
            [p.records[int(i)] for i in known], p.logits[known].astype(np.float64), by_view=True, draws=draws
        )
    if "lungs" in tasks:
        out["lung_dice_by_source"] = lung_dice_by_source(p, draws=draws)
    return {"caveat": CAVEAT, **out}


def against(
    p: Predictions, q: Predictions, tasks: Sequence[str], *, view: str = "any", draws: int = DRAWS
) -> dict[str, Any]:
    """Figures of p, of q on the same records, and p less q with its interval over patients, paired.

    auc: one class against the rest, and their mean; within_source, within_source_and_view: pairs of classes; severity:
    MSE and zone AUC where both have a score; lung_dice by convention.
    """

    def compare(rows: Sequence[int], a: Measure, b: Measure) -> dict[str, dict[str, Any]]:
        def measure(weights: Float) -> dict[str, Float]:
            ours, theirs = a(weights), b(weights)
            return {name: ours[name] - theirs[name] for name in ours}

        whole = np.ones((1, len(rows)))
        own, other = a(whole), b(whole)
        e = weighted_bootstrap(measure, [p.records[i].patient for i in rows], draws=draws)
        return {
            name: {
                "images": len(rows),
                "value": number(float(own[name][0])),
                "other": number(float(other[name][0])),
                "difference": plain(e[name]),
            }
            for name in e
        }

    known = [int(i) for i in judged(p, view)] if "diagnosis" in tasks else []
    out: dict[str, Any] = {"images": len(p.records)}
    if known:
        out["auc"] = compare(known, *(_areas(x, known) for x in (p, q)))
    for name, by_view in (("within_source", False), ("within_source_and_view", True)):
        out[name] = {
            pair: compare(rows, *(_pair(x, rows, *classes) for x in (p, q)))["auc"]
            for pair, rows, classes in _pairs(p, known, by_view=by_view)
        }
    if "severity" in tasks:
        out["severity"] = {}
        for t in CUTS:
            finite = np.isfinite(brixia_scores(p.records, t)) & np.isfinite(p.scores) & np.isfinite(q.scores)
            if rows := np.flatnonzero(finite).tolist():
                out["severity"][f"brixia>={t:g}"] = compare(rows, *(_severity(x, rows, t) for x in (p, q)))
    if "lungs" in tasks:
        rows_of: dict[str, list[int]] = {}
        for i in np.flatnonzero(np.isfinite(p.lung_dice) & np.isfinite(q.lung_dice)).tolist():
            rows_of.setdefault(str(p.records[i].lungs_kind), []).append(i)
        out["lung_dice"] = {
            kind: compare(rows, *(_dice(x, rows) for x in (p, q)))["dice"] for kind, rows in sorted(rows_of.items())
        }
    return out


def _areas(p: Predictions, rows: Sequence[int]) -> Measure:
    labels, probabilities = p.labels[list(rows)], p.probabilities[list(rows)]
    areas = {name: Auc(labels == k, probabilities[:, k]) for k, name in enumerate(CLASSES)}

    def measure(weights: Float) -> dict[str, Float]:
        found = {name: area(weights) for name, area in areas.items()}
        return {**found, MEAN: np.mean(list(found.values()), axis=0)}

    return measure


def _pairs(p: Predictions, known: Sequence[int], *, by_view: bool) -> Iterator[tuple[str, list[int], tuple[int, int]]]:
    """Name, rows and classes of each pair that `within_source` judges."""
    groups: dict[str, list[int]] = {}
    for i in known:
        if (group := group_of(p.records[i], by_view=by_view)) is not None:
            groups.setdefault(group, []).append(i)
    for group, rows in sorted(groups.items()):
        for a, b in combinations(range(len(CLASSES)), 2):
            counts = [sum(p.records[i].label == k for i in rows) for k in (a, b)]
            if min(counts) >= LEAST_IMAGES:
                name = f"{group}: {CLASSES[b]} against {CLASSES[a]}"
                yield name, [i for i in rows if p.records[i].label in (a, b)], (a, b)


def _pair(p: Predictions, rows: Sequence[int], a: int, b: int) -> Measure:
    logits = p.logits[list(rows)].astype(np.float64)
    area = Auc(p.labels[list(rows)] == b, logits[:, b] - logits[:, a])
    return lambda weights: {"auc": area(weights)}


def _severity(p: Predictions, rows: Sequence[int], threshold: float) -> Measure:
    records = [p.records[i] for i in rows]
    squares = (brixia_scores(records, threshold) - p.scores[list(rows)]) ** 2
    zones = zone_auc(zone_truth(records, threshold), p.zones[list(rows)].astype(np.float64))
    return lambda weights: {"mse": ratio(weights @ squares, weights.sum(1)), **zones(weights)}


def _dice(p: Predictions, rows: Sequence[int]) -> Measure:
    values = p.lung_dice[list(rows)].astype(np.float64)
    return lambda weights: {"dice": ratio(weights @ values, weights.sum(1))}


def text(c: Mapping[str, Any]) -> str:
    """crossval.json for people: a table, with a column for each cross-validation it was compared with."""
    s, others = c["settings"], c["against"]
    minutes = c["training_seconds"] / 60
    head = [
        f"Stage {s['stage']}, {len(c['folds'])} folds by {s['by']}, trained {minutes:.1f} minutes in all",
        f"{c['images']} images of {c['patients']} patients, each judged out of fold",
        *([f"{c['unpredicted']} images cannot be read"] if c["unpredicted"] else []),
        *(["folds are missing: a first look, no result"] if c.get("partial") else []),
        c["caveat"],
    ]
    rows = [["95 % intervals over patients", "images", "out of fold", *(f"less {name}" for name in others)]]

    def line(name: str, images: Any, e: Plain, *path: str) -> None:
        shown = []
        for other in others.values():
            found: Any = other
            for key in path:
                found = found.get(key, {})
            shown.append(interval(found["difference"]) if path and found else "")
        rows.append([name, str(images), interval(e), *shown])

    d = c.get("diagnosis", {"images": 0})
    if d["images"]:
        for name in (MEAN, *CLASSES):
            e = d["auc"][name]
            over = e if name == MEAN else {"value": e["value"], "low": e["cluster_low"], "high": e["cluster_high"]}
            line(f"AUC {name}", d["images"] if name == MEAN else d["classes"][name], over, "auc", name)
    for key in ("within_source", "within_source_and_view"):
        for pair, e in c.get(f"auc_{key}", {}).items():
            line(f"AUC {pair}", "/".join(map(str, e["images"])), e, key, pair)
    for cut, e in c.get("severity", {}).items():
        if not e["images"]:
            continue
        line(f"severity {cut}: MSE", e["images"], e["mse"], "severity", cut, "mse")
        line("  constant of its fold: MSE", "", e["constant"]["mse"])
        line("  constant less network", "", e["constant"]["gain"])
        if r := e["radiologists"]:
            line("  second radiologist against the first: MSE", r["images"], r["second_against_first"]["mse"])
            line("  network against the first: MSE", r["images"], r["network_against_first"]["mse"])
        line("  MAE", "", e["mae"])
        line("  CC", "", e["cc"])
        line("  zone AUC, pooled", "", e["zone_auc"], "severity", cut, "zone auc")
        line("  zone AUC, mean of six", "", e["zone_auc_mean"], "severity", cut, "mean zone auc")
    for kind, e in c.get("lung_dice", {}).items():
        line(f"lung Dice, {kind}", e["images"], e, "lung_dice", kind)
    for source, kinds in c.get("lung_dice_by_source", {}).items():
        for kind, e in kinds.items():
            line(f"lung Dice, {source}, {kind}", e["images"], e)
    return "\n".join([*head, "", aligned(rows)])
