"""A cross-validation as it is committed: python -m benchmarks crossval OUT --data PATH --name NAME

OUT: the --out of a `python -m train crossval`, whole or --partial, PATH: its --data (repeat it as there). Writes
benchmarks/results/crossval_NAME.json, its figures and, when whole, the curves of the model card's plots, and
crossval_NAME.csv, what the network said of each image by SHA-256: fold, logits, severity by zone and in all, lung Dice.
`python -m export.card` then makes the card's tables and plots without an image, of edge (the default network by folds
of patients), of by_source (each source left out), and of those that edge was held against.

With --restore it goes the other way: OUT gets the folds that are committed under NAME, and the same `train crossval`
makes those that are missing, elsewhere or another day.

Labels, views, radiologists' scores and patients stay with the data. --truth writes the CSV with them, but for patients,
to a place outside the repository, for looking at single images.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import RESULTS
from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import number
from cxrvit_edge.model.config import CLASSES

if TYPE_CHECKING:
    from train.crossval_plan import Plan

ROOT = Path(__file__).resolve().parents[1]
SAID = ("sha256", "fold", *(f"logit_{name}" for name in CLASSES), "score")
Rows = list[dict[str, Any]]


def gather(out: Path, data: Sequence[str]) -> tuple[dict[str, Any], Rows, Rows]:
    """Figures with curves; a row an image of what was said, and of what is known. UsageError if data is not OUT's."""
    from benchmarks.crossval_curves import ZONES, curves
    from train.crossval import PREDICTIONS, RESULT
    from train.crossval_plan import load, paired, part_of
    from train.data.manifest import REUSABLE
    from train.evaluate import judged
    from train.severity_eval import zone_truth

    path = out / RESULT
    if not path.is_file():
        raise UsageError(f"{path}: not there; name the --out of a cross-validation that was pooled")
    found = json.loads(path.read_text(encoding="utf-8"))
    stored = load(out / PREDICTIONS)
    plan = _plan(found, data)
    everything, rows = paired(plan, stored)
    folds = dict(zip(stored["key"].tolist(), stored["fold"].tolist(), strict=True))
    if len(rows) != len(folds) or any(folds[plan.keys[i]] != plan.fold[i] for i in rows):
        raise UsageError(f"--data: not what {out} was made with; name the same, in any order")
    whole = found["judged"] == "all"
    kept = [i for i, j in enumerate(rows) if whole or plan.records[j].reuse in REUSABLE]
    p, at = part_of(everything, kept), [rows[i] for i in kept]
    fold = [int(plan.fold[j]) for j in at]
    known = judged(p, found["settings"]["view"]) if "diagnosis" in found["tasks"] else np.zeros(0, np.intp)
    if not found["partial"]:  # a fold's temperature and sets are chosen on the others
        found["curves"] = curves(p, fold, known, list(found["auc_within_source"]))
    columns = _columns(ZONES)
    said, truth = [], []
    affected = zone_truth(p.records, 1).reshape(len(at), 6)
    for i, j in enumerate(at):
        values = [*p.logits[i], p.scores[i], *p.zones[i].ravel(), p.lung_dice[i]]
        names = [*SAID, *columns, "lung_dice"]
        said.append(dict(zip(names, [plan.keys[j], fold[i], *map(number, values)], strict=True)))
        r = p.records[i]
        known_of = {"source": r.source, "view": r.view, "label": "" if r.label is None else CLASSES[r.label]}
        affected_of = {f"affected_{c}": number(v) for c, v in zip(columns, affected[i], strict=True)}
        truth.append({**known_of, **affected_of})
    return found, said, truth


def restore(path: Path, out: Path, data: Sequence[str]) -> list[int]:
    """The committed folds of crossval_NAME.json in `out`; their numbers. UsageError for other data."""
    from benchmarks.crossval_curves import ZONES
    from train.crossval import restore as put
    from train.predict import Predictions

    if not path.is_file():
        raise UsageError(f"{path}: not there; --name is one of those that were committed")
    found = json.loads(path.read_text(encoding="utf-8"))
    plan = _plan(found, data)
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as f:
        rows = {row["sha256"]: row for row in csv.DictReader(f)}
    predicted = {}
    for k in (fold["fold"] for fold in found["folds"]):
        at = [i for i, key in enumerate(plan.keys) if plan.fold[i] == k and key in rows]

        def values(names: Sequence[str], at: Sequence[int] = at) -> NDArray[np.float32]:
            return np.array([[rows[plan.keys[i]][n] or "nan" for n in names] for i in at], np.float32)

        zones = values(_columns(ZONES)).reshape(len(at), 3, 2)
        dice = values(["lung_dice"])[:, 0]
        records = [plan.records[i] for i in at]
        predicted[k] = Predictions(records, values([f"logit_{c}" for c in CLASSES]), zones, dice), at
    put(out, plan, found, predicted)
    return sorted(predicted)


def _plan(found: Mapping[str, Any], data: Sequence[str]) -> Plan:
    from train.crossval_plan import plan_of
    from train.options import VERBS

    defaults = {name: default for name, (_, default) in VERBS["crossval"].items()}
    return plan_of({**defaults, **found["settings"], "data": list(data), "absent": "skip", "cache": None})


def _columns(zones: Sequence[str]) -> list[str]:
    return [name.replace(" ", "_").replace("-", "_") for name in zones]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Sorted by image, so that it tells nothing of the order in the data."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: str(r["sha256"])))


def as_text(found: Mapping[str, Any]) -> str:
    """JSON with a list of numbers on one line."""
    plain = json.dumps(found, indent=1, allow_nan=False)
    return re.sub(r"\[([^\[\]{}\"]*)\]", lambda m: f"[{' '.join(m[1].split())}]", plain) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks crossval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--data", action="append", required=True, metavar="PATH")
    parser.add_argument("--name", required=True)
    parser.add_argument("--truth", type=Path, metavar="CSV")
    parser.add_argument("--restore", action="store_true", help="what is committed into OUT")
    o = parser.parse_args(argv)
    path = RESULTS / f"crossval_{o.name}.json"
    try:
        if not re.fullmatch(r"[a-z0-9_]+", o.name):
            raise UsageError(f"--name {o.name}: small letters, digits and _ only; it becomes part of two files' names")
        if o.truth and ROOT in o.truth.resolve().parents:
            raise UsageError(f"--truth {o.truth}: lies in the repository, which holds no labels; name another place")
        if o.restore:
            print(f"{o.out}: folds {', '.join(map(str, restore(path, o.out, o.data)))}")
            return 0
        found, said, truth = gather(o.out, o.data)
    except UsageError as error:
        print(error)
        return 2
    path.write_text(as_text(found), encoding="utf-8")
    write_csv(path.with_suffix(".csv"), said)
    if o.truth:
        write_csv(o.truth, [{**a, **b} for a, b in zip(said, truth, strict=True)])
    print(f"wrote {path} and {path.with_suffix('.csv').name}: {len(said)} images")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
