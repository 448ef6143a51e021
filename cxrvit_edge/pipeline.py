"""One way through: inputs are fed, prepared, run in batches and judged, each in threads of its own.

    feeder -> readers (workers for DICOM) -> runner -> judges -> the caller's thread

What is on its way is bounded: an input takes a place when it is fed and gives it back when the caller has its result,
so that memory does not grow with the number of inputs and a slow caller holds up the feeder, not the memory.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter

from cxrvit_edge.discover import Found
from cxrvit_edge.findings import Finding
from cxrvit_edge.item import Item
from cxrvit_edge.stages import Plan, Stages
from cxrvit_edge.workers import Workers

NUDGE = 0.25  # seconds after which the runner looks again whether a batch may still fill up
TICK = 0.5  # seconds without a result after which the caller is asked whether it has something to do


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
        self._stages = Stages(plan)
        self.clock = Clock()

    def run(self, inputs: Iterable[Found], idle: Callable[[], None] = lambda: None) -> Generator[Finding, None, None]:
        """A Finding an input, in the order in which they are done.

        `inputs` is iterated in a thread of its own and may block, as a watch does; `idle` is called in this thread
        whenever there has been no result for a while. OSError if a thumbnail cannot be written; what `inputs` raises.
        Closing the iterator ends the threads, and calls `inputs.stop()` if there is one; so does the interpreter's end.
        """
        places = 2 * (self._plan.workers + self._plan.most)
        self.clock = Clock()
        with Workers(self._stages.recipe) as workers:
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
                self._stages.prepare(item, flow.workers)
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

    # network

    def _network(self, flow: _Flow, inputs: Iterable[Found]) -> None:
        waiting: dict[str, deque[Item]] = {}  # by graph
        while not flow.stop.is_set():
            batch = self._due(waiting, flow, inputs)
            if batch:
                before = perf_counter()
                self._stages.run(batch)
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

    # judges

    def _judging(self, flow: _Flow) -> None:
        while (item := flow.judging.get()) is not None and not flow.stop.is_set():
            flow.done.put(_Done(item, self._stages.judge(item)))


def _guarded(flow: _Flow, target: Callable[[], None]) -> Callable[[], None]:
    """A thread's work; what ends it is raised where the results are taken."""

    def guarded() -> None:
        try:
            target()
        except BaseException as error:
            if not flow.stop.is_set():
                flow.done.put(error)

    return guarded
