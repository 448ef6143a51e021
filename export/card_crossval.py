"""The model card's tables of cross-validations, from what `python -m benchmarks crossval` committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrvit_edge.discrimination import LEAST_IMAGES, MEAN
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.selective import GUARANTEE
from export.card_words import said, table

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
EDGE, BY_SOURCE = "edge", "by_source"
VIEWS = ("PA", "AP")
Found = Mapping[str, Any]


def load(name: str, results: Path = RESULTS) -> Found | None:
    """A committed cross-validation; None where there is none."""
    path = results / f"crossval_{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def blocks(results: Path = RESULTS) -> list[str]:
    """By folds of patients, against others, by source: each if its JSON is there."""
    edge, by_source = load(EDGE, results), load(BY_SOURCE, results)
    out = []
    if edge is not None:
        out.append(folds(edge))
        if others := [name for name in edge["against"] if load(name, results) is not None]:
            out.append(against(edge, others, results))
    if by_source is not None:
        out.append(sources(by_source, edge))
    return out


def folds(c: Found) -> str:
    n = len(c["folds"])
    networks = (
        f"These are {n} networks by one recipe, none of them" if n > 1 else "It is one network of the recipe, not"
    )
    parts = [
        "### Cross-validation: images of train and val, each judged by a network that never saw its patient",
        f"{_about(c)} {networks} the one in the bundle.",
    ]
    if (d := c.get("diagnosis", {"images": 0}))["images"]:
        rows = [[name, str(d["classes"].get(name, d["images"])), said(pooled(c, name))] for name in (*CLASSES, MEAN)]
        parts.append(_lines(table(("AUC, one against the rest", "images", "pooled"), rows)))
        rows = [[pair, *(_within(c, pair, view) for view in ("", *VIEWS))] for pair in c["auc_within_source"]]
        heads = ("AUC inside one source (images of each class)", "all views", "PA alone", "AP alone")
        parts.append(_lines([*table(heads, rows)]))
    parts += _severity(c)
    parts.append(_lines(_lungs(c)))
    if (curves := c.get("curves", {})).get("selective"):
        parts.append(_calibration(curves))
        parts.append(_decided(curves["selective"]))
    return "\n\n".join(part for part in parts if part)


def _about(c: Found) -> str:
    s, minutes = c["settings"], c["training_seconds"] / 60
    commits = ", ".join(f"`{commit}`" for commit in sorted({str(f["commit"]) for f in c["folds"]}))
    of = f"{len(c['folds'])} of {s['folds']}" if c["partial"] and s["by"] == "patient" else str(len(c["folds"]))
    lost = f" {c['unpredicted']} images cannot be read." if c["unpredicted"] else ""
    licence = "" if c["judged"] == "all" else " whose licence allows published weights"
    return (
        f"{c['images']} images of {c['patients']} patients{licence}; {of} folds by {s['by']}, commit "
        f"{commits}, {minutes:.0f} minutes of training in all. Intervals are 95 %, by a bootstrap over patients.{lost}"
    )


def pooled(c: Found, name: str) -> dict[str, Any]:
    """AUC of a class against the rest, or their mean, with the interval over patients."""
    e = c["diagnosis"]["auc"][name]
    return dict(e) if name == MEAN else {"value": e["value"], "low": e["cluster_low"], "high": e["cluster_high"]}


def within(c: Found, pair: str, view: str = "") -> Found | None:
    """AUC of a pair of classes inside its source, or inside its source and a view; None with too few images."""
    source, _, classes = pair.partition(": ")
    found = c["auc_within_source_and_view"] if view else c["auc_within_source"]
    return found.get(f"{source}, {view}: {classes}" if view else pair)


def _within(c: Found, pair: str, view: str = "") -> str:
    e = within(c, pair, view)
    return f"fewer than {LEAST_IMAGES} of a class" if e is None else f"{said(e)}, {e['images'][0]} and {e['images'][1]}"


def _severity(c: Found) -> list[str]:
    cuts = {name: e for name, e in c.get("severity", {}).items() if e["images"]}
    if not cuts:
        return []
    heads: tuple[str, ...] = (
        "Severity (0-6) against the senior radiologist", "images", "MSE", "constant's MSE", "constant less network",
        "CC",
    )  # fmt: skip
    rows = [
        [
            name, str(e["images"]), said(e["mse"], 2), said(e["constant"]["mse"], 2),
            said(e["constant"]["gain"], 2, "+"), said(e["cc"], 2),
        ]
        for name, e in cuts.items()
    ]  # fmt: skip
    note = "The constant is the mean score of what the fold learned from."
    if lost := {e["no_lungs"] for e in cuts.values()} - {0}:
        note += f" {max(lost)} more scored films got no score, since two lungs were not found."
    out = [_lines(table(heads, rows)) + f"\n\n{note}"]
    heads = (
        "Films that both radiologists scored", "images", "junior against senior, MSE", "network against senior, MSE",
        "network less junior",
    )  # fmt: skip
    rows = [
        [
            name, str(r["images"]), said(r["second_against_first"]["mse"], 2),
            said(r["network_against_first"]["mse"], 2), said(r["excess_mse"], 2, "+"),
        ]
        for name, e in cuts.items() if (r := e["radiologists"])
    ]  # fmt: skip
    out.append(_lines(table(heads, rows)))
    rows = [[name, said(e["zone_auc"]), said(e["zone_auc_mean"])] for name, e in cuts.items()]
    out.append(_lines(table(("Zone affected or not, AUC", "all zones together", "mean of the six zones"), rows)))
    return out


def _lungs(c: Found) -> list[str]:
    found = c.get("lung_dice_by_source", {})
    rows = [[source, kind, str(e["images"]), said(e)] for source, kinds in found.items() for kind, e in kinds.items()]
    return table(("Lung Dice, source", "mask convention", "images", "mean"), rows)


def _calibration(curves: Found) -> str:
    before, after = (curves["reliability"][name] for name in ("as_trained", "scaled"))
    fitted = list(after["temperatures"].values())
    return (
        f"Expected calibration error {said(before['ece'])} as trained, {said(after['ece'])} with a temperature fitted "
        f"on the other folds ({min(fitted):.2f} to {max(fitted):.2f}); Brier score {said(before['brier'])} and "
        f"{said(after['brier'])}."
    )


def _decided(e: Found) -> str:
    heads = (
        f"Prediction sets (`--selective`) for a coverage of {100 * (1 - e['alpha']):g} %", "images", "coverage",
        "sets of one class", "label wrong, all", "label wrong, sets of one class",
    )  # fmt: skip
    rows = [
        ["all" if name == "all" else f"source {name}", str(v["images"]),
         *(said(v[k]) for k in ("coverage", "single", "error", "error_single"))]
        for name, v in e["groups"].items()
    ]  # fmt: skip
    return _lines(table(heads, rows)) + f"\n\nThresholds of the sets were chosen on the other folds. {GUARANTEE}"


def against(c: Found, others: Sequence[str], results: Path = RESULTS) -> str:
    parts = ["### Against other networks on the same images and folds, paired"]
    for name in others:
        e, theirs = c["against"][name], load(name, results) or {}
        s = theirs["settings"]
        what = f"stage {s['stage']}, `--network {s['network']}`, `--schedule {s['schedule']}`"
        rows = [
            [label, str(v["images"]), *(f"{v[k]:.3f}" for k in ("value", "other")), said(v["difference"], 3, "+")]
            for label, v in _compared(e)
        ]
        heads = (f"Less {name} ({what})", "images", "this", name, "difference")
        parts.append(_lines(table(heads, rows)))
    return "\n\n".join(parts)


def _compared(e: Found) -> list[tuple[str, Found]]:
    rows = [(f"AUC {name}, pooled", e["auc"][name]) for name in (MEAN, *CLASSES)] if "auc" in e else []
    rows += [(f"AUC {pair}", v) for key in ("within_source", "within_source_and_view") for pair, v in e[key].items()]
    words = {"mse": "MSE", "zone auc": "zone AUC", "mean zone auc": "zone AUC, mean of six"}
    rows += [(f"severity {cut}: {words[k]}", v) for cut, f in e.get("severity", {}).items() for k, v in f.items()]
    rows += [(f"lung Dice, {kind}", v) for kind, v in e.get("lung_dice", {}).items()]
    return [(label, v) for label, v in rows if v["value"] is not None and v["other"] is not None]


def sources(c: Found, edge: Found | None) -> str:
    """Each source judged by a network that no image of it taught, beside folds of patients where those are there."""
    parts = [
        "### A source left out: each judged by a network that no image of it taught",
        f"{_about(c)} Nearer than the other tables to a hospital that no image came from.",
    ]
    beside = () if edge is None else ("source also learned from",)
    rows = [
        [pair, *(_within(c, pair, view) for view in ("", *VIEWS)), *([_within(edge, pair)] if edge else [])]
        for pair in c["auc_within_source"]
    ]
    heads = ("AUC inside the source left out (images of each class)", "all views", "PA alone", "AP alone", *beside)
    parts.append(_lines(table(heads, rows)))
    rights = {name: (e or {}).get("curves", {}).get("right", {}) for name, e in ((BY_SOURCE, c), (EDGE, edge))}
    rows = []
    for source, classes in rights[BY_SOURCE].items():
        for name, e in classes.items():
            seen = rights[EDGE].get(source, {}).get(name)
            rows.append(
                [f"{source}: {name}", str(e["images"]), said(e), *([said(seen) if seen else ""] if edge else [])]
            )
    parts.append(_lines(table(("Films that got their label", "images", "source left out", *beside), rows)))
    rows = []
    for cut, e in c.get("severity", {}).items():
        if e["images"]:
            seen = edge["severity"][cut] if edge and cut in edge.get("severity", {}) else None
            rows.append(
                [
                    cut,
                    str(e["images"]),
                    said(e["mse"], 2),
                    said(e["zone_auc"]),
                    *([said(seen["mse"], 2) if seen else ""] if edge else []),
                ]
            )
    heads = ("Severity (0-6), source left out", "images", "MSE", "zone AUC", *("MSE, " + b for b in beside))
    parts.append(_lines(table(heads, rows)))
    parts.append(_lines(_lungs(c)))
    return "\n\n".join(part for part in parts if part)


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)
