"""Process start to first finding: python -m benchmarks.startup [--image FILE] [--bundle DIR] [--rounds 9] [--record]

Whole processes in turn, of one image: a bare script (numpy, cv2, onnxruntime; the bundle's fp32 graph opened and run
once), `Triage.open()` until its first Finding, and the command until it has ended, all in fp32. The golden check is on
record, by a run before that does not count. With the plain graph, and with what `build` keeps where it has run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.runtime import search

BARE = """
import sys, cv2, numpy as np, onnxruntime as ort
size = int(sys.argv[3])
image = cv2.resize(cv2.imread(sys.argv[2], cv2.IMREAD_GRAYSCALE), (size, size)).astype(np.float32)[None, None]
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(["logits", "severity_map", "lung_mask"], {"image": (image - 128) / 64})
print("done", flush=True)
"""
API = """
import sys
from cxrvit_edge import Triage
finding = next(Triage.open(sys.argv[1], backend="onnxruntime", precision="fp32")(sys.argv[2]))
print(finding.status, flush=True)
"""


def first_line(command: list[str], cache: Path, *, to_end: bool = False) -> float:
    """Seconds from process start to its first line on stdout, or to its end."""
    start = perf_counter()
    environment = {**os.environ, "CXRVIT_EDGE_CACHE": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = perf_counter() - start
    if process.returncode or not (to_end or line.strip() in ("done", "ok")):
        raise SystemExit(f"{command}: exit code {process.returncode}, said {line!r}")
    return perf_counter() - start if to_end else seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=Path("examples/phantom_normal_pa.png"))
    parser.add_argument("--bundle", type=Path, help="the embedded one by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/startup.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    graph = bundle.file(next(iter(bundle.variant("fp32").files.values())))
    size, image = bundle.manifest.preprocessing["size"], str(options.image)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        plain, tuned = work / "plain", work / "tuned"
        os.environ["CXRVIT_EDGE_CACHE"] = str(tuned)
        search.tune(bundle, "onnxruntime", "fp32", "fp32", seconds=1.0, say=print)
        python, api = sys.executable, ["-c", API, str(bundle.root), image]
        cli = [python, "-m", "cxrvit_edge", "triage", image, "--out", str(work / "out"), "--fresh", "--quiet"]
        cli += ["--bundle", str(bundle.root), "--backend", "onnxruntime", "--precision", "fp32"]
        ways = {
            "bare script": lambda: first_line([python, "-c", BARE, str(graph), image, str(size)], plain),
            "Triage.open": lambda: first_line([python, *api], plain),
            "Triage.open after build": lambda: first_line([python, *api], tuned),
            "command": lambda: first_line(cli, plain, to_end=True),
            "command after build": lambda: first_line(cli, tuned, to_end=True),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for done in range(options.rounds + 1):
            for name, way in ways.items():
                seconds = way()
                if done:
                    times[name].append(seconds)
    bare = times["bare script"]
    rows = []
    for name, seconds in times.items():
        least, middle = min(seconds) / min(bare), median(seconds) / median(bare)
        low = f"{min(seconds):.3f} s at least, {median(seconds):.3f} median"
        print(f"{name:24s} {low}: {least:.2f} and {middle:.2f} times the bare script")
        row = {"way": name, "rounds": options.rounds, "least_s": min(seconds), "median_s": median(seconds)}
        ratios = {"least_ratio": least, "median_ratio": middle}
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in {**row, **ratios}.items()})
    if options.record:
        print(record("startup", rows, ("numpy", "opencv-python-headless", "onnxruntime")))


if __name__ == "__main__":
    main()
