"""One way through: inputs are fed, prepared, run in batches and judged, each in threads of its own.

    feeder -> readers (workers for DICOM) -> runner -> judges -> the caller's thread

What is on its way is bounded: an input takes a place when it is fed and gives it back when the caller has its result,
so that memory does not grow with the number of inputs and a slow caller holds up the feeder, not the memory.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found
from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.findings import Finding, Judgement, judge
from cxrvit_edge.item import Item
from cxrvit_edge.journal import Owner
from cxrvit_edge.ledger import Mode
from cxrvit_edge.plain_text import printable
from cxrvit_edge.prepare import Film, Recipe, place, prepare
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.report import thumbnails
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Explainer, Session
from cxrvit_edge.trace import NoTrace
from cxrvit_edge.workers import Workers

logger = logging.getLogger("cxrvit_edge")

NUDGE = 0.25  # seconds after which the runner looks again whether a batch may still fill up
TICK = 0.5  # seconds without a result after which the caller is asked whether it has something to do


@dataclass(frozen=True)
class Plan:
    """What is the same for every input.

    most: images of a batch. mode: auto runs what is ready, throughput waits for `most` while more may come, latency is
    auto with `most` 1. view_of: view of a file by a table, None where that says nothing; pictures: folder for
    thumbnails, None for none.
    """

    bundle: Bundle
    sessions: Sessions
    owner: Owner
    workers: int
    most: int
    mode: Mode = "auto"
    limits: Limits = field(default_factory=Limits)
    view_of: Callable[[Found], View | None] | None = None
    pictures: Path | None = None
    trace: NoTrace = field(default_factory=NoTrace)


@dataclass
class Clock:
    """Seconds of one run, as `ledger.Ledger` has them."""

    start: float = field(default_factory=perf_counter)
    run: float = 0.0
    starved: float = 0.0
    held: float = 0.0
    blocked: float = 0.0
    batches: int = 0
    ran: int = 0


@dataclass(frozen=True)
class _Done:
    item: Item
    finding: Finding


@dataclass
class _Flow:
    """What the threads of one run share. `room`: places left; `feeding`: whether the feeder may bring more."""

    room: threading.Semaphore
    places: int
    workers: Workers
    reads: SimpleQueue[Item | None] = field(default_factory=SimpleQueue)
    ready: SimpleQueue[Item | None] = field(default_factory=SimpleQueue)  # None: look again
    judging: SimpleQueue[Item | None] = field(default_factory=SimpleQueue)
    done: SimpleQueue[_Done | BaseException | None] = field(default_factory=SimpleQueue)  # None: the feeder has ended
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: int = 0
    feeding: bool = True
    full: bool = False


class Pipeline:
    """Threads around one plan; for one iteration at a time, as its sessions are. `clock`: of the last one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        config = PreprocessConfig.from_dict(plan.bundle.manifest.preprocessing)
        self._recipe = Recipe(config, plan.limits, plan.pictures is not None)
        self.clock = Clock()

    def run(self, inputs: Iterable[Found], idle: Callable[[], None] = lambda: None) -> Generator[Finding, None, None]:
        """A Finding an input, in the order in which they are done.

        `inputs` is iterated in a thread of its own and may block, as a watch does; `idle` is called in this thread
        whenever there has been no result for a while. OSError if a thumbnail cannot be written; what `inputs` raises.
        Closing the iterator ends the threads, and calls `inputs.stop()` if there is one; so does the interpreter's end.
        """
        places = 2 * (self._plan.workers + self._plan.most)
        self.clock = Clock()
        with Workers(self._recipe) as workers:
            flow = _Flow(threading.Semaphore(places), places, workers)
            threads = self._threads(flow, inputs)
            end = partial(self._end, flow, inputs, threads)
            atexit.register(end)  # of an iterator left half way: native code does not outlive the interpreter
            try:
                for thread in threads:
                    thread.start()
                yield from self._results(flow, idle)
            finally:
                end()
                atexit.unregister(end)

    def _end(self, flow: _Flow, inputs: Iterable[Found], threads: list[threading.Thread]) -> None:
        """Any number of times."""
        flow.stop.set()
        getattr(inputs, "stop", lambda: None)()
        flow.workers.close()
        flow.room.release(flow.places)
        for queue, count in ((flow.reads, self._plan.workers), (flow.ready, 1), (flow.judging, len(threads))):
            for _ in range(count):
                queue.put(None)
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()

    def _threads(self, flow: _Flow, inputs: Iterable[Found]) -> list[threading.Thread]:
        judges = max(1, self._plan.workers // 4)  # judging takes a fraction of what reading takes
        wanted: list[tuple[str, Callable[[], None]]] = [
            ("feeder", lambda: self._feed(flow, inputs)),
            *((f"reader {i + 1}", lambda: self._read(flow)) for i in range(self._plan.workers)),
            ("network", lambda: self._network(flow, inputs)),
            *((f"judge {i + 1}", lambda: self._judging(flow)) for i in range(judges)),
        ]
        return [threading.Thread(target=_guarded(flow, target), name=name, daemon=True) for name, target in wanted]

    def _results(self, flow: _Flow, idle: Callable[[], None]) -> Iterator[Finding]:
        on_way: int | None = None  # known once the feeder has ended
        taken = 0
        while on_way is None or taken < on_way:
            try:
                done = flow.done.get(timeout=TICK)
            except Empty:
                idle()
                continue
            if isinstance(done, BaseException):
                raise done
            if done is None:
                on_way = self._fed
                continue
            taken += 1
            done.item.tell(self._plan.trace)
            yield done.finding
            flow.room.release()

    # feeder

    def _feed(self, flow: _Flow, inputs: Iterable[Found]) -> None:
        self._fed = 0
        source = iter(inputs)
        while True:
            if not flow.room.acquire(blocking=False):
                flow.full = True
                flow.ready.put(None)  # a batch that waits for more would wait for ever
                flow.room.acquire()
                flow.full = False
            found = None if flow.stop.is_set() else next(source, None)
            if flow.stop.is_set():
                return
            if found is None:
                break
            with flow.lock:
                flow.reading += 1
            self._fed += 1
            flow.reads.put(Item(found))
        with flow.lock:
            flow.feeding = False
        flow.ready.put(None)
        flow.done.put(None)

    # readers

    def _read(self, flow: _Flow) -> None:
        while not flow.stop.is_set():
            full, waited = flow.full, perf_counter()
            item = flow.reads.get()
            if item is None:
                return
            if full:
                self.clock.blocked += perf_counter() - waited
            try:
                self._prepare(item, flow.workers)
            except Exception as error:
                item.fail(error)
            if flow.stop.is_set():
                return
            item.enter("queue")
            (flow.judging if item.error is not None else flow.ready).put(item)
            with flow.lock:
                flow.reading -= 1
                last = not flow.reading
            if last:
                flow.ready.put(None)

    def _prepare(self, item: Item, workers: Workers) -> None:
        found = item.found
        item.size, item.mtime_ns = found.size, found.mtime_ns
        if found.problem is not None:
            raise found.problem
        try:
            status = os.stat(found.path)  # noqa: PTH116  before reading, so that a later change is seen
            item.size, item.mtime_ns = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):
            pass  # load says what is wrong
        if place(found.path) == "thread":
            item.film = prepare(found.path, self._recipe, item.enter)
        else:
            lane = f"{threading.current_thread().name}, worker"

            def span(stage: str, start: float, end: float) -> None:
                item.enter(stage, start, lane)
                item.enter("queue", end, lane)

            item.film = workers.prepare(found.path, span)
        film = item.film
        if film.error is not None:
            raise film.error
        film.view, film.warnings = self._view(film, found)
        if film.view == "lateral":
            message = f"{printable(Path(found.path).name)}: the table of views says lateral; send the frontal view"
            raise InputError(Reason.LATERAL_VIEW, message)

    def _view(self, film: Film, found: Found) -> tuple[View, tuple[str, ...]]:
        """View and warnings; the table comes before the header."""
        view = self._plan.view_of(found) if self._plan.view_of else None
        if view is None or view == film.view:
            return film.view, film.warnings
        if film.view == "unknown":
            return view, film.warnings
        said = f"the header says view {film.view}, the table of views {view}: the table is believed"
        return view, (*film.warnings, said)

    # network

    def _network(self, flow: _Flow, inputs: Iterable[Found]) -> None:
        waiting: dict[str, deque[Item]] = {}  # by graph
        while not flow.stop.is_set():
            batch = self._due(waiting, flow, inputs)
            if batch:
                before = perf_counter()
                self._run(batch)
                self.clock.run += perf_counter() - before
                self.clock.batches += 1
                self.clock.ran += len(batch)
                for item in batch:
                    flow.judging.put(item)
            self._take(flow, waiting, wait=not batch)

    def _take(self, flow: _Flow, waiting: dict[str, deque[Item]], wait: bool) -> None:
        """All that is ready; waits for a first, or for a reason to look again, if asked to."""
        before = perf_counter()
        held = flow.full and flow.judging.qsize() + flow.done.qsize() > flow.places // 2
        try:
            item = flow.ready.get(block=wait, timeout=NUDGE if wait and waiting else None)
            while True:
                if item is not None:
                    waiting.setdefault(self._plan.bundle.graph_for(item.film.view), deque()).append(item)
                item = flow.ready.get(block=False)
        except Empty:
            pass
        if wait and held:
            self.clock.held += perf_counter() - before
        elif wait:
            self.clock.starved += perf_counter() - before

    def _due(self, waiting: dict[str, deque[Item]], flow: _Flow, inputs: Iterable[Found]) -> list[Item]:
        """The next batch, of one graph; none while a full one is asked for and may still come about."""
        longest = max(waiting.values(), key=len, default=None)
        if not longest:
            return []
        if self._plan.mode == "throughput" and len(longest) < self._plan.most and self._filling(flow, inputs):
            return []
        return [longest.popleft() for _ in range(min(len(longest), self._plan.most))]

    def _filling(self, flow: _Flow, inputs: Iterable[Found]) -> bool:
        with flow.lock:
            return flow.reading > 0 or (flow.feeding and not flow.full and not getattr(inputs, "idle", False))

    def _run(self, batch: list[Item]) -> None:
        """Outputs or an error for each item; a batch that fails as a whole is tried one by one."""
        at = perf_counter()
        for item in batch:
            item.enter("run", at)
            item.batch = len(batch)
        session = self._plan.sessions[self._plan.bundle.graph_for(batch[0].film.view)]
        try:
            _infer(session, batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                logger.warning("a batch of %d failed (%s): trying one by one", len(batch), type(error).__name__)
                for item in batch:
                    _infer_alone(session, item)
        at = perf_counter()
        for item in batch:
            item.enter("queue", at)
        for item in batch:
            if self._plan.pictures is not None and isinstance(session, Explainer):
                _explain(session, item)
            item.film.tensor = None

    # judges

    def _judging(self, flow: _Flow) -> None:
        while (item := flow.judging.get()) is not None and not flow.stop.is_set():
            flow.done.put(_Done(item, self._judge(item)))

    def _judge(self, item: Item) -> Finding:
        """The finding of an item, with outputs or an error; its thumbnail is written. OSError if it cannot be."""
        judgement = None
        item.enter("interpret")
        film = item.film
        try:
            if item.outputs is not None and film.geometry is not None:
                judgement = judge(
                    item.outputs,
                    0,
                    self._plan.bundle,
                    film.view,
                    film.geometry,
                    film.description,
                    self._plan.owner.rule,
                )
        except Exception as error:
            item.fail(error)
            if isinstance(error, InputError) and error.reason is Reason.LATERAL_VIEW:
                film.view = "lateral"
        item.enter("write")
        try:
            self._save(item, judgement)
        except OSError:
            raise
        except Exception as error:  # a picture less is no reason to lose the result
            logger.warning("no thumbnail of %s (%s)", printable(item.found.file), type(error).__name__)
        item.outputs = film.thumbnail = film.description = item.relevance = None
        item.enter("queue")
        return self._finding(item, judgement)

    def _save(self, item: Item, judgement: Judgement | None) -> None:
        film, folder = item.film, self._plan.pictures
        if folder is None or film.thumbnail is None or film.sha256 is None:
            return
        if judgement is None or item.outputs is None:
            thumbnails.save(folder, film.sha256, film.thumbnail, None, None, None)
        else:
            severity_map, lungs = item.outputs.severity_map[0, 0], item.outputs.lung_mask[0]
            thumbnails.save(folder, film.sha256, film.thumbnail, film.geometry, severity_map, lungs, item.relevance)

    def _finding(self, item: Item, judgement: Judgement | None) -> Finding:
        reason = None if item.error is None else _reason(item)
        ood = judgement.ood if judgement else None
        told = (ood.warning,) if ood is not None and ood.over else ()
        return Finding(
            file=item.found.file,
            status="ok" if reason is None else reason.status,
            sha256=item.film.sha256,
            size=item.size,
            mtime_ns=item.mtime_ns,
            reason=None if reason is None else {"code": reason.value, "message": _message(item)},
            warnings=(*item.film.warnings, *told),
            view=item.film.view,
            probabilities=judgement.probabilities if judgement else None,
            label=judgement.label if judgement else None,
            flags=judgement.flags if judgement else None,
            prediction_set=judgement.prediction_set if judgement else None,
            severity=judgement.severity if judgement else None,
            priority=judgement.priority if judgement else "review",
            ood=ood,
            timings_ms={stage: round(ms, 3) for stage, ms in item.ms().items()},
            **self._plan.owner._asdict(),
        )


def _guarded(flow: _Flow, target: Callable[[], None]) -> Callable[[], None]:
    """A thread's work; what ends it is raised where the results are taken."""

    def guarded() -> None:
        try:
            target()
        except BaseException as error:
            if not flow.stop.is_set():
                flow.done.put(error)

    return guarded


def _infer(session: Session, batch: list[Item]) -> None:
    outputs = session.run(np.stack([item.film.tensor for item in batch if item.film.tensor is not None]))
    for index, item in enumerate(batch):
        item.outputs = outputs.rows(slice(index, index + 1))


def _infer_alone(session: Session, item: Item) -> None:
    try:
        _infer(session, [item])
    except Exception as error:
        item.fail(error)


def _explain(session: Explainer, item: Item) -> None:
    """Relevance to the label it will have; a picture less is no reason to lose the result."""
    if item.outputs is None or item.film.tensor is None:
        return
    item.enter("interpret")
    try:
        item.relevance = session.explain(item.film.tensor[None], [int(item.outputs.logits[0].argmax())])[0]
    except Exception as error:
        logger.warning("no relevance of %s (%s)", printable(item.found.file), type(error).__name__)
    item.enter("queue")


def _reason(item: Item) -> Reason:
    return item.error.reason if isinstance(item.error, InputError) else Reason.INTERNAL


def _message(item: Item) -> str:
    if isinstance(item.error, InputError):
        return str(item.error)
    name = printable(Path(item.found.path).name)
    if isinstance(item.error, MemoryError):
        return f"{name}: does not fit into memory; give --workers 1, or send a smaller copy"
    what = f"unexpected {type(item.error).__name__} in stage {item.failed_in}"
    return f"{name}: {what}; run again, and report it if it stays"
