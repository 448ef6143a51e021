"""Worker processes for files whose decoders may crash, hang or hold the interpreter's lock: started when first needed.

A worker serves one thread at a time. One that dies or takes too long costs its file, which fails with that reason.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.plain_text import printable
from cxrvit_edge.prepare import Film, Recipe
from cxrvit_edge.preprocess import Geometry
from cxrvit_edge.worker import Slots, receive, send

START = 60.0  # seconds that a new worker may take until it is ready: imports on a slow, busy box
# -m would look for modules in the working directory first, which may be the stick with the films
BOOT = r"import sys; sys.path[:] = sys.argv.pop().split('\n'); from cxrvit_edge.worker import main; main()"
Span = Callable[[str, float, float], None]  # stage, start, end in perf_counter seconds


class Workers:
    """As many as there are threads that ask at once. A context manager; closing it ends them all."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def prepare(self, path: str, span: Span = lambda *_: None) -> Film:
        """As `prepare.prepare`, in a worker. What kills or stops it is the film's error: decoder_died, timed_out; and
        internal if no worker can be had, or if it met a fault of ours."""
        try:
            worker = self._take()
        except OSError as error:
            return _unstarted(printable(Path(path).name), error.strerror or type(error).__name__)
        try:
            film = worker.ask(path, self._recipe, span)
        except BaseException:
            self._drop(worker)
            raise
        if worker.alive:
            with self._lock:
                if not self._closed:
                    self._idle.append(worker)
                    return film
        self._drop(worker)
        return film

    def close(self) -> None:
        """End every worker, at once: what they were at is lost, and its file has no result."""
        with self._lock:
            self._closed = True
            workers, idle, self._all, self._idle = list(self._all), self._idle, set(), []
        for worker in workers:
            worker.end()
        for worker in idle:  # the others are shut by the threads that wait for them
            worker.shut()

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the workers have ended")
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                break
            if worker.process.poll() is None:
                return worker
            self._drop(worker)  # killed while it had nothing to do: no file is to blame
        worker = _Worker(self._recipe)
        with self._lock:
            if not self._closed:
                self._all.add(worker)
                return worker
        worker.end()
        worker.shut()
        raise RuntimeError("the workers have ended")

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()
        worker.shut()


class _Worker:
    def __init__(self, recipe: Recipe) -> None:
        slots = Slots(recipe.config.size)
        memory = _shared(slots.bytes)
        try:
            self._memory = mmap.mmap(memory, slots.bytes)
            self._socket, theirs = socket.socketpair()
            try:
                self.process = _process(theirs.fileno(), memory)
            except BaseException:
                self._socket.close()
                raise
            finally:
                theirs.close()
        finally:
            os.close(memory)
        self._tensor, self._description, self._thumbnail = slots.views(self._memory)
        self._new = self.alive = True
        try:
            send(self._socket, recipe.to_dict())
        except OSError:
            self.alive = False

    def ask(self, path: str, recipe: Recipe, span: Span) -> Film:
        limit = recipe.limits.decode_seconds
        name = printable(Path(path).name)
        with suppress(OSError):  # one that has gone is met when its reply is asked for
            send(self._socket, {"path": path})
        if self._new:
            came, ready = self._reply(START)
            if ready is None:
                self.alive = False
                return _unstarted(name, f"it {self._end_of()}" if came else f"not ready within {START:g} seconds")
            self._new = False
        came, reply = self._reply(limit)
        if not came:
            self.alive = False
            message = f"{name}: not decoded within {limit:g} seconds; look at the file, or give more --decode-seconds"
            return Film(error=InputError(Reason.TIMED_OUT, message))
        if reply is None:
            self.alive = False
            message = f"{name}: the decoder {self._end_of()}; the file is damaged or hostile: export it again"
            return Film(error=InputError(Reason.DECODER_DIED, message))
        if reply.get("fault", "").startswith("MemoryError"):
            raise MemoryError
        if "fault" in reply:
            self.alive = False
            message = f"{name}: unexpected {reply['fault']}; run again, and report it if it stays"
            return Film(error=InputError(Reason.INTERNAL, message))
        stages = reply["stages"]
        for (stage, start), (_, end) in zip(stages, [*stages[1:], (None, reply["end"])], strict=True):
            span(stage, start, end)
        film = Film(reply["sha256"], reply["view"], tuple(reply["warnings"]))
        if reply["thumbnail"] is not None:
            h, w = reply["thumbnail"]
            film.thumbnail = self._thumbnail[: h * w].reshape(h, w).copy()
        if reply["error"] is not None:
            film.error = InputError(Reason(reply["error"][0]), reply["error"][1])
        else:
            film.geometry = Geometry(**reply["geometry"])
            film.tensor, film.description = self._tensor.copy(), self._description.copy()
        return film

    def _reply(self, seconds: float) -> tuple[bool, dict[str, Any] | None]:
        """Whether something came in time, and what; None if the worker has gone."""
        # not select, which knows descriptors up to 1023; not the socket's time-out, which each piece would begin anew
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(1e3 * seconds):
            return False, None
        try:
            return True, receive(self._socket)
        except OSError:
            return True, None

    def _end_of(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "hung"
        if code < 0:
            try:
                return f"crashed ({signal.Signals(-code).name})"
            except ValueError:
                return f"crashed (signal {-code})"
        return f"ended (exit code {code})"

    def end(self) -> None:
        """SIGKILL: it holds nothing that is worth a farewell. From any thread, any number of times."""
        self.alive = False
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)  # one in the grip of a broken disk may stay; the run does not

    def shut(self) -> None:
        """Close the socket: no thread may be waiting on it."""
        self._socket.close()


def _process(connection: int, memory: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, str(connection), str(memory), "\n".join(_import_path())],
        pass_fds=(connection, memory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # decoders print what they think of a file
        env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
    )


def _import_path() -> list[str]:
    """Ours, absolute. Without folders that are themselves packages: cv2 puts its own there while a thread imports it,
    and the `typing` in it would be taken for the library's."""
    return [entry for entry in map(os.path.abspath, list(sys.path)) if not os.path.lexists(f"{entry}/__init__.py")]


def _unstarted(name: str, cause: str) -> Film:
    hint = "see to the limits on processes and memory, run again"
    return Film(error=InputError(Reason.INTERNAL, f"{name}: no worker process to decode it in ({cause}); {hint}"))


def _shared(size: int) -> int:
    """Descriptor of anonymous memory that a child can map; no name that a crash would leave behind."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("cxrvit-edge")
    else:
        import tempfile

        handle, path = tempfile.mkstemp()
        Path(path).unlink()
    os.ftruncate(handle, size)
    return handle
