"""What a training step gains where the C library keeps freed memory instead of giving it back to the system.

python -m benchmarks.kept_memory --record: benchmarks/train_step.py in processes of their own, with and without, in
turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks.record import record

SIZES = ((224, 16), (512, 8))  # pixels, images a batch


def step(size: int, batch: int, *, returned: bool) -> dict[str, Any]:
    words = ["--size", str(size), "--batch", str(batch), "--steps", "4", *(["--returned"] if returned else [])]
    command = [sys.executable, "-m", "benchmarks.train_step", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(size: int, batch: int, rounds: int) -> dict[str, object]:
    kept, returned = [], []
    for i in range(rounds):
        for mode in ((False, True), (True, False))[i % 2]:
            (returned if mode else kept).append(float(step(size, batch, returned=mode)["step_s"]))
    return {
        "preset": "edge",
        "stage": "diagnosis",
        "size": size,
        "batch": batch,
        "rounds": rounds,
        "returned_over_kept": round(median(r / k for r, k in zip(returned, kept, strict=True)), 2),
        "kept_step_s": round(median(kept), 2),
        "returned_step_s": round(median(returned), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/kept_memory.csv")
    options = parser.parse_args()
    rows = [measure(*size, options.rounds) for size in SIZES]
    for row in rows:
        print(row)
    if options.record:
        print(record("kept_memory", rows, ("torch",)))


if __name__ == "__main__":
    main()
