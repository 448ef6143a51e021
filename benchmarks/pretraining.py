"""What pre-training gives: `edge` for diagnosis from scratch, from a backbone, from SimCLR, and from both.

python -m benchmarks.pretraining --data ../shared/data --out runs/pretraining [--record]

Short schedules at a low resolution, one seed: what two CPU cores do in an hour, no verdict on the paper's Table 9.
Every row has the commands that made it, its val and test figures with 95 % intervals over patients, and the difference
from scratch. A run that is already in --out is not made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from cxrvit_edge.metrics import cluster_bootstrap, mean_auc
from train.choose import selected
from train.data.record import Record
from train.evaluate import within_source
from train.options import VERBS
from train.predict import Predictions, predict_files
from train.runs import combine, load_run

LONG = ("--schedule", "128:6e:16", "--precision", "bf16")
CLASSES = ("diagnosis", *LONG, "--lr", "0.0005", "--ema", "0.98")
RUNS: dict[str, tuple[str, ...]] = {  # name -> verb and options, less data, out and init
    "scratch": CLASSES,
    "backbone": ("backbone", *LONG),
    "backbone-diagnosis": CLASSES,
    "simclr": ("simclr", "--schedule", "128:6e:32", "--precision", "bf16"),
    "simclr-diagnosis": CLASSES,
    "simclr-backbone": ("backbone", *LONG),
    "simclr-backbone-diagnosis": CLASSES,
}
INIT = {
    "backbone-diagnosis": "backbone",
    "simclr-diagnosis": "simclr",
    "simclr-backbone": "simclr",
    "simclr-backbone-diagnosis": "simclr-backbone",
}
ROWS = {
    "scratch": "from scratch",
    "backbone-diagnosis": "findings of NIH",
    "simclr-diagnosis": "SimCLR",
    "simclr-backbone-diagnosis": "SimCLR, then findings of NIH",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/pretraining.csv")
    options = parser.parse_args()
    for name in RUNS:
        if not (options.out / name / "model.safetensors").is_file():
            where = ("--data", options.data, "--out", str(options.out / name), "--threads", str(options.threads))
            start = ("--init", str(options.out / INIT[name])) if name in INIT else ()
            subprocess.run([sys.executable, "-m", "train", *RUNS[name], *where, *start], check=True)
    values = {k: default for k, (_, default) in VERBS["evaluate"].items()} | {
        "data": [options.data],
        "all_licences": False,
    }
    records, _ = selected(values)
    found = {name: {split: predicted(options.out / name, records, split) for split in ("val", "test")} for name in ROWS}
    rows = [row(name, found) for name in ROWS]
    for r in rows:
        print(r)
    if options.record:
        print(record("pretraining", rows, ("torch", "numpy")))


def predicted(run: Path, records: list[Record], split: str) -> Predictions:
    networks, _, _ = combine(load_run(run))
    return predict_files(networks, [r for r in records if r.split == split and r.label is not None])


def row(name: str, found: dict[str, dict[str, Predictions]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for split in ("val", "test"):
        p, base = found[name][split], found["scratch"][split]
        figures[f"{split}_images"] = len(p.labels)
        figures[f"{split}_auc"] = interval(difference(p))
        figures[f"{split}_auc_less_scratch"] = interval(difference(p, base)) if name != "scratch" else ""
        for pair, e in within_source(p.records, p.logits.astype(np.float64)).items():
            figures[f"{split}_auc_{pair}"] = interval(e)
    return {"start": ROWS[name], **figures, "commands": "; ".join(commands(name))}


def difference(p: Predictions, q: Predictions | None = None) -> dict[str, float]:
    """Mean AUC of p, less that of q on the same images if there is one: paired, over patients."""
    labels, patients = p.labels, [r.patient for r in p.records]

    def apart(i: np.ndarray) -> float:
        return mean_auc(labels[i], p.probabilities[i]) - (mean_auc(labels[i], q.probabilities[i]) if q else 0.0)

    e = cluster_bootstrap(apart, patients)
    return {"value": e.value, "low": e.low, "high": e.high}


def interval(e: dict[str, Any]) -> str:
    return f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def commands(name: str) -> list[str]:
    """Of the run and of those it starts from, first to last."""
    start = INIT.get(name)
    own = f"python -m train {' '.join(RUNS[name])} --data ../shared/data --out runs/{name}"
    return [*(commands(start) if start else []), own + (f" --init runs/{start}" if start else "")]


if __name__ == "__main__":
    main()
