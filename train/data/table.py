"""A CSV with a header, as rows by column; column names are compared in lower case with underscores for spaces."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from cxrvit_edge.errors import UsageError


class Table(NamedTuple):
    """columns: normalised names; rows: (line, {column: text}), blank where a row is short."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]

    def require(self, path: Path, columns: Collection[str]) -> None:
        """UsageError that names the columns which are missing and those which are there."""
        if missing := [c for c in columns if c not in self.columns]:
            have = ", ".join(filter(None, self.columns)) or "nothing"
            raise UsageError(f"{path}: columns missing: {', '.join(missing)}; it has {have}")


def read_table(path: Path, *, header_only: bool = False) -> Table:
    """UsageError if the file is absent, no CSV, or not UTF-8 (with or without a byte order mark)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f)
            columns = tuple(name.strip().lower().replace(" ", "_") for name in next(reader, []))
            if header_only:
                return Table(columns, [])
            blank = dict.fromkeys(columns, "")
            rows = [(reader.line_num, blank | dict(zip(columns, row, strict=False))) for row in reader if row]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV ({error}); save it again as CSV") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return Table(columns, rows)
