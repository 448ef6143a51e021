"""Where the time of a run went, and what to change about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

Mode = Literal["auto", "latency", "throughput"]

BOUND = 0.90  # share of the time in the network from which nothing else matters
WAIT = 0.10  # share of the time that the network waits from which it is worth a change
BUSY = 0.60  # share of the readers' time at work from which they, not the source of films, hold up the network
MOST = 0.50  # share of a part that makes it the cause
LEAST = 8  # inputs; fewer say nothing about a rate
HOST = ("read", "decode", "preprocess")  # the readers' work, in stages


@dataclass(frozen=True)
class Ledger:
    """Seconds of one run.

    wall: of the pipeline, from the first input looked for to the last result. stages: by name, summed over the inputs,
    so those of parallel threads may exceed `wall`. run, starved, held: of the thread that runs the network: inside
    Session.run, waiting for films, and waiting because results were not taken from it. blocked: of the readers,
    summed, waiting because films were not taken from them. journal: appending results.

    images: inputs with a result; workers: readers; batches: runs of the network, of at most
    batch_size, over `ran` of the images: those rejected or failed before did not reach it.
    faster: precisions that would be faster on this box and that the bundle has; gpu: whether the network ran on one.
    """

    wall: float
    images: int
    workers: int
    cores: int
    stages: Mapping[str, float]
    run: float
    starved: float
    blocked: float = 0.0
    held: float = 0.0
    journal: float = 0.0
    batches: int = 0
    ran: int = 0
    batch_size: int = 1
    mode: Mode = "auto"
    precision: str = "fp32"
    faster: tuple[str, ...] = field(default=())
    gpu: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of `wall`, by what the network's thread did: each at least 0, together at most 1."""
        spent = {"network": self.run, "waiting for films": self.starved, "waiting for results to be taken": self.held}
        spent = {name: max(0.0, seconds) for name, seconds in spent.items()}
        whole = max(self.wall, sum(spent.values()))  # two clocks' readings may differ in their last digits
        if whole <= 0:
            return dict.fromkeys((*spent, "other"), 0.0)
        shares = {name: seconds / whole for name, seconds in spent.items()}
        return {**shares, "other": max(0.0, 1 - sum(shares.values()))}

    @property
    def busy(self) -> float:
        """Fraction of the readers' time in which they read, decode and preprocess, 0 to 1."""
        return _share(sum(self._host.values()), self.workers * self.wall)

    @property
    def _host(self) -> dict[str, float]:
        return {stage: max(0.0, self.stages.get(stage, 0.0)) for stage in HOST}

    def advice(self) -> tuple[str, ...]:
        """What to change, most promising first; nothing about fewer than LEAST inputs, or where nothing stands out.

        network-bound: BOUND of the time in the network. disk-bound and decode-bound: WAIT of the time waiting for films
        while the readers are BUSY; disk if reading is MOST of their work. writing-bound: WAIT of the time held up or
        unexplained, while appending takes MOST of the time or writing thumbnails more than judging. Readers that are
        not BUSY wait for films themselves, as in watch mode: there is nothing to change.
        """
        return tuple(self._advice()) if self.images >= LEAST and self.wall > 0 else ()

    def _advice(self) -> Iterator[str]:
        shares = self.shares
        if shares["network"] >= BOUND:
            yield self._network(shares["network"])
        if shares["waiting for films"] >= WAIT and self.busy >= BUSY:
            yield self._films(shares["waiting for films"])
        lost = shares["waiting for results to be taken"]
        appending = _share(self.journal, self.wall)
        thumbnails = self.stages.get("write", 0.0) > self.stages.get("interpret", 0.0)
        if (lost + shares["other"] >= WAIT and appending >= MOST) or (lost >= WAIT and thumbnails):
            what = f"the network waited {_percent(lost)} of the time for thumbnails"
            if appending >= MOST:
                what = f"appending results took {_percent(appending)} of the time"
            yield f"writing-bound: {what}: the output folder is slow, give an --out on a local disk"

    def _network(self, share: float) -> str:
        ways = [f"--precision {precision}" for precision in self.faster if precision != self.precision]
        if self.gpu and self.mode == "latency":
            ways.append("--throughput")
        if not self.gpu:
            ways.append("a GPU")
        would = f"; {' or '.join(ways)} would" if ways else ""
        return (
            f"network-bound: {_percent(share)} of the time in the network: nothing on the host side would help{would}"
        )

    def _films(self, share: float) -> str:
        waited = f"the network waited {_percent(share)} of the time for films"
        host = self._host
        reading = _share(host["read"], sum(host.values()))
        if reading >= MOST:
            return (
                f"disk-bound: {waited}, and {_percent(reading)} of the readers' work was reading: "
                "copy the films to a fast local disk first"
            )
        name = "decode" if host["decode"] >= host["preprocess"] else "preprocess"
        if self.workers >= self.cores:
            many = f"--workers is {self.workers} already, for {_cores(self.cores)}"
            return f"{name}-bound: {waited}: {many}; a box with more cores would help"
        enough = ceil(self.workers / (1 - share)) if share < 1 else self.cores
        workers = min(self.cores, max(self.workers + 1, enough))
        return f"{name}-bound: {waited}: --workers {workers} (this box has {_cores(self.cores)})"

    def told(self) -> tuple[str, ...]:
        """Lines for the summary; none for a run without results."""
        if not self.images or self.wall <= 0:
            return ()
        where = ", ".join(f"{name} {_percent(share)}" for name, share in self.shares.items())
        host = self._host
        work = ", ".join(f"{stage} {_percent(_share(seconds, sum(host.values())))}" for stage, seconds in host.items())
        room = _percent(_share(self.blocked, self.workers * self.wall))
        readers = f"{self.workers} reader{'' if self.workers == 1 else 's'}"
        lines = [f"time: {where}", f"{readers}: busy {_percent(self.busy)} ({work}), waiting for room {room}"]
        if self.batches:
            mean = self.ran / self.batches
            lines.append(f"batches: {self.batches:,}, {mean:.1f} inputs each, at most {self.batch_size}")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """For --json: what was measured, in seconds, and what it says."""
        measured = {**vars(self), "stages": dict(self.stages), "faster": list(self.faster)}
        seconds = ("wall", "run", "starved", "blocked", "held", "journal")
        return {
            **measured,
            **{name: round(measured[name], 3) for name in seconds},
            "stages": {stage: round(value, 3) for stage, value in self.stages.items()},
            "shares": {name: round(share, 4) for name, share in self.shares.items()},
            "busy": round(self.busy, 4),
            "advice": list(self.advice()),
        }


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cores(number: int) -> str:
    return f"{number} core{'' if number == 1 else 's'}"
