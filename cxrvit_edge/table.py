"""A CSV with a header, as rows by column; column names are compared in lower case with underscores for spaces."""

from __future__ import annotations

import csv
import gzip
import zlib
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


def read_table(
    path: Path, *, header_only: bool = False, delimiter: str | None = ",", only: Collection[str] | None = None
) -> Table:
    """UsageError if the file is absent, no CSV, or not UTF-8 (with or without a byte order mark). A .gz is unpacked.

    delimiter: None takes the one of comma, semicolon and tab that the header has most of
    only: columns to keep in the rows; a large table with reports in it fits into memory without them
    """
    try:
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig")
        ) as f:
            if delimiter is None:
                head = f.readline()
                delimiter = max(",;\t", key=head.count)
                f.seek(0)
            reader = csv.reader(f, delimiter=delimiter)
            columns = tuple(name.strip().lower().replace(" ", "_") for name in next(reader, []))
            if header_only:
                return Table(columns, [])
            kept = [i for i, c in enumerate(columns) if only is None or c in only]
            rows = [
                (reader.line_num, {columns[i]: row[i] if i < len(row) else "" for i in kept}) for row in reader if row
            ]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV ({error}); save it again as CSV") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: cannot be unpacked ({error}); fetch it again") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return Table(columns, rows)
