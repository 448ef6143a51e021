"""How a command ends: its exit codes, what a signal does, and errors as one line on stderr."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from cxrvit_edge.errors import CxrVitError, ParityError

FAILED, WRONG_USE, NO_PARITY, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143

KEPT = "stopped: what is done is kept; run again to go on"
NOTHING_KEPT = "stopped: nothing was written; run again"


@contextmanager
def errors_told(stopped: str = KEPT) -> Iterator[None]:
    """Errors of ours as one line on stderr and the exit code of the contract; stopped: what is said after a signal."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo(stopped, err=True)
        raise typer.Exit(TERMINATED if isinstance(error, _Terminated) else INTERRUPTED) from None
    except CxrVitError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(NO_PARITY if isinstance(error, ParityError) else WRONG_USE) from None


def take_signals() -> None:
    """SIGTERM and Ctrl-C end the run cleanly from here on."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends as an interrupt from the keyboard does."""


def _terminate(*_: object) -> NoReturn:
    """SIGTERM ends the run cleanly; a second one, as supervisors and `timeout` send it, does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise _Terminated


def _interrupt(*_: object) -> NoReturn:
    """Ctrl-C: the first ends the run cleanly, the second, or SIGTERM after it, at once: results are kept."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    raise KeyboardInterrupt
