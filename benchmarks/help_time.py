"""Start-up: python -m benchmarks.help_time [--record]

`cxrvit-edge --help` against `python -c "import typer"`, in turn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

from benchmarks.record import record

COMMANDS = {
    "import typer": [sys.executable, "-c", "import typer"],
    "cxrvit-edge --help": [sys.executable, "-m", "cxrvit_edge", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/help_time.csv")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    typer, ours = (values[1:] for values in seconds.values())  # the first round warms the disk
    ratios = sorted(b / a for a, b in zip(typer, ours, strict=True))
    print(f"import typer {median(typer):.3f} s, --help {median(ours):.3f} s, ratio {median(ratios):.2f}")
    if options.record:
        row = {"ratio": round(median(ratios), 2), "least": round(ratios[0], 2), "most": round(ratios[-1], 2)}
        print(record("help_time", [{**row, "rounds": options.rounds}], ("typer",)))


if __name__ == "__main__":
    main()
