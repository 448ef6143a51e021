"""The command run in this process, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge.cli import app


def run(*arguments: object) -> int:
    """Its exit code."""
    with pytest.raises(SystemExit) as stop:
        app([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def lines(out: Path) -> dict[str, dict[str, Any]]:
    """results.jsonl by file, each of which has one line."""
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    by_file = {line["file"]: line for line in found}
    assert len(by_file) == len(found)
    return by_file
