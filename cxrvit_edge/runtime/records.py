"""Small records in the user's cache, one JSON file each: what was proven and what was measured on this box."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any] | None:
    """None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a cache that this user may not look into; a file that is no record
        return None
    return found if isinstance(found, dict) else None


def write(path: Path, body: Mapping[str, Any]) -> None:
    """Whole or not at all, and best effort: without a writable cache, what is recorded is simply done each time."""
    write_bytes(path, json.dumps(body).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write`, of anything."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        return
