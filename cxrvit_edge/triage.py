"""The main job: `Triage.open()` takes what the command takes, calling it yields findings, `run` fills a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found, StrPath, discover, require
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.host import cores
from cxrvit_edge.journal import RESULTS, Journal, Owner
from cxrvit_edge.pipeline import Pipeline, Plan
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.report.run import Run
from cxrvit_edge.runtime.measure import batch_of
from cxrvit_edge.runtime.select import Sessions, open_sessions
from cxrvit_edge.summary import REPORT, THUMBNAILS, WORKLIST, Progress, Summary, Tally, summarise
from cxrvit_edge.view_table import ViewTable


class Triage:
    """A bundle and its sessions, ready for any number of runs, one at a time."""

    def __init__(
        self,
        bundle: Bundle,
        sessions: Sessions,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        limits: Limits | None = None,
        views: StrPath | None = None,
    ) -> None:
        """batch_size: None takes what is ready; workers: reader threads, None is one a core; views: CSV of views.

        UsageError for a number under 1 or a table of views that cannot be used.
        """
        for name, value in (("batch size", batch_size), ("workers", workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: must be at least 1")
        self.bundle, self.sessions = bundle, sessions
        self._batch_size = batch_size
        self._workers = workers or cores()
        self._limits = limits or Limits()
        self._views = None if views is None else ViewTable(os.fspath(views))
        name = f"{bundle.manifest.name}@{bundle.sha256[:12]}"
        self.owner = Owner(name, sessions.backend, sessions.precision)

    @classmethod
    def open(
        cls,
        bundle: StrPath | Bundle | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        verify: bool = False,
        limits: Limits | None = None,
        views: StrPath | None = None,
    ) -> Triage:
        """Open a bundle (None is the embedded one) and sessions that have reproduced its golden outputs here.

        verify: repeat that check though it is on record. BundleError, EngineError, ParityError, UsageError.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(None if bundle is None else os.fspath(bundle))
        sessions = open_sessions(opened, backend=backend, precision=precision, verify=verify)
        return cls(opened, sessions, batch_size=batch_size, workers=workers, limits=limits, views=views)

    def __call__(self, paths: StrPath | Iterable[StrPath]) -> Iterator[Finding]:
        """A Finding for each input under `paths`, in the order in which they are done; nothing is written."""
        return self._pipeline(None).run(discover(_several(paths)))

    def run(
        self,
        paths: StrPath | Iterable[StrPath],
        out: StrPath,
        *,
        fresh: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Summary:
        """Triage `paths` into the folder `out`: results.jsonl, worklist.csv, report.html, thumbnails.

        Results of an earlier run of the same bundle, back end and precision stand while size and time of the file are
        unchanged, unless it failed; `fresh` drops them all. UsageError if no path exists or holds a file, if `out`
        belongs to another bundle, back end or precision, is in use by another process, or cannot be written.
        """
        paths, out = _several(paths), Path(out)
        require(paths, out)
        try:
            return self._write(paths, out, fresh, progress)
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else out
            cause = error.strerror or type(error).__name__
            hint = "see to that or give another --out; what was done is kept, run again to go on"
            raise UsageError(f"{where}: cannot be written ({cause}); {hint}") from error

    def _write(
        self, paths: list[StrPath], out: Path, fresh: bool, progress: Callable[[Progress], None] | None
    ) -> Summary:
        from cxrvit_edge.report.html import write_report
        from cxrvit_edge.report.worklist import urgency, write_worklist

        started, start = datetime.now(timezone.utc), perf_counter()
        manifest = self.bundle.manifest
        with Journal(out, self.owner, fresh=fresh) as journal:
            if fresh:
                _remove_outputs(out)
            tally = Tally(progress)
            for finding in self._pipeline(out / THUMBNAILS).run(self._unfinished(paths, out, journal, tally)):
                journal.append(finding)
                tally.add(finding)
            notes = (*self.sessions.notes, *_notes(journal))
            journal.compact()
            keys = sorted(urgency(finding, manifest) for finding in journal.findings())
            ordered = journal.findings([key[-1] for key in keys])
            run = Run(
                bundle=manifest.name,
                bundle_sha256=self.bundle.sha256,
                backend=self.sessions.backend,
                backend_version=self.sessions.version,
                precision=self.sessions.precision,
                started=started.isoformat(timespec="seconds"),
                seconds=round(perf_counter() - start, 3),
                done=tally.done,
                resumed=tally.resumed,
                stage_ms=tally.mean(),
                notes=notes,
            )
            write_worklist(out / WORKLIST, ordered, manifest)
            write_report(out / REPORT, ordered, run, manifest, out / THUMBNAILS)
            summary = summarise(run, ordered, tally, manifest.priority.order, out)
        if not tally.done and not tally.resumed:
            where = ", ".join(os.fspath(path) for path in paths)
            raise UsageError(f"no files under {where}; check that this is the folder with the radiographs")
        return summary

    def _pipeline(self, pictures: Path | None) -> Pipeline:
        most = self._batch_size or batch_of(self.sessions.backend)
        plan = Plan(
            bundle=self.bundle,
            sessions=self.sessions,
            owner=self.owner,
            workers=self._workers,
            most=most,
            batch_size=self._batch_size,
            limits=self._limits,
            view_of=self._views,
            pictures=pictures,
        )
        return Pipeline(plan)

    def _unfinished(self, paths: list[StrPath], out: Path, journal: Journal, tally: Tally) -> Iterator[Found]:
        for found in discover(paths, leave_out=out):
            if self._stands(found, journal):
                tally.resume()
            else:
                yield found

    def _stands(self, found: Found, journal: Journal) -> bool:
        """Whether an earlier result still holds: not failed, and file and table of views are as they were."""
        entry = journal.get(found.file)
        if entry is None or entry.status == "failed":
            return False
        try:
            now = os.stat(found.path)  # noqa: PTH116  there may be a million
        except (OSError, ValueError):
            return False
        if (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns):
            return False
        view: View | None = self._views(found) if self._views and entry.status == "ok" else None
        return view in (None, entry.view)


def _notes(journal: Journal) -> Iterator[str]:
    if journal.damaged:
        yield f"{journal.damaged} damaged lines of {RESULTS} were dropped; their inputs were done again if still there"
    if journal.unlocked:
        yield "the output folder's file system has no locks: do not run two at once into it"


def _several(paths: StrPath | Iterable[StrPath]) -> list[StrPath]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _remove_outputs(out: Path) -> None:
    """What an earlier run wrote, by name; nothing else in the folder is touched."""
    for name in (WORKLIST, REPORT):
        (out / name).unlink(missing_ok=True)
    for pattern in ("*.jpg", "*.overlay.png", "*.relevance.jpg"):
        for path in (out / THUMBNAILS).glob("[0-9a-f]" * 64 + pattern[1:]):
            path.unlink()
