"""Runs ended on purpose: python -m benchmarks.faults [--times 100] [--images 400] [--bundle DIR] [--record]

The command over generated films, with the embedded bundle, is started and struck, half of the time once some more
results are written and half at any moment of a whole run, until it comes through by itself or was struck so many times;
then the folder is checked and begun anew. Counted: inputs without a result, inputs with more than one, results that
differ from those of a run that nothing befell, and strikes that left a line half written. Faults: SIGKILL, SIGTERM,
SIGINT, and a disk that is full after a random number of bytes (RLIMIT_FSIZE).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from cxrvit_edge.phantom import make_phantom

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FULL = "full disk"
ALLOWED = {"SIGKILL": {-9}, "SIGTERM": {143}, "SIGINT": {130}, FULL: {2}}
LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
LIMITED += "os.execv(sys.argv[2], sys.argv[2:])"


class Command:
    def __init__(self, folder: Path, bundle: str | None) -> None:
        self._start = [sys.executable, "-m", "cxrvit_edge", "triage", str(folder), "--quiet", "--out"]
        self._end = ["--bundle", bundle] if bundle else []

    def start(self, out: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, *self._start, str(out), *self._end], stderr=subprocess.PIPE)

    def through(self, out: Path) -> float:
        start = time.perf_counter()
        with self.start(out) as process:
            err = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {err.decode()}")
        return time.perf_counter() - start


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def verdicts(out: Path) -> dict[str, Any]:
    """What a result says, without the time that it took."""
    return {line["file"]: {k: v for k, v in line.items() if k != "timings_ms"} for line in results(out)}


def strike(command: Command, out: Path, fault: str, rng: random.Random, whole: float, more: int) -> bool:
    """One run, struck; whether it was before it came through by itself."""
    path = out / "results.jsonl"
    before = path.stat().st_size if path.exists() else 0
    if fault == FULL:
        with command.start(out, (sys.executable, "-c", LIMITED, str(before + rng.randrange(more)))) as process:
            err = process.communicate()[1]
    else:
        with command.start(out) as process:
            if rng.random() < 0.5:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, whole))
            else:
                least = before + rng.randrange(1, more)
                while process.poll() is None and (path.stat().st_size if path.exists() else 0) < least:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.03))
            process.send_signal(SIGNALS[fault])
            err = process.communicate()[1]
    ended = process.returncode
    started = path.exists()  # before that a signal may find Python itself starting
    if ended not in {0, *ALLOWED[fault]} and (started or fault == FULL):
        raise SystemExit(f"{fault}: exit code {ended}: {err.decode()}")
    if b"Traceback" in err and started:
        raise SystemExit(f"{fault}: {err.decode()}")
    return ended != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="SIGKILLs; of each other fault a fifth")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--bundle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/faults.csv")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_films(work / "in", options.images)
        command = Command(work / "in", options.bundle)
        command.through(work / "first")  # checks the session, and puts that on record
        whole = command.through(work / "expected")
        expected = verdicts(work / "expected")
        for fault in (*SIGNALS, FULL):
            times = options.times if fault == "SIGKILL" else max(1, options.times // 5)
            more = 2 * (work / "expected" / "results.jsonl").stat().st_size // times
            out, rng = work / fault, random.Random(options.seed)
            row: dict[str, Any] = {"fault": fault, "struck": 0, "half_lines": 0, "runs_finished": 0, "results": 0}
            row |= dict.fromkeys(("without_result", "with_several", "other_result"), 0)
            while row["struck"] < times:
                struck = strike(command, out, fault, rng, whole, max(2, more))
                row["struck"] += struck
                data = (out / "results.jsonl").read_bytes() if (out / "results.jsonl").exists() else b""
                row["half_lines"] += bool(data) and not data.endswith(b"\n")
                if row["struck"] == times:
                    command.through(out)
                elif struck:
                    continue
                count, found = Counter(line["file"] for line in results(out)), verdicts(out)
                row["runs_finished"] += 1
                row["results"] += len(expected)
                row["without_result"] += len(set(expected) - set(count))
                row["with_several"] += sum(n > 1 for n in count.values())
                row["other_result"] += sum(found.get(file) != verdict for file, verdict in expected.items())
                shutil.rmtree(out)
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.record:
        print(record("faults", rows, ("numpy", "onnxruntime")))


def write_films(folder: Path, count: int) -> list[Path]:
    """Generated films, each file with other bytes."""
    folder.mkdir()
    paths = [folder / f"film{i:05d}.png" for i in range(count)]
    drawn = [to_eight_bits(make_phantom(seed=seed).pixels) for seed in range(min(count, 8))]
    for i, path in enumerate(paths):
        pixels = drawn[i % len(drawn)]
        pixels[0, :2] = divmod(i, 256)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return paths


def to_eight_bits(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return (pixels / (pixels.max() / 255)).astype(np.uint8)


if __name__ == "__main__":
    main()
