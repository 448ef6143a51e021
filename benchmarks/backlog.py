"""A night's backlog: python -m benchmarks.backlog [--entries 1000000] [--whole] [--record]

A folder of so many hard links to the generated films of examples/, on the disk of the temporary folder. Timed: from the
start of the process to its first result, beside a folder of ten; the first input from `discover`; and, over a journal
in which all are finished, loading it, walking the folder and telling that each result stands, with the memory that the
journal takes. On a shared box the processor time tells how much of the wall time was waiting for others. --whole also
runs the command over the finished folder, worklist and report included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.record import record
from cxrvit_edge import journal as module
from cxrvit_edge.discover import discover
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.journal import RESULTS, Journal, Owner

FILMS = sorted((Path(__file__).parents[1] / "examples").glob("*pa.png"))
LINKS = 50_000  # to one file: ext4 takes 65,000
STAGES = ("queue", "read", "decode", "preprocess", "run", "interpret", "write")


def make(folder: Path, entries: int) -> None:
    folder.mkdir()
    films: cycle[bytes] = cycle(path.read_bytes() for path in FILMS)
    source = folder.parent / "film"
    for i in range(entries):
        if i % LINKS == 0:
            source.unlink(missing_ok=True)
            source.write_bytes(next(films))
        os.link(source, folder / f"study{i:07d}.png")


def first_result(folder: Path, out: Path) -> tuple[float, Owner]:
    """Seconds from the start of the command to the first line, and whose it is. The command is then ended."""
    start = time.perf_counter()
    with subprocess.Popen([*COMMAND, str(folder), "--out", str(out), "--quiet"]) as process:
        while process.poll() is None and not ((out / RESULTS).exists() and (out / RESULTS).stat().st_size):
            time.sleep(0.002)
        seconds = time.perf_counter() - start
        process.kill()
    line = json.loads((out / RESULTS).read_bytes().splitlines()[0])
    return seconds, Owner(line["bundle"], line["backend"], line["precision"])


def finish(folder: Path, out: Path, owner: Owner) -> None:
    """The journal of a run that is over, line by line as Journal writes them."""
    severity = Severity(1.2345, ((0.1, 0.2), (0.3333, 0.4), (0.1, 0.1012)))
    classes = ("normal", "other_infection", "covid19")
    model = Finding(
        file="",
        status="ok",
        sha256="0123456789abcdef" * 4,
        view="PA",
        probabilities=dict(zip(classes, (0.912345, 0.081234, 0.006421), strict=True)),
        label="normal",
        flags=dict.fromkeys(classes, False),
        severity=severity,
        priority="routine",
        timings_ms=dict.fromkeys(STAGES, 12.345),
        **owner._asdict(),
    )
    with (out / RESULTS).open("wb") as f:
        for found in discover([folder]):
            f.write(module._encoded(replace(model, file=found.file, size=found.size, mtime_ns=found.mtime_ns)))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def resume(folder: Path, out: Path, owner: Owner) -> dict[str, float]:
    """Times and memory of one process that passes over what is finished."""
    start, before = time.perf_counter(), resident()
    stream = discover([folder])
    next(stream)
    first = time.perf_counter() - start
    stream.close()  # type: ignore[attr-defined]
    start, processor = time.perf_counter(), time.process_time()
    with Journal(out, owner) as journal:
        loaded, memory = time.perf_counter(), resident() - before
        stand = 0
        for found in discover([folder], leave_out=out):
            entry = journal.get(found.file)
            stand += entry is not None and entry[2:5] == ("ok", found.size, found.mtime_ns)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        count = len(journal)
        names = sum(sys.getsizeof(name) for name in journal.files())
    if stand != count:
        raise SystemExit(f"{stand} of {count} results stand")
    return {
        "first_input_s": round(first, 3),
        "load_us": round(1e6 * (loaded - start) / count, 2),
        "resume_us": round(1e6 * seconds / count, 2),
        "resume_processor_us": round(1e6 * processor / count, 2),
        "resumed_a_second": round(count / seconds),
        "journal_bytes_each": round(memory / count),
        "name_bytes_each": round(names / count),
    }


COMMAND = [sys.executable, "-m", "cxrvit_edge", "triage"]


def measure(entries: int, whole: bool, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make(work / "few", 10)
        make(work / "in", entries)
        few = min(first_result(work / "few", work / f"few{i}")[0] for i in range(rounds))
        (many, owner), *_ = sorted(first_result(work / "in", work / f"many{i}") for i in range(rounds))
        row: dict[str, Any] = {"entries": entries, "first_result_s": round(many, 2), "of_ten_s": round(few, 2)}
        out = work / "out"
        out.mkdir()
        finish(work / "in", out, owner)
        arguments = ["--step", str(work / "in"), str(out), *owner]
        runs = [
            subprocess.check_output([sys.executable, "-m", "benchmarks.backlog", *arguments]) for _ in range(rounds)
        ]
        row |= min((json.loads(run) for run in runs), key=lambda run: float(run["resume_us"]))
        if whole:
            start = time.perf_counter()
            subprocess.run([*COMMAND, str(work / "in"), "--out", str(out), "--quiet"], check=True)
            row["whole_run_s"] = round(time.perf_counter() - start, 1)
            row["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        subprocess.run(["rm", "-rf", work / "in"], check=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement; the best counts")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/backlog.csv")
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        folder, out, *owner = options.step
        print(json.dumps(resume(Path(folder), Path(out), Owner(*owner))))
        return
    rows = [measure(entries, options.whole, options.rounds) for entries in options.entries]
    for row in rows:
        print(", ".join(f"{name} {value:,}" for name, value in row.items()))
    if options.record:
        print(record("backlog", rows, ("numpy",)))


if __name__ == "__main__":
    main()
