"""The `paper` preset exported and built: python -m benchmarks.paper_preset [--target sm86] [--images 4] [--record]

95 M parameters, random weights, one process: weights, trace, FP16, INT8 (ranges, migration, choice, as in an export),
files as in a bundle, then both engines with TensorRT for RTX, which needs no GPU. Fails where attention is not fused
in every block. The peak is of the process, up to the end of the step.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from cxrvit_edge.bundle import WEIGHTS
from cxrvit_edge.model.config import CLASSES, NetworkConfig, preset
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime import builder
from cxrvit_edge.runtime.fusion import fusion, require_fused
from cxrvit_edge.runtime.layers import parse
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from export import graph, quantise, recipe, surgery
from export.fp16 import to_half
from export.parity import Bounds
from export.variants import INT8_WEIGHTS
from export.weights import write_weights

MOST_SECONDS, MOST_GB = 600, 8
COLUMNS = (
    *("step", "seconds", "peak_gb", "megabytes", "sha256", "logits_apart", "blocks_fused", "attention"),
    *("int8_convolutions", "int8_matmuls", "layers", "requantisations"),
)
ANY = Bounds(10**6, 1.0, float("inf"), 6.0)  # random weights: nothing to keep in FP16 for


class Table:
    """One row a step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS, ""), "step": name}
        start = time.perf_counter()
        yield row
        row["seconds"] = round(time.perf_counter() - start, 1)
        row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
        self.rows.append(row)
        print(", ".join(f"{k} {v}" for k, v in row.items() if v != "" and k != "sha256"), flush=True)


def phantoms(count: int, config: PreprocessConfig) -> list[Float32]:
    """Network inputs (1, 1, S, S) of generated films."""
    kinds = ("none", "focal", "diffuse")
    films = (make_phantom(i, lesions=kinds[i % 3]) for i in range(count))  # type: ignore[arg-type]
    return [preprocess(Radiograph(film.pixels), config)[0][None] for film in films]


def describe(row: dict[str, Any], *paths: Path) -> None:
    """Size of all, hash of the last."""
    row["megabytes"] = round(sum(p.stat().st_size for p in paths) / 1e6, 1)
    row["sha256"] = hashlib.sha256(paths[-1].read_bytes()).hexdigest()


def logits(path: Path, images: list[Float32]) -> Float32:
    """(N, 3) in the graph's exact arithmetic."""
    session = OnnxRuntimeSession(path, precision=path.stem, exact=True)
    return np.concatenate([session.run(image).logits for image in images])


def export(work: Path, network: NetworkConfig, images: list[Float32], table: Table) -> None:
    from safetensors.numpy import save_file

    torch.manual_seed(0)
    raw = TriageNet(network).eval()
    parameters = sum(p.numel() for p in raw.parameters())
    with table.step(f"weights of {parameters / 1e6:.1f} M parameters") as row:
        net = write_weights(raw, work / WEIGHTS, {})
        describe(row, work / WEIGHTS)
    with table.step("trace, fp32.onnx") as row:
        model = graph.trace(net)
        graph.save(model, work / "fp32.onnx", WEIGHTS)
        describe(row, work / "fp32.onnx")
    reference = logits(work / "fp32.onnx", images)
    with table.step("fp16.onnx") as row:
        half = surgery.copy(model)
        to_half(half)
        graph.save(half, work / "fp16.onnx", WEIGHTS)
        describe(row, work / "fp16.onnx")
        row["logits_apart"] = float(f"{np.abs(logits(work / 'fp16.onnx', images) - reference).max():.2g}")
    with table.step("int8 recipe"):
        options = recipe.Int8Options(
            estimator="percentile", percentile=99.999, smooth=recipe.SMOOTH, sensitivity_images=0, bounds=ANY
        )
        points = dict.fromkeys(CLASSES, 0.5)
        found = recipe.choose(model, images, images, 1.0, points, options, lambda _: None)
    with table.step("int8.onnx") as row:
        int8 = surgery.copy(found.model)
        quantise.quantise(int8, found.nodes, found.scales["tensorrt"], "tensorrt")
        stored = {k: v for k, v in surgery.weights(int8).items() if v.dtype == np.int8 and k.endswith(".int8")}
        save_file(stored, work / INT8_WEIGHTS)
        to_half(int8)
        graph.save(int8, work / "int8.onnx", WEIGHTS, INT8_WEIGHTS)
        describe(row, work / INT8_WEIGHTS, work / "int8.onnx")
        row["logits_apart"] = float(f"{np.abs(logits(work / 'int8.onnx', images) - reference).max():.2g}")


def build(path: Path, target: str, blocks: int, table: Table) -> None:
    """EngineError if attention is not one fused kernel in each of `blocks`."""
    with table.step(f"engine {path.stem} {target}") as row:
        made = builder.compile_onnx(path, backend="tensorrt-rtx", sm=builder.target(target))
        found = fusion(parse(made.lines), made.sources)
        require_fused(found, where=path.name, least=blocks)
        row["megabytes"] = round(made.plan.nbytes / 1e6, 1)
        row["blocks_fused"] = f"{found.fused} of {blocks}"
        row["attention"] = ", ".join(found.precisions)
        for column, counts in (("int8_convolutions", found.convolutions), ("int8_matmuls", found.matmuls)):
            row[column] = f"{counts.get('Int8', 0)} of {sum(counts.values())}"
        row["layers"], row["requantisations"] = found.layers, found.requantisations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm86", help="RTX target")
    parser.add_argument("--images", type=int, default=4, help="generated films to calibrate on")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/paper_preset.csv")
    options = parser.parse_args()
    network, table, start = preset("paper"), Table(), time.perf_counter()
    images = phantoms(options.images, PreprocessConfig(size=network.image_size))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with table.step("all") as total:
            export(work, network, images, table)
            for precision in ("fp16", "int8"):
                build(work / f"{precision}.onnx", options.target, network.layers, table)
    kept = total["seconds"] <= MOST_SECONDS and total["peak_gb"] <= MOST_GB
    print(f"{time.perf_counter() - start:.0f} s in all; at most {MOST_SECONDS} s and {MOST_GB} GB: {kept}")
    if options.record:
        print(record("paper_preset", table.rows, ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt_rtx")))
    if not kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
