"""Lung segmenters side by side: Dice on val and test masks, by convention and on COVID-19 images alone.

python -m benchmarks.lungs runs/unet runs/adain --data ../shared/data [--record]

The recorded rows are of these two, 5 and 27 minutes on one core of two:

python -m train lungs --network unet --data ../shared/data --all-licences --image-size 256 --schedule 256:40e:4
    --ema 0.99 --threads 1 --out runs/unet
python -m train lungs --network adain --data ../shared/data --all-licences --image-size 256 --schedule 256:16e:8
    --mask-kind generalblockchain --mask-kind shenzhen --mask-kind v7 --mask-kind lungvae
    --ema 0.99 --threads 1 --out runs/adain

Intervals (95 %) are over patients, differences paired with the first run. A mask of
another convention (v7: with heart and diaphragm; lungvae: a model's) is held against the same output: reported apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from cxrvit_edge.metrics import cluster_bootstrap
from cxrvit_edge.model.config import CLASSES
from train.data.record import Record
from train.data.sources import open_records
from train.predict import predict_files
from train.runs import combine, load_run

CONVENTIONS = ("generalblockchain", "shenzhen", "v7", "lungvae")
COVID = CLASSES.index("covid19")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/lungs.csv")
    options = parser.parse_args()
    rows = []
    for convention in CONVENTIONS:
        records = [r for r in open_records([options.data], masks=(convention,)) if r.lungs is not None]
        records = [r for r in records if r.split in ("val", "test")]
        found = {run.name: dices(run, records) for run in options.runs}
        for split in ("val", "test"):
            rows += compare(convention, split, records, found)
    for row in rows:
        print(row)
    if options.record:
        print(record("lungs", rows, ("torch", "numpy")))


def dices(run: Path, records: Sequence[Record]) -> np.ndarray:
    """(N,) Dice of both lungs together on half the run's input size."""
    networks, _, _ = combine(load_run(run))
    return np.asarray(predict_files(networks, records).lung_dice, np.float64)


def compare(
    convention: str, split: str, records: Sequence[Record], found: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    groups = {
        "all": [i for i, r in enumerate(records) if r.split == split],
        "covid19": [i for i, r in enumerate(records) if r.split == split and r.label == COVID],
    }
    first = next(iter(found))
    rows = []
    for group, index in groups.items():
        if len(index) < 2 or (group == "covid19" and len(index) == len(groups["all"])):
            continue
        patients = [records[i].patient for i in index]
        for name, values in found.items():
            own, less = values[index], (values - found[first])[index]
            rows.append(
                {
                    "convention": convention,
                    "split": split,
                    "images": group,
                    "n": len(index),
                    "run": name,
                    "dice": interval(own, patients),
                    "worst": round(float(own.min()), 3),
                    f"less_{first}": "" if name == first else interval(less, patients),
                }
            )
    return rows


def interval(values: np.ndarray, patients: Sequence[str]) -> str:
    e = cluster_bootstrap(lambda i: float(values[i].mean()), patients)
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


if __name__ == "__main__":
    main()
