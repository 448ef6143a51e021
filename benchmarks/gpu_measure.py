"""Candidates of one batch size in turn, and what each says beside a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from time import perf_counter
from typing import Any

from benchmarks import gpu_parity
from benchmarks.gpu_candidates import Candidate, Say
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.session import Outputs

LEAST = 5  # runs of each that count, however slow


def in_turn(runs: Mapping[Any, Callable[[], object]], seconds: float, say: Say) -> dict[Any, list[float]]:
    """Seconds of every run after one that does not count, A B A B. One that fails is told and left out."""
    times: dict[Any, list[float]] = {key: [] for key in runs}
    end, rounds = float("inf"), 0
    while times and (rounds <= LEAST or perf_counter() < end):
        for key in list(times):
            start = perf_counter()
            if why := _fails(runs[key]):
                say(f"passed over: {key}: {why}")
                del times[key]
            elif rounds:
                times[key].append(perf_counter() - start)
        rounds += 1
        end = min(end, perf_counter() + seconds)
    return times


def _fails(run: Callable[[], object]) -> str:
    try:
        run()
    except Exception as error:  # out of memory, a kernel that is not there: the others stand
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ""


def bound(candidates: Sequence[Candidate], batched: Float32, say: Say) -> dict[str, tuple[Any, Any]]:
    """Name -> what runs it on such a batch: host to host, and on the card alone where it can."""
    from benchmarks.gpu_torch import forget

    forget()
    runs: dict[str, tuple[Any, Any]] = {}
    for candidate in candidates:

        def bind(candidate: Candidate = candidate) -> None:
            made = candidate.bind(batched)
            made[0](batched)
            runs[candidate.name] = made

        if why := _fails(bind):
            say(f"passed over: {candidate.name} at batch {len(batched)}: {why}")
    return runs


def latency(
    candidates: Sequence[Candidate], runs: Mapping[str, tuple[Any, Any]], batched: Float32, seconds: float, say: Say
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row each, and the best seconds with the image on the card, or as a whole where that is all."""
    keyed = {("whole", name): (lambda run=run: run(batched)) for name, (run, _) in runs.items()}
    keyed |= {("on card", name): still for name, (_, still) in runs.items() if still is not None}
    times = in_turn(keyed, seconds, say)
    batch, first = len(batched), min(times.get(("whole", "torch fp32"), []), default=None)
    table, best = [], {}
    for candidate in candidates:
        taken = times.get(("whole", candidate.name))
        if not taken:
            continue
        still_s = min(times.get(("on card", candidate.name), []), default=None)
        cut = quantiles(taken, n=100, method="inclusive")
        best[candidate.name] = still_s or min(taken)
        row = {"candidate": candidate.name, "batch": batch, "samples": len(taken)}
        row |= {"best_ms": _ms(min(taken)), "p50_ms": _ms(cut[49]), "p90_ms": _ms(cut[89])}
        row["on_card_ms"] = _ms(still_s) if still_s else ""
        row["images_a_second"] = round(batch / min(taken), 1)
        row["times_torch_fp32"] = round(first / min(taken), 2) if first else ""
        table.append(row | {"settings": candidate.told})
    return table, best


def parity(
    bundle: Bundle,
    runs: Mapping[str, tuple[Any, Any]],
    reference: Outputs,
    images: Float32,
    sha256: Sequence[str],
    size: int,
    say: Say,
) -> list[dict[str, Any]]:
    """Rows of every candidate and image, run in batches of `size`, beside the reference."""
    table: list[dict[str, Any]] = []
    for name, (run, _) in runs.items():

        def compare(name: str = name, run: gpu_parity.Run = run) -> None:
            table.extend(gpu_parity.rows(bundle, name, gpu_parity.outputs(run, images, size), reference, sha256))

        if why := _fails(compare):
            say(f"passed over: {name} in the parity: {why}")
    return table


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.4g}")
