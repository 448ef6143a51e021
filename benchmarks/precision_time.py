"""Time an image of each precision that ONNX Runtime runs here, the precisions in turn, one image at a time.

python -m benchmarks.precision_time --record
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from time import perf_counter

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession, arithmetic, fingerprint

VARIANTS = {"fp32": "fp32", "int8": "int8-cpu"}  # precision -> variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="the embedded one by default")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/precision_time.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    image = golden.load_inputs(bundle)[:1]
    runs = {}
    for precision, variant in VARIANTS.items():
        path = bundle.file(bundle.variant(variant).files[bundle.graph_for("PA")])
        session = OnnxRuntimeSession(path, precision=precision)
        session.run(image)
        runs[precision] = partial(session.run, image)
    times: dict[str, list[float]] = {precision: [] for precision in runs}
    for _ in range(options.rounds):
        for precision, run in runs.items():
            start = perf_counter()
            run()
            times[precision].append(perf_counter() - start)
    rows = [
        {
            "precision": precision,
            "settings": fingerprint(arithmetic(precision)),
            "rounds": options.rounds,
            "best_ms": round(1e3 * min(seconds), 1),
            "median_ms": round(1e3 * median(seconds), 1),
            "times_as_fast_as_fp32": round(median(times["fp32"]) / median(seconds), 2),
            "times_as_fast_at_best": round(min(times["fp32"]) / min(seconds), 2),
            "bundle": bundle.sha256[:12],
        }
        for precision, seconds in times.items()
    ]
    for row in rows:
        print(row)
    if options.record:
        print(record("precision_time", rows, ("onnxruntime", "numpy")))


if __name__ == "__main__":
    main()
