"""Which precision is fastest on this box: the candidates run in turn, A B A B, and the best time of each counts.

A shared box slows both alike when they alternate, and the best of several leaves out what others did meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, TypeVar

from cxrvit_edge.bundle import cache_dir
from cxrvit_edge.runtime import records

SECONDS = 3.0  # of measuring, warm-up and all; a slow box takes what two rounds take
ROUNDS = (2, 50)  # at least, at most
WORTH = 1.03  # a precision that is faster by less is not worth its rounding
ORDER = ("fp32", "fp16", "int8")  # most precise first
ON_CPU, ON_GPU = 2, 8  # on a CPU a larger batch takes memory and gains nothing
Name = TypeVar("Name")


def batch_of(backend: str) -> int:
    """Images that triage runs at once where nothing else is asked for."""
    return ON_CPU if backend in ("onnxruntime", "openvino", "torch") else ON_GPU


def interleaved(
    runs: Mapping[Name, Callable[[], object]],
    *,
    seconds: float = SECONDS,
    rounds: tuple[int, int] = ROUNDS,
    rest: float = 0.0,
    clock: Callable[[], float] = perf_counter,
) -> dict[Name, float]:
    """Seconds that each run takes at its best, after one that does not count.

    rounds: at least and at most; between them `seconds`, all told, are an end. rest: seconds of sleep before each run.
    """
    best = dict.fromkeys(runs, float("inf"))
    start = clock()
    for run in runs.values():
        run()
    for done in range(rounds[1]):
        if done >= rounds[0] and clock() - start >= seconds:
            break
        for name, run in runs.items():
            if rest:
                sleep(rest)
            before = clock()
            run()
            best[name] = min(best[name], clock() - before)
    return best


def choose(times: Mapping[str, float]) -> str:
    """Precision of the fastest; of those that lose less than 3 % to it, the most precise."""
    limit = min(times.values()) * WORTH
    return min((name for name in times if times[name] <= limit), key=ORDER.index)


def told(times: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each precision that was not chosen: "int8 is 1.6 times as fast as fp32 here: int8"."""
    chosen = choose(times)
    return tuple(_compared(name, times[name], chosen, times[chosen]) for name in times if name != chosen)


def _compared(other: str, its: float, chosen: str, ours: float) -> str:
    """Slower ones are set against the chosen, and the chosen against those that are more precise."""
    precise = ORDER.index(chosen) < ORDER.index(other)
    ratio = its / ours
    if abs(ratio - 1) < 0.005:
        return f"{other} is no faster here than {chosen}: {chosen}"
    if ratio < 1:
        return f"{other} is only {_percent(1 / ratio)} faster here than {chosen}: {chosen}"
    if precise:
        return f"{other} is {_percent(ratio)} slower here than {chosen}: {chosen}"
    if ratio < 1.2:
        return f"{chosen} is {_percent(ratio)} faster here than {other}: {chosen}"
    return f"{chosen} is {ratio:.1f} times as fast as {other} here: {chosen}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f} %"


def record(parts: Sequence[object]) -> Path:
    """Where a choice that depends on `parts` is kept."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
    return cache_dir() / "choices" / f"{digest[:32]}.json"


def recorded(path: Path, candidates: Sequence[str]) -> dict[str, float] | None:
    """Seconds of each candidate as measured before; None if there is no such record, or it is of others."""
    body = records.read(path) or {}
    times = body.get("seconds")
    if not isinstance(times, dict) or set(times) != set(candidates):
        return None
    if not all(isinstance(value, float) and 0 < value < float("inf") for value in times.values()):
        return None
    return {name: times[name] for name in candidates}


def keep(path: Path, times: Mapping[str, float], **about: object) -> None:
    records.write(path, {**about, "seconds": dict(times), "chosen": choose(times)})


def kept(bundle_sha256: str) -> list[dict[str, Any]]:
    """Choices on record for a bundle: backend, version, seconds of each precision, chosen."""
    bodies = (records.read(path) for path in sorted((cache_dir() / "choices").glob("*.json")))
    return [
        {key: body.get(key) for key in ("backend", "version", "seconds", "chosen")}
        for body in bodies
        if body is not None and body.get("bundle") == bundle_sha256
    ]
