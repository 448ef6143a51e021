"""What the readers of folders share: rows left out are counted, images that are absent are named."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from cxrvit_edge.errors import UsageError
from cxrvit_edge.readers.views import view_from_text
from train.data.record import Record

Absent = Literal["error", "skip"]

_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}


def sex_of(text: str) -> str:
    """female, male or unknown, as Record has it."""
    return _SEXES.get(text.strip().lower(), "unknown")


def view_of(text: str) -> str:
    """PA, AP, AP Supine or lateral from a table's words for it; another text as it stands, a blank one unknown."""
    view = view_from_text(text)
    if view == "AP" and re.search("supine|horizontal", text, re.IGNORECASE):
        return "AP Supine"
    return view if view != "unknown" else text.strip() or "unknown"


def day_of(text: str) -> int | None:
    """20200315, 2020-03-15 or 15.03.2020 -> a day's number, None if it is no date."""
    for form in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(text.strip().removesuffix(".0"), form).toordinal()
    return None


def first_days(dated: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    """(patient, day) pairs -> each patient's first day, of those that have one."""
    first: dict[str, int] = {}
    for patient, day in dated:
        if day is not None:
            first[patient] = min(day, first.get(patient, day))
    return first


def index(folders: Iterable[Path], suffixes: tuple[str, ...] = (".png",)) -> dict[str, Path]:
    """File name -> path of what lies in these folders; one listing each is faster than a look-up an image."""
    found: dict[str, Path] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(suffixes):
                    found.setdefault(entry.name, folder / entry.name)
    return found


class Gather:
    """Records of `where`, a folder or a table, in the order in which they are added.

    absent: listed images that are not there are an error or are passed over; none there at all is an error
    """

    def __init__(self, where: Path, absent: Absent, left_out: Counter[str] | None) -> None:
        if absent not in ("error", "skip"):
            raise UsageError(f"absent images as {absent!r}: use error or skip")
        self.where, self.absent, self.left_out = where, absent, left_out
        self.counts: Counter[str] = Counter()
        self.records: list[Record] = []
        self.missing: list[Path] = []

    def leave_out(self, reason: str, count: int = 1) -> None:
        self.counts[reason] += count

    def add(self, record: Record, *, there: bool | None = None) -> None:
        """there: whether the image exists, where the caller knows it."""
        if record.path.is_file() if there is None else there:
            self.records.append(record)
        else:
            self.missing.append(record.path)

    def done(self) -> list[Record]:
        """The records; left_out takes the counts. UsageError on absent images, and if nothing is left."""
        missing, total = len(self.missing), len(self.missing) + len(self.records)
        self.leave_out("not_found", missing)
        if missing and (self.absent == "error" or not self.records):
            raise UsageError(
                f"{self.where}: {missing} of {total} frontal images listed are absent, first {self.missing[0]}; "
                "restore them, or name the folder that holds them"
            )
        if not self.records:
            why = ", ".join(f"{n} {reason}" for reason, n in sorted((+self.counts).items())) or "it has no row"
            raise UsageError(f"{self.where}: no image left ({why}); name another folder or table")
        if self.left_out is not None:
            self.left_out.update(+self.counts)
        return self.records
