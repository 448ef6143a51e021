"""What befalls a run from outside: signals, full and vanished disks, another process, a clock that jumps."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import write_bundle, write_films

ROOT = Path(__file__).resolve().parents[2]
SLOW_CLI = ROOT / "tests" / "slow_cli.py"
COUNT = 24
PATIENCE = 60  # seconds before a run that should have ended is taken to hang


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and COUNT films."""
    folder = tmp_path_factory.mktemp("inputs")
    write_bundle(folder / "bundle")
    write_films(folder / "in", COUNT)
    return folder


@pytest.fixture(scope="session")
def namespace() -> list[str]:
    """How to run a command that may mount."""
    for prefix in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and not subprocess.run([*prefix, "mount", "-t", "tmpfs", "x", "/mnt"]).returncode:
            return prefix
    pytest.skip("mounting is not allowed here")


def command(inputs: Path, out: Path, *options: str) -> list[str]:
    paths = [str(inputs / "in"), "--out", str(out), "--bundle", str(inputs / "bundle")]
    return [sys.executable, str(SLOW_CLI), "triage", *paths, *options]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def start(arguments: list[str], **changes: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, env=environment(**changes), stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that is about to end."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {PATIENCE} s: {process.communicate()[1]}") from None
    assert "Traceback" not in err, err
    return process.returncode, out, err


def run(arguments: list[str], **changes: str) -> tuple[int, str, str]:
    return ended(start(arguments, **changes))


def lines(out: Path) -> list[bytes]:
    path = out / "results.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.002)


def check_whole(out: Path, inputs: Path) -> None:
    """One result an input, in every output, and nothing left lying about."""
    films = sorted(path.as_posix() for path in (inputs / "in").iterdir())
    found: list[dict[str, Any]] = [json.loads(line) for line in lines(out)]
    assert sorted(line["file"] for line in found) == films
    assert {line["status"] for line in found} == {"ok"}
    with (out / "worklist.csv").open(newline="") as f:
        assert sorted(row["file"] for row in csv.DictReader(f)) == films
    assert (out / "report.html").read_text("utf-8").rstrip().endswith("</html>")
    assert {p.name for p in out.iterdir()} == {".lock", "results.jsonl", "worklist.csv", "report.html", "thumbnails"}
    keys = {line["sha256"] for line in found}
    assert {p.name.partition(".")[0] for p in (out / "thumbnails").iterdir()} == keys
    assert not [p for p in (out / "thumbnails").iterdir() if p.suffix not in (".jpg", ".png")]


def check_goes_on(out: Path, inputs: Path) -> None:
    """Run again, it keeps what there is and does the rest."""
    kept = len({json.loads(line)["file"] for line in lines(out) if line.endswith(b"\n")})
    code, summary, err = run(command(inputs, out, "--json", "--quiet"))
    assert code == 0, err
    figures = json.loads(summary)["run"]
    assert (figures["resumed"], figures["done"]) == (kept, COUNT - kept)
    check_whole(out, inputs)


def test_killed_at_any_moment_each_input_has_one_result(inputs: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(11)
    begun = time.monotonic()
    assert run(command(inputs, tmp_path / "whole"))[0] == 0
    whole, killed = time.monotonic() - begun, 0
    for _ in range(8):
        with start(command(inputs, out)) as process:
            time.sleep(rng.uniform(0.3, 1.0) * whole)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        for line in lines(out)[:-1]:
            json.loads(line)
    assert killed >= 3
    check_goes_on(out, inputs)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_and_keeps_what_is_done(
    inputs: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    out = tmp_path / "out"
    process = start(command(inputs, out), SLOW_CLI_SECONDS="0.2")
    wait_for(lambda: len(lines(out)) >= 2, process)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == expected and "run again to go on" in err
    assert 2 <= len(lines(out)) < COUNT and lines(out)[-1].endswith(b"\n")
    check_goes_on(out, inputs)


def test_a_second_ctrl_c_ends_it_at_once(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(inputs, out, "--batch-size", "1"), SLOW_CLI_SECONDS="600")
    wait_for(lambda: (out / "results.jsonl").exists(), process)
    time.sleep(0.5)  # into the session, which takes ten minutes
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    assert ended(process)[0] in (130, -signal.SIGINT)
    check_goes_on(out, inputs)


@pytest.mark.parametrize(
    "size", [700, 5_000, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 1_000, 9_999))]
)
def test_a_disk_that_takes_no_more(inputs: Path, tmp_path: Path, size: int) -> None:
    """No file may grow beyond a size: a write is cut there and the next one fails."""
    out = tmp_path / "out"
    limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    code, _, err = run([sys.executable, "-c", f"{limit}; os.execv(sys.argv[1], sys.argv[1:])", *command(inputs, out)])
    assert code == 2 and err.count("error: ") == 1 and "cannot be written" in err and "run again to go on" in err
    assert all(line.endswith(b"\n") for line in lines(out))
    check_goes_on(out, inputs)


def in_namespace(namespace: list[str], script: str, *arguments: str, **changes: str) -> tuple[int, str, str]:
    return run([*namespace, "bash", "-euc", script, "bash", *arguments], **changes)


def test_a_full_disk_and_then_room(namespace: list[str], inputs: Path, tmp_path: Path) -> None:
    """A file system of 64 kB: full wherever it happens to be, and all of it is told in one line."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        mount -t tmpfs -o size=64k none "$1"; kept="$2"; disk="$1"; shift 2
        for try in 1 2; do code=0; "$@" 2> "$kept/err$try" || code=$?; echo $code; done
        mount -o remount,size=16m "$disk"
        cp "$disk/out/results.jsonl" "$kept/before"
        "$@" 2> "$kept/err3"; echo $?
        cp -a "$disk/out" "$kept/out"
    """
    code, out, err = in_namespace(namespace, script, str(disk), str(tmp_path), *command(inputs, disk / "out"))
    assert code == 0, err
    assert out.split() == ["2", "2", "0"]
    for name in ("err1", "err2"):
        told = (tmp_path / name).read_text()
        assert told.count("error: ") == 1 and "No space left" in told and "Traceback" not in told
    before = (tmp_path / "before").read_bytes().splitlines(keepends=True)
    assert before and set(before) <= set(lines(tmp_path / "out"))
    check_whole(tmp_path / "out", inputs)


def test_a_disk_that_may_not_be_written(namespace: list[str], inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(command(inputs, out))[0] == 0
    before = lines(out)
    script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; exec "$@"'
    code, _, err = in_namespace(namespace, script, str(tmp_path), *command(inputs, out))
    assert code == 2 and "Read-only file system" in err and err.count("error: ") == 1
    assert lines(out) == before


def test_a_folder_in_which_nothing_can_be_made(inputs: Path) -> None:
    code, _, err = run(command(inputs, Path("/proc/self/triage")))
    assert code == 2 and "cannot be written" in err and err.count("error: ") == 1


def test_a_share_that_is_unmounted_while_it_is_written(namespace: list[str], inputs: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        mount -t tmpfs none "$1"; disk="$1"; shift
        "$@" & run=$!
        until [ -s "$disk/out/results.jsonl" ]; do sleep 0.01; done
        umount -l "$disk"; code=0; wait $run || code=$?; echo $code
    """
    code, out, err = in_namespace(namespace, script, str(disk), *command(inputs, disk / "out"), SLOW_CLI_SECONDS="0.2")
    assert code == 0 and out.split() == ["2"] and err.count("error: ") == 1, err
    assert "cannot be written" in err
    shutil.rmtree(disk / "out", ignore_errors=True)
    check_goes_on(disk / "out", inputs)


def test_an_output_folder_that_is_removed(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(inputs, out), SLOW_CLI_SECONDS="0.2")
    wait_for(lambda: len(lines(out)) >= 2, process)
    out.rename(tmp_path / "moved")
    code, _, err = ended(process)
    assert code == 2 and err.count("error: ") == 1 and "cannot be written" in err
    assert len(lines(tmp_path / "moved")) >= 2
    shutil.rmtree(out, ignore_errors=True)
    (tmp_path / "moved").rename(out)
    check_goes_on(out, inputs)


@pytest.mark.slow
def test_inputs_that_vanish_while_they_are_read_fail_one_by_one(inputs: Path, tmp_path: Path) -> None:
    own, out, count = tmp_path / "own", tmp_path / "out", 150  # more than can be on their way at once
    shutil.copytree(inputs / "bundle", own / "bundle")
    write_films(own / "in", count)
    process = start(command(own, out, "--batch-size", "1"), SLOW_CLI_SECONDS="0.1")
    wait_for(lambda: len(lines(out)) >= 2, process)
    (own / "in").rename(own / "elsewhere")
    code, *_ = ended(process)
    found = [json.loads(line) for line in lines(out)]
    assert code == 1 and len(found) == count
    assert {line["reason"]["code"] for line in found if line["status"] != "ok"} == {"not_found"}
    (own / "elsewhere").rename(own / "in")
    assert run(command(own, out))[0] == 0
    check_whole(out, own)


def test_a_second_process_is_told_who_is_at_work_and_disturbs_nothing(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(command(inputs, out, "--batch-size", "1"), SLOW_CLI_SECONDS="2")
    wait_for(lambda: lines(out), first)
    before = lines(out)
    for options in ((), ("--fresh",)):
        code, _, err = run(command(inputs, out, *options))
        assert code == 2 and f"in use by process {first.pid} on " in err and err.count("error: ") == 1
    first.kill()
    assert ended(first)[0] == -signal.SIGKILL and set(before) <= set(lines(out))
    check_goes_on(out, inputs)


def test_clocks_that_jump(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for done in (COUNT, 0):
        code, summary, err = run(command(inputs, out, "--json"), SLOW_CLI_CLOCK="jumps")
        assert code == 0, err
        figures = json.loads(summary)["run"]
        assert figures["done"] == done and figures["seconds"] >= 0
        check_whole(out, inputs)
    for line in lines(out):
        assert all(ms >= 0 for ms in json.loads(line)["timings_ms"].values())


@pytest.mark.slow
def test_results_stand_whatever_day_it_is(inputs: Path, tmp_path: Path) -> None:
    """Times of files are compared, not ordered: ages before 1970 and in the next century are as good as any."""
    own = tmp_path / "own"
    shutil.copytree(inputs, own)
    for i, path in enumerate(sorted((own / "in").iterdir())):
        os.utime(path, (0, (-1_000_000 if i % 2 else 4_200_000_000) + i))
    assert run(command(own, tmp_path / "out"))[0] == 0
    check_goes_on(tmp_path / "out", own)
