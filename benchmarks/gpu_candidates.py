"""What runs the network on a GPU: engines that can be built there, and torch in several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.session import Outputs

Run = Callable[[Float32], Outputs]
Bind = Callable[[Float32], tuple[Run, Callable[[], object] | None]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """variant: whose graph's work it does; kind: arithmetic that its peak is of; bind: a batch -> host to host, and
    with the image on the card already, where that can be run apart."""

    name: str
    told: str
    variant: str
    kind: str
    bind: Bind


def engines(bundle: Bundle, largest: int, say: Say) -> list[Candidate]:
    """Those that can be built here and pass the golden check."""
    from cxrvit_edge import build
    from cxrvit_edge.runtime.candidates import graphs
    from cxrvit_edge.runtime.select import open_sessions

    graph, found = graphs(bundle)[0], []
    for backend in ("tensorrt", "tensorrt-rtx"):
        for precision in ("fp16", "int8"):
            name = f"{backend} {precision}"
            try:
                build.build(bundle, precisions=[precision], backend=backend, batch_size=largest, say=say)
                session = open_sessions(bundle, backend=backend, precision=precision, verify=True)[graph]
            except CxrVitError as error:
                say(f"passed over: {name}: {error}")
                continue
            told = f"{backend} {session.version}, golden check passed, {', '.join(session.notes) or 'as built'}"
            found.append(Candidate(name, told, precision, precision, _as_it_is(session.run)))
    return found


def _as_it_is(run: Run) -> Bind:
    return lambda _: (run, None)


def torch_ways(net: Any, device: str, without: Sequence[str]) -> list[Candidate]:
    from benchmarks.gpu_torch import WAYS, Bound

    def bind(way: Any) -> Any:
        def bound(batch: Float32) -> tuple[Run, Callable[[], object]]:
            made = Bound(net, way, batch, device)
            return made.whole, made.resident

        return bound

    kept = [way for way in WAYS if not any(word in way.name for word in without)]
    variant = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16"}
    return [Candidate(way.name, way.told, variant[way.kind], way.kind, bind(way)) for way in kept]
