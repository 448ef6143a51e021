"""Which back end and precision run here, and the sessions of a bundle opened and proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError, ParityError, UsageError
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.session import Session

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch")
PRECISIONS = ("fp32", "fp16", "int8")


def _onnxruntime(bundle: Bundle, variant: str, graph: str, threads: int) -> Session:
    from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession

    path = bundle.file(bundle.variant(variant).files[graph])
    return OnnxRuntimeSession(path, precision=variant, threads=threads)


def _torch(bundle: Bundle, _variant: str, graph: str, threads: int) -> Session:
    from cxrvit_edge.runtime.torch import TorchSession

    return TorchSession(_weights(bundle, graph), threads=threads)


def _weights(bundle: Bundle, graph: str) -> Path:
    return bundle.file(str(bundle.manifest.raw["weights"][graph]))


_OPEN: Mapping[str, Callable[[Bundle, str, str, int], Session]] = {"onnxruntime": _onnxruntime, "torch": _torch}
_RUNS: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("fp32",), "torch": ("fp32",)}  # precisions, first preferred


@dataclass(frozen=True)
class Sessions:
    """A session a graph of the bundle, all of one back end and precision, each past its golden check.

    notes: variants that were passed over and why.
    """

    backend: str
    version: str
    precision: str
    by_graph: Mapping[str, Session]
    notes: tuple[str, ...] = ()

    def __getitem__(self, graph: str) -> Session:
        return self.by_graph[graph]


def open_sessions(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int = 0, verify: bool = False
) -> Sessions:
    """The first back end and precision that opens and reproduces the golden outputs.

    threads 0 leaves the count to the back end; verify repeats a golden check that is on record. What was asked for by
    name fails by name: EngineError if it cannot run, ParityError if it departs; with `auto` the next one is taken.
    """
    notes: list[str] = []
    last: EngineError | ParityError | None = None
    for name, variant in _candidates(bundle, backend, precision):
        try:
            graphs = sorted(set(bundle.manifest.views.values()))
            sessions = {graph: _OPEN[name](bundle, variant, graph, threads) for graph in graphs}
            for graph, session in sessions.items():
                golden.check(bundle, variant, graph, session, again=verify)
        except EngineError as error:
            last = error
        except ParityError as error:
            if precision != "auto":
                raise
            last = error
        else:
            version = next(iter(sessions.values())).version
            return Sessions(name, version, variant, sessions, tuple(notes))
        notes.append(f"{name} {variant} passed over: {last}")
    if last is None:
        raise UsageError(f"{backend} does not run {precision} of this bundle; `cxrvit-edge doctor` lists what does")
    raise last


def _candidates(bundle: Bundle, backend: str, precision: str) -> Iterator[tuple[str, str]]:
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: choose auto, {', '.join(BACKENDS)}")
    if precision != "auto" and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: choose auto, {', '.join(PRECISIONS)}")
    if backend in BACKENDS and backend not in _OPEN:
        raise EngineError(f"--backend {backend}: this version has no {backend} sessions; use --backend onnxruntime")
    if precision != "auto":
        bundle.variant(precision)
    for name in ("onnxruntime",) if backend == "auto" else (backend,):
        for variant in _RUNS[name]:
            if variant in bundle.manifest.variants and precision in ("auto", variant):
                yield name, variant
