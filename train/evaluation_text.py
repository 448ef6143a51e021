"""An evaluation as text for people: what evaluate_run returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cxrvit_edge.discrimination import LEAST_IMAGES
from cxrvit_edge.model.config import CLASSES, FINDINGS
from train.tables import aligned, interval

Evaluation = Mapping[str, Any]


def text(e: Evaluation) -> str:
    """Every figure with its 95 % interval, what it was measured on, and the caveat first."""
    run = e["run"]
    said = {None: "not recorded", True: "none in training", False: "also in training"}
    known = ", ".join(f"{said[external]} ({task})" for task, external in e["external"].items())
    unreadable = f"; {e['unreadable']} more cannot be read" if e["unreadable"] else ""
    head = [
        f"{run['name']}: stage {run['stage']}, {run['network']}, preset {run['preset']}",
        f"{e['measured_on']}, {e['patients']} patients; sources {known}{unreadable}",
        *(f"{task} by {r['name']} ({r['stage']})" for task, r in e["with"].items()),
        e["caveat"],
    ]
    parts = ["\n".join(head)]
    if "diagnosis" in e:
        parts += _diagnosis(e)
    if "findings" in e:
        parts.append(_findings(e["findings"]))
    if "severity" in e:
        parts += _severity(e)
    if "lung_dice" in e:
        rows = [["Lung Dice by mask convention", "images", "mean"]]
        rows += [[kind, str(v["images"]), interval(v)] for kind, v in e["lung_dice"].items()]
        parts.append(aligned(rows if len(rows) > 1 else [["Lung Dice: no image has a mask"]]))
    return "\n\n".join(parts) + "\n"


def _auc(v: Mapping[str, Any]) -> list[str]:
    over = {"value": v["value"], "low": v.get("cluster_low", v["low"]), "high": v.get("cluster_high", v["high"])}
    return [interval(v) if "cluster_low" in v else "", interval(over)]


def _diagnosis(e: Evaluation) -> Iterator[str]:
    d = e["diagnosis"]
    if not d["images"]:
        yield "Diagnosis: no image that it is judged on has a label"
        return
    rows = [["AUC, one against the rest", "images", "DeLong (images)", "bootstrap (patients)"]]
    rows += [[name, str(d["classes"].get(name, d["images"])), *_auc(v)] for name, v in d["auc"].items()]
    yield aligned(rows)
    for way, where in (("own", f"{e['split']} itself, as in the paper"), ("fixed", "val")):
        if d[way] is None:
            yield "No threshold from val: it has no labelled image"
            continue
        rows = [[f"At sensitivity >= 80 % on {where}", "threshold", "sensitivity", "specificity", "accuracy"]]
        for name in (*CLASSES, "mean"):
            v = d[way][name]
            shown = "" if v.get("threshold") is None else f"{v['threshold']:.4f}"
            rows.append([name, shown, *(interval(v[r]) for r in ("sensitivity", "specificity", "accuracy"))])
        yield aligned(rows)
    for kind in ("source", "view"):
        rows = [[f"AUC by {kind}", "images", *CLASSES, "mean"]]
        for name, part in e["groups"][kind].items():
            found = part["diagnosis"]
            if found["images"]:
                counts = "/".join(str(found["classes"][c]) for c in CLASSES)
                enough = {c: min(n, found["images"] - n) >= LEAST_IMAGES for c, n in found["classes"].items()}
                enough["mean"] = all(enough.values())
                rows.append([name, counts, *(interval(v) if enough[c] else "too few" for c, v in found["auc"].items())])
        yield aligned(rows)
    rows = [["AUC inside one source", "images", "bootstrap (patients)"]]
    rows += [[name, "/".join(map(str, v["images"])), interval(v)] for name, v in e["auc_within_source"].items()]
    yield aligned(rows if len(rows) > 1 else [["AUC inside one source: none has five images of two classes"]])


def _findings(found: Mapping[str, Any]) -> str:
    rows = [["Finding, AUC", "with/without", "DeLong (images)", "bootstrap (patients)"]]
    for name in FINDINGS:
        v = found[name]
        figures = _auc(v) if "value" in v else ["not defined", ""]
        rows.append([name, f"{v['positive']}/{v['negative']}", *figures])
    rows.append([f"mean of {len(found['mean']['over'])}", "", "", interval(found["mean"])])
    return aligned(rows)


def _severity(e: Evaluation) -> Iterator[str]:
    for cut, s in e["severity"].items():
        if not s["images"]:
            yield f"Severity, {cut}: no image has both a radiologist's zones and a score"
            continue
        title = f"Severity 0-6, {cut}; {s['images']} images ({s['no_lungs']} more without lungs found)"
        rows = [[title, "MSE", "MAE", "CC", "R2"]]
        rows.append([f"network, ROI {e['pooling']} pooling", *(interval(s[k]) for k in ("mse", "mae", "cc", "r2"))])
        c = s["constant"]
        if c["score"] is None:
            rows.append(["constant: no training image is scored", "", "", "", ""])
        else:
            name = f"constant {c['score']:.2f}, the mean of the training scores (not of these images')"
            rows.append([name, interval(c["mse"]), interval(c["mae"]), "", ""])
        if r := s["radiologists"]:
            for who, key in (("second radiologist", "second_against_first"), ("network", "network_against_first")):
                name = f"{who} against the first, {r['images']} images scored by both"
                rows.append([name, *(interval(r[key][k]) for k in ("mse", "mae", "cc", "r2"))])
        rows.append(["network, AUC of single zones", interval(s["zone_auc"]), "", "", ""])
        yield aligned(rows)
    yield f"Lung masks for the zones: {e['lungs_from']}. Images without two lungs: {e['no_lungs']} of {e['images']}."
