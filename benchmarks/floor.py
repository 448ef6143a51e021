"""How far from the limit: python -m benchmarks floor [BUNDLE|ONNX...] [--presets] [--record]

Operations (two a multiply-add) and bytes of each graph, counted from it: of every variant of a bundle (the embedded
one by default), of ONNX files, and with --presets of the edge, small and paper networks, exported with random weights.
Beside them the most that this box did in the same minutes: GEMMs by every library that is here, a copy, each kind of
arithmetic by the fastest of them.

compute floor   operations of each kind at the measured peak of that kind
memory floor    weights, inputs and outputs, each moved once at the speed of the copy: what a perfect fusion would need
per cent        the larger of the two floors, of the best time; all candidates and peaks in turn

"moved" is what goes through memory if every node reads and writes its tensors there; kernels that fuse move less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import floor_probes as probes
from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.runtime import golden, measure
from cxrvit_edge.runtime.candidates import VARIANTS, find, graphs
from export import count as counting

PRESETS = ("edge", "small", "paper")
BACKENDS = ("onnxruntime", "openvino", "torch")
PACKAGES = ("numpy", "onnxruntime", "onnx", "torch", "openvino")


@dataclass
class Graph:
    """A graph's work, and what runs it here by name. sha256: of its file, 12 digits, "" where it is made anew."""

    name: str
    sha256: str
    count: counting.Count
    runs: dict[str, Callable[[], object]] = field(default_factory=dict)


def of_bundle(bundle: Bundle, batch: int, say: Callable[[str], None] = print) -> list[Graph]:
    """Each graph of each variant, with every back end of the processor that opens it and passes its golden check."""
    import onnx

    found = []
    films = golden.load_inputs(bundle)
    image = films[np.arange(batch) % len(films)]  # (B, 1, S, S)
    for variant, spec in bundle.manifest.variants.items():
        for graph in graphs(bundle):
            file = spec.files[graph]
            model = onnx.load(bundle.file(file), load_external_data=False)
            name = variant if len(graphs(bundle)) == 1 else f"{variant} {graph}"
            sha256 = bundle.manifest.files[file][:12]
            found.append(Graph(name, sha256, counting.count(model, batch), _runs(bundle, variant, graph, image, say)))
    return found


def _runs(
    bundle: Bundle, variant: str, graph: str, image: Any, say: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    out: dict[str, Callable[[], object]] = {}
    for backend in BACKENDS:
        for precision, needs in VARIANTS[backend].items():
            if needs != variant:
                continue
            name = f"{backend} {precision}"
            try:
                candidate = find(bundle, backend, {precision: variant}, 0)[0][0]
                session = candidate.open(graph)
                golden.check(bundle, variant, graph, session)
            except CxrVitError as error:
                say(f"passed over: {name}: {error}")
                continue
            out[name] = lambda session=session: session.run(image)  # type: ignore[misc]
    return out


def of_file(path: Path, batch: int, name: str = "", say: Callable[[str], None] = print) -> Graph:
    """An ONNX graph, run by ONNX Runtime as it comes."""
    import hashlib

    import onnx

    model = onnx.load(path, load_external_data=False)
    made = Graph(name or path.name, "", counting.count(model, batch))
    if not name:
        made.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    try:
        made.runs["onnxruntime as exported"] = _plain(path, batch)
    except Exception as error:  # ORT's own exceptions share no public base
        say(f"passed over: {path.name} on onnxruntime: {(str(error).splitlines() or ['no reason'])[0]}")
    return made


def _plain(path: Path, batch: int) -> Callable[[], object]:
    """A run on noise."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng, kinds = np.random.default_rng(0), {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feed = {
        i.name: rng.normal(size=[d if isinstance(d, int) else batch for d in i.shape]).astype(kinds[i.type])
        for i in session.get_inputs()
    }
    session.run(None, feed)
    return lambda: session.run(None, feed)


def of_preset(name: str, batch: int, work: Path) -> Graph:
    """Exported with random weights, as a bundle's fp32 graph is."""
    import torch

    from cxrvit_edge.bundle import WEIGHTS
    from cxrvit_edge.model.config import preset
    from cxrvit_edge.model.triage_net import TriageNet
    from export import graph
    from export.weights import write_weights

    torch.manual_seed(0)
    net = write_weights(TriageNet(preset(name)).eval(), work / WEIGHTS, {})
    graph.save(graph.trace(net), work / f"{name}.onnx", WEIGHTS)
    return of_file(work / f"{name}.onnx", batch, f"preset {name}")


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
    batch = options.batch_size
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
    tables = {
        "floor_peaks": [p.row() for p in peaks],
        "floor_parts": [part for graph in found for part in part_rows(graph)],
        "floor": rows,
    }
    for name, part in tables.items():
        print(table(part), end="\n\n", flush=True)
        if options.record and part:
            print(record(name, part, installed()), end="\n\n")


if __name__ == "__main__":
    main()
