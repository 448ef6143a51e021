"""MLPerf Inference's single-stream and offline, with the candidates in turn, so that a drifting clock hits all alike.

Inside the network alone: films lie in memory as tensors. Reading them is measured by `endtoend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from cxrvit_edge.benchmark.candidates import Contender
from cxrvit_edge.benchmark.sensors import Sensors
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.preprocess import Float32

BLOCK = 0.5  # seconds that one candidate runs before the next
REST = 0.010  # seconds before each block: threads that spin after a run take nothing from the next
LEAST = 64  # samples in single-stream, where `MOST` allows
MOST = 6  # times `seconds` that a slow candidate may take for its least samples
WARM_UP = (3, 0.1)  # runs that do not count, and share of `seconds` in which there may be more of them
BATCHES = 8  # different ones, offline
BINS = 40
FEW = 100  # samples below which a 99th percentile is the slowest or the one before


class Film(NamedTuple):
    graph: str
    tensor: Float32  # (1, S, S)


@dataclass
class Timed:
    """Seconds of each run, in order; joules of all together, None if nothing counts them; error: why it stopped."""

    seconds: list[float] = field(default_factory=list)
    joules: float | None = 0.0
    error: str | None = None


def in_blocks(
    steps: Mapping[str, Callable[[int], object]],
    *,
    seconds: float,
    least: int = 1,
    joules: Callable[[str], float | None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
    clock: Callable[[], float] = perf_counter,
    rest: Callable[[float], None] = sleep,
) -> dict[str, Timed]:
    """Run every step in blocks, A B, B A, A B, until each has run `seconds` and `least` times; a step gets its number.

    One that fails with an error of ours stops, with `error` set, and the others go on. joules: of the energy counter
    that a step runs under; progress: 0 to 1.
    """
    found = {name: Timed() for name in steps}
    for name in steps:
        _warm(steps[name], found[name], seconds, clock)
    names, spent = list(steps), dict.fromkeys(steps, 0.0)
    while going := [name for name in names if found[name].error is None]:
        done = {name: min(spent[name] / seconds, len(found[name].seconds) / least) for name in going}
        slowest = max(spent[name] / seconds for name in going)
        progress(min(1.0, max(min(done.values()), slowest / MOST)))
        if min(done.values()) >= 1 or slowest >= MOST:
            break
        for name in going:
            rest(REST)
            before = joules(name)
            spent[name] += _block(steps[name], found[name], clock)
            after, kept = joules(name), found[name]
            whole = before is not None and after is not None and kept.joules is not None
            kept.joules = kept.joules + after - before if whole else None  # type: ignore[operator]
        names.reverse()
    return found


def _warm(step: Callable[[int], object], found: Timed, seconds: float, clock: Callable[[], float]) -> None:
    start = clock()
    try:
        for number in range(LEAST):
            if number >= WARM_UP[0] and clock() - start >= WARM_UP[1] * seconds:
                break
            step(number)
    except CxrVitError as error:
        found.error = str(error)


def _block(step: Callable[[int], object], found: Timed, clock: Callable[[], float]) -> float:
    spent = 0.0
    try:
        while spent < BLOCK:
            before = clock()
            step(len(found.seconds))
            found.seconds.append(clock() - before)
            spent += found.seconds[-1]
    except CxrVitError as error:
        found.error = str(error)
    return spent


def measure(
    contenders: Sequence[Contender],
    films: Sequence[Film],
    sensors: Sensors,
    *,
    seconds: float,
    progress: Callable[[float], None] = lambda _: None,
    clock: Callable[[], float] = perf_counter,
    rest: Callable[[float], None] = sleep,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> its figures (report.json, "latency"), and name -> why a candidate that failed has none.

    films: at least one. Notes on what the figures hold go into the contenders' notes.
    """
    on_gpu = {c.name: c.on_gpu for c in contenders}
    common: dict[str, Any] = {"seconds": seconds, "clock": clock, "rest": rest}
    single = in_blocks(
        {c.name: _single(c, films) for c in contenders},
        least=LEAST,
        progress=lambda done: progress(done / 2),
        **common,
    )
    left = [c for c in contenders if single[c.name].error is None]
    offline = in_blocks(
        {c.name: _offline(c, films) for c in left},
        joules=lambda name: sensors.joules(on_gpu[name]),
        progress=lambda done: progress((1 + done) / 2),
        **common,
    )
    failed = {name: timed.error for timings in (single, offline) for name, timed in timings.items() if timed.error}
    figures: dict[str, dict[str, Any]] = {}
    for c in contenders:
        if c.name in failed:
            continue
        count = len(single[c.name].seconds)
        if count < FEW:
            c.notes.append(f"{count} samples in single-stream: too few for a 99th percentile, give more --seconds")
        size = c.sessions.batch_size
        figures[c.name] = {
            "single_stream": single_stream(single[c.name].seconds),
            "offline": batches(offline[c.name].seconds, size),
            "energy": _energy(offline[c.name], size, sensors.energy(on_gpu[c.name])),
        }
    best = {name: _best_ms(f) for name, f in figures.items()}
    for name, f in figures.items():
        f["ratio"] = round(best[name] / min(best.values()), 4)
    return figures, failed


def _single(contender: Contender, films: Sequence[Film]) -> Callable[[int], object]:
    inputs = [(contender.sessions[film.graph], film.tensor[None]) for film in films]

    def run(number: int) -> object:
        session, image = inputs[number % len(inputs)]
        return session.run(image)

    return run


def _offline(contender: Contender, films: Sequence[Film]) -> Callable[[int], object]:
    """Batches of one graph each, all of it put together before the clock runs."""
    size = contender.sessions.batch_size
    inputs = []
    for graph in dict.fromkeys(film.graph for film in films):
        own = [film.tensor for film in films if film.graph == graph]
        count = min(BATCHES, max(1, len(own) // size))
        rows = [own[i % len(own)] for i in range(count * size)]
        inputs += [(contender.sessions[graph], np.stack(rows[i : i + size])) for i in range(0, len(rows), size)]

    def run(number: int) -> object:
        session, batch = inputs[number % len(inputs)]
        return session.run(batch)

    return run


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of all do not exceed. ordered: rising, not empty."""
    return ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """{p50_ms, p90_ms, p99_ms}."""
    ordered = sorted(seconds)
    return {f"p{100 * q:.0f}_ms": round(percentile(ordered, q) * 1e3, 4) for q in (0.5, 0.9, 0.99)}


def single_stream(seconds: Sequence[float]) -> dict[str, Any]:
    total = math.fsum(seconds)
    return {
        "samples": len(seconds),
        "seconds": round(total, 3),
        "mean_ms": round(1e3 * total / len(seconds), 4),
        "best_ms": round(1e3 * min(seconds), 4),
        **percentiles(seconds),
        "histogram": histogram([1e3 * s for s in seconds]),
    }


def batches(seconds: Sequence[float], size: int) -> dict[str, Any]:
    total = math.fsum(seconds)
    return {
        "batch_size": size,
        "batches": len(seconds),
        "seconds": round(total, 3),
        "images_a_second": round(size * len(seconds) / total, 4),
        "best_images_a_second": round(size / min(seconds), 4),
    }


def histogram(ms: Sequence[float]) -> dict[str, list[Any]]:
    """BINS alike from the least to the 99.5th percentile, and one more up to the slowest if it lies beyond.

    {edges_ms: n + 1, counts: n}; the counts add up to all.
    """
    ordered = sorted(ms)
    low, high, most = ordered[0], percentile(ordered, 0.995), ordered[-1]
    if high <= low:
        high = low + max(1e-6, 1e-3 * abs(low))
    edges = [float(edge) for edge in np.linspace(low, high, BINS + 1)]
    counts = [int(n) for n in np.histogram([v for v in ordered if v <= high], bins=edges)[0]]
    if most > high:
        edges.append(most)
        counts.append(sum(v > high for v in ordered))
    return {"edges_ms": edges, "counts": counts}


def _best_ms(figures: Mapping[str, Any]) -> float:
    """Milliseconds an image in the better of the two scenarios."""
    return min(figures["single_stream"]["best_ms"], 1e3 / figures["offline"]["best_images_a_second"])


def _energy(timed: Timed, size: int, source: Mapping[str, str] | None) -> dict[str, Any] | None:
    """None as well where the counter did not move."""
    if source is None or not timed.joules:
        return None
    return {"joules_a_study": round(timed.joules / (size * len(timed.seconds)), 4), **source}
