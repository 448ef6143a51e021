"""latency.csv, accuracy.csv and parity.csv of a benchmark: a row a candidate, for a spreadsheet.

Units stand in the column names; what was not measured or is not defined is an empty cell.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrvit_edge.report.worklist import cell

ESTIMATE = ("", "_low", "_high")  # column ends of a figure and its 95 % interval
RATES = ("sensitivity", "specificity", "accuracy")
SEVERITY = ("mae", "mse", "cc", "r2")
SETS = {"coverage": "set_coverage", "single": "set_of_one_class"}
LABEL = {"accuracy": "label_accuracy", "accuracy_single": "label_accuracy_set_of_one_class", "aurc": "aurc"}
Row = dict[str, Any]


def write(report: Mapping[str, Any], out: str | os.PathLike[str]) -> list[Path]:
    """The three files, in the folder `out`; each appears whole or not at all. OSError if it cannot be written.

    A text that a spreadsheet would execute gets an apostrophe before it. A file with nothing to hold has its header.
    """
    folder = Path(out)
    tables = {"latency": latency(report), "accuracy": accuracy(report), "parity": parity(report)}
    return [_written(folder / f"{name}.csv", *table) for name, table in tables.items()]


def latency(report: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Header and a row a candidate that was timed."""
    head = [
        *("candidate", "backend", "version", "precision", "variant", "batch_size"),
        *("samples", "best_ms", "mean_ms", "p50_ms", "p90_ms", "p99_ms"),
        *("offline_images_a_second", "offline_best_images_a_second", "ratio_to_fastest", "joules_a_study"),
        *("end_to_end_images", "end_to_end_s", "end_to_end_images_a_second", "first_result_s"),
        *("single_file_p50_ms", "single_file_p90_ms", "single_file_p99_ms"),
    ]
    runs = report["end_to_end"]
    stages = list(dict.fromkeys(s for run in runs.values() for s in run["stage_ms"]))
    shares = list(dict.fromkeys(s for run in runs.values() for s in run["shares"]))
    rows = []
    for c in report["candidates"]:
        found, run = report["latency"].get(c["name"]), runs.get(c["name"])
        if found is None and run is None:
            continue
        row = {"candidate": c["name"], **{k: c[k] for k in head[1:6]}}
        if found:
            row |= found["single_stream"] or {}
            batches = found["offline"] or {}
            row["offline_images_a_second"] = batches.get("images_a_second")
            row["offline_best_images_a_second"] = batches.get("best_images_a_second")
            row["ratio_to_fastest"] = found["ratio"]
            row |= found["energy"] or {}
        if run:
            row |= {"end_to_end_images": run["images"], "end_to_end_s": run["seconds"]}
            row |= {"end_to_end_images_a_second": run["images_a_second"], "first_result_s": run["first_result_s"]}
            row |= {f"single_file_{k}_ms": v for k, v in (run["single_file_ms"] or {}).items()}
            row |= {f"stage_{k}_ms": v for k, v in run["stage_ms"].items()}
            row |= {f"share_{k}": v for k, v in run["shares"].items()}
        rows.append(row)
    return [*head, *(f"stage_{s}_ms" for s in stages), *(f"share_{s}" for s in shares)], rows


def accuracy(report: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Header and a row a candidate, group and class; calibration, severity and the label's accuracy are in the row
    of the mean of all.

    group: all, or the view, the source, or the pair of classes within a source that the row is of.
    """
    head = [
        *("candidate", "group", "class", "images"),
        *(f"auc{end}" for end in (*ESTIMATE, "_cluster_low", "_cluster_high")),
        "threshold",
        *(f"{rate}{end}" for rate in RATES for end in ESTIMATE),
        *(f"{name}{end}" for name in ("brier", "ece") for end in ESTIMATE),
        "severity_images",
        *(f"severity_{name}{end}" for name in SEVERITY for end in ESTIMATE),
        "sensitive_threshold",
        *(f"sensitive_{rate}{end}" for rate in RATES for end in ESTIMATE),
        *(f"{name}{end}" for name in (*SETS.values(), *LABEL.values()) for end in ESTIMATE),
    ]
    blocks = (report["accuracy"] or {}).get("by_candidate", {})
    return head, [row for name, block in blocks.items() for row in _accuracy(name, block)]


def _accuracy(name: str, block: Mapping[str, Any]) -> Iterator[Row]:
    for c, e in block["auc"].items():
        mean = c == "mean"
        row: Row = {"candidate": name, "group": "all", "class": c}
        row["images"] = block["images"] if mean else block["classes"].get(c)
        if mean:  # its interval is the bootstrap's
            row |= {"auc": e["value"], "auc_cluster_low": e["low"], "auc_cluster_high": e["high"]}
        else:
            row |= _estimate("auc", e) | {f"auc_{k}": e.get(k) for k in ("cluster_low", "cluster_high")}
        for prefix, points in (("", block["operating"]), ("sensitive_", block.get("sensitive") or {})):
            row[f"{prefix}threshold"] = points.get(c, {}).get("threshold")
            for rate in RATES:
                row |= _estimate(f"{prefix}{rate}", points.get(c, {}).get(rate))
        sets = block.get("selective") or {}
        row |= _named(SETS, sets if mean else sets.get("by_class", {}).get(c, {}))
        if mean:
            for key in ("brier", "ece"):
                row |= _estimate(key, block["calibration"][key])
            severity = block["severity"] or {}
            row["severity_images"] = severity.get("images")
            for key in SEVERITY:
                row |= _estimate(f"severity_{key}", severity.get(key))
            row |= _named(LABEL, sets)
        yield row
    for key, word in (("by_view", "view"), ("by_source", "source")):
        for group, found in block[key].items():
            for c, e in found["auc"].items():
                images = found["images"] if c == "mean" else None
                row = {"candidate": name, "group": f"{word} {group}", "class": c, "images": images}
                if c == "mean" and key == "by_source":
                    row |= _named(SETS, (block.get("selective") or {}).get(key, {}).get(group, {}))
                yield row | {"auc": e["value"], "auc_cluster_low": e["low"], "auc_cluster_high": e["high"]}
    for pair, e in block["within_source"].items():
        row = {"candidate": name, "group": f"within source {pair}", "images": sum(e.get("images") or ())}
        yield row | {"auc": e["value"], "auc_cluster_low": e["low"], "auc_cluster_high": e["high"]}


def parity(report: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """Header and a row a comparison, over all its images."""
    kinds = ("label", "flags", "priority", "status", "severity")
    head = [
        *("candidate", "reference", "within_bounds", "images", "patients", "not_finite", "flipped_images"),
        *(f"changed_{kind}" for kind in kinds),
        *("largest_probability_difference", "rms_probability_difference"),
        *("largest_logit_difference", "rms_logit_difference", "rms_logit_difference_of_sd"),
        *("severity_mae", "severity_largest_difference"),
        *("auc_reference", "auc", "auc_difference", "auc_difference_low", "auc_difference_high"),
        *("auc_per_cent", "at_99", "at_99_9"),
    ]
    rows = []
    for record in report["parity"]:
        found = record["splits"]["both"]
        mean = found["auc"]["mean"]
        rows.append(
            {
                "candidate": record["variant"],
                "reference": record["reference"],
                "within_bounds": record["within"],
                **{k: found[k] for k in ("images", "patients", "not_finite")},
                "flipped_images": found["flips"]["images"],
                **{f"changed_{kind}": found["flips"][kind] for kind in kinds},
                "largest_probability_difference": found["probabilities"]["largest"],
                "rms_probability_difference": found["probabilities"]["rms"],
                "largest_logit_difference": found["logits"]["largest"],
                "rms_logit_difference": found["logits"]["rms"],
                "rms_logit_difference_of_sd": found["logits"]["rms_of_std"],
                "severity_mae": found["severity"]["mae"],
                "severity_largest_difference": found["severity"]["largest"],
                "auc_reference": mean["reference"],
                "auc": mean["variant"],
                **_estimate("auc_difference", mean["difference"]),
                **{k: record[k] for k in ("auc_per_cent", "at_99", "at_99_9")},
            }
        )
    return head, rows


def _estimate(name: str, e: Mapping[str, Any] | None) -> Row:
    return {f"{name}{end}": (e or {}).get(end[1:] or "value") for end in ESTIMATE}


def _named(columns: Mapping[str, str], found: Mapping[str, Any]) -> Row:
    return {k: v for key, column in columns.items() for k, v in _estimate(column, found.get(key)).items()}


def _written(path: Path, head: Sequence[str], rows: Iterable[Row]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(cell(name) for name in head)
            for row in rows:
                writer.writerow(_cell(row.get(name)) for name in head)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, int) else cell(str(value))
