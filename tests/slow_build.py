"""The command, stopped at one point of a build until a file appears: python tests/slow_build.py POINT FILE build ...

POINT is compile (the lock is held, nothing is written) or write (the plan is, under its temporary name).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cxrvit_edge import lock
from cxrvit_edge.cli import main
from cxrvit_edge.runtime import builder


def held(call: Callable[..., Any], until: Path) -> Callable[..., Any]:
    def waiting(*arguments: Any, **options: Any) -> Any:
        print("STOPPED", flush=True)
        while not until.exists():
            time.sleep(0.02)
        return call(*arguments, **options)

    return waiting


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    point, file = sys.argv[1], Path(sys.argv[2])
    del sys.argv[1:3]
    if point == "compile":
        builder.compile_onnx = held(builder.compile_onnx, file)
    else:
        lock.sync_folder = held(lock.sync_folder, file)
    main()
