"""What a run tells while it goes and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrvit_edge.findings import Finding
from cxrvit_edge.journal import RESULTS
from cxrvit_edge.ledger import Ledger
from cxrvit_edge.report.run import Run

WORKLIST, REPORT, THUMBNAILS = "worklist.csv", "report.html", "thumbnails"
STATUSES = ("ok", "rejected", "failed")
FIRST = 5  # failures that are named in the summary


@dataclass(frozen=True)
class Progress:
    """done: inputs given a result in this run; resumed: kept from an earlier one; last: what was just done."""

    done: int
    resumed: int
    last: Finding | None = None


class Tally:
    """Figures of a run while it goes. total: milliseconds by stage; failed: (file, message) of the first failures."""

    def __init__(self, progress: Callable[[Progress], None] | None = None) -> None:
        self._progress = progress
        self.total: dict[str, float] = {}
        self.done = self.resumed = self.failures = 0
        self.failed: list[tuple[str, str]] = []

    def add(self, finding: Finding) -> None:
        self.done += 1
        for stage, ms in finding.timings_ms.items():
            self.total[stage] = self.total.get(stage, 0.0) + ms
        if finding.status == "failed":
            self.failures += 1
            if len(self.failed) < FIRST and finding.reason:
                self.failed.append((finding.file, finding.reason["message"]))
        if self._progress:
            self._progress(Progress(self.done, self.resumed, finding))

    def resume(self) -> None:
        self.resumed += 1
        if self._progress:
            self._progress(Progress(self.done, self.resumed))

    def mean(self) -> dict[str, float]:
        """Milliseconds an input by stage."""
        return {stage: round(ms / self.done, 3) for stage, ms in self.total.items()}


@dataclass(frozen=True)
class Summary:
    """What a run left in its folder.

    inputs: lines of the worklist, those of earlier runs included; statuses, priorities: how many of each among them.
    failures: inputs met in this run that failed; failed: (file, message) of the first few; ledger: where its time went.
    """

    run: Run
    out: Path
    inputs: int
    statuses: dict[str, int]
    priorities: dict[str, int]
    failures: int
    ledger: Ledger
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def results(self) -> Path:
        return self.out / RESULTS

    @property
    def worklist(self) -> Path:
        return self.out / WORKLIST

    @property
    def report(self) -> Path:
        return self.out / REPORT

    def to_dict(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "statuses": self.statuses,
            "priorities": self.priorities,
            "failures": self.failures,
            "failed": [{"file": file, "message": message} for file, message in self.failed],
            "run": {**vars(self.run), "rule": self.run.rule._asdict(), "notes": list(self.run.notes)},
            "ledger": self.ledger.to_dict(),
            "results": self.results.as_posix(),
            "worklist": self.worklist.as_posix(),
            "report": self.report.as_posix(),
        }


def summarise(
    run: Run,
    statuses: Mapping[str, int],
    priorities: Mapping[str, int],
    tally: Tally,
    order: Sequence[str],
    out: Path,
    ledger: Ledger,
) -> Summary:
    """Summary of a worklist that has so many of each; `order` names the priorities that are told even if none has."""
    return Summary(
        run=run,
        out=out,
        inputs=sum(statuses.values()),
        statuses={**dict.fromkeys(STATUSES, 0), **statuses},
        priorities={**dict.fromkeys(order, 0), **priorities},
        failures=tally.failures,
        ledger=ledger,
        failed=tuple(tally.failed),
    )
