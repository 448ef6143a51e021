"""One input on its way through the pipeline, with the time it spends in each stage."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from cxrvit_edge.discover import Found
from cxrvit_edge.prepare import Film
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.trace import NoTrace

STAGES = ("queue", "read", "decode", "preprocess", "run", "interpret", "write")


class Span(NamedTuple):
    """A stage from `start` to `end` (perf_counter seconds) in the thread or process called `lane`."""

    stage: str
    start: float
    end: float
    lane: str


@dataclass
class Item:
    """`stage` is where it is, since `mark`. A stage ends where the next begins, so no time is lost between them."""

    found: Found
    stage: str = "queue"
    mark: float = field(default_factory=perf_counter)
    spans: list[Span] = field(default_factory=list)
    size: int | None = None
    mtime_ns: int | None = None
    film: Film = field(default_factory=Film)
    outputs: Outputs | None = None  # of a batch of one
    relevance: Float32 | None = None  # (g, g)
    batch: int = 0  # images of the batch it ran in
    error: Exception | None = None
    failed_in: str = ""

    def enter(self, stage: str, at: float | None = None, lane: str | None = None) -> None:
        """End the present stage and begin another; lane: where the present one was, by default this thread."""
        at = perf_counter() if at is None else at
        lane = "queue" if self.stage == "queue" else lane or threading.current_thread().name
        self.spans.append(Span(self.stage, self.mark, at, lane))
        self.stage, self.mark = stage, at

    def fail(self, error: Exception) -> None:
        """The error without its traceback, whose frames hold the file and its pixels."""
        error.__cause__ = error.__context__ = error.__traceback__ = None
        self.error, self.failed_in, self.film.tensor = error, self.stage, None

    def ms(self) -> dict[str, float]:
        """Milliseconds by stage; of a batch's run, this input's part."""
        ms = dict.fromkeys(STAGES, 0.0)
        for span in self.spans:
            ms[span.stage] += (span.end - span.start) * 1e3
        ms["run"] /= max(self.batch, 1)
        return ms

    def tell(self, trace: NoTrace) -> None:
        for stage, start, end, lane in self.spans:
            trace.span(self.found.file, stage, start, end, lane, {"batch": self.batch} if stage == "run" else None)
