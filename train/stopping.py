"""How a run ends before its schedule does: asked to, or for want of memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from train.distributed import World


class Interrupted(Exception):  # noqa: N818 (no error: the run is saved and goes on when called again)
    """The run was asked to stop and is saved."""


class Stop:
    """The first Ctrl-C or SIGTERM ends the run after its step, a second one at once."""

    def __init__(self, where: World, say: Callable[[str], None]) -> None:
        self._where, self._say, self._asked = where, say, threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handlers are set inside, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def asked(self) -> bool:
        """Whether any process was; all must call it."""
        return bool(self._where.sum(torch.tensor(float(self._asked.is_set()), device=self._where.device)) > 0)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self._asked.set()
        self._say("stops after this step; once more to stop at once")


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
