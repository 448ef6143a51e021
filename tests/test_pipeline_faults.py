"""What must not happen around the pipeline: threads left behind, memory held, a run that cannot be ended."""

from __future__ import annotations

import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeSession, make_bundle, sessions, write_bundle, write_films

from cxrvit_edge import prepare as preparing
from cxrvit_edge import triage as triaging
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found
from cxrvit_edge.errors import InputError, Reason, UsageError
from cxrvit_edge.prepare import Recipe, prepare
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.progress import ProgressLine
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.summary import Progress
from cxrvit_edge.triage import Triage
from cxrvit_edge.watch import Watch
from cxrvit_edge.workers import Workers

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.dcm"))
PATIENCE = 60  # seconds
RECIPE = Recipe(PreprocessConfig(), pictures=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(RECIPE) as started:
        yield started


@pytest.fixture
def interrupt_soon() -> Iterator[None]:
    """Ctrl-C in a while."""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


HALF_WAY = """
import sys
from pathlib import Path
from fakes import FakeSession, make_bundle, sessions
from cxrvit_edge.triage import Triage
folder = Path(sys.argv[1])
findings = Triage(make_bundle(folder / "bundle"), sessions(FakeSession(seconds=0.01)))(folder / "in")
print(next(findings).status)
"""


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_an_iterator_left_half_way_ends_with_the_interpreter(tmp_path: Path, suffix: str) -> None:
    """As in a script that stops at what it looked for: native code must not run on while the interpreter ends."""
    write_films(tmp_path / "in", 30, suffix)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", HALF_WAY, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


def test_threads_that_cannot_be_had(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_films(tmp_path / "in", 3)
    started: Iterator[int] = itertools.count()
    start = threading.Thread.start

    def limited(self: threading.Thread) -> None:
        if next(started) == 3:
            raise RuntimeError("can't start new thread")
        start(self)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        list(Triage(bundle, sessions(FakeSession()), workers=4)(tmp_path / "in"))
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [InputError(Reason.BLANK, "blank"), ValueError("a fault of ours")])
def test_an_input_that_fails_holds_no_pixels(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An error's traceback holds frames, and they the file and its pixels, until the garbage collector comes by."""
    write_films(tmp_path / "in", 5)
    seen: list[weakref.ref[Radiograph]] = []

    def refuse(radiograph: Radiograph) -> None:
        seen.append(weakref.ref(radiograph))
        raise type(error)(*([error.reason] if isinstance(error, InputError) else []), str(error))

    monkeypatch.setattr(preparing, "check_pixels", refuse)
    gc.disable()
    try:
        found = list(Triage(bundle, sessions(FakeSession()))(tmp_path / "in"))
        assert len(found) == len(seen) == 5 and "ok" not in {f.status for f in found}
        assert not [ref for ref in seen if ref() is not None]
    finally:
        gc.enable()


def test_ctrl_c_while_earlier_results_are_passed_over(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_soon: None
) -> None:
    (path,) = write_films(tmp_path / "in", 1)
    engine = Triage(bundle, sessions(FakeSession()))
    engine.run(tmp_path / "in", tmp_path / "out")
    passed = itertools.count()

    def endless(*_: object, **__: object) -> Iterator[Found]:
        while next(passed) < 5_000_000:
            yield Found(str(path), path.as_posix())

    monkeypatch.setattr(triaging, "discover", endless)
    with pytest.raises(KeyboardInterrupt):
        engine.run(tmp_path / "in", tmp_path / "out")
    assert next(passed) < 5_000_000


@pytest.mark.parametrize("watch", [False, True])
def test_ctrl_c_while_a_long_file_is_compared_by_hash(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt_soon: None, watch: bool
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i}.txt").write_text("no radiograph")
    engine = Triage(bundle, sessions(FakeSession()))
    engine.run(tmp_path / "in", tmp_path / "out")
    blocks = itertools.count()

    class Slow:
        """Hashing as of a long file on a slow share."""

        def update(self, _: bytes) -> None:
            next(blocks)
            time.sleep(1)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr(triaging, "hashlib", SimpleNamespace(sha256=Slow))
    if watch:
        assert engine.run(tmp_path / "in", tmp_path / "out", verify=True, watch=True).inputs == 20
    else:
        with pytest.raises(KeyboardInterrupt):
            engine.run(tmp_path / "in", tmp_path / "out", verify=True)
    assert next(blocks) < 10


def test_a_file_that_grows_for_ever_holds_up_no_batch(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that waits for full batches gives what it has when nothing follows soon."""

    class Quick(Watch):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, settle=0.3)

    monkeypatch.setattr(triaging, "Watch", Quick)
    write_films(tmp_path / "in", 3)
    stop = threading.Event()

    def grow() -> None:
        with open(tmp_path / "in" / "upload.dcm", "ab", buffering=0) as upload:
            until = time.monotonic() + PATIENCE
            while not stop.wait(0.05) and time.monotonic() < until:
                upload.write(b"x" * 100)
        os.kill(os.getpid(), signal.SIGINT)

    def seen(progress: Progress) -> None:
        if progress.done == 3:
            grew.append(not stop.is_set())
            stop.set()

    grew: list[bool] = []
    growing = threading.Thread(target=grow)
    growing.start()
    summary = Triage(bundle, sessions(FakeSession()), batch_size=8).run(
        tmp_path / "in", tmp_path / "out", watch=True, progress=seen
    )
    growing.join()
    assert grew == [True] and summary.statuses["ok"] == 3


def test_a_trace_among_the_inputs_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_films(tmp_path / "in", 1)
    engine = Triage(bundle, sessions(FakeSession()))
    with pytest.raises(UsageError, match="lies under the PATH"):
        engine.run(tmp_path / "in", tmp_path / "in" / "out", trace=tmp_path / "in" / "trace.json")
    assert not (tmp_path / "in" / "trace.json").exists()
    engine.run(tmp_path / "in", tmp_path / "in" / "out", trace=tmp_path / "in" / "out" / "trace.json")
    assert (tmp_path / "in" / "out" / "trace.json").read_text().rstrip().endswith("]")


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e10, 0.0, -1.0])
def test_a_time_limit_that_no_clock_knows_is_refused(bundle: Bundle, seconds: float) -> None:
    with pytest.raises(UsageError, match="--decode-seconds"):
        Triage(bundle, sessions(FakeSession()), limits=Limits(decode_seconds=seconds))


def test_a_terminal_that_is_closed_does_not_end_the_run(bundle: Bundle, tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    films = write_films(tmp_path / "in", 3)
    with ProgressLine(films, tmp_path / "out", shown=True, stream=Closed()) as line:
        summary = Triage(bundle, sessions(FakeSession())).run(films, tmp_path / "out", progress=line.update)
    assert summary.statuses["ok"] == 3


def test_sigterm_twice_ends_a_watch_as_one_does(tmp_path: Path) -> None:
    """Supervisors and `timeout` send it to the process and to its group."""
    write_bundle(tmp_path / "bundle")
    write_films(tmp_path / "in", 2)
    out = tmp_path / "out"
    arguments = ["triage", str(tmp_path / "in"), "--out", str(out), "--bundle", str(tmp_path / "bundle"), "--watch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(ROOT / "tests" / "slow_cli.py"), *arguments], env=environment) as run:
        until = time.monotonic() + PATIENCE
        while not ((out / "results.jsonl").exists() and (out / "results.jsonl").stat().st_size):
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        while run.poll() is None and time.monotonic() < until:
            run.send_signal(signal.SIGTERM)
            time.sleep(0.005)
        run.kill()
    assert run.returncode == 0
    assert (out / "worklist.csv").exists() and (out / "report.html").exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_dicom_is_the_same_in_a_worker_and_in_a_thread(workers: Workers, path: Path) -> None:
    theirs, ours = workers.prepare(str(path)), prepare(str(path), RECIPE)
    assert (theirs.sha256, theirs.view, theirs.warnings) == (ours.sha256, ours.view, ours.warnings)
    assert (theirs.error and (theirs.error.reason, str(theirs.error))) == (
        ours.error and (ours.error.reason, str(ours.error))
    )
    assert theirs.geometry == ours.geometry
    for name in ("tensor", "description", "thumbnail"):
        one, other = getattr(theirs, name), getattr(ours, name)
        assert (one is None) == (other is None) and (one is None or (one == other).all()), name
