"""Worker processes: what they give, and what a file costs that kills, stops or swamps one."""

from __future__ import annotations

import os
import signal
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
from cxrvit_edge.workers import Workers

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


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrvit_edge.workers.START", 0.0)
    (path,) = write_films(tmp_path, 1, ".bmp")
    limits = Limits(decode_seconds=0.01)  # less than a process takes to start
    with Workers(Recipe(RECIPE.config, limits)) as workers:
        slow = workers.prepare(str(path))
        assert slow.error is not None and slow.error.reason is Reason.TIMED_OUT
        assert "--decode-seconds" in str(slow.error)
        assert workers.pids == []


def test_a_worker_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    (path,) = write_films(tmp_path, 1, ".bmp")
    with Workers(RECIPE) as workers:
        workers.prepare(str(path))
        os.kill(workers.pids[0], signal.SIGKILL)
        killed = workers.prepare(str(path))
        assert (
            killed.error is not None and killed.error.reason is Reason.DECODER_DIED and "SIGKILL" in str(killed.error)
        )
        assert workers.prepare(str(path)).error is None


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
