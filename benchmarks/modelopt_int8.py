"""Our INT8 against nvidia-modelopt's: python -m benchmarks.modelopt_int8 --modelopt-python PYTHON [--record]

The same float32 network, the same calibration images; both graphs in exact Q/DQ arithmetic over val and test, held
against torch, and compiled with TensorRT for RTX, which needs no GPU. modelopt is run by its own command line with its
default operations, FP16 around them (its default), both of its calibrations, and its graph clean-up (--simplify): else
a weight that is stored transposed gets one scale for the whole matrix. It replaces onnxruntime by an old one, so it
lives in a venv of its own: pip install torch 'nvidia-modelopt[onnx]'.

Seconds: ours are ranges and rounding with the bundle's estimator, without the search for it; modelopt's a whole run.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import record
from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.errors import CxrVitError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.preprocess import Float32, PreprocessConfig
from cxrvit_edge.runtime import builder
from cxrvit_edge.runtime.fusion import fusion
from cxrvit_edge.runtime.layers import parse
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.torch import TorchSession
from export import calibration, graph, parity, quantise, ranges, surgery
from train.data import manifest

if TYPE_CHECKING:
    import onnx

METHODS = ("entropy", "max")  # the default first
SETTINGS = ("--quantize_mode", "int8", "--high_precision_dtype", "fp16", "--calibration_eps", "cpu", "--simplify")
PASSES_ON = ("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
ASK_VERSIONS = "from importlib.metadata import version as v; print(v('nvidia-modelopt'), v('onnxruntime-gpu'))"
COLUMNS = (
    *("graph", "calibration", "images", "flips", "label_flips", "flag_flips", "logits_rms_of_std"),
    *("largest_probability_difference", "severity_mae", "int8_convolutions", "int8_matmuls", "int8_attention_products"),
    *("quantise_seconds", "engine", "attention_fused", "attention", "engine_int8_convolutions", "engine_int8_matmuls"),
    *("engine_layers", "engine_megabytes", "graph_sha256"),
)


def network(bundle: Bundle) -> tuple[onnx.ModelProto, str]:
    """The float32 graph with its weights inside, and the hash of the stored weights."""
    path = bundle.file(WEIGHTS)
    tensors, config, _ = checkpoint.load(path)
    return graph.trace(checkpoint.network(tensors, config, name=str(path))), bundle.manifest.files[WEIGHTS]


def calibration_images(bundle: Bundle, source: Path) -> tuple[list[Float32], str]:
    """Network inputs of the images that the bundle was calibrated on, and the hash of their list.

    UsageError if `source` gives other images.
    """
    own = bundle.variant("int8").calibration
    if own is None:
        raise UsageError(f"{bundle.root}: its int8 variant has no calibration record; export it again")
    chosen = calibration.choose(source, images=own["asked"], seed=own["seed"], split=own["split"])
    if chosen.record()["sha256"] != own["sha256"]:
        raise UsageError(f"{source}: not the images that the bundle was calibrated on; name that --calibration")
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    return list(calibration.tensors(chosen, config)), own["list_sha256"]


def our_seconds(bundle: Bundle, model: onnx.ModelProto, images: Sequence[Float32]) -> tuple[str, float]:
    """What the bundle's recipe is called, and the time of ranges and rounding with its estimator."""
    recipes = bundle.manifest.raw["variants"]["int8"]["quantisation"]["range"]
    told: str = recipes["tensorrt"]  # "percentile 99.99, smoothing 0.5"
    estimator, *rest = told.split(",")[0].split()
    percentile = float(rest[0]) if rest else 99.99
    start = time.perf_counter()
    found = ranges.collect(model, quantise.tensors(model, "tensorrt"), images)
    scales = ranges.scales(found, estimator, percentile=percentile, form="tensorrt")
    quantise.quantise(surgery.copy(model), {w.node for w in quantise.quantisable(model)}, scales, "tensorrt")
    return told, time.perf_counter() - start


def run_modelopt(python: Path, folder: Path, method: str) -> tuple[Path, float]:
    """Quantise folder/float32.onnx on folder/calibration.npy. SystemExit with the end of its log if that fails."""
    out = folder / f"modelopt-{method}.onnx"
    files = ("--onnx_path", folder / "float32.onnx", "--calibration_data_path", folder / "calibration.npy")
    command = [python, "-m", "modelopt.onnx.quantization", *files, "--output_path", out, *SETTINGS]
    start = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), "--calibration_method", method], capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode or not out.is_file():
        raise SystemExit(f"modelopt {method}: {(done.stderr or done.stdout)[-3000:]}")
    return out, time.perf_counter() - start


def int8_nodes(path: Path) -> dict[str, int]:
    """Convolutions, MatMuls with a weight, and products of attention whose two inputs are both dequantised."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    made, stored = surgery.producers(model), {t.name for t in model.graph.initializer}

    def dequantised(tensor: str) -> onnx.NodeProto | None:
        while (node := made.get(tensor)) is not None and node.op_type in PASSES_ON:
            tensor = node.input[0]
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def constant(tensor: str) -> bool:
        while tensor not in stored and (node := made.get(tensor)) is not None:
            if node.op_type == "Constant":
                return True
            if node.op_type not in (*PASSES_ON, "DequantizeLinear", "QuantizeLinear"):
                return False
            tensor = node.input[0]
        return tensor in stored

    found = {"int8_convolutions": 0, "int8_matmuls": 0, "int8_attention_products": 0}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm") and dequantised(node.input[0]) and dequantised(node.input[1]):
            weighted = constant(node.input[1])
            kind = "convolutions" if node.op_type == "Conv" else "matmuls" if weighted else "attention_products"
            found[f"int8_{kind}"] += 1
    return found


def compiled(path: Path, target: str) -> dict[str, Any]:
    """What TensorRT for RTX makes of it, or why nothing."""
    try:
        made = builder.compile_onnx(path, backend="tensorrt-rtx", sm=builder.target(target))
    except CxrVitError as error:
        return {"engine": str(error).replace(str(path), path.name)}
    found = fusion(parse(made.lines), made.sources)
    return {
        "engine": target,
        "attention_fused": f"{found.fused} of {len(found.blocks)}",
        "attention": ", ".join(found.precisions),
        "engine_int8_convolutions": f"{found.convolutions.get('Int8', 0)} of {sum(found.convolutions.values())}",
        "engine_int8_matmuls": f"{found.matmuls.get('Int8', 0)} of {sum(found.matmuls.values())}",
        "engine_layers": found.layers,
        "engine_megabytes": round(made.plan.nbytes / 1e6, 1),
    }


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a parity record, val and test together."""
    both = found["splits"][parity.BOTH]
    return {
        "images": both["images"],
        "flips": both["flips"]["images"],
        "label_flips": both["flips"]["label"],
        "flag_flips": both["flips"]["flags"],
        "logits_rms_of_std": both["logits"]["rms_of_std"],
        "largest_probability_difference": both["probabilities"]["largest"],
        "severity_mae": both["severity"]["mae"],
    }


def measure(graphs: Mapping[str, Path], bundle: Bundle, data: Path, target: str) -> dict[str, dict[str, Any]]:
    """Figures of each graph over val and test against the torch reference."""
    records = [r for r in manifest.read(data) if r.split in ("val", "test")]
    reference = parity.observe(TorchSession(bundle.file(WEIGHTS)), records, bundle, progress("torch"))
    rows = {}
    for name, path in graphs.items():
        row = rows[name] = {**int8_nodes(path), "graph_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        row |= compiled(path, target)
        print(f"{name}: {row}", flush=True)
        if path == bundle.file(bundle.variant("int8").files["shared"]):  # measured so when it was exported
            own = bundle.variant("int8").parity
            assert own is not None
            row |= figures(own)
            continue
        try:
            seen = parity.observe(
                OnnxRuntimeSession(path, precision="int8", exact=True), records, bundle, progress(name)
            )
        except CxrVitError as error:
            row["flips"] = str(error).replace(str(path), path.name)
            continue
        row |= figures(parity.compare(reference, seen, bundle, parity.BOUNDS["int8"], name, against="torch"))
        print(f"{name}: {row}", flush=True)
    return rows


def progress(what: str) -> Callable[[int, int], None]:
    return lambda done, n: print(f"{what}: {done} of {n}", flush=True) if done % 50 == 0 or done == n else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt-python", type=Path, required=True, help="of the venv that has modelopt")
    parser.add_argument("--bundle", type=Path, help="with an int8 variant; the embedded one by default")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="manifest.csv, or its folder")
    parser.add_argument("--calibration", type=Path, help="what the bundle was calibrated on; by default --data's")
    parser.add_argument(
        "--method", choices=METHODS, action="append", help="modelopt's calibration; both by default, entropy is slow"
    )
    parser.add_argument("--target", default="sm86", help="RTX target")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/modelopt_int8.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    images, list_sha256 = calibration_images(bundle, options.calibration or options.data)
    model, weights_sha256 = network(bundle)
    python = options.modelopt_python.absolute()
    asked = subprocess.run([str(python), "-c", ASK_VERSIONS], capture_output=True, text=True, check=True)
    versions = dict(zip(("nvidia-modelopt", "its onnxruntime-gpu"), asked.stdout.split(), strict=True))
    ours = bundle.variant("int8")
    recipe, seconds = our_seconds(bundle, model, images)
    print(f"ours: {recipe}, {seconds:.0f} s", flush=True)
    told = {"ours": {"calibration": recipe, "quantise_seconds": round(seconds)}}
    graphs = {"ours": bundle.file(next(iter(ours.files.values())))}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "float32.onnx").write_bytes(model.SerializeToString())
        np.save(folder / "calibration.npy", np.concatenate(images))
        del model, images
        for method in options.method or METHODS:
            name = f"modelopt {method}"
            graphs[name], seconds = run_modelopt(python, folder, method)
            told[name] = {"calibration": method, "quantise_seconds": round(seconds)}
            print(f"{name}: {seconds:.0f} s", flush=True)
        rows = measure(graphs, bundle, options.data, options.target)
    same = {"weights_sha256": weights_sha256, "calibration_list_sha256": list_sha256, **versions}
    table = [{**dict.fromkeys(COLUMNS, ""), "graph": n, **told[n], **row, **same} for n, row in rows.items()]
    for column in COLUMNS:
        print(f"{column:32}", *(f"{row[column]!s:>20.20}" for row in table))
    if options.record:
        print(record("modelopt_int8", table, ("torch", "onnx", "onnxruntime", "tensorrt_rtx")))


if __name__ == "__main__":
    main()
