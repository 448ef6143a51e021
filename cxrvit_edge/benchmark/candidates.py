"""The back ends and precisions that are measured side by side, each past its golden check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cxrvit_edge.benchmark.options import Options
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError, EngineError, ParityError
from cxrvit_edge.runtime import golden, tuning
from cxrvit_edge.runtime.candidates import ON_GPU
from cxrvit_edge.runtime.select import Opened, PassedOver, Sessions, open_every
from cxrvit_edge.runtime.session import joined

REFERENCE = ("onnxruntime", "fp32")  # what parity is held against where no stored outputs are given


@dataclass(frozen=True)
class Contender:
    """golden: largest logit and mean map difference from the golden outputs as measured now, and whether it passed."""

    name: str
    variant: str
    sessions: Sessions
    golden: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.sessions.backend in ON_GPU

    def to_dict(self) -> dict[str, Any]:
        s = self.sessions
        return {
            "name": self.name,
            "backend": s.backend,
            "version": s.version,
            "precision": s.precision,
            "variant": self.variant,
            "batch_size": s.batch_size,
            "golden": self.golden,
            "notes": list(dict.fromkeys((*self.notes, *s.notes))),
        }


def gather(bundle: Bundle, options: Options) -> tuple[list[Contender], list[PassedOver]]:
    """What runs here of what was asked for, with the reference of the parity, and why the rest does not.

    If nothing runs at all, ParityError where that is because of golden outputs, else EngineError. UsageError,
    BundleError.
    """
    opened, passed = open_every(
        bundle, backends=options.backends, precisions=options.precisions, threads=options.threads
    )
    needed = "auto" in options.backends or (options.data is not None and options.reference is None)
    there = any((o.sessions.backend, o.sessions.precision) == REFERENCE for o in opened)
    if needed and not there and "fp32" in bundle.manifest.variants:
        backend, precision = REFERENCE
        more, why = open_every(bundle, backends=(backend,), precisions=(precision,), threads=options.threads)
        opened, passed = more + opened, passed + [w for w in why if w not in passed]
    contenders: list[Contender] = []
    for one in opened:
        found = _contender(bundle, one)
        (passed if isinstance(found, PassedOver) else contenders).append(found)  # type: ignore[arg-type]
    if not contenders:
        reasons = "; ".join(f"{p.name}: {p.why}" for p in passed) or "`cxrvit-edge doctor` lists what runs here"
        kind = ParityError if any(p.departs for p in passed) else EngineError
        raise kind(f"nothing of this bundle runs here: {reasons}")
    return contenders, passed


def _name(opened: Opened) -> str:
    return f"{opened.sessions.backend} {opened.sessions.precision}"


def _contender(bundle: Bundle, opened: Opened) -> Contender | PassedOver:
    """With its golden outputs compared now, since a pass on record may be old."""
    allowed, worst = bundle.variant(opened.variant).tolerance, golden.Difference()
    try:
        films = golden.load_inputs(bundle)
        for graph, session in opened.sessions.by_graph.items():
            outputs = joined([session.run(film[None]) for film in films])
            worst = worst.worse(golden.compare(outputs, golden.load_outputs(bundle, opened.variant, graph)))
    except CxrVitError as error:
        return PassedOver(_name(opened), str(error), isinstance(error, ParityError))
    figures = {"logits": worst.logits, "maps": worst.maps, "passed": worst.within(allowed)}
    return Contender(_name(opened), opened.variant, opened.sessions, figures, _set_up(bundle, opened))


def _set_up(bundle: Bundle, opened: Opened) -> list[str]:
    if opened.sessions.backend != "onnxruntime":
        return []
    tuned = tuning.find(bundle, "onnxruntime", opened.variant)
    if tuned is None:
        return ["not tuned for this box: `cxrvit-edge build` does that"]
    return [f"tuned for this box: {tuned.settings.told()}"]
