"""Which back end and precision run here, and the sessions of a bundle opened and proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError, ParityError, UsageError
from cxrvit_edge.host import cores, processor
from cxrvit_edge.runtime import golden, measure
from cxrvit_edge.runtime.candidates import VARIANTS, Candidate, find, graphs
from cxrvit_edge.runtime.session import Session

BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch")
PRECISIONS = ("fp32", "fp16", "int8")
AUTO = ("tensorrt", "tensorrt-rtx", "onnxruntime")  # in this order; openvino before the last where `build` says so


@dataclass(frozen=True)
class Sessions:
    """A session a graph of the bundle, all of one back end and precision, each past its golden check.

    choice: what was passed over, what was chosen, and why. batch_size: of highest throughput, 0 is the back end's own.
    """

    backend: str
    version: str
    precision: str
    by_graph: Mapping[str, Session]
    choice: tuple[str, ...] = ()
    batch_size: int = 0

    def __post_init__(self) -> None:
        if not self.batch_size:
            object.__setattr__(self, "batch_size", measure.batch_of(self.backend))

    def __getitem__(self, graph: str) -> Session:
        return self.by_graph[graph]

    @property
    def notes(self) -> tuple[str, ...]:
        """The choice, and what the sessions themselves have to say by now."""
        own = (note for session in self.by_graph.values() for note in session.notes)
        return (*self.choice, *dict.fromkeys(own))


def open_sessions(
    bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int = 0, verify: bool = False
) -> Sessions:
    """Of the first back end that reproduces the golden outputs, the precision that is fastest on this box.

    threads 0 leaves the count to the back end; verify repeats golden checks and measurements that are on record. What
    was asked for by name fails by name: EngineError if it cannot run, ParityError if it departs; with `auto` the next
    one is taken. Nothing is compiled.
    """
    _require_known(bundle, backend, precision)
    notes: list[str] = []
    failed: list[EngineError | ParityError] = []
    for name in _order(bundle, precision) if backend == "auto" else (backend,):
        wanted = _wanted(bundle, name, precision, notes)
        if not wanted:
            continue
        try:
            candidates, absent = find(bundle, name, wanted, threads)
        except EngineError as error:  # no GPU, or no package for it: on most boxes nothing to speak of
            failed.append(error)
            continue
        if absent and not candidates:
            failed.append(EngineError(absent[0]))
            if backend == "auto":
                notes.append(absent[0])
        chosen = _fastest(bundle, candidates, notes, failed, named=precision != "auto", verify=verify, threads=threads)
        if chosen is not None:
            return chosen
    if failed:
        raise failed[-1]
    raise UsageError(f"{notes[-1]}; ask for it by name" if notes else _not_in_it(bundle, backend, precision))


class Opened(NamedTuple):
    """One precision of one back end, open and past its golden check; variant: of the bundle."""

    variant: str
    sessions: Sessions


class PassedOver(NamedTuple):
    """departs: it runs, but does not reproduce the golden outputs."""

    name: str
    why: str
    departs: bool = False


def open_every(
    bundle: Bundle, *, backends: Sequence[str] = ("auto",), precisions: Sequence[str] = ("auto",), threads: int = 0
) -> tuple[list[Opened], list[PassedOver]]:
    """Every candidate that runs here, to be measured side by side, and why the others do not.

    backends: auto is the one that `open_sessions` would take, all is every one but torch; precisions: auto is all that
    were exported within their parity bounds, all is those outside too. UsageError, BundleError for what is unknown.
    """
    for precision in precisions:
        _require_known(bundle, "auto", "auto" if precision == "all" else precision)
    opened: dict[tuple[str, str], Opened] = {}
    passed: dict[PassedOver, None] = {}  # in order, each once
    for asked in backends:
        _require_known(bundle, "auto" if asked == "all" else asked, "auto")
        several = {"auto": _order(bundle, "auto"), "all": tuple(b for b in BACKENDS if b != "torch")}
        for backend in several.get(asked, (asked,)):
            for found in _every(bundle, backend, precisions, threads, silent=asked == "auto"):
                if isinstance(found, PassedOver):
                    passed[found] = None
                else:
                    opened.setdefault((backend, found.sessions.precision), found)
            if asked == "auto" and any(name == backend for name, _ in opened):
                break
        if asked == "auto":
            told = {precision for _, precision in opened} | {missing.name.split()[-1] for missing in passed}
            why = "no back end that auto stands for runs it here; --backend all says why"
            passed |= {PassedOver(f"auto {p}", why): None for p in PRECISIONS if p in precisions and p not in told}
    return list(opened.values()), list(passed)


def _every(
    bundle: Bundle, backend: str, precisions: Sequence[str], threads: int, *, silent: bool
) -> Iterator[Opened | PassedOver]:
    """Of one back end; silent: say nothing of one that is not here at all, or runs nothing of this bundle."""
    known = VARIANTS[backend]
    for precision in PRECISIONS:
        name, variant, named = f"{backend} {precision}", known.get(precision, ""), precision in precisions
        if not (named or {"auto", "all"} & {*precisions}):
            continue
        if variant not in bundle.manifest.variants:
            if named and not silent:
                yield PassedOver(name, _not_in_it(bundle, backend, precision))
            continue
        if _outside(bundle, variant) and not (named or "all" in precisions):
            yield PassedOver(name, "it was exported outside its parity bounds; --precision all measures it")
            continue
        try:
            candidates, absent = find(bundle, backend, {precision: variant}, threads)
        except EngineError as error:
            if not silent:
                yield PassedOver(name, str(error))
            continue
        for candidate in candidates:
            sessions = _open(bundle, candidate, False)
            if isinstance(sessions, dict):
                version = next(iter(sessions.values())).version
                size = candidate.batch_size or 0
                yield Opened(variant, Sessions(backend, version, precision, sessions, batch_size=size))
            else:
                yield PassedOver(name, str(sessions), isinstance(sessions, ParityError))
        yield from (PassedOver(name, why) for why in absent)


def _order(bundle: Bundle, precision: str) -> tuple[str, ...]:
    """AUTO, with openvino before onnxruntime if it is installed and `build` has measured it to be faster."""
    if find_spec("openvino") is None:
        return AUTO
    from cxrvit_edge.runtime import tuning

    best: dict[str, float] = {}
    for name in ("onnxruntime", "openvino"):
        for runs, variant in VARIANTS[name].items():
            there = variant in bundle.manifest.variants and precision in ("auto", runs)
            tuned = tuning.find(bundle, name, variant) if there else None
            best[name] = max(best.get(name, 0.0), tuned.images_a_second if tuned else 0.0)
    faster = best["openvino"] > best["onnxruntime"] * measure.WORTH > 0
    return (*AUTO[:-1], "openvino", AUTO[-1]) if faster else AUTO


def _require_known(bundle: Bundle, backend: str, precision: str) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: choose auto, {', '.join(BACKENDS)}")
    if precision != "auto" and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: choose auto, {', '.join(PRECISIONS)}")
    names = {runs[precision] for runs in VARIANTS.values() if precision in runs}
    if names and not names & set(bundle.manifest.variants):
        bundle.variant(precision)  # says what there is


def _not_in_it(bundle: Bundle, backend: str, precision: str) -> str:
    variants = VARIANTS.get(backend, {}).values()
    runs = f"{backend} does not run {precision} of this bundle"
    if precision == "auto":
        runs = f"{backend} runs nothing of this bundle: it would run {', '.join(variants) or 'fp32, fp16 or int8'}"
    return f"{runs} (which has {', '.join(bundle.manifest.variants)}); `cxrvit-edge doctor` lists what runs here"


def _wanted(bundle: Bundle, backend: str, precision: str, notes: list[str]) -> dict[str, str]:
    """Precision -> variant of those in the bundle that were asked for; what failed its parity bounds only by name."""
    wanted = {}
    for name, variant in VARIANTS[backend].items():
        if variant not in bundle.manifest.variants or precision not in ("auto", name):
            continue
        outside = _outside(bundle, variant)
        if outside and precision == "auto":
            notes.append(f"{backend} {name} passed over: it was exported outside its parity bounds")
            continue
        if outside:
            notes.append(f"{backend} {name} was exported outside its parity bounds: see `cxrvit-edge inspect`")
        wanted[name] = variant
    return wanted


def _outside(bundle: Bundle, variant: str) -> bool:
    return (bundle.variant(variant).parity or {}).get("within") is False


def _fastest(
    bundle: Bundle,
    candidates: Sequence[Candidate],
    notes: list[str],
    failed: list[EngineError | ParityError],
    *,
    named: bool,
    verify: bool,
    threads: int,
) -> Sessions | None:
    """Sessions of the fastest that opens and passes; None if none does. Measured once, then taken from the record."""
    record, times = _record(bundle, candidates, threads), None
    if record is not None and not verify:
        times = measure.recorded(record, [c.precision for c in candidates])
    first = measure.choose(times) if times else None
    opened: dict[str, dict[str, Session]] = {}
    for candidate in sorted(candidates, key=lambda c: c.precision != first):
        sessions = _open(bundle, candidate, verify)
        if isinstance(sessions, dict):
            opened[candidate.precision] = sessions
            if candidate.precision == first:
                break
        elif named and isinstance(sessions, ParityError):
            raise sessions
        else:
            failed.append(sessions)
            notes.append(f"{candidate.backend} {candidate.precision} passed over: {sessions}")
    if not opened:
        return None
    if first not in opened:
        times = None
        if len(opened) > 1:
            times = measure.interleaved({name: _runner(bundle, sessions) for name, sessions in opened.items()})
            if record is not None and len(opened) == len(candidates):
                about = {"bundle": bundle.sha256, "backend": candidates[0].backend, "version": candidates[0].version}
                measure.keep(record, times, **about)
        first = measure.choose(times) if times else next(iter(opened))
    chosen = opened[str(first)]
    version = next(iter(chosen.values())).version
    told = measure.told(times) if times else ()
    size = next(c.batch_size for c in candidates if c.precision == first) or 0
    return Sessions(candidates[0].backend, version, str(first), chosen, (*notes, *told), size)


def _open(bundle: Bundle, candidate: Candidate, verify: bool) -> dict[str, Session] | EngineError | ParityError:
    """Sessions past their golden checks, or what is wrong with one."""
    try:
        sessions = {graph: candidate.open(graph) for graph in graphs(bundle)}
        for graph, session in sessions.items():
            if golden.check(bundle, candidate.variant, graph, session, again=verify):
                candidate.proven(graph)
    except (EngineError, ParityError) as error:
        return error
    return sessions


def _runner(bundle: Bundle, sessions: Mapping[str, Session]) -> Callable[[], None]:
    """One batch through every graph."""
    backend = next(iter(sessions.values())).backend
    films = golden.load_inputs(bundle)  # (N, 1, S, S)
    batch = films[[i % len(films) for i in range(measure.batch_of(backend))]]

    def run() -> None:
        for session in sessions.values():
            session.run(batch)

    return run


def _record(bundle: Bundle, candidates: Sequence[Candidate], threads: int) -> Path | None:
    """Where the choice among these is kept; None if there is none to make."""
    if len(candidates) < 2:
        return None
    backend = candidates[0].backend
    about = [f"{c.precision} {c.variant} {c.version} {c.fingerprint}" for c in candidates]
    return measure.record([bundle.sha256, backend, processor(), cores(), threads, measure.batch_of(backend), *about])
