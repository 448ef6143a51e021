"""Part of benchmarks/pipeline.py: peak memory of a run over few and over many inputs, children included (Linux).

The run uses the default bundle's own session for the first batches, stored outputs for the rest, so that many thousand
end in minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import harness
from benchmarks.triage_common import InstantSession, Options, copies, dicoms, jpegs, row
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.select import open_sessions
from cxrvit_edge.runtime.session import Outputs, Session
from cxrvit_edge.triage import Triage

PEAK_MB, GROWTH = 700, 1.05
DIFFERENT = 256  # files, of which one in DICOM_EVERY is DICOM
DICOM_EVERY = 8  # often enough that both workers are at work in the short run too
REAL_BATCHES = 64
EVERY = 0.2  # seconds between two looks


def measure(options: Options) -> list[dict[str, Any]]:
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("peak memory is read from /proc: run it on Linux")
    few, many = (options.count(500, 100), options.count(500, 100) * (10 if options.quick else 40))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        films, scans = jpegs(DIFFERENT * (DICOM_EVERY - 1) // DICOM_EVERY, work), dicoms(DIFFERENT // DICOM_EVERY, work)
        mixed = list(films.paths)
        for i, scan in enumerate(scans.paths):
            mixed.insert(i * DICOM_EVERY, scan)
        peaks = {}
        for n in (few, many):
            copies(mixed, n, work / str(n))
            peaks[n] = watch(work / str(n), work / f"out{n}")
            print(f"{n} inputs: {peaks[n].told()}", flush=True)
        what = f"{films.what}; one in {DICOM_EVERY} of {scans.what}"
    how = (
        f"Triage.run in a fresh process, default bundle; first {REAL_BATCHES} batches in the real session, then stored "
        "outputs; peak of the summed PSS of the process and its children, looked at every "
        f"{EVERY} s"
    )
    rows = [
        row(
            f"peak memory of {n} inputs / {PEAK_MB} MB",
            "MB",
            peaks[n].together,
            PEAK_MB,
            at_most=1.0,
            n=n,
            images=what,
            note=f"{how}; {peaks[n].told()}",
        )
        for n in (few, many)
    ]
    note = "the same runs"
    growth = row(
        f"peak memory of {many} inputs / of {few}",
        "MB",
        peaks[many].together,
        peaks[few].together,
        at_most=GROWTH,
        n=many,
        images=what,
        note=note,
    )
    return [*rows, growth]


@dataclass
class Peak(harness.Peak):
    """Of a run, and how long it took."""

    seconds: float = 0.0
    statuses: str = ""

    def told(self) -> str:
        return (
            f"{self.together:.0f} MB together; RSS of the main process {self.main:.0f}, of the largest of "
            f"{self.most_children} children {self.workers:.0f}; {self.seconds:.0f} s; {self.statuses}"
        )


def watch(folder: Path, out: Path) -> Peak:
    """Peak of a fresh process that triages `folder`."""
    start = perf_counter()
    command = [sys.executable, "-c", "from benchmarks.triage_memory import run; run()", str(folder), str(out)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process,
        harness.watched(process.pid, EVERY) as seen,
    ):
        told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run over {folder.name} inputs ended with {process.returncode}")
    result = json.loads(told)
    peak = Peak(**vars(seen), seconds=perf_counter() - start, statuses=f"statuses {result['statuses']}")
    peak.main = max(peak.main, result["peak_rss_mb"])
    return peak


class FirstReal:
    """A real session for the first batches, stored outputs for the rest."""

    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, real: Session, stored: InstantSession) -> None:
        self.backend, self.version, self.precision = real.backend, real.version, real.precision
        self.fingerprint = real.fingerprint
        self._real, self._stored, self._left = real, stored, REAL_BATCHES

    def run(self, batch: Float32) -> Outputs:
        self._left -= 1
        return self._real.run(batch) if self._left >= 0 else self._stored.run(batch)


def run() -> None:
    """In the process that is watched, started by -c so that its workers import nothing of this. argv: folder, out."""
    import resource

    folder, out = sys.argv[1:]
    bundle = Bundle.open()
    opened = open_sessions(bundle)
    by_graph = {graph: FirstReal(real, InstantSession(bundle, graph)) for graph, real in opened.by_graph.items()}
    summary = Triage(bundle, replace(opened, by_graph=by_graph)).run(folder, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    json.dump({"statuses": summary.statuses, "peak_rss_mb": peak}, sys.stdout)
