"""A box with a GPU in one command: python -m benchmarks gpu [--out gpu-out] [--seconds 20] [--images 32] [--films DIR]

The engines that run there (TensorRT, TensorRT for RTX; FP16 and INT8), built and held against the golden set, and torch
as a reference: float32, TF32, FP16, autocast, compiled, CUDA graphs. All candidates of a batch size in turn. Then how
far each is from what the card did at most in a large product and a large copy, and what each says beside torch in
float32 on the processor. What cannot run is told with its reason and the rest stands.

Writes gpu_latency.csv, gpu_parity.csv, gpu_floor.csv and report.txt into --out and prints the table last; --record puts
the CSVs into benchmarks/results with the card's name. Exit code 2 without a CUDA device, unless --cpu-rehearsal, which
runs the same code on the processor: its figures mean nothing.

Built, not run: no GPU. The rehearsal is what has been run.
"""

from __future__ import annotations

import argparse
import csv
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import floor, floor_probes, gpu_parity
from benchmarks import record as recording
from benchmarks.gpu_candidates import Candidate, engines, torch_ways
from benchmarks.gpu_measure import bound, in_turn, latency, parity
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores, gpus, processor

BATCHES = (1, 8, 64)
PARITY = 8  # images at once in the parity, where it is one of the batches
QUERY = ("name", "driver_version", "power.limit", "power.draw", "clocks.sm", "clocks.max.sm", "temperature.gpu")
Say = Callable[[str], None]


def card(say: Say) -> dict[str, str]:
    """What nvidia-smi says of the first card now; what the driver says of it where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        say(f"no nvidia-smi ({type(error).__name__}): no power limit, clocks or temperature")
        return {"name": gpu.name, "driver_version": gpu.driver} if (gpu := next(iter(gpus()), None)) else {}
    return dict(zip(QUERY, map(str.strip, said.splitlines()[0].split(",")), strict=False))


def roofline(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    best: Mapping[tuple[int, str], float],
    peaks: Sequence[floor_probes.Peak],
    device: str,
) -> list[dict[str, Any]]:
    """How far each is from the card's measured peaks. Needs onnx."""
    import onnx

    from export.count import count

    peak, table = floor_probes.best(list(peaks), device), []
    for (batch, name), seconds in best.items():
        candidate = next(c for c in candidates if c.name == name)
        spec = bundle.manifest.variants.get(candidate.variant)
        if spec is None:
            continue
        file = next(iter(spec.files.values()))
        work = count(onnx.load(bundle.file(file), load_external_data=False), batch)
        graph = floor.Graph(candidate.variant, bundle.manifest.files[file][:12], work)
        own = peak | ({"fp32": peak["tf32"]} if candidate.kind == "tf32" and "tf32" in peak else {})
        about = {"peak_gflop": round(own.get(candidate.kind, float("nan")) / 1e9, 1)}
        about["copy_gb"] = round(own["bytes"] / 1e9, 1)
        table.append(floor.row(graph, batch, own, name, seconds) | about)
    return table


def write(out: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], about: Mapping[str, str]) -> list[Path]:
    paths = []
    for name, table in tables.items():
        if not table:
            continue
        paths.append(out / f"{name}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, [*table[0], *about], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **about} for row in table)
    return paths


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--bundle", type=Path, help="the embedded one by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring at each batch size")
    parser.add_argument("--batch", type=int, action="append", help=f"{BATCHES} by default")
    parser.add_argument("--images", type=int, default=32, help="of the parity")
    parser.add_argument("--films", type=Path, help="folder of the parity's films; generated ones by default")
    parser.add_argument("--without", action="append", default=[], help="leave out what has this word, as compiled")
    parser.add_argument("--gemm", type=int, default=floor_probes.GEMM_GPU)
    parser.add_argument("--copy-mib", type=int, default=floor_probes.COPY >> 20)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--cpu-rehearsal", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if find_spec("torch") is None:
        print("torch is not installed: nothing measured; install torch with CUDA")
        return 2
    import torch

    if not torch.cuda.is_available() and not options.cpu_rehearsal:
        print("no CUDA device: nothing measured; --cpu-rehearsal runs the same code on the processor")
        return 2
    from benchmarks.gpu_torch import WAYS, Bound, load

    device = "cpu" if options.cpu_rehearsal else "cuda"
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        print(text, flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    bundle, batches = Bundle.open(options.bundle), options.batch or list(BATCHES)
    before = {} if device == "cpu" else card(say)
    name = "rehearsal on the processor" if device == "cpu" else before.get("name", torch.cuda.get_device_name())
    say(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, bundle {bundle.sha256[:12]}")
    net = load(bundle.file(str(next(iter(bundle.manifest.raw["weights"].values())))))
    candidates = engines(bundle, max(batches), say) + torch_ways(net, device, options.without)
    images, sha256, what = gpu_parity.films(bundle, options.films, options.images, say)
    about = {"card": name, "driver": before.get("driver_version", ""), "power_limit": before.get("power.limit", "")}
    about |= {"date": date.today().isoformat(), "box": f"{processor()}, {cores()} cores"}
    about |= {"python": platform.python_version(), "torch": torch.__version__, "bundle": bundle.sha256[:12]}
    tables: dict[str, list[dict[str, Any]]] = {"gpu_latency": [], "gpu_parity": [], "gpu_floor": []}
    best: dict[tuple[int, str], float] = {}
    compared = PARITY if PARITY in batches else batches[0]
    for batch in batches:
        batched = np.ascontiguousarray(np.repeat(images[:1], batch, 0))
        runs = bound(candidates, batched, say)
        if batch == compared:
            reference = gpu_parity.outputs(Bound(net, WAYS[0], batched, "cpu").whole, images, batch)
            tables["gpu_parity"] = parity(bundle, runs, reference, images, sha256, batch, say)
        rows, found = latency(candidates, runs, batched, options.seconds, say)
        tables["gpu_latency"] += rows
        best |= {(batch, key): seconds for key, seconds in found.items()}
        write(options.out, tables, about)  # so that a run that is cut short leaves what it has
        del runs
    limits = dict(enumerate(floor_probes.on_gpu(options.gemm, options.copy_mib << 20, device, say)))
    spent = in_turn({key: probe.run for key, probe in limits.items()}, options.seconds / 4, say)
    peaks = floor_probes.measured({key: limits[key] for key in spent}, {key: min(t) for key, t in spent.items()})
    if find_spec("onnx") is None:
        say("passed over: the floor (onnx is not installed: operations are counted from the graph)")
    else:
        tables["gpu_floor"] = roofline(bundle, candidates, best, peaks, device)
    after = {} if device == "cpu" else card(say)
    paths = write(options.out, tables, about)
    apart, latencies, rows = tables["gpu_parity"], tables["gpu_latency"], tables["gpu_floor"]
    kept = [c for c in candidates if any(key == c.name for _, key in best)]
    for when, values in (("before", before), ("after", after)):
        say(f"{when}: {', '.join(f'{key} {value}' for key, value in values.items()) or 'not told'}")
    for candidate in kept:
        say(f"{candidate.name}: {candidate.told}")
    say(f"\npeaks, the best of several\n{floor.table([p.row() for p in peaks])}")
    by_name = {c.name: [row for row in apart if row["candidate"] == c.name] for c in kept}
    summaries = [gpu_parity.summary(found) for found in by_name.values() if found]
    say(f"\nbeside torch in float32 on the processor: {what}\n{floor.table(summaries)}")
    say(f"\nhow far from the limit\n{floor.table(rows)}")
    shown = [{k: v for k, v in row.items() if k != "settings"} for row in latencies]
    say(f"\n{name}, milliseconds a batch, from the host and back; on_card: without the way there and back")
    say(floor.table(shown))
    (options.out / "report.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    if options.record:
        slug = re.sub(r"\W+", "_", name.lower()).strip("_")
        for path in paths:
            shutil.copy(path, recording.RESULTS / f"{path.stem}_{slug}.csv")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
