"""ONNX Runtime beside OpenVINO: python -m benchmarks.session [--bundle DIR] [--rounds 5] [--record]

The same graphs of one bundle in the same precision, in turn, best of several: ONNX Runtime as it comes, as tuned by
`build`, and OpenVINO by its latency and its throughput hint, with float32 arithmetic and (so named) in bfloat16, which
it takes by itself where the processor has it. Logits and maps are held against the golden outputs. The processor time
of all threads tells on a shared box what the wall time hides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime import golden, tuning
from cxrvit_edge.runtime.candidates import VARIANTS
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession, Settings
from cxrvit_edge.runtime.session import Outputs, named

Run = Callable[[Float32], Outputs]


def openvino(path: Path, hint: str, arithmetic: str) -> Run:
    import openvino as ov

    config = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": cores(), "INFERENCE_PRECISION_HINT": arithmetic}
    compiled = ov.Core().compile_model(str(path), "CPU", config)
    names = named([name for output in compiled.outputs for name in output.get_names()])
    request = compiled.create_infer_request()

    def run(batch: Float32) -> Outputs:
        found = request.infer({"image": batch})
        return Outputs(*(np.array(found[name]) for name in names))

    return run


def sessions(bundle: Bundle, precision: str, variant: str) -> dict[str, Run]:
    path = bundle.file(next(iter(bundle.variant(variant).files.values())))
    found: dict[str, Run] = {"onnxruntime": OnnxRuntimeSession(path, precision=precision).run}
    still = replace(Settings(), spinning=False)
    found["onnxruntime, no spinning"] = OnnxRuntimeSession(path, precision=precision, settings=still).run
    tuned = tuning.find(bundle, "onnxruntime", variant)
    if tuned is not None:
        found["onnxruntime, tuned"] = OnnxRuntimeSession(path, precision=precision, settings=tuned.settings).run
    if find_spec("openvino") is not None:
        for hint in ("LATENCY", "THROUGHPUT"):
            found[f"openvino {hint.lower()}"] = openvino(path, hint, "f32")
        found["openvino bfloat16"] = openvino(path, "LATENCY", "bf16")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the embedded one by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/session.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    films, graph = golden.load_inputs(bundle), next(iter(bundle.manifest.views.values()))
    rows: list[dict[str, Any]] = []
    for precision, variant in VARIANTS["onnxruntime"].items():
        if variant not in bundle.manifest.variants:
            continue
        runs, allowed = sessions(bundle, precision, variant), bundle.variant(variant).tolerance
        expected = golden.load_outputs(bundle, variant, graph)
        differences = {name: golden.compare(run(films), expected) for name, run in runs.items()}
        for size in (1, 2, 4, 8):
            batch = films[np.arange(size) % len(films)]
            best = {name: [float("inf")] * 2 for name in runs}
            for done in range(options.rounds + 1):
                for name, run in runs.items():
                    sleep(0.01)  # threads that still spin would take from the next
                    start, cpu = perf_counter(), process_time()
                    run(batch)
                    if done:
                        now = (perf_counter() - start, process_time() - cpu)
                        best[name] = [min(pair) for pair in zip(best[name], now, strict=True)]
            for name, (wall, cpu) in best.items():
                d = differences[name]
                passes = d.within(allowed)
                ratio = best["onnxruntime"][0] / wall
                print(
                    f"{precision} batch {size} {name:26s} {wall / size * 1e3:6.1f} ms an image, {ratio:.2f} times "
                    f"onnxruntime, {cpu / size * 1e3:6.1f} ms of processor, golden {'passed' if passes else 'FAILED'}"
                )
                figures = {"ms_an_image": wall / size * 1e3, "processor_ms": cpu / size * 1e3, "ratio": ratio}
                row = {"variant": variant, "batch": size, "session": name}
                row |= {key: round(value, 3) for key, value in figures.items()}
                rows.append(row | {"logits": f"{d.logits:.1e}", "maps": f"{d.maps:.1e}", "passes": passes})
    if options.record:
        packages = ["onnxruntime", *(["openvino"] if find_spec("openvino") else [])]
        print(record("session", rows, packages))


if __name__ == "__main__":
    main()
