"""Parts of benchmarks/pipeline.py: triage beside a plain PyTorch loop, and beside OpenVINO in the same pipeline."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_network import OpenVino, pixels
from benchmarks.triage_common import Options, absent, dicoms, jpegs, row, told
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime.measure import interleaved
from cxrvit_edge.runtime.select import BACKENDS, Sessions, open_sessions
from cxrvit_edge.triage import Triage

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
TORCH_BOUND, OPENVINO_BOUND = 1.4, 1.03
PRECISIONS = {"fp32": "fp32", "int8": "int8-cpu"}  # precision -> variant


def torch_loop(options: Options) -> list[dict[str, Any]]:
    """Blocks of the same films through each in turn, the best block of each counts."""
    if find_spec("torch") is None:
        return [absent("triage / plain PyTorch loop", f">= {TORCH_BOUND}", "not installed: pip install torch")]
    n, rounds = options.count(24, 8) // BATCH * BATCH or BATCH, options.rounds(3)
    bundle = Bundle.open()
    loop = TorchLoop(bundle, compiled=not options.quick)
    ours = {precision: open_sessions(bundle, precision=precision) for precision in ("auto", *PRECISIONS)}
    rows = []
    for kind, make in (("JPEG", jpegs), ("DICOM", dicoms)):
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            films = make(n, work)
            runs: dict[str, Callable[[], object]] = {"torch": lambda paths=films.paths: loop.run(paths)}  # type: ignore[misc]
            for name in ours if kind == "JPEG" else ("auto",):
                runs[name] = written(Triage(bundle, ours[name]), films.paths, work / "out")
            best = interleaved(runs, rounds=(rounds, rounds))
        for name in list(runs)[1:]:
            chosen = f"{ours[name].backend} {ours[name].precision}"
            note = (
                f"Triage.run into a fresh folder, {told(bundle, ours[name])}; peer: {loop.told}, batch {BATCH}, "
                f"{cores()} threads, logits kept, nothing judged or written; best of {rounds} blocks in turn, both warm"
            )
            title = f"{kind}: triage {name}{f' ({chosen})' if name == 'auto' else ''} / plain PyTorch loop"
            figures: dict[str, Any] = {"n": n, "images": films.what, "at_least": TORCH_BOUND}
            rows.append(row(title, "images/s", n / best[name], n / best["torch"], note=note, **figures))
    return rows


class TorchLoop:
    """The bundle's network as one would run it with PyTorch: the fastest of the ways tried on this box."""

    def __init__(self, bundle: Bundle, *, compiled: bool) -> None:
        import torch

        from cxrvit_edge.model import checkpoint

        torch.set_num_threads(cores())
        self._config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
        path = bundle.file(str(bundle.manifest.raw["weights"][bundle.graph_for("PA")]))
        tensors, config, _ = checkpoint.load(path)
        plain = checkpoint.network(tensors, config)
        last = checkpoint.network(tensors, config)
        last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ways: dict[str, tuple[Callable[[Tensor], Any], torch.memory_format]] = {
            "eager": (plain, torch.contiguous_format),
            "eager channels_last": (last, torch.channels_last),
        }
        if compiled:
            ways["compiled channels_last"] = (torch.compile(last), torch.channels_last)
        batch = np.zeros((BATCH, 1, config.image_size, config.image_size), np.float32)
        runs: dict[str, Callable[[], object]] = {}
        failed = ""
        for name, (network, layout) in ways.items():
            self._network, self._layout = network, layout
            try:
                self.infer(batch)  # compiles
            except Exception as error:  # torch.compile needs a C++ compiler and raises much
                failed += f"; {name} failed ({type(error).__name__})"
                continue
            runs[name] = lambda network=network, layout=layout: self.infer(batch, network, layout)  # type: ignore[misc]
        times = interleaved(runs, rounds=(2, 2))
        fastest = min(times, key=lambda name: times[name])
        self._network, self._layout = ways[fastest]
        each = ", ".join(f"{name} {seconds / BATCH * 1e3:.0f}" for name, seconds in times.items())
        self.told = f"torch {torch.__version__} {fastest} (ms an image: {each}{failed})"

    def infer(self, batch: Float32, network: Any = None, layout: Any = None) -> Float32:
        import torch

        with torch.inference_mode():
            x = torch.from_numpy(batch).to(memory_format=layout or self._layout)
            logits, *_ = (self._network if network is None else network)(x)
        values: Float32 = logits.numpy()
        return values

    def run(self, paths: list[Path]) -> list[Float32]:
        found = []
        for start in range(0, len(paths), BATCH):
            films = [preprocess(Radiograph(pixels(path)), self._config)[0] for path in paths[start : start + BATCH]]
            found.append(self.infer(np.stack(films)))
        return found


def openvino(options: Options) -> list[dict[str, Any]]:
    """The same pipeline around the tool's sessions and around OpenVINO's, blocks in turn."""
    if find_spec("openvino") is None:
        name, why = "triage / triage on OpenVINO", "not installed: pip install openvino"
        return [absent(f"{precision}: {name}", f"<= {OPENVINO_BOUND}", why) for precision in PRECISIONS]
    n, rounds = options.count(24, 8), options.rounds(5)
    bundle = Bundle.open()
    ours = {
        f"{precision}: {backend}": open_sessions(bundle, backend=backend, precision=precision)
        for precision in PRECISIONS
        for backend in ("onnxruntime", "openvino")
        if backend in BACKENDS
    }
    ours["auto"] = open_sessions(bundle)
    theirs = {p: openvino_sessions(bundle, ours[f"{p}: onnxruntime"]) for p in PRECISIONS}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        films = jpegs(n, work)
        both = {**ours, **theirs}
        runs = {name: written(Triage(bundle, both[name]), films.paths, work / "out") for name in both}
        best = interleaved(runs, rounds=(rounds, rounds))
    rows = []
    fastest = min(PRECISIONS, key=lambda precision: best[precision])
    for name, sessions in ours.items():
        precision = fastest if name == "auto" else sessions.precision
        note = (
            f"Triage.run into a fresh folder, {told(bundle, sessions)}; peer: the same on OpenVINO "
            f"{version('openvino')} {precision}{', its faster' if name == 'auto' else ''}, same ONNX, f32 hint, "
            f"{cores()} threads, compiled for each batch size; best of {rounds} blocks in turn"
        )
        figures: dict[str, Any] = {"n": n, "images": films.what, "at_most": OPENVINO_BOUND}
        shown = f"auto ({sessions.backend} {sessions.precision})" if name == "auto" else name
        title = f"{shown} / OpenVINO {precision} in the same pipeline"
        rows.append(row(title, "s", best[name], best[precision], note=note, **figures))
    return rows


def openvino_sessions(bundle: Bundle, like: Sessions) -> Sessions:
    """OpenVINO in the place of these, compiled for the batches that the pipeline forms; outputs held against ours."""
    from cxrvit_edge.runtime import golden

    by_graph = {}
    variant = PRECISIONS[like.precision]
    for graph in like.by_graph:
        path = bundle.file(bundle.variant(variant).files[graph])
        session = OpenVino(path, like.precision, PreprocessConfig.from_dict(bundle.manifest.preprocessing).size)
        inputs, expected = golden.load_inputs(bundle), golden.load_outputs(bundle, variant, graph)
        for n in range(1, 1 + max(2, getattr(like, "batch_size", None) or 2)):
            session.run(np.ascontiguousarray(inputs[np.arange(n) % len(inputs)]))
        apart = golden.compare(session.run(inputs), expected)
        allowed = bundle.variant(variant).tolerance
        if not apart.within(allowed):
            print(f"OpenVINO {variant} departs from the golden outputs: {apart}, allowed {allowed}")
        by_graph[graph] = session
    return replace(like, by_graph=by_graph)


def written(triage: Triage, paths: list[Path], out: Path) -> Callable[[], object]:
    """A run into a fresh folder."""

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        triage.run(paths, out)

    return run
