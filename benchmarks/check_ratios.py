"""The ratios that `check` guards: where each is stored, what names it, which way is better, how to measure it again."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import record as recording

ROOT = Path(__file__).resolve().parents[1]
Row = Mapping[str, Any]
Better = Literal["lower", "higher"]


class MeasureError(Exception):
    """A measurement that ended without figures."""


@dataclass(frozen=True)
class Ratio:
    """key: what it is of; work: what it was taken on, as far as it changes the ratio; why: of one without a value."""

    key: str
    value: float
    better: Better
    work: str = ""
    box: str = ""
    bundle: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    def row(self, benchmark: str, bundle: str) -> dict[str, Any]:
        return {
            "benchmark": benchmark,
            "key": self.key,
            "ratio": round(self.value, 4),
            "better": self.better,
            "work": self.work,
            "bundle": bundle,
        }


def stored(name: str, benchmark: str) -> list[Ratio]:
    """Of results/NAME.csv in the form of `Ratio.row`, those of a benchmark."""
    return [
        Ratio(r["key"], float(r["ratio"]), _direction(r["better"]), r["work"], r["box"], r["bundle"], _versions(r))
        for r in read(recording.RESULTS / f"{name}.csv")
        if r["benchmark"] == benchmark
    ]


@dataclass(frozen=True)
class Benchmark:
    """stored: its CSV in results; keys: columns that name a row; ratio: columns that are ratios; work: columns that
    must agree; better: of a row.

    measure: rows as in the CSV, measured now; it gets an empty folder. needs: distributions. MeasureError if it fails.
    """

    stored: str
    keys: tuple[str, ...]
    ratio: tuple[str, ...]
    better: Callable[[Row], Better]
    measure: Callable[[Path], Sequence[Row]]
    work: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def stored_ratios(self) -> list[Ratio]:
        return self.ratios(read(recording.RESULTS / f"{self.stored}.csv"))

    def ratios(self, rows: Sequence[Row]) -> list[Ratio]:
        """Rows of the same name are told apart by their order. A row without a ratio has `why`."""
        seen: dict[str, int] = {}
        found = []
        for row in rows:
            name = ", ".join(str(row[k]) for k in self.keys) or self.stored
            seen[name] = seen.get(name, 0) + 1
            name += f" ({seen[name]})" if seen[name] > 1 else ""
            work = ", ".join(str(row.get(k, "")) for k in self.work)
            box, bundle = str(row.get("box", "")), str(row.get("bundle", ""))
            for column in self.ratio:
                key = f"{name}: {column}" if len(self.ratio) > 1 else name
                why = "" if str(row[column]) else str(row.get("note") or "no ratio")
                value = float(row[column]) if not why else float("nan")
                found.append(Ratio(key, value, self.better(row), work, box, bundle, _versions(row), why))
        return found


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def _direction(text: str) -> Better:
    return "higher" if text == "higher" else "lower"


def _versions(row: Row) -> dict[str, str]:
    """The columns that `record` adds after those of the box, packages and their versions."""
    names = list(row)
    return {k: str(row[k]) for k in names[names.index("python") + 1 :]} if "python" in names else {}


REDIRECTED = """
import runpy, sys
from pathlib import Path
import benchmarks.record
benchmarks.record.RESULTS = Path(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def script(module: str, *arguments: str, writes: str) -> Callable[[Path], Sequence[Row]]:
    """What `python -m benchmarks.MODULE ... --record` records, into a folder of its own instead of results."""

    def measure(folder: Path) -> Sequence[Row]:
        command = [sys.executable, "-c", REDIRECTED, str(folder), f"benchmarks.{module}", *arguments, "--record"]
        ended = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode
        rows = read(folder / f"{writes}.csv")
        if not rows:
            raise MeasureError(f"benchmarks.{module} ended with exit code {ended} and no rows")
        return rows

    return measure


def pipeline(part: str) -> Callable[[Path], Sequence[Row]]:
    """The quick form of a part of benchmarks/pipeline.py, in a process of its own."""

    def measure(folder: Path) -> Sequence[Row]:
        from benchmarks import pipeline as parts
        from benchmarks.triage_common import Options

        return parts.measure(part, Options(None, True), folder / "rows.json")

    return measure


def _by_unit(row: Row) -> Better:
    """ours / peer: of seconds and megabytes less is better, of images a second more."""
    return "higher" if str(row["unit"]).endswith("/s") else "lower"


def _part(name: str, *needs: str) -> Benchmark:
    work = ("n", "images")
    return Benchmark(f"pipeline_{name}", ("name",), ("ratio",), _by_unit, pipeline(name), work, needs)


_PEERS = ("peers", "--rounds", "1", "--starts", "1", "--no-build")
REGISTRY: dict[str, Benchmark] = {
    "help": Benchmark(
        *("help_time", (), ("ratio",), lambda _: "lower", script("help_time", "--rounds", "7", writes="help_time")),
    ),
    "precision": Benchmark(
        "precision_time",
        ("precision",),
        ("times_as_fast_at_best",),
        lambda _: "higher",
        script("precision_time", "--rounds", "10", writes="precision_time"),
        ("settings",),
    ),
    "session": Benchmark(
        "session",
        ("variant", "batch", "session"),
        ("ratio",),
        lambda _: "higher",
        script("session", "--rounds", "3", writes="session"),
    ),
    "peers": Benchmark(  # over 1 we are ahead of the peer
        "peers",
        ("name",),
        ("end_to_end_ratio", "network_ratio_1"),
        lambda _: "higher",
        script(*_PEERS, writes="peers"),
        ("images", "films"),
    ),
    "startup": _part("startup"),
    "host": _part("host"),
    "overlap": _part("overlap"),
    "memory": _part("memory"),
    "torch": _part("torch", "torch"),
    "openvino": _part("openvino", "openvino"),
}
