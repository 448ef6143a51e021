"""The main job: `Triage.open()` takes what the command takes, calling it yields findings, `run` fills a folder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic, perf_counter

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.decision import USUAL, Rule
from cxrvit_edge.discover import Found, StrPath, discover, require
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.guard_head import head_of
from cxrvit_edge.host import cores
from cxrvit_edge.journal import RESULTS, Journal, Owner
from cxrvit_edge.ledger import Ledger, Mode
from cxrvit_edge.ood import familiar_of
from cxrvit_edge.pipeline import Pipeline
from cxrvit_edge.plain_text import printable
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.report import thumbnails
from cxrvit_edge.report.run import Run
from cxrvit_edge.runtime.select import Sessions, open_sessions
from cxrvit_edge.stages import Plan
from cxrvit_edge.summary import REPORT, THUMBNAILS, WORKLIST, Progress, Summary, Tally, summarise
from cxrvit_edge.trace import NoTrace, open_trace
from cxrvit_edge.view_table import ViewTable
from cxrvit_edge.watch import Watch

DAY = 86_400  # seconds
REFRESH = 10.0  # seconds between two writings of the worklist while watching; more where it takes long


class Triage:
    """A bundle and its sessions, ready for any number of runs, one at a time."""

    def __init__(
        self,
        bundle: Bundle,
        sessions: Sessions,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        mode: Mode = "auto",
        limits: Limits | None = None,
        views: StrPath | None = None,
        follow_links: bool = False,
        sensitivity: int = USUAL.sensitivity,
        selective: bool = USUAL.selective,
    ) -> None:
        """batch_size: images a batch, None the session's own; workers: reader threads, None one a core.

        mode: auto runs what is ready, throughput full batches, latency one at a time; a batch size asked for means
        throughput. views: CSV of views; follow_links: also links that lead out of the PATHs. sensitivity: 80 or 95, per
        cent, of the operating points that make flags; selective: a film whose prediction set is not of one class is for
        review. UsageError for a number under 1, a mode unknown or against the batch size, a table that cannot be used,
        or a sensitivity or prediction sets that the bundle does not have.
        """
        for name, value in (("batch size", batch_size), ("workers", workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: must be at least 1")
        if mode not in ("auto", "latency", "throughput"):
            raise UsageError(f"mode is {mode!r}: choose auto, latency or throughput")
        if mode == "latency" and (batch_size or 1) > 1:
            raise UsageError(f"--latency runs one image at a time, --batch-size is {batch_size}: leave one of them out")
        if limits is not None and not 0 < limits.decode_seconds <= DAY:
            raise UsageError(f"--decode-seconds is {limits.decode_seconds:g}: must be above 0 and at most {DAY}")
        self.bundle, self.sessions = bundle, sessions
        self._most = 1 if mode == "latency" else batch_size or sessions.batch_size
        self._mode: Mode = "throughput" if batch_size and mode == "auto" else mode
        self._workers = workers or cores()
        self._limits = limits or Limits()
        self._views = None if views is None else ViewTable(os.fspath(views))
        self._follow_links = follow_links
        name = f"{bundle.manifest.name}@{bundle.sha256[:12]}"
        rule = Rule(sensitivity, selective).require(bundle.manifest)
        self.owner = Owner(name, sessions.backend, sessions.precision, *rule)

    @classmethod
    def open(
        cls,
        bundle: StrPath | Bundle | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        mode: Mode = "auto",
        verify: bool = False,
        limits: Limits | None = None,
        views: StrPath | None = None,
        follow_links: bool = False,
        sensitivity: int = USUAL.sensitivity,
        selective: bool = USUAL.selective,
    ) -> Triage:
        """Open a bundle (None is the embedded one) and sessions that have reproduced its golden outputs here.

        verify: repeat that check though it is on record. BundleError, EngineError, ParityError, UsageError.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(None if bundle is None else os.fspath(bundle))
        head_of(opened)  # a guard that cannot be read is told now, not once an input
        familiar_of(opened)
        Rule(sensitivity, selective).require(opened.manifest)  # before the sessions, which take time
        sessions = open_sessions(opened, backend=backend, precision=precision, verify=verify)
        return cls(
            opened,
            sessions,
            batch_size=batch_size,
            workers=workers,
            mode=mode,
            limits=limits,
            views=views,
            follow_links=follow_links,
            sensitivity=sensitivity,
            selective=selective,
        )

    def __call__(self, paths: StrPath | Iterable[StrPath]) -> Iterator[Finding]:
        """A Finding for each input under `paths`, in the order in which they are done; nothing is written."""
        return self._pipeline(None).run(discover(_several(paths), follow_links=self._follow_links))

    def run(
        self,
        paths: StrPath | Iterable[StrPath],
        out: StrPath,
        *,
        fresh: bool = False,
        verify: bool = False,
        watch: bool = False,
        trace: StrPath | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Summary:
        """Triage `paths` into the folder `out`: results.jsonl, worklist.csv, report.html, thumbnails.

        Results of an earlier run of the same bundle, back end, precision and rule (sensitivity, selective) stand while
        size and time of the file are unchanged, and with `verify` its hash too, unless it failed; `fresh` drops them
        all. watch: go on with what comes until KeyboardInterrupt, which then ends the run as it should; the worklist is
        renewed in between. trace: file for Chrome trace events. UsageError if no path exists or holds a file, if
        `trace` lies under one, if `out` belongs to another bundle, back end, precision or rule, is in use by another
        process, or cannot be written.
        """
        paths, out = _several(paths), Path(out)
        require(paths, out)
        _require_apart(trace, paths, out)
        try:
            return _Run(self, paths, out, progress).write(fresh=fresh, verify=verify, watch=watch, trace=trace)
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else out
            cause = error.strerror or type(error).__name__
            hint = "see to that or give another --out; what was done is kept, run again to go on"
            raise UsageError(f"{where}: cannot be written ({cause}); {hint}") from error

    def _pipeline(self, pictures: Path | None, trace: NoTrace | None = None) -> Pipeline:
        return Pipeline(
            Plan(
                bundle=self.bundle,
                sessions=self.sessions,
                owner=self.owner,
                workers=self._workers,
                most=self._most,
                mode=self._mode,
                limits=self._limits,
                view_of=self._views,
                pictures=pictures,
                trace=trace or NoTrace(),
            )
        )


class _Run:
    """One run into a folder. The journal is asked by the feeder's thread and written by the caller's: in turns."""

    def __init__(
        self,
        triage: Triage,
        paths: list[StrPath],
        out: Path,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._triage, self._paths, self._out, self._trace = triage, paths, out, NoTrace()
        self._tally = Tally(progress)
        self._turn = threading.Lock()
        self._started, self._start = datetime.now(timezone.utc), perf_counter()
        self._journalling = 0.0
        self._verify = False
        self._inputs: Watch | _Unfinished | None = None
        self._wrote, self._pause, self._dirty = monotonic(), REFRESH, True

    def write(self, *, fresh: bool, verify: bool, watch: bool, trace: StrPath | None) -> Summary:
        self._verify = verify
        with (
            Journal(self._out, self._triage.owner, fresh=fresh) as journal,
            closing(open_trace(trace)) as self._trace,  # no other run's, as the folder is held
            _cleared(self._out / THUMBNAILS),
        ):
            if fresh:
                _remove_outputs(self._out)
            pipeline = self._triage._pipeline(self._out / THUMBNAILS, self._trace)
            try:
                self._take(pipeline, journal, watch)
            except KeyboardInterrupt:
                if not watch:
                    raise
            summary = self._outputs(pipeline, journal)
        if not self._tally.done and not self._tally.resumed and not watch:
            where = ", ".join(os.fspath(path) for path in self._paths)
            raise UsageError(f"no files under {where}; check that this is the folder with the radiographs")
        return summary

    def _take(self, pipeline: Pipeline, journal: Journal, watch: bool) -> None:
        def stands(found: Found) -> bool:
            return self._stands(found, journal)

        def passed(_: Found) -> None:
            self._tally.resume()

        follow = self._triage._follow_links
        inputs: Watch | _Unfinished
        if watch:
            inputs = Watch(self._paths, leave_out=self._out, stands=stands, passed=passed, follow_links=follow)
        else:
            inputs = _Unfinished(discover(self._paths, leave_out=self._out, follow_links=follow), stands, passed)
        self._inputs = inputs

        def idle() -> None:
            if isinstance(inputs, Watch):
                self._refresh(pipeline, journal, at_rest=inputs.idle)

        with closing(pipeline.run(inputs, idle)) as findings:
            for finding in findings:
                before = perf_counter()
                with self._turn:
                    journal.append(finding)
                after = perf_counter()
                self._journalling += after - before
                self._trace.span(finding.file, "append", before, after, "journal")
                self._tally.add(finding)
                self._dirty = True
                if watch:
                    self._refresh(pipeline, journal, at_rest=False)

    def _refresh(self, pipeline: Pipeline, journal: Journal, at_rest: bool) -> None:
        """The worklist and the report anew, when nothing more is coming at once, or when they are old."""
        now = monotonic()
        if self._dirty and now - self._wrote >= (min(1.0, self._pause) if at_rest else self._pause):
            self._outputs(pipeline, journal, compact=False)
            self._wrote, self._dirty = monotonic(), False
            self._pause = max(REFRESH, 10 * (self._wrote - now))

    def _outputs(self, pipeline: Pipeline, journal: Journal, compact: bool = True) -> Summary:
        from cxrvit_edge.report.html import write_report
        from cxrvit_edge.report.worklist import ranked, write_worklist

        triage, tally, out = self._triage, self._tally, self._out
        manifest, ledger = triage.bundle.manifest, self._ledger(pipeline)
        watched = self._inputs.notes if isinstance(self._inputs, Watch) else ()
        with self._turn:
            notes = (*triage.sessions.notes, *_notes(journal), *watched, *self._trace.notes)
            if compact:
                journal.compact()
            files = journal.files()
            rank = ranked(files, journal.findings(files), manifest)
            ordered = journal.findings(rank.files)
            run = Run(
                bundle=manifest.name,
                bundle_sha256=triage.bundle.sha256,
                backend=triage.sessions.backend,
                backend_version=triage.sessions.version,
                precision=triage.sessions.precision,
                started=self._started.isoformat(timespec="seconds"),
                seconds=round(perf_counter() - self._start, 3),
                done=tally.done,
                resumed=tally.resumed,
                stage_ms=tally.mean(),
                rule=triage.owner.rule,
                notes=(*notes, *ledger.advice()),
            )
            write_worklist(out / WORKLIST, ordered, manifest)
            write_report(out / REPORT, ordered, run, manifest, out / THUMBNAILS, (rank.statuses, rank.priorities))
        return summarise(run, rank.statuses, rank.priorities, tally, manifest.priority.order, out, ledger)

    def _ledger(self, pipeline: Pipeline) -> Ledger:
        triage, clock = self._triage, pipeline.clock
        return Ledger(
            wall=perf_counter() - clock.start,
            images=self._tally.done,
            workers=triage._workers,
            cores=cores(),
            stages={stage: ms / 1e3 for stage, ms in self._tally.total.items()},
            run=clock.run,
            starved=clock.starved,
            blocked=clock.blocked,
            held=clock.held,
            journal=self._journalling,
            batches=clock.batches,
            ran=clock.ran,
            batch_size=triage._most,
            mode=triage._mode,
            precision=triage.sessions.precision,
            gpu=triage.sessions.backend.startswith("tensorrt"),
        )

    def _stands(self, found: Found, journal: Journal) -> bool:
        """Whether an earlier result still holds: not failed, and file and table of views are as they were."""
        if found.problem is not None:
            return False
        with self._turn:
            entry = journal.get(found.file)
        if entry is None or entry.status == "failed":
            return False
        size, mtime_ns = found.size, found.mtime_ns
        if size is None or mtime_ns is None:
            try:
                now = os.stat(found.path)  # noqa: PTH116  there may be a million
            except (OSError, ValueError):
                return False
            size, mtime_ns = now.st_size, now.st_mtime_ns
        if (size, mtime_ns) != (entry.size, entry.mtime_ns):
            return False
        views = self._triage._views
        view: View | None = views(found) if views and entry.status == "ok" else None
        if view not in (None, entry.view):
            return False
        return not self._verify or self._same(found, journal)

    def _same(self, found: Found, journal: Journal) -> bool:
        """Whether the file's content is what was judged; one that was too large to be hashed then is not hashed now."""
        with self._turn:
            recorded = journal.sha256(found.file)
        if recorded is None:
            return True
        digest = hashlib.sha256()
        try:
            with open(found.path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    if self._inputs is not None and self._inputs.stopped:
                        return False  # nobody waits for it any more
        except OSError:
            return False
        return digest.hexdigest() == recorded


class _Unfinished:
    """Inputs whose results do not stand; iterated once, in one thread."""

    def __init__(
        self, found: Iterable[Found], stands: Callable[[Found], bool], passed: Callable[[Found], None]
    ) -> None:
        self._found, self._stands, self._passed = found, stands, passed
        self.stopped = False

    def stop(self) -> None:
        """End the iteration, from any thread: there may be a million whose results stand, or long ones to be hashed."""
        self.stopped = True

    def __iter__(self) -> Iterator[Found]:
        for found in self._found:
            if self.stopped:
                return
            if self._stands(found):
                self._passed(found)
            else:
                yield found


def _require_apart(trace: StrPath | None, paths: Iterable[StrPath], out: Path) -> None:
    """UsageError if a trace would be found as an input: a watch would read what it writes, for ever."""
    if trace is None:
        return
    real = Path(os.path.realpath(trace))
    if real.is_relative_to(os.path.realpath(out)):
        return
    for path in paths:
        if real.is_relative_to(os.path.realpath(path)) and Path(path).is_dir():
            lies = f"--trace {printable(os.fspath(trace))}: lies under the PATH {printable(os.fspath(path))}"
            raise UsageError(f"{lies} and would be taken for an input; put it into the folder of --out, or elsewhere")


def _notes(journal: Journal) -> Iterator[str]:
    if journal.damaged:
        yield f"{journal.damaged} damaged lines of {RESULTS} were dropped; their inputs were done again if still there"
    if journal.unlocked:
        yield "the output folder's file system has no locks: do not run two at once into it"


def _several(paths: StrPath | Iterable[StrPath]) -> list[StrPath]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


@contextmanager
def _cleared(pictures: Path) -> Iterator[None]:
    thumbnails.clear_unfinished(pictures)
    try:
        yield
    finally:
        thumbnails.clear_unfinished(pictures)


def _remove_outputs(out: Path) -> None:
    """What an earlier run wrote, by name; nothing else in the folder is touched."""
    for name in (WORKLIST, REPORT):
        (out / name).unlink(missing_ok=True)
    for pattern in ("*.jpg", "*.overlay.png", "*.relevance.jpg"):
        for path in (out / THUMBNAILS).glob("[0-9a-f]" * 64 + pattern[1:]):
            path.unlink()
