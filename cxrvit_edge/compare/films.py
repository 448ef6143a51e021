"""The images that are compared: files and folders, or a table of labels."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cxrvit_edge import labels
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.compare.sources import Side, Source
from cxrvit_edge.discover import StrPath, discover, require
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.plain_text import printable
from cxrvit_edge.summary import THUMBNAILS
from cxrvit_edge.triage import Triage


@dataclass(frozen=True)
class Films:
    """PATHs for triage. labels: index of the class by real path; views: by path, where a table tells one."""

    paths: tuple[str, ...]
    labels: Mapping[str, int] = field(default_factory=dict)
    views: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def read_films(data: StrPath | Iterable[StrPath], split: str = "test") -> Films:
    """A CSV of labels (its split `split`), a folder by class, or any files and folders, which then have no labels.

    UsageError if there is nothing to read.
    """
    paths = [os.fspath(p) for p in ([data] if isinstance(data, (str, os.PathLike)) else data)]
    require(paths)
    told = ", ".join(map(printable, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    tables = [p for p in paths if p.lower().endswith(".csv")]
    if tables and len(paths) > 1:
        raise UsageError(f"--data {printable(tables[0])}: a table of labels stands alone; leave the others out")
    folder = Path(paths[0]) if len(paths) == 1 else None
    if tables or (folder is not None and any((folder / name).is_file() for name in labels.TABLES)):
        return _labelled(labels.read(paths[0], split=split), None, told, split)
    if folder is not None and _by_class(folder):
        return _labelled(labels.read(folder), tuple(paths), told, None)
    return Films(tuple(paths), about={"path": told, "split": None, "labelled": 0, "problems": []})


def _labelled(found: labels.Labelled, paths: tuple[str, ...] | None, told: str, split: str | None) -> Films:
    """paths: what is triaged, None the studies themselves."""
    studies = found.studies
    if not studies:
        said = "; ".join(line for p in found.problems for line in p.first[:1])
        raise UsageError(f"--data {told}: no image that can be opened{f' ({said})' if said else ''}; see to the table")
    return Films(
        paths or tuple(os.fspath(s.path) for s in studies),
        {os.path.realpath(s.path): s.label for s in studies if s.label is not None},
        {os.fspath(s.path): s.view for s in studies if s.view != "unknown"},
        {
            "path": told,
            "split": split,
            "labelled": sum(s.label is not None for s in studies),
            "problems": [{"kind": p.kind, "count": p.count, "first": list(p.first)} for p in found.problems],
        },
    )


def _by_class(folder: Path) -> bool:
    """Whether it has a folder of normal radiographs and one of another class."""
    if not folder.is_dir():
        return False
    names = {entry.name.lower() for entry in folder.iterdir() if entry.is_dir()}
    return any(n.startswith("normal") for n in names) and any(n.startswith(("other", "covid")) for n in names)


def truths(films: Films | None, sides: Iterable[Side]) -> dict[str, int]:
    """Class index by SHA-256 of the file: known from a side that ran over the files, else they are read.

    Content that is labelled in two ways has none.
    """
    if films is None or not films.labels:
        return {}
    ran = [side for side in sides if side.results is None]
    if ran:
        pairs = [(f.sha256, films.labels.get(os.path.realpath(f.file))) for f in ran[0].findings]
    else:
        pairs = [(_sha256(path), label) for path, label in films.labels.items()]
    said: dict[str, set[int]] = {}
    for digest, label in pairs:
        if digest is not None and label is not None:
            said.setdefault(digest, set()).add(label)
    return {digest: found.pop() for digest, found in said.items() if len(found) == 1}


def _sha256(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


class Runner:
    """A side that is run. Opening it verifies the bundle and its golden outputs, and raises as Triage.open does."""

    def __init__(self, source: Source, films: Films, scratch: Path) -> None:
        self._source, self._films, self._scratch = source, films, scratch
        scratch.mkdir()
        views = _view_table(films, scratch / "views.csv") if films.views else None
        self.triage = Triage.open(source.bundle, backend=source.backend, precision=source.precision, views=views)

    @property
    def bundle(self) -> Bundle:
        return self.triage.bundle

    def run(self, leave_out: Path | None, progress: Callable[[str, float], None]) -> Side:
        """Every film triaged; what lies in `leave_out`, where the comparison is written, is none. progress: phase and
        fraction done."""
        triage = self.triage
        findings: list[Finding] = []
        total = sum(1 for _ in discover(self._films.paths, leave_out=leave_out))
        for finding in triage(self._films.paths):
            if leave_out is None or not _within(finding.file, leave_out):
                findings.append(replace(finding, timings_ms={}))
                progress(self._source.name, min(len(findings) / max(total, 1), 1.0))
        if not findings:
            raise UsageError(f"--data {self._films.about['path']}: holds no files; check the folder and the mount")
        sessions = triage.sessions
        return Side(
            self._source.name,
            triage.owner,
            triage.bundle.manifest,
            findings,
            version=sessions.version,
            notes=sessions.notes,
        )

    def pictures(self, files: Sequence[str]) -> Path | None:
        """Folder with the thumbnails of these, keyed by SHA-256: they are triaged once more."""
        if not files:
            return None
        self.triage.run(files, self._scratch, fresh=True)
        return self._scratch / THUMBNAILS


def _within(file: str, folder: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def _view_table(films: Films, path: Path) -> Path:
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "view"))
        writer.writerows(_rows(films))
    return path


def _rows(films: Films) -> Iterator[tuple[str, str]]:
    for file, view in films.views.items():
        yield str(Path(file).absolute()), view
