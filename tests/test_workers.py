"""Worker processes: what they give, and what a file costs that kills, stops or swamps one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import SIZE, FakeSession, film, make_bundle, sessions, write_films

from cxrvit_edge import worker as child
from cxrvit_edge.errors import Reason
from cxrvit_edge.guard import describe
from cxrvit_edge.prepare import Recipe, place, prepare
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.radiograph import Limits
from cxrvit_edge.triage import Triage
from cxrvit_edge.workers import BOOT, Workers

RECIPE = Recipe(PreprocessConfig(size=SIZE), pictures=True)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")


def test_where_a_file_is_decoded(tmp_path: Path) -> None:
    for suffix, where in ((".png", "thread"), (".jpg", "thread"), (".tiff", "worker"), (".bmp", "worker")):
        (path,) = write_films(tmp_path / suffix[1:], 1, suffix)
        assert place(str(path)) == where
        (tmp_path / "odd.dat").write_bytes(path.read_bytes())
        assert place(str(tmp_path / "odd.dat")) == where  # by content
    (tmp_path / "dicom").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "text.txt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.dcm")
    places = {name: place(str(tmp_path / name)) for name in ("dicom", "text.txt", "pipe.dcm", "absent.dcm", "\0")}
    assert places == {
        "dicom": "worker",
        "text.txt": "thread",
        "pipe.dcm": "thread",
        "absent.dcm": "thread",
        "\0": "thread",
    }


def test_a_worker_gives_what_a_thread_gives(tmp_path: Path) -> None:
    paths = write_films(tmp_path, 3, ".bmp")
    (tmp_path / "cut.bmp").write_bytes(paths[0].read_bytes()[:-100])
    spans: list[tuple[str, float, float]] = []
    with Workers(RECIPE) as workers:
        for path in paths:
            theirs = workers.prepare(str(path), lambda *span: spans.append(span))
            ours = prepare(str(path), RECIPE)
            assert theirs.tensor is not None and ours.tensor is not None and theirs.geometry == ours.geometry
            assert theirs.description is not None and theirs.geometry is not None and theirs.thumbnail is not None
            np.testing.assert_array_equal(theirs.tensor, ours.tensor)
            np.testing.assert_array_equal(theirs.description, describe(theirs.tensor, theirs.geometry))
            np.testing.assert_array_equal(theirs.thumbnail, ours.thumbnail)
            assert (theirs.sha256, theirs.view, theirs.warnings) == (ours.sha256, ours.view, ours.warnings)
        cut = workers.prepare(str(tmp_path / "cut.bmp"))
        assert cut.error is not None and cut.error.reason is Reason.TRUNCATED and cut.tensor is None and cut.sha256
        assert len(workers.pids) == 1  # the same for all that asked one after another
        (pid,) = workers.pids
    assert [stage for stage, _, _ in spans] == ["read", "decode", "preprocess"] * 3
    assert all(start <= end for _, start, end in spans)
    assert gone(pid)


def test_a_decoder_that_aborts_costs_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child.CRASH, "film002")
    films = write_films(tmp_path / "in", 6, ".bmp")
    found = {Path(f.file).name: f for f in Triage(make_bundle(tmp_path / "b"), sessions(FakeSession()))(films)}
    bad = found.pop("film002.bmp")
    assert bad.status == "failed" and bad.reason is not None and bad.reason["code"] == "decoder_died"
    assert bad.reason["message"].startswith("film002.bmp: the decoder crashed (SIGABRT)")
    assert len(found) == 5 and {f.status for f in found.values()} == {"ok"}


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "film.bmp"
    path.write_bytes(cv2.imencode(".bmp", np.resize(film(1), (9000, 9000)))[1].tobytes())
    limits = Limits(decode_seconds=0.01)  # the time that a worker takes to start is not counted
    with Workers(Recipe(RECIPE.config, limits)) as workers:
        slow = workers.prepare(str(path))
        assert slow.error is not None and slow.error.reason is Reason.TIMED_OUT
        assert "--decode-seconds" in str(slow.error)
        assert workers.pids == []


def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    (path,) = write_films(tmp_path, 1, ".bmp")
    with Workers(RECIPE) as workers:
        workers.prepare(str(path))
        (idle,) = workers.pids
        os.kill(idle, signal.SIGKILL)
        while not gone(idle):
            pass
        assert workers.prepare(str(path)).error is None  # no file is to blame
        large = tmp_path / "large.bmp"
        large.write_bytes(cv2.imencode(".bmp", np.resize(film(1), (9000, 9000)))[1].tobytes())
        (busy,) = workers.pids
        os.kill(busy, signal.SIGSTOP)
        kill = threading.Timer(0.3, os.kill, (busy, signal.SIGKILL))
        kill.start()
        killed = workers.prepare(str(large))
        kill.join()
        assert killed.error is not None and killed.error.reason is Reason.DECODER_DIED
        assert "crashed (SIGKILL)" in str(killed.error)
        assert workers.prepare(str(path)).error is None


@pytest.mark.parametrize(
    ("boot", "cause"), [("raise SystemExit(3)", "it ended (exit code 3)"), ("import time; time.sleep(60)", "not ready")]
)
def test_a_worker_that_does_not_start_blames_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, cause: str
) -> None:
    monkeypatch.setattr("cxrvit_edge.workers.BOOT", boot)
    monkeypatch.setattr("cxrvit_edge.workers.START", 2.0)
    (path,) = write_films(tmp_path, 1, ".bmp")
    with Workers(RECIPE) as workers:
        error = workers.prepare(str(path)).error
        assert error is not None and error.reason is Reason.INTERNAL and workers.pids == []
    assert str(error).startswith(f"film000.bmp: no worker process to decode it in ({cause}") and "limits" in str(error)


def test_a_process_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays open either: an unclosed socket would be a warning, and that an error."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "absent"))
    (path,) = write_films(tmp_path, 1, ".bmp")
    before = set(Path("/proc/self/fd").iterdir())
    with Workers(RECIPE) as workers:
        error = workers.prepare(str(path)).error
    assert error is not None and error.reason is Reason.INTERNAL and "No such file or directory" in str(error)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_fault_of_ours_in_a_worker_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "import cxrvit_edge.prepare as p; p.decode = lambda *_: [][1]; main()"
    monkeypatch.setattr("cxrvit_edge.workers.BOOT", BOOT.replace("main()", fault))
    films = write_films(tmp_path / "in", 1, ".bmp")
    (found,) = Triage(make_bundle(tmp_path / "b"), sessions(FakeSession()))(films)
    assert found.status == "failed" and found.reason is not None and found.reason["code"] == "internal"
    assert found.reason["message"].startswith("film000.bmp: unexpected IndexError at <string>:1; run again")


def test_a_worker_imports_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the stick that the films came on."""
    (path,) = write_films(tmp_path / "in", 1, ".bmp")
    for name in ("json", "numpy", "cv2", "cxrvit_edge", "mmap"):
        (path.parent / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr("sys.path", [str(Path(entry).absolute()) for entry in sys.path if entry])
    with Workers(RECIPE) as workers:
        assert workers.prepare(path.name).error is None
    assert not (tmp_path / "ran").exists()


def test_a_worker_starts_while_another_thread_imports_cv2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which puts its own folder, with a `typing` in it, first on the path meanwhile."""
    (path,) = write_films(tmp_path, 1, ".bmp")
    package = Path(cv2.__file__).parent
    assert (package / "typing").is_dir()
    monkeypatch.setattr("sys.path", [str(package), *sys.path])
    with Workers(RECIPE) as workers:
        assert workers.prepare(str(path)).error is None


def test_descriptors_beyond_a_thousand(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("no more than a thousand descriptors are allowed here")
    (path,) = write_films(tmp_path, 1, ".bmp")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    held = [os.dup(0) for _ in range(1030)]
    try:
        with Workers(RECIPE) as workers:
            assert workers.prepare(str(path)).error is None
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    path = tmp_path / "large.bmp"
    path.write_bytes(cv2.imencode(".bmp", np.resize(film(1), (4000, 4000)))[1].tobytes())
    with Workers(RECIPE) as workers:
        workers.prepare(str(path))
        limits = Path(f"/proc/{workers.pids[0]}/limits").read_text()
    assert (
        str(min(x for x in (child.MEMORY, before[1]) if x > 0)) in limits.split("Max address space")[1].split("\n")[0]
    )
    assert resource.getrlimit(resource.RLIMIT_AS) == before  # of the worker alone


def test_closing_ends_what_is_at_work(tmp_path: Path) -> None:
    """As Ctrl-C does while a long decoding goes on."""
    path = tmp_path / "film.bmp"
    path.write_bytes(cv2.imencode(".bmp", np.resize(film(1), (9000, 9000)))[1].tobytes())
    workers = Workers(RECIPE)
    asked = threading.Thread(target=lambda: workers.prepare(str(path)))
    asked.start()
    while not workers.pids:
        pass
    (pid,) = workers.pids
    workers.close()
    asked.join(30)
    assert not asked.is_alive() and gone(pid)


def test_no_worker_is_started_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("a worker for a PNG")

    monkeypatch.setattr("cxrvit_edge.workers._Worker", start)
    films = write_films(tmp_path / "in", 2)
    assert all(f.status == "ok" for f in Triage(make_bundle(tmp_path / "b"), sessions(FakeSession()))(films))
