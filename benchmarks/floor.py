"""How far from the limit: python -m benchmarks floor [BUNDLE|ONNX...] [--presets] [--record]

Operations (two a multiply-add) and bytes of each graph, counted from it: of every variant of a bundle (the embedded
one by default), of ONNX files, and with --presets of the edge, small and paper networks, exported with random weights.
Beside them the most that this box did in the same minutes: GEMMs by every library that is here, a copy, each kind of
arithmetic by the fastest of them.

compute floor   operations of each kind at the measured peak of that kind
memory floor    weights, inputs and outputs, each moved once at the speed of the copy: what a perfect fusion would need
per cent        the larger of the two floors, of the best time; all candidates and peaks in turn
moved           bytes if every node reads its tensors from memory and writes them there; kernels that fuse move less
load            load average a core before it began, of others
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import floor_probes as probes
from benchmarks.floor_graphs import Graph, of_bundle, of_file, of_preset
from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores
from cxrvit_edge.runtime import measure
from export import count as counting

PRESETS = ("edge", "small", "paper")
BUSY = 0.3  # load a core from which a figure is disturbed
PACKAGES = ("numpy", "onnxruntime", "onnx", "torch", "openvino")


def floors(count: counting.Count, peak: dict[str, float]) -> tuple[float | None, float]:
    """Seconds of arithmetic, None where a kind has no peak here, and of memory."""
    kinds = count.by_kind()
    compute = sum(n / peak[kind] for kind, n in kinds.items()) if kinds.keys() <= peak.keys() else None
    return compute, count.least / peak["bytes"]


def row(graph: Graph, batch: int, peak: dict[str, float], candidate: str, seconds: float | None) -> dict[str, Any]:
    """A line of the table; per_cent_of_limit: the larger floor of the best time."""
    compute, memory = floors(graph.count, peak)
    limit = None if compute is None else max(compute, memory)
    operations, kinds = graph.count.operations, graph.count.by_kind()
    return {
        "graph": graph.name,
        "sha256": graph.sha256,
        "batch": batch,
        "gflop": round(operations / 1e9, 3),
        "int8_per_cent": round(100 * kinds.get("int8", 0) / max(operations, 1), 1),
        "weights_mb": round(graph.count.weights / 1e6, 2),
        "least_mb": round(graph.count.least / 1e6, 2),
        "moved_mb": round(graph.count.moved / 1e6, 1),
        "compute_floor_ms": _ms(compute),
        "memory_floor_ms": _ms(memory),
        "candidate": candidate,
        "best_ms": _ms(seconds),
        "gflop_a_second": "" if seconds is None else round(operations / seconds / 1e9, 1),
        "per_cent_of_limit": "" if seconds is None or limit is None else round(100 * limit / seconds, 1),
    }


def _ms(seconds: float | None) -> float | str:
    return "" if seconds is None else float(f"{seconds * 1e3:.4g}")


def part_rows(graph: Graph) -> list[dict[str, Any]]:
    """Work of each part of a graph; none where its names tell nothing."""
    rows = []
    for part in counting.PARTS:
        work = graph.count.of(part)
        if work.multiply_adds:
            share = 200 * work.multiply_adds / graph.count.operations
            rows.append(
                {
                    "graph": graph.name,
                    "sha256": graph.sha256,
                    "part": part,
                    "gflop": round(2 * work.multiply_adds / 1e9, 3),
                    "per_cent": round(share, 1),
                    "weights_mb": round(work.weights / 1e6, 2),
                    "activations_mb": round(work.activations / 1e6, 1),
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As aligned columns."""
    if not rows:
        return "nothing"
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def before() -> float:
    """Load average of the last minute a core; 0 where the system keeps none."""
    return round(os.getloadavg()[0] / cores(), 2) if hasattr(os, "getloadavg") else 0.0


def installed() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found


def measured(
    found: Sequence[Graph], limits: Sequence[probes.Probe], seconds: float
) -> tuple[list[probes.Peak], dict[tuple[int, str], float]]:
    """Peaks, and the best seconds of each graph's candidates, everything in turn."""
    numbered = dict(enumerate(limits))
    runs: dict[Any, Callable[[], object]] = {key: probe.run for key, probe in numbered.items()}
    runs |= {(i, name): run for i, graph in enumerate(found) for name, run in graph.runs.items()}
    best = measure.interleaved(runs, seconds=seconds, rest=0.01)  # threads that still spin would take from the next
    return probes.measured(numbered, best), {key: t for key, t in best.items() if isinstance(key, tuple)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks floor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", nargs="*", type=Path, metavar="BUNDLE|ONNX")
    parser.add_argument("--presets", action="store_true", help="also the presets, exported here: a minute or two")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring")
    parser.add_argument("--gemm", type=int, default=probes.GEMM, help="rows and columns of the large product")
    parser.add_argument("--copy-mib", type=int, default=probes.COPY >> 20, help="size of the large copy")
    parser.add_argument(
        "--record", action="store_true", help="write results/floor.csv, floor_peaks.csv, floor_parts.csv"
    )
    options = parser.parse_args(argv)
    batch, load = options.batch_size, before()
    with tempfile.TemporaryDirectory() as temporary:
        found: list[Graph] = []
        for path in options.graphs or [None]:
            single = path is not None and path.suffix.lower() == ".onnx"
            found += [of_file(path, batch)] if single else of_bundle(Bundle.open(path), batch)
        for name in PRESETS if options.presets else ():
            work = Path(temporary) / name
            work.mkdir()
            found.append(of_preset(name, batch, work))
        limits = probes.on_cpu(options.gemm, options.copy_mib << 20)
        if probes.has_gpu():  # its candidates are those of `python -m benchmarks gpu`
            limits += probes.on_gpu(copied=options.copy_mib << 20)
        peaks, seconds = measured(found, limits, options.seconds)
    peak = probes.best(peaks, "cpu")
    rows = []
    for i, graph in enumerate(found):
        times = {name: t for (n, name), t in seconds.items() if n == i}
        rows += [row(graph, batch, peak, name, t) for name, t in times.items()] or [row(graph, batch, peak, "", None)]
    rows = [{**line, "load": load} for line in rows]
    tables = {
        "floor_peaks": [{**p.row(), "load": load} for p in peaks],
        "floor_parts": [part for graph in found for part in part_rows(graph)],
        "floor": rows,
    }
    for name, part in tables.items():
        print(table(part), end="\n\n", flush=True)
        if options.record and part:
            print(record(name, part, installed()), end="\n\n")
    if any(line["per_cent_of_limit"] != "" and line["per_cent_of_limit"] > 100 for line in rows):
        print("a candidate did more than the peak: the peaks were disturbed; repeat it on a quiet box")
    if load > BUSY:
        print(f"others were at work (load {load:g} a core before it began): repeat it on a quiet box")


if __name__ == "__main__":
    main()
