"""Which variant a back end runs in which precision, and what is there of each on this box."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from cxrvit_edge.bundle import Bundle, default_path
from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import Gpu, gpus
from cxrvit_edge.runtime.session import Session

ON_GPU = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # back end -> module
VARIANTS: Mapping[str, Mapping[str, str]] = {  # back end -> precision -> variant of the bundle that it runs
    "onnxruntime": {"fp32": "fp32", "int8": "int8-cpu"},
    "tensorrt": {"fp16": "fp16", "int8": "int8"},
    "tensorrt-rtx": {"fp16": "fp16", "int8": "int8"},
    "openvino": {"fp32": "fp32", "int8": "int8-cpu"},
    "torch": {"fp32": "fp32"},
}


@dataclass(frozen=True)
class Candidate:
    """A precision that a back end could run here. fingerprint: what its speed depends on beside the bundle.

    proven: to be called when the golden check of a graph has been run, not taken from the record. batch_size: of
    highest throughput here, None if that was not measured.
    """

    backend: str
    version: str
    precision: str
    variant: str
    fingerprint: str
    open: Callable[[str], Session]  # graph -> session
    proven: Callable[[str], object] = lambda _: None
    batch_size: int | None = None


def find(bundle: Bundle, backend: str, wanted: Mapping[str, str], threads: int) -> tuple[list[Candidate], list[str]]:
    """What could be opened, and why the rest could not: no engine. EngineError if the back end is not here at all."""
    if backend in ON_GPU:
        return _engines(bundle, backend, wanted)
    return [_on_cpu(bundle, backend, precision, wanted[precision], threads) for precision in wanted], []


def _on_cpu(bundle: Bundle, backend: str, precision: str, variant: str, threads: int) -> Candidate:
    if backend == "torch":
        weights = bundle.manifest.raw["weights"]

        def reference(graph: str) -> Session:
            from cxrvit_edge.runtime.torch import TorchSession

            return TorchSession(bundle.file(str(weights[graph])), threads=threads)

        return Candidate(backend, "", precision, variant, "", reference)

    from cxrvit_edge.runtime import tuning

    version, tuned = tuning.version(backend), tuning.find(bundle, backend, variant)

    def session(graph: str) -> Session:
        return tuning.open_session(bundle, backend, variant, graph, precision, threads, tuned)

    size = tuned.batch_size if tuned else None
    about = tuning.about(backend, precision, tuned)
    return Candidate(backend, version, precision, variant, about, session, batch_size=size)


def gpu_for(backend: str) -> Gpu:
    """The GPU that a back end would use. EngineError if there is none, or no package for it."""
    from cxrvit_edge.runtime import builder

    found = gpus()
    if not found:
        raise EngineError(
            f"no CUDA driver on this box, or no GPU that it serves, so no {backend}: install NVIDIA's driver, "
            "or use --backend onnxruntime"
        )
    if find_spec(ON_GPU[backend]) is None:
        builder.load(backend)  # says how to install it
    return found[0]


def build_command(bundle: Bundle, precision: str) -> str:
    named = [] if bundle.root == default_path() else [str(bundle.root)]
    return shlex.join(["cxrvit-edge", "build", *named, "--precision", precision])


def _engines(bundle: Bundle, backend: str, wanted: Mapping[str, str]) -> tuple[list[Candidate], list[str]]:
    from cxrvit_edge.runtime import builder, engines
    from cxrvit_edge.runtime.tensorrt import TensorRTSession, fingerprint

    gpu, version = gpu_for(backend), builder.version(backend)
    found_here, absent = [], []
    for precision, variant in wanted.items():
        found: dict[str, engines.Engine] = {}
        for graph in graphs(bundle):
            engine = engines.find(bundle, variant, graph, backend=backend, version=version, sm=gpu.sm)
            if isinstance(engine, str):
                absent.append(
                    f"{gpu.name} is there, but no {backend} engine of {precision} ({engine}): run "
                    f"`{build_command(bundle, precision)}`, or use --backend onnxruntime"
                )
                break
            found[graph] = engine
        else:
            plans = {graph: str(engine.sidecar["plan"]["sha256"]) for graph, engine in found.items()}

            def session(graph: str, found: Mapping[str, engines.Engine] = found, precision: str = precision) -> Session:
                return TensorRTSession(found[graph].plan, backend=backend, precision=precision, device=gpu.index)

            def proven(graph: str, found: Mapping[str, engines.Engine] = found) -> None:
                engines.note(found[graph], state=f"golden check passed on {gpu.name}", gpu=gpu.name, driver=gpu.driver)

            about = " ".join(fingerprint(plans[graph], gpu.index) for graph in sorted(plans))
            found_here.append(Candidate(backend, version, precision, variant, about, session, proven))
    return found_here, absent


def graphs(bundle: Bundle) -> list[str]:
    return sorted(set(bundle.manifest.views.values()))
