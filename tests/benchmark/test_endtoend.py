"""From files to a worklist and one file at a time, with sessions that need no network."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import fakes
import pytest

from cxrvit_edge.benchmark import endtoend
from cxrvit_edge.benchmark.candidates import Contender
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.session import Float32, Outputs


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fakes.make_bundle(tmp_path / "bundle")


def contender(name: str, session: fakes.FakeSession) -> Contender:
    return Contender(name, "fp32", fakes.sessions(session), {})


def test_runs_are_interleaved_counted_and_leave_nothing(bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    order: dict[threading.Thread, str] = {}  # every run has a thread of its own for the network

    class Session(fakes.FakeSession):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def run(self, batch: Float32) -> Outputs:
            order[threading.current_thread()] = self.name
            return super().run(batch)

    paths = fakes.write_films(tmp_path / "films", 30)
    (tmp_path / "films" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    files = endtoend.chosen([*paths, tmp_path / "films" / "bad.png"], "films of a test")
    steps: list[float] = []
    figures, failed = endtoend.measure(
        [contender("a", Session("a")), contender("b", Session("b"))], bundle, files, progress=steps.append
    )
    assert failed == {} and list(figures) == ["a", "b"]
    alone = "abba" * 3
    assert "".join(order.values()) == "ab" + "ba" + "ab" + alone[: 2 * 6], "warm-up, two rounds, blocks of files alone"
    for found in figures.values():
        assert found["images"] == 31 and found["files"] == "31 PNG: films of a test"
        assert found["statuses"] == {"ok": 30, "rejected": 0, "failed": 1}
        assert 0 < found["first_result_s"] <= found["seconds"]
        assert found["images_a_second"] == pytest.approx(31 / found["seconds"], rel=0.01)
        assert set(found["stage_ms"]) == {"queue", "read", "decode", "preprocess", "run", "interpret", "write"}
        assert sum(found["shares"].values()) == pytest.approx(1.0, abs=1e-3)
        alone = found["single_file_ms"]
        assert 0 < alone["p50"] <= alone["p90"] <= alone["p99"]
    assert steps == sorted(steps) and steps[-1] == 1.0
    assert list(temporary.iterdir()) == []


def test_files_are_spaced_over_all() -> None:
    paths = [Path(f"{i:03d}.{'dcm' if i % 2 else 'JPG'}") for i in range(200)]
    files = endtoend.chosen(paths, "films", most=50)
    assert files.paths == paths[::4] and files.told == "50 JPEG: evenly spaced over 200 films"
    assert endtoend.chosen(paths[:3], "films").told == "1 DICOM, 2 JPEG: films"


def test_files_that_get_no_result_are_not_timed_alone(bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    (good,) = fakes.write_films(tmp_path / "films", 1)
    figures, failed = endtoend.measure(
        [contender("a", fakes.FakeSession())], bundle, endtoend.chosen([path, good], "files"), rounds=1
    )
    assert failed == {} and figures["a"]["statuses"] == {"ok": 1, "rejected": 0, "failed": 1}
    figures, failed = endtoend.measure(
        [contender("a", fakes.FakeSession())], bundle, endtoend.chosen([path], "file"), rounds=1
    )
    assert figures == {} and failed["a"].startswith("end to end: all 1 files failed")


def test_a_session_that_fails_has_no_speed(bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    """Files that a back end fails over are done fast: its images a second would be the most of all."""

    class Session(fakes.FakeSession):
        def run(self, batch: Float32) -> Outputs:
            raise EngineError("no")

    files = endtoend.chosen(fakes.write_films(tmp_path / "films", 3), "films")
    figures, failed = endtoend.measure(
        [contender("a", Session()), contender("b", fakes.FakeSession())], bundle, files, rounds=1
    )
    assert list(figures) == ["b"] and "all 3 files failed" in failed["a"]


def test_an_interrupt_leaves_no_file_and_no_thread(bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    files = endtoend.chosen(fakes.write_films(tmp_path / "films", 9), "films")
    before = set(threading.enumerate())

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endtoend.measure([contender("a", fakes.FakeSession())], bundle, files, progress=stop)
    assert list(temporary.iterdir()) == [] and set(threading.enumerate()) == before


def test_no_room_for_a_run_is_told(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = endtoend.chosen(fakes.write_films(tmp_path / "films", 2), "films")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    figures, failed = endtoend.measure([contender("a", fakes.FakeSession())], bundle, files)
    assert figures == {} and failed["a"].startswith("end to end: ")


def test_phantoms_are_readable_films_of_three_kinds(tmp_path: Path) -> None:
    files = endtoend.write_phantoms(tmp_path, 2)
    assert files.told.startswith("2 DICOM, 2 JPEG, 2 PNG: phantoms")
    found = [read(path) for path in files.paths]
    assert [r.pixels.shape for r in found] == [(1024, 896)] * 6
    assert [r.view for r in found] == ["PA", "unknown", "unknown"] * 2
    assert [str(r.pixels.dtype) for r in found] == ["uint16", "uint16", "uint8"] * 2
    assert all(not r.warnings for r in found if r.view != "unknown")
