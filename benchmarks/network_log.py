"""What was tried for the default network: python -m benchmarks.network_log [OUT --name NAME --changed TEXT
--verdict kept|dropped|base --why TEXT]

OUT: the --out of a `python -m train crossval`; its figures become the row NAME of benchmarks/results/network_log.csv,
in place of an earlier row of that name. Without OUT the log is shown. Figures are out of fold, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from train.tables import aligned, interval

LOG = RESULTS / "network_log.csv"
PAIRS = {"nih_other": "nih: other_infection against normal", "cohen_covid": "cohen: covid19 against other_infection"}
SHOWN = ("name", "verdict", "auc_mean", *PAIRS, "severity_mse_1", "constant_mse_1", "zone_auc_1", "changed", "why")


def row(found: Mapping[str, Any], name: str, changed: str, verdict: str, why: str) -> dict[str, Any]:
    """Of a crossval.json; a figure that it lacks is empty."""
    d = found.get("diagnosis", {"images": 0})
    out: dict[str, Any] = {"name": name, "verdict": verdict, "changed": changed, "why": why}
    out |= {"by": found["settings"]["by"], "folds": " ".join(fold["name"] for fold in found["folds"])}
    out["images"] = found["images"]
    out["auc_mean"] = interval(d["auc"]["mean"]) if d["images"] else ""
    within = {**found.get("auc_within_source", {}), **found.get("auc_within_source_and_view", {})}
    for column, pair in PAIRS.items():
        for view in ("", "PA", "AP"):
            e = within.get(pair.replace(":", f", {view}:") if view else pair)
            out[f"{column}_{view}".rstrip("_")] = interval(e) if e else ""
    for cut in (1, 2):
        s = found.get("severity", {}).get(f"brixia>={cut}", {"images": 0})
        has = bool(s["images"])
        out[f"severity_mse_{cut}"] = interval(s["mse"]) if has else ""
        out[f"constant_mse_{cut}"] = interval(s["constant"]["mse"]) if has else ""
        out[f"constant_less_network_{cut}"] = interval(s["constant"]["gain"]) if has else ""
        out[f"zone_auc_{cut}"] = interval(s["zone_auc"]) if has else ""
        out[f"zone_auc_mean_{cut}"] = interval(s["zone_auc_mean"]) if has else ""
    out["lung_dice"] = "; ".join(f"{kind} {interval(e)}" for kind, e in found.get("lung_dice", {}).items())
    commits = sorted({str(fold["commit"]) for fold in found["folds"]})
    return {
        **out,
        "training_seconds": found["training_seconds"],
        "commit": " ".join(commits),
        "date": date.today().isoformat(),
    }


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def write(new: Mapping[str, Any], path: Path) -> None:
    """The log with `new` in the place of the row of its name, else at the end."""
    rows: list[Mapping[str, Any]] = list(read(path))
    at = next((i for i, r in enumerate(rows) if r["name"] == new["name"]), len(rows))
    rows[at : at + 1] = [new]
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(new), lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    for option in ("--name", "--changed", "--why"):
        parser.add_argument(option)
    parser.add_argument("--verdict", choices=("kept", "dropped", "base"))
    o = parser.parse_args()
    if o.out is not None:
        if missing := [x for x in ("name", "changed", "verdict", "why") if getattr(o, x) is None]:
            parser.error(f"--{missing[0]} is needed with OUT")
        path = o.out / "crossval.json" if o.out.is_dir() else o.out
        if not path.is_file():
            parser.error(f"{path}: not there; name the --out of a cross-validation whose folds are all made")
        write(row(json.loads(path.read_text(encoding="utf-8")), o.name, o.changed, o.verdict, o.why), LOG)
    print(aligned([SHOWN, *([r.get(column, "") for column in SHOWN] for r in read(LOG))]))


if __name__ == "__main__":
    main()
