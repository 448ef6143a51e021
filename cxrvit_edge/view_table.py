"""A CSV that says which view a file is: `triage --views FILE.csv`."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from cxrvit_edge.discover import Found
from cxrvit_edge.errors import UsageError
from cxrvit_edge.radiograph import View
from cxrvit_edge.readers.views import view_from_text


class ViewTable:
    """Views by file. A name in the table may be a path or only its last parts; the longest that fits decides."""

    def __init__(self, path: str | Path) -> None:
        """Columns `file` and `view` (words of `view_from_text`; an empty one says nothing); others are ignored.

        UsageError if the table cannot be read, lacks a column, or gives one file two views.
        """
        self._views: dict[str, View] = {}
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
                reader = csv.DictReader(f)
                names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
                if "file" not in names or "view" not in names:
                    have = ", ".join(filter(None, reader.fieldnames or ())) or "nothing"
                    raise UsageError(f"{path}: needs columns file and view, and has {have}")
                for row in reader:
                    self._add(row[names["file"]], row[names["view"]], f"{path}, line {reader.line_num}")
        except OSError as error:
            raise UsageError(f"{path}: the table of views cannot be read ({error.strerror})") from error
        except csv.Error as error:
            raise UsageError(f"{path}: not a CSV ({error}); save it as CSV with columns file and view") from error

    def __call__(self, found: Found) -> View | None:
        """View of an input, None if the table does not name it."""
        if not self._views:
            return None
        name = os.path.abspath(found.path)  # noqa: PTH100  links stay as they are named; there may be a million
        while True:
            view = self._views.get(name)
            if view is not None or not name:
                return view
            name = name.partition("/")[2]

    def _add(self, file: str | None, text: str | None, where: str) -> None:
        if not file or not file.strip() or not text or not text.strip():
            return
        name = file.strip().replace("\\", "/")
        key = "/" * name.startswith("/") + "/".join(part for part in name.split("/") if part not in ("", "."))
        view = view_from_text(text)
        if self._views.setdefault(key, view) != view:
            raise UsageError(f"{where}: {key} has two views, {self._views[key]} and {view}; keep one")
