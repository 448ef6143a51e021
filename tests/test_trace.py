from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from cxrvit_edge import trace as module
from cxrvit_edge.errors import UsageError
from cxrvit_edge.trace import NoTrace, Trace, open_trace


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_bytes()) if event["ph"] == kind]


def test_a_closed_trace_is_json_with_every_event(tmp_path: Path) -> None:
    path, start = tmp_path / "trace.json", perf_counter()
    trace = open_trace(path)
    trace.span("a.dcm", "decode", start + 1, start + 1.5, "reader 0", {"bytes": 12})
    trace.span("a.dcm", "run", start + 2, start + 2.25, "network")
    trace.count("ready", 3, start + 2)
    trace.close()
    trace.close()
    assert trace.notes == ()
    decode, run = events(path, "X")
    assert decode["name"] == decode["cat"] == "decode"
    assert decode["args"] == {"name": "a.dcm", "bytes": 12}
    assert decode["dur"] == pytest.approx(500_000, abs=1)
    assert run["ts"] - decode["ts"] == pytest.approx(1_000_000, abs=1)
    assert {event["pid"] for event in json.loads(path.read_bytes())} == {os.getpid()}
    named = {event["tid"]: event["args"]["name"] for event in events(path, "M") if event["name"] == "thread_name"}
    assert (named[decode["tid"]], named[run["tid"]]) == ("reader 0", "network")
    assert [event["args"]["name"] for event in events(path, "M") if event["name"] == "process_name"] == ["cxrvit-edge"]
    (count,) = events(path, "C")
    assert (count["name"], count["args"], count["ts"]) == ("ready", {"value": 3}, run["ts"])


def test_names_are_defused_and_figures_stay_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path)
    args = {"nan": float("nan"), "none": None, "yes": True, "path": Path("a\x1b[2Jb"), "float": 0.5}
    trace.span('r\udcf6nt"gen\n\u202e.png', "read", 0, 0, "lane\n", args)
    trace.count("depth\n", float("inf"), 0)
    trace.close()
    text = path.read_text("ascii")
    assert "\\ud" not in text and "\\u202e" not in text and "\\u001b" not in text
    (span,) = events(path, "X")
    assert span["args"] == {
        "name": 'r?nt"gen??.png',
        "nan": None,
        "none": None,
        "yes": True,
        "path": "a?[2Jb",
        "float": 0.5,
    }
    assert events(path, "C")[0]["args"] == {"value": None}


def crossing(spans: list[dict[str, Any]]) -> bool:
    """Whether two spans of one row overlap without one holding the other."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for span in spans:
        rows.setdefault(span["tid"], []).append((span["ts"], round(span["ts"] + span["dur"], 3)))
    return any(a[0] < b[0] < a[1] < b[1] for row in rows.values() for a in row for b in row)


def test_spans_that_overlap_get_rows_and_nested_ones_share(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.json", Trace(tmp_path / "trace.json")
    for index in range(100):
        trace.span(f"{index}", "queue", index, index + 3.5, "queue")  # four at a time
    for index in range(10):
        trace.span("in", "decode", index + 0.25, index + 0.5, "reader")
        trace.span("out", "item", index, index + 1, "reader")
    trace.close()
    spans = events(path, "X")
    assert len(spans) == 120
    assert not crossing(spans)
    assert len({span["tid"] for span in spans if span["cat"] == "queue"}) == 4
    assert len({span["tid"] for span in spans if span["cat"] != "queue"}) == 1


def test_threads_lose_no_event(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.json", Trace(tmp_path / "trace.json")

    def work(lane: int) -> None:
        for index in range(1000):
            trace.span(f"{lane}-{index}", "read", index, index + 1, f"reader {lane}")

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.close()
    trace.span("late", "read", 0, 1, "reader 0")  # a thread that ends after the run
    assert len({span["args"]["name"] for span in events(path, "X")}) == 8000
    assert trace.notes == ()


KILLED = """
import sys, time
from cxrvit_edge.trace import Trace
trace = Trace(sys.argv[1])
for index in range(10**9):
    trace.span(f"{index}", "read", index, index + 1, "reader", {"text": "x" * 50})
    if index == 3000:
        print("on its way", flush=True)
    if index > 3000:
        time.sleep(1e-4)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_trace_lacks_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"on its way\n"
    while path.stat().st_size < 100_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    text = path.read_text("ascii")
    assert not text.endswith("]\n")
    names = [event["args"]["name"] for event in json.loads(text + "]") if event["ph"] == "X"]
    assert names == [str(index) for index in range(len(names))]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_full_disk_ends_the_trace_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 3600.0)  # nothing is written before close
    trace = Trace(tmp_path / "trace.json")
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(trace, "_file", full)
        for index in range(3000):
            trace.span(f"{index}", "read", index, index + 1, "reader")
        trace.close()
    trace.span("late", "read", 0, 1, "reader")
    (note,) = trace.notes
    assert "trace.json: the trace ends early (No space left on device)" in note


def test_memory_is_bounded_when_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    monkeypatch.setattr(module, "EVERY", 3600.0)  # nothing is written before close
    trace = Trace(tmp_path / "trace.json")
    for index in range(100):
        trace.span(f"{index}", "read", index, index + 1, "reader")
    trace.close()
    assert len(events(tmp_path / "trace.json", "X")) == 10
    assert trace.notes and "90 events are missing" in trace.notes[0]


def test_only_a_trace_is_written_over(tmp_path: Path) -> None:
    path, film = tmp_path / "trace.json", tmp_path / "film.dcm"
    Trace(path).close()
    first = path.read_bytes()
    Trace(path).close()
    assert json.loads(path.read_bytes()) == json.loads(first)
    path.write_bytes(b"")
    Trace(path).close()
    film.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UsageError, match=r"film\.dcm: holds something else"):
        Trace(film)
    assert film.read_bytes() == bytes(128) + b"DICM"


@pytest.mark.parametrize("name", ["", "none/trace.json", "nul\0.json"])
def test_a_file_that_cannot_be_made_is_told_before_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be written .*; give another --trace"):
        Trace(tmp_path / name)


def test_no_trace_takes_what_a_trace_takes() -> None:
    trace = open_trace(None)
    assert type(trace) is NoTrace
    trace.span("a", "read", 0, 1, "reader", {"bytes": 1})
    trace.count("ready", 1, 0)
    trace.close()
    assert trace.notes == ()
