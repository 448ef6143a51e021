"""One way through: files are read in threads, batches run in the caller's thread, outputs are judged in threads.

What is on its way is bounded, so memory does not grow with the number of inputs.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found
from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.findings import Finding, Judgement, judge
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.journal import Owner
from cxrvit_edge.preprocess import Float32, Geometry, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Limits, Radiograph, View
from cxrvit_edge.readers import decode, load, shown
from cxrvit_edge.report import thumbnails
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Explainer, Outputs, Session

logger = logging.getLogger("cxrvit_edge")

STAGES = ("queue", "read", "decode", "preprocess", "run", "interpret")


@dataclass
class Item:
    """One input on its way. `stage` is where it is; `ms` how long it has spent in each."""

    found: Found
    ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    stage: str = "queue"
    mark: float = field(default_factory=perf_counter)
    size: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None
    view: View = "unknown"
    warnings: tuple[str, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None
    tensor: Float32 | None = None  # (1, S, S)
    geometry: Geometry | None = None
    outputs: Outputs | None = None  # of a batch of one
    relevance: Float32 | None = None  # (g, g)
    error: Exception | None = None
    failed_in: str = ""

    def enter(self, stage: str) -> None:
        now = perf_counter()
        self.ms[self.stage] += (now - self.mark) * 1e3
        self.stage, self.mark = stage, now

    def fail(self, error: Exception) -> None:
        self.error, self.failed_in, self.tensor = error, self.stage, None
        if isinstance(error, InputError) and error.reason is Reason.LATERAL_VIEW:
            self.view = "lateral"


@dataclass(frozen=True)
class Plan:
    """What is the same for every input.

    batch_size: None runs what is ready, up to `most`; a number waits for so many while more may come.
    view_of: view of a file by a table, None where that says nothing; pictures: folder for thumbnails, None for none.
    """

    bundle: Bundle
    sessions: Sessions
    owner: Owner
    workers: int
    most: int
    batch_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    view_of: Callable[[Found], View | None] | None = None
    pictures: Path | None = None


@dataclass(frozen=True)
class _Done:
    """ran: it went through the session; fatal: the output folder cannot be written, so the run must end."""

    finding: Finding
    ran: bool
    fatal: OSError | None = None


class Pipeline:
    """Threads around one plan; for one iteration at a time, as its sessions are."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._config = PreprocessConfig.from_dict(plan.bundle.manifest.preprocessing)
        self._events: SimpleQueue[Item | _Done] = SimpleQueue()

    def run(self, inputs: Iterable[Found]) -> Iterator[Finding]:
        """A Finding an input, in the order in which they are done.

        OSError if a thumbnail cannot be written. Closing the iterator ends the threads.
        """
        waiting: dict[str, deque[Item]] = {}  # by graph
        source = iter(inputs)
        room = self._plan.workers + 2 * self._plan.most
        on_way = reading = 0
        pool = ThreadPoolExecutor(self._plan.workers, thread_name_prefix="cxrvit-edge")
        try:
            while True:
                while on_way < room and (found := next(source, None)) is not None:
                    pool.submit(self._read, Item(found))
                    on_way, reading = on_way + 1, reading + 1
                if not on_way:
                    return
                batch = self._due(waiting, filling=reading > 0)
                if batch:
                    self._run(batch)
                    for item in batch:
                        pool.submit(self._judge, item)
                for event in self._drain(wait=not batch):
                    if isinstance(event, _Done):
                        if event.fatal is not None:
                            raise event.fatal
                        on_way -= 1
                        reading -= not event.ran
                        yield event.finding
                    else:
                        reading -= 1
                        waiting.setdefault(self._plan.bundle.graph_for(event.view), deque()).append(event)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _drain(self, wait: bool) -> Iterator[Item | _Done]:
        """What the threads have handed in; waits for a first if asked to."""
        try:
            yield self._events.get(block=wait)
            while True:
                yield self._events.get(block=False)
        except Empty:
            return

    def _due(self, waiting: dict[str, deque[Item]], filling: bool) -> list[Item]:
        """The next batch, of one graph; none while one of the size asked for may still fill up."""
        longest = max(waiting.values(), key=len, default=None)
        if not longest or (self._plan.batch_size is not None and len(longest) < self._plan.batch_size and filling):
            return []
        return [longest.popleft() for _ in range(min(len(longest), self._plan.most))]

    def _read(self, item: Item) -> None:
        try:
            item.enter("read")
            self._prepare(item)
        except Exception as error:
            item.fail(error)
            self._judge(item, ran=False)
        else:
            item.enter("queue")
            self._events.put(item)

    def _prepare(self, item: Item) -> None:
        path = item.found.path
        try:
            status = os.stat(path)  # noqa: PTH116  before reading, so that a later change is seen
            item.size, item.mtime_ns = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):
            pass  # load says what is wrong
        if item.found.problem is not None:
            raise item.found.problem
        data = load(Path(path), self._plan.limits)
        item.sha256 = hashlib.sha256(data).hexdigest()
        item.enter("decode")
        radiograph = decode(data, Path(path).name, self._plan.limits)
        item.enter("preprocess")
        item.view, item.warnings = self._view(radiograph, item.found)
        if self._plan.pictures is not None:
            item.thumbnail = thumbnails.thumbnail(radiograph)
        if item.view == "lateral":
            message = f"{shown(Path(path).name)}: the table of views says lateral; send the frontal view"
            raise InputError(Reason.LATERAL_VIEW, message)
        check_pixels(radiograph)
        item.tensor, item.geometry = preprocess(radiograph, self._config)

    def _view(self, radiograph: Radiograph, found: Found) -> tuple[View, tuple[str, ...]]:
        """View and warnings; the table comes before the header."""
        view = self._plan.view_of(found) if self._plan.view_of else None
        if view is None or view == radiograph.view:
            return radiograph.view, radiograph.warnings
        if radiograph.view == "unknown":
            return view, radiograph.warnings
        said = f"the header says view {radiograph.view}, the table of views {view}: the table is believed"
        return view, (*radiograph.warnings, said)

    def _run(self, batch: list[Item]) -> None:
        """Outputs or an error for each item; a batch that fails as a whole is tried one by one."""
        for item in batch:
            item.enter("run")
        session = self._plan.sessions[self._plan.bundle.graph_for(batch[0].view)]
        try:
            _infer(session, batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                logger.warning("a batch of %d failed (%s): trying one by one", len(batch), type(error).__name__)
                for item in batch:
                    _infer_alone(session, item)
        for item in batch:
            item.enter("queue")
            item.ms["run"] /= len(batch)
        for item in batch:
            if self._plan.pictures is not None and isinstance(session, Explainer):
                _explain(session, item)
            item.tensor = None

    def _judge(self, item: Item, ran: bool = True) -> None:
        """Last stage, in a thread: the finding of an item, with outputs or an error, and its thumbnail."""
        judgement, fatal = None, None
        item.enter("interpret")
        try:
            if item.outputs is not None and item.geometry is not None:
                judgement = judge(item.outputs, 0, self._plan.bundle, item.view, item.geometry)
        except Exception as error:
            item.fail(error)
        try:
            self._save(item, judgement)
        except OSError as error:
            fatal = error
        except Exception as error:  # a picture less is no reason to lose the result
            logger.warning("no thumbnail of %s (%s)", shown(item.found.file), type(error).__name__)
        item.outputs = item.thumbnail = item.relevance = None
        item.enter("queue")
        self._events.put(_Done(self._finding(item, judgement), ran, fatal))

    def _save(self, item: Item, judgement: Judgement | None) -> None:
        if self._plan.pictures is None or item.thumbnail is None or item.sha256 is None:
            return
        key = item.sha256
        if judgement is None or item.outputs is None:
            thumbnails.save(self._plan.pictures, key, item.thumbnail, None, None, None)
        else:
            severity_map, lungs = item.outputs.severity_map[0, 0], item.outputs.lung_mask[0]
            thumbnails.save(
                self._plan.pictures, key, item.thumbnail, item.geometry, severity_map, lungs, item.relevance
            )

    def _finding(self, item: Item, judgement: Judgement | None) -> Finding:
        reason = None if item.error is None else _reason(item)
        return Finding(
            file=item.found.file,
            status="ok" if reason is None else reason.status,
            sha256=item.sha256,
            size=item.size,
            mtime_ns=item.mtime_ns,
            reason=None if reason is None else {"code": reason.value, "message": _message(item)},
            warnings=item.warnings,
            view=item.view,
            probabilities=judgement.probabilities if judgement else None,
            label=judgement.label if judgement else None,
            flags=judgement.flags if judgement else None,
            severity=judgement.severity if judgement else None,
            priority=judgement.priority if judgement else "review",
            timings_ms={stage: round(ms, 3) for stage, ms in item.ms.items()},
            bundle=self._plan.owner.bundle,
            backend=self._plan.owner.backend,
            precision=self._plan.owner.precision,
        )


def _infer(session: Session, batch: list[Item]) -> None:
    outputs = session.run(np.stack([item.tensor for item in batch if item.tensor is not None]))
    for index, item in enumerate(batch):
        item.outputs = Outputs(*(values[index : index + 1] for values in outputs))


def _infer_alone(session: Session, item: Item) -> None:
    try:
        _infer(session, [item])
    except Exception as error:
        item.fail(error)


def _explain(session: Explainer, item: Item) -> None:
    """Relevance to the label it will have; a picture less is no reason to lose the result."""
    if item.outputs is None or item.tensor is None:
        return
    item.enter("interpret")
    try:
        item.relevance = session.explain(item.tensor[None], [int(item.outputs.logits[0].argmax())])[0]
    except Exception as error:
        logger.warning("no relevance of %s (%s)", shown(item.found.file), type(error).__name__)
    item.enter("queue")


def _reason(item: Item) -> Reason:
    return item.error.reason if isinstance(item.error, InputError) else Reason.INTERNAL


def _message(item: Item) -> str:
    if isinstance(item.error, InputError):
        return str(item.error)
    name = shown(Path(item.found.path).name)
    if isinstance(item.error, MemoryError):
        return f"{name}: does not fit into memory; give --workers 1, or send a smaller copy"
    what = f"unexpected {type(item.error).__name__} in stage {item.failed_in}"
    return f"{name}: {what}; run again, and report it if it stays"
