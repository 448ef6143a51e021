"""The command, with a session that needs no network: python tests/slow_cli.py triage ...

SLOW_CLI_SECONDS: of an image in the session, 0.01 by default. SLOW_CLI_CLOCK=jumps: whenever it is asked, the time of
day may have gone an hour back or a year on, and the monotonic clocks a minute on, as after a box was suspended.
"""

from __future__ import annotations

import os
import random
import time


def _make_clocks_jump() -> None:
    rng, wall, steady = random.Random(3), [0.0], [0.0]
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + _moved(wall, (-3600.0, 3.2e7))
    time.time_ns = lambda: real_time_ns() + int(1e9 * _moved(wall, (-3600.0, 3.2e7)))
    real = {name: getattr(time, name) for name in ("monotonic", "perf_counter")}

    def _moved(ahead: list[float], steps: tuple[float, ...]) -> float:
        if rng.random() < 0.01:
            ahead[0] = rng.choice(steps) if len(steps) > 1 else ahead[0] + steps[0]
        return ahead[0]

    for name in real:
        setattr(time, name, lambda name=name: real[name]() + _moved(steady, (60.0,)))


if os.environ.get("SLOW_CLI_CLOCK") == "jumps":
    _make_clocks_jump()  # before any module takes a clock of its own

import signal  # noqa: E402

from fakes import FakeSession, sessions  # noqa: E402

from cxrvit_edge import triage  # noqa: E402
from cxrvit_edge.cli import main  # noqa: E402
from cxrvit_edge.runtime.select import Sessions  # noqa: E402


def open_fake(*_: object, **__: object) -> Sessions:
    return sessions(FakeSession(seconds=float(os.environ.get("SLOW_CLI_SECONDS", "0.01"))))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    triage.open_sessions = open_fake
    main()
