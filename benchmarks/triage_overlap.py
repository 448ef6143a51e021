"""Part of benchmarks/pipeline.py: how much longer a whole run takes than its sessions alone."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.triage_common import Options, TimedSession, jpegs, row, told
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.select import open_sessions
from cxrvit_edge.triage import Triage

BOUND = 1.08


def measure(options: Options) -> list[dict[str, Any]]:
    """Runs into a fresh folder and the same batches alone, in turn; the best of each counts."""
    n, rounds = options.count(256, 32), options.rounds(2)
    bundle = Bundle.open()
    opened = open_sessions(bundle)
    timed = {graph: TimedSession(session) for graph, session in opened.by_graph.items()}
    triage = Triage(bundle, replace(opened, by_graph=timed))
    runs: list[tuple[float, float]] = []  # wall seconds, seconds inside Session.run
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        films = jpegs(n, work)
        triage.run(films.paths[:4], work / "warm")  # imports, first allocations
        tensors = prepared(bundle, films.paths)
        for i in range(rounds):
            for session in timed.values():
                session.seconds, session.batches = 0.0, []
            start = perf_counter()
            triage.run(films.paths, work / f"out{i}")
            runs.append((perf_counter() - start, sum(session.seconds for session in timed.values())))
            sizes = {graph: session.batches for graph, session in timed.items()}
            alone.append(sum(replay(opened[graph].run, tensors, batches) for graph, batches in sizes.items()))
    wall, inside = min(runs)
    batches = [size for session in timed.values() for size in session.batches]
    how = (
        f"Triage.run with journal, worklist, report and thumbnails, sessions open before; "
        f"{told(bundle, opened)}, batches of {np.mean(batches):.2f} on average; best of {rounds} rounds in turn"
    )
    return [
        row(
            "end to end / the same batches in Session.run alone",
            "s",
            wall,
            min(alone),
            at_most=BOUND,
            n=n,
            images=films.what,
            note=f"{how}; peer: nothing beside it",
        ),
        row(
            "end to end / inside Session.run of that run",
            "s",
            *min(runs, key=lambda run: run[0] / run[1]),
            at_most=BOUND,
            n=n,
            images=films.what,
            note=f"{how}; peer: slowed by the decoding beside it, so this ratio is the kinder",
        ),
        row(
            "inside Session.run of a run / alone",
            "s",
            inside,
            min(alone),
            n=n,
            images=films.what,
            note="what decoding and judging beside it cost the session",
        ),
    ]


def prepared(bundle: Bundle, paths: list[Path]) -> Float32:
    """(N, 1, S, S) of those that can be read."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    tensors = []
    for path in paths:
        with suppress(InputError):
            tensors.append(preprocess(read(path), config)[0])
    return np.stack(tensors)


def replay(run: Any, tensors: Float32, sizes: list[int]) -> float:
    """Seconds that batches of these sizes take, the films in turn."""
    seconds, at = 0.0, 0
    for size in sizes:
        batch = np.ascontiguousarray(tensors[np.arange(at, at + size) % len(tensors)])
        start = perf_counter()
        run(batch)
        seconds += perf_counter() - start
        at += size
    return seconds
