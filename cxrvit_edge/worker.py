"""The worker process: prepares one file after another for its parent, until the socket to it closes.

Started by `workers.BOOT` with two inherited descriptors, socket and memory. Messages are a length (4 bytes, little
endian) and JSON: first the recipe, answered once all is imported, then a path and its reply in turns. Arrays lie in the
shared memory, whose layout both sides take from `Slots`. Nothing is pickled.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import struct
import sys
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrvit_edge.guard import DESCRIBED
from cxrvit_edge.report.thumbnails import LONGEST_SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cxrvit_edge.prepare import Film, Recipe

MEMORY = 6 << 30  # bytes of address space: a decoder that wants more gets MemoryError
GRACE = 5.0  # seconds beyond the limit after which a worker whose parent has gone ends itself
CRASH = "CXRVIT_EDGE_TEST_CRASH"  # tests: a worker aborts at a file whose name holds this text


class Slots:
    """Arrays in the shared memory: one film's tensor, description and thumbnail."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensor = 4 * size * size
        self.description = self.tensor + 4 * DESCRIBED
        self.bytes = self.description + LONGEST_SIDE * LONGEST_SIDE

    def views(self, memory: mmap.mmap) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """tensor (1, S, S), description (n,) and the thumbnail's bytes, all over `memory`."""
        tensor = np.frombuffer(memory, np.float32, self.size * self.size).reshape(1, self.size, self.size)
        description = np.frombuffer(memory, np.float32, DESCRIBED, self.tensor)
        return tensor, description, np.frombuffer(memory, np.uint8, LONGEST_SIDE * LONGEST_SIDE, self.description)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode("ascii")
    connection.sendall(struct.pack("<I", len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """None when the other side has gone. TimeoutError by the socket's own time-out."""
    head = _exactly(connection, 4)
    data = head and _exactly(connection, struct.unpack("<I", head)[0])
    return json.loads(data) if data else None


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            piece = connection.recv(count - len(data))
        except ConnectionError:
            return b""
        if not piece:
            return b""
        data += piece
    return data


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection, memory_fd = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    greeting = receive(connection)
    if greeting is None:
        return
    _limit_memory()
    import cv2

    from cxrvit_edge.prepare import Recipe

    cv2.setNumThreads(1)  # a worker a core
    recipe, slots = Recipe.from_dict(greeting), Slots(greeting["config"]["size"])
    with mmap.mmap(memory_fd, slots.bytes) as memory:
        tensor, description, thumbnail = slots.views(memory)
        crash = os.environ.get(CRASH)
        send(connection, {"ready": True})
        while (request := receive(connection)) is not None:
            signal.setitimer(signal.ITIMER_REAL, recipe.limits.decode_seconds + GRACE)  # SIGALRM ends the process
            if crash and crash in request["path"]:
                os.abort()
            reply, film = _prepared(request["path"], recipe, tensor)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if film is not None and film.description is not None:
                description[:] = film.description
            if film is not None and film.thumbnail is not None:
                thumbnail[: film.thumbnail.size] = film.thumbnail.ravel()
            send(connection, reply)
        del tensor, description, thumbnail


def _prepared(path: str, recipe: Recipe, out: NDArray[np.float32]) -> tuple[dict[str, Any], Film | None]:
    """The reply, without its arrays, and the film they are in; its tensor is `out`."""
    from cxrvit_edge.plain_text import printable
    from cxrvit_edge.prepare import prepare

    stages: list[tuple[str, float]] = []
    try:
        film = prepare(path, recipe, lambda stage: stages.append((stage, perf_counter())), out)
    except Exception as error:  # a fault of ours; told, so that the run goes on
        return {"fault": f"{type(error).__name__} at {printable(_where(error))}"}, None
    return {
        "sha256": film.sha256,
        "view": film.view,
        "warnings": film.warnings,
        "stages": stages,
        "end": perf_counter(),
        "geometry": None if film.geometry is None else asdict(film.geometry),
        "error": None if film.error is None else [film.error.reason.value, str(film.error)],
        "thumbnail": None if film.thumbnail is None else film.thumbnail.shape,
    }, film


def _limit_memory() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no picture of a patient behind


def _where(error: BaseException) -> str:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "?" if at is None else f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}"  # noqa: PTH119
