"""The benchmarks' shared parts: commands, processes that answer, candidates in turn, memory, sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from importlib.metadata import distribution
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import harness

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
    import json, subprocess, sys

    if sys.argv[1:] == ["cannot"]:
        print(json.dumps({"error": "no such library"}))
        sys.exit(1)
    print(json.dumps({"answer": "ready"}), flush=True)
    held = b"1" * 80_000_000
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["command"] == "die":
            sys.exit(3)
        if asked["command"] == "child":
            code = "held = b'1' * 100_000_000; import time; time.sleep(1)"
            subprocess.run([sys.executable, "-c", code])
        print(json.dumps({"answer": asked}), flush=True)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "answering.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "answering"


def test_a_process_answers_until_it_is_closed(module: str) -> None:
    with harness.Process(module, []) as process:
        assert process.answer() == "ready"
        assert process.ask("films", batch=8) == {"command": "films", "batch": 8}
        assert process.ask("again") == {"command": "again"}


def test_a_process_that_cannot_or_ends_says_why(module: str) -> None:
    with harness.Process(module, ["cannot"]) as process, pytest.raises(harness.PeerError, match="no such library"):
        process.answer()
    with harness.Process(module, []) as process:
        process.answer()
        with pytest.raises(harness.PeerError, match="exit code 3"):
            process.ask("die")
        with pytest.raises(harness.PeerError, match="exit code 3"):
            process.ask("again")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_peak_is_of_the_process_and_its_children_together(module: str) -> None:
    with harness.Process(module, []) as process:
        process.answer()
        with harness.watched(process.pid, every=0.02) as peak:
            process.ask("child")
    assert peak.most_children == 1
    assert peak.workers > 100
    assert peak.together > peak.main
    assert peak.together > 180 * 0.99  # MB, of the two arrays


def test_candidates_go_round_in_turns_and_one_that_fails_is_left_out() -> None:
    order: list[str] = []

    def run(name: str, fails: bool = False) -> float:
        order.append(name)
        if fails:
            raise harness.PeerError("no")
        return float(len(order))

    failed: list[str] = []
    runs = {"a": lambda: run("a"), "b": lambda: run("b", True), "c": lambda: run("c")}
    found = harness.in_turn(runs, 2, lambda name, error: failed.append(f"{name}: {error}"))
    assert order == ["a", "b", "c", "a", "c"]
    assert found == {"a": [1.0, 4.0], "c": [3.0, 5.0]}
    assert failed == ["b: no"]


def test_closure_follows_requirements_and_their_extras() -> None:
    found = harness.closure(["pytest"])
    assert {"pytest", "pluggy", "iniconfig"} <= set(found)
    assert "hypothesis" not in found  # only of pytest's extra `dev`
    with pytest.raises(harness.PeerError, match="no-such-package is not installed"):
        harness.closure(["no.such_package"])


def test_size_is_of_the_files_that_are_there() -> None:
    one = distribution("pluggy")
    listed = [Path(str(one.locate_file(file))) for file in one.files or ()]
    expected = sum(path.stat().st_size for path in listed if path.suffix != ".pyc" and path.is_file()) / 1e6
    assert harness.installed_mb([one]) == pytest.approx(expected)
    assert expected > 0.01


def test_a_folder_is_measured_without_compiled_python(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"1" * 3_000)
    (tmp_path / "a.pyc").write_bytes(b"1" * 9_000)
    assert harness.folder_mb(tmp_path) == 0.003


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_a_name_every_command_is_listed_with_a_line() -> None:
    said = benchmarks()
    assert said.returncode == 0
    known = command.commands()
    assert {"peers", "readme", "pipeline", "session", "startup"} <= set(known)
    assert all(known.values())
    assert all(f"  {name} " in said.stdout for name in known)
    assert {"record", "harness", "triage_common"}.isdisjoint(known)


def test_only_the_named_module_is_imported() -> None:
    code = "import sys; from benchmarks.__main__ import main; main([]); print('numpy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "False"


def test_a_name_that_is_none_is_wrong_use() -> None:
    said = benchmarks("nothing")
    assert said.returncode == 2
    assert "nothing: no such command" in said.stderr
    assert "peers" in said.stderr


def test_a_script_that_reads_its_own_arguments_gets_them() -> None:
    said = benchmarks("help_time", "--help")
    assert said.returncode == 0
    assert "usage:" in said.stdout


def test_peer_answers_in_one_line_what_it_lacks(tmp_path: Path) -> None:
    job = {"peer": "peer_network:OnnxRuntime", "graph": str(tmp_path / "absent.onnx"), "preprocessing": {}}
    job |= {"first": "film.png", "out": str(tmp_path)}
    absent = pytest.raises(harness.PeerError, match=r"absent\.onnx")
    with harness.Process("benchmarks.peer_process", [json.dumps(job)]) as process, absent:
        process.answer()
