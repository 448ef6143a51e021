"""What triage must reach, in one command: python benchmarks/pipeline.py [--only NAME] [--images N] [--quick]

Each part runs in a process of its own and compares in turns within one run; a shared box slows both sides alike.

overlap   end to end over real films against the time in Session.run
host      a session that returns at once, against a plain loop (DICOM) and threads of cv2 calls (PNG, JPEG)
torch     against a plain PyTorch loop
openvino  against OpenVINO in the same pipeline, where it is installed
startup   from process start to the first finding (benchmarks/startup.py)
memory    peak over few and over many inputs (Linux)
backlog   a folder of a million entries (benchmarks/backlog.py)

Real films are taken from ../shared/data where it is there, else generated ones, and each row says which. A whole run
writes results/pipeline_PART.csv; --quick and --images only print. Sessions are those that `auto` takes here: run
`cxrvit-edge build` before for those of a box that was made ready. The exit code is 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path[0] = str(ROOT)

if TYPE_CHECKING:  # workers import this file anew: it must stay light
    from benchmarks.triage_common import Options

PARTS = {
    "overlap": "triage_overlap:measure",
    "host": "triage_host:measure",
    "torch": "triage_peers:torch_loop",
    "openvino": "triage_peers:openvino",
    "startup": "pipeline:startup",
    "memory": "triage_memory:measure",
    "backlog": "pipeline:backlog",
}
PACKAGES = ("numpy", "opencv-python-headless", "onnxruntime", "pydicom")
OF_PART = {"torch": ("torch",), "openvino": ("openvino",)}
STARTUP, FIRST_SECONDS, RESUMED = 1.3, 3.0, 50_000
SHOWN = ("name", "ours", "peer", "unit", "ratio", "bound", "holds")


def startup(options: Options) -> list[dict[str, Any]]:
    """The lines of benchmarks/startup.py, with the bound on those that end with the first finding."""
    from benchmarks.triage_common import row

    rounds = options.rounds(9, 2)
    said = output("startup", ["--rounds", str(rounds)])
    found = re.findall(r"^(\S.*?) +([\d.]+) s at least, ([\d.]+) median", said, re.M)
    best = {name: float(least) for name, least, _ in found}
    bare = best.pop("bare script")
    rows = []
    for name, seconds in best.items():
        first = name.startswith("Triage.open")
        until = "to its first finding" if first else "to its end, worklist and report included"
        note = f"fp32; process start {until}; peer: bare script; least of {rounds} rounds in turn"
        bound = {"at_most": STARTUP} if first else {}
        rows.append(row(f"start-up: {name}", "s", seconds, bare, n=1, images="1 phantom PNG", note=note, **bound))
    return rows


def backlog(options: Options) -> list[dict[str, Any]]:
    """The lines of benchmarks/backlog.py, for the largest folder."""
    from benchmarks.triage_common import row

    entries, rounds = (100_000, 1) if options.quick else (1_000_000, 2)
    said = output("backlog", ["--entries", str(entries), "--rounds", str(rounds)])
    figures = {
        name: float(value.replace(",", "")) for name, value in re.findall(r"(\w+) (\d[\d,]*\.?\d*)(?:,|$)", said)
    }
    common: dict[str, Any] = {"n": entries, "images": "links to the generated films of examples/"}
    ten = f"{figures['of_ten_s']} s in a folder of ten"
    first = f"process start to the first line of results.jsonl; {ten}; best of {rounds}"
    resumed = f"journal loaded, folder walked, results told to stand; best of {rounds}"
    return [
        row(
            f"first result of {entries:,} entries / {FIRST_SECONDS:.0f} s",
            "s",
            figures["first_result_s"],
            FIRST_SECONDS,
            at_most=1.0,
            note=first,
            **common,
        ),
        row(
            f"resumed past {entries:,} entries / {RESUMED:,}",
            "results/s",
            figures["resumed_a_second"],
            RESUMED,
            at_least=1.0,
            note=resumed,
            **common,
        ),
    ]


def output(script: str, arguments: Sequence[str]) -> str:
    """What another benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{script}", *arguments]
    said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(said, end="", flush=True)
    return said


def measure(part: str, options: Options, rows: Path) -> list[dict[str, Any]]:
    """The rows of a part, measured in a fresh process; one row that says so if it fails."""
    from benchmarks.triage_common import absent

    command = [sys.executable, "-m", "benchmarks.pipeline", "--part", part, "--rows", str(rows)]
    command += ["--images", str(options.images)] if options.images else []
    command += ["--quick"] if options.quick else []
    ended = subprocess.run(command, cwd=ROOT, check=False).returncode
    if ended:
        return [absent(part, "", f"the measurement ended with exit code {ended}: see what it printed")]
    found: list[dict[str, Any]] = json.loads(rows.read_text())
    return found


def show(rows: Sequence[dict[str, Any]], *, notes: bool = True) -> None:
    """The table, then what each row was taken on."""
    cells = [list(SHOWN), *([str(row[name]) for name in SHOWN] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows if notes else ():
        print(f"{row['name']}: n {row['n']}, {row['images']}; {row['note']}")


def installed(packages: Sequence[str]) -> list[str]:
    found = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given again")
    parser.add_argument("--images", type=int, help="inputs of every part, in place of its own number")
    parser.add_argument("--quick", action="store_true", help="fewer inputs and rounds, nothing compiled by torch")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    from benchmarks.triage_common import Options

    options = Options(given.images, given.quick)
    if given.part:
        module, function = PARTS[given.part].split(":")
        part: Callable[[Options], list[dict[str, Any]]] = getattr(import_module(f"benchmarks.{module}"), function)
        given.rows.write_text(json.dumps(part(options)))
        return

    from benchmarks.record import record
    from cxrvit_edge.bundle import Bundle

    bundle = Bundle.open().sha256[:12]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.only or PARTS:
            rows = measure(name, options, Path(temporary) / f"{name}.json")
            show(rows)
            print(flush=True)
            found += rows
            if not (options.quick or options.images):
                columns = [{"part": name, **row, "bundle": bundle} for row in rows]
                record(f"pipeline_{name}", columns, installed((*PACKAGES, *OF_PART.get(name, ()))))
    if len(given.only or PARTS) > 1:
        show(found, notes=False)
    if any(row["holds"] in ("NO", "not measured") for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
