"""Rows of a measurement into benchmarks/results, with the box and the versions they were taken on."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cxrvit_edge.host import cores, processor

RESULTS = Path(__file__).parent / "results"


def record(name: str, rows: Sequence[dict[str, Any]], packages: Sequence[str] = ()) -> Path:
    """Write results/NAME.csv anew; every row gets the columns date, box, python and one for each of `packages`."""
    box = {
        "date": date.today().isoformat(),
        "box": f"{processor()}, {cores()} cores",
        "python": platform.python_version(),
    }
    box.update({package: version(package) for package in packages})
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [*rows[0], *box], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **box} for row in rows)
    return path
