"""The command, with a session that needs no network and takes 10 ms an image: python tests/slow_cli.py triage ..."""

from __future__ import annotations

import signal

from fakes import FakeSession, sessions

from cxrvit_edge import triage
from cxrvit_edge.cli import main
from cxrvit_edge.runtime.select import Sessions


def open_fake(*_: object, **__: object) -> Sessions:
    return sessions(FakeSession(seconds=0.01))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    triage.open_sessions = open_fake
    main()
