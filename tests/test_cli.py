from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from command import run
from fakes import FakeSession, film, sessions, write_bundle, write_films

from cxrvit_edge import progress
from cxrvit_edge.errors import EngineError, ParityError
from cxrvit_edge.ledger import Ledger
from cxrvit_edge.report.run import RESEARCH_USE, Run
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.summary import Progress, Summary

ROOT = Path(__file__).resolve().parents[1]
Options = list[dict[str, object]]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write_films(tmp_path / "in", 3)
    return tmp_path / "in"


@pytest.fixture
def fake_sessions(monkeypatch: pytest.MonkeyPatch) -> Options:
    """Sessions that need no network; the options they were asked for."""
    asked: Options = []

    def open_fake(_: object, **options: object) -> Sessions:
        asked.append(options)
        return sessions(FakeSession(), notes=("tensorrt fp16 passed over: not here",))

    monkeypatch.setattr("cxrvit_edge.triage.open_sessions", open_fake)
    return asked


def test_triage_has_the_options_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("triage", "--help") == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", shown, re.MULTILINE)) == {
        *("--out", "--bundle", "--backend", "--precision", "--batch-size", "--workers", "--fresh", "--verify"),
        *("--views", "--json", "--quiet", "--help", "--latency", "--throughput", "--watch", "--trace"),
        *(
            "--sensitivity",
            "--selective",
            "--follow-links",
            "--max-pixels",
            "--max-bytes",
            "--max-frames",
            "--max-depth",
            "--decode-seconds",
        ),
    }
    assert "cxrvit-edge triage examples/ --out triage-out" in shown


def test_build_has_the_options_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--help") == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"--[a-z-]+", shown)) >= {
        *("--target", "--precision", "--backend", "--batch-size", "--require-fused-attention"),
        *("--no-require-fused-attention", "--rebuild", "--json", "--quiet"),
    }


def test_measuring_has_the_options_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, more in (
        ("benchmark", {"--images", "--bundle", "--backend", "--precision", "--seconds", "--reference"}),
        ("compare", set()),
    ):
        assert run(verb, "--help") == 0
        shown = capsys.readouterr().out
        found = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", shown, re.MULTILINE))
        assert found == {"--data", "--split", "--out", "--json", "--quiet", "--help"} | more


def test_a_step_line_draws_over_itself_and_words_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    terminal = io.StringIO()
    with progress.StepLine(shown=True, stream=terminal) as line:
        line.say("building fp16 for sm86")
        line.update("Optimizing graph", 0.25)
        line.say("done")
    text = terminal.getvalue()
    assert text.startswith("building fp16 for sm86\n\r[#####...............]  25 %  Optimizing graph")
    assert text.rstrip(" \r").endswith("\r" + "done\n") and "\r" + " " * 20 in text
    silent = io.StringIO()
    with progress.StepLine(shown=False, stream=silent) as line:
        line.update("Optimizing graph", 0.25)
    assert silent.getvalue() == ""


@pytest.mark.parametrize("verb", ["triage", "build", "benchmark", "compare", "inspect", "doctor"])
def test_every_verb_gives_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert f"  cxrvit-edge {verb}" in capsys.readouterr().out


def test_a_run_says_what_it_did(
    fake_sessions: list[dict[str, object]],
    bundle: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("triage", films, "--out", out, "--bundle", bundle, "--precision", "fp32", "--verify") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "3 inputs: 3 ok, 0 rejected, 0 failed" in said.err and RESEARCH_USE in said.err
    assert "note: tensorrt fp16 passed over: not here" in said.err
    assert "operating point: sensitivity of at least 80 %\n" in said.err
    for name in ("worklist.csv", "report.html", "results.jsonl"):
        assert (out / name).is_file() and f"wrote {out}/{name}" in said.err
    assert fake_sessions == [{"backend": "auto", "precision": "fp32", "verify": True}]


def test_json_goes_to_stdout_and_quiet_leaves_stderr_empty(
    fake_sessions: list[dict[str, object]],
    bundle: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (films / "cut.png").write_bytes((films / "film000.png").read_bytes()[:100])
    assert run("triage", films, "--out", tmp_path / "out", "--bundle", bundle, "--json", "--quiet") == 1
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert said.err == "" and summary["statuses"] == {"ok": 3, "rejected": 0, "failed": 1}
    assert summary["failed"][0]["file"] == f"{films}/cut.png" and summary["run"]["done"] == 4


def test_a_failed_input_is_named_and_ends_with_1(
    fake_sessions: list[dict[str, object]],
    bundle: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("triage", films, tmp_path / "typo.png", "--out", tmp_path / "out", "--bundle", bundle) == 1
    assert f"failed: {tmp_path}/typo.png: typo.png: no such file" in capsys.readouterr().err


def test_wrong_use_ends_with_2_in_one_line(
    fake_sessions: list[dict[str, object]],
    bundle: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "in_the_way").write_text("a file")
    whole = (bundle / "weights.safetensors").read_bytes()
    changed = write_bundle(tmp_path / "changed")
    (changed / "weights.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for arguments, says in (
        ([tmp_path / "typo", "--out", tmp_path / "o"], "typo: no such file or folder"),
        ([tmp_path / "empty", "--out", tmp_path / "o"], "no files under"),
        ([films, "--out", films], "is also a PATH"),
        ([films, "--out", tmp_path / "in_the_way"], "cannot be written"),
        ([films, "--out", tmp_path / "o", "--bundle", tmp_path / "nowhere"], "nowhere"),
        ([films, "--out", tmp_path / "o", "--bundle", changed], "weights.safetensors: its SHA-256"),
        ([films, "--out", tmp_path / "o", "--views", tmp_path / "none.csv"], "none.csv"),
        ([films, "--out", tmp_path / "o", "--sensitivity", "95"], "operating points at 80 % alone; export it again"),
        ([films, "--out", tmp_path / "o", "--selective"], "no prediction sets; export it again"),
    ):
        bundled = arguments if "--bundle" in arguments else [*arguments, "--bundle", bundle]
        assert run("triage", *bundled) == 2
        said = capsys.readouterr()
        assert says in said.err and said.out == ""
        assert said.err.startswith("error: ") and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--batch-size", "0"], ["--workers", "x"], ["--backend", "cuda"], ["--precision", "fp8"], ["--bogus"]),
        ["--sensitivity", "90"],
    ],
)
def test_a_wrong_option_ends_with_2(
    arguments: list[str], films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("triage", films, "--out", tmp_path / "out", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(ParityError("int8 departs"), 3), (EngineError("--backend tensorrt: not installed"), 2)]
)
def test_a_network_that_cannot_be_used(
    error: Exception,
    code: int,
    bundle: Path,
    films: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> Sessions:
        raise error

    monkeypatch.setattr("cxrvit_edge.triage.open_sessions", refuse)
    assert run("triage", films, "--out", tmp_path / "out", "--bundle", bundle) == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_cleanly_and_goes_on(stop: signal.Signals, code: int, bundle: Path, tmp_path: Path) -> None:
    films, out = write_films(tmp_path / "in", 60), tmp_path / "out"
    results = out / "results.jsonl"
    arguments = ["triage", str(tmp_path / "in"), "--out", str(out), "--bundle", str(bundle)]
    command = [sys.executable, str(ROOT / "tests" / "slow_cli.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (
            (out / "results.jsonl").exists() and (out / "results.jsonl").stat().st_size
        ):
            time.sleep(0.002)
        process.send_signal(stop)
        assert process.stderr is not None
        said = process.stderr.read()
    assert (process.returncode, said) == (code, "stopped: what is done is kept; run again to go on\n")
    kept = results.read_text().splitlines()
    assert 0 < len(kept) < len(films) and all(json.loads(line)["status"] == "ok" for line in kept)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and f"({len(kept)} kept from an earlier run)" in result.stderr


def test_a_second_run_into_the_same_folder_is_turned_away(
    fake_sessions: list[dict[str, object]],
    bundle: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cxrvit_edge.journal import Journal, Owner

    with Journal(tmp_path / "out", Owner("a", "b", "c")):
        assert run("triage", films, "--out", tmp_path / "out", "--bundle", bundle) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_inspect_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", film(height=200, width=100))[1].tobytes())
    assert run("inspect", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["width"], report["height"], report["view"]) == ("PNG", 100, 200, "unknown")
    assert report["status"] == "ok" and report["gray"]["least"] < report["gray"]["median"] < report["gray"]["most"]
    assert report["network_input"]["content"] == [512, 256] and report["network_input"]["left"] == 128
    assert run("inspect", path) == 0
    assert re.search(r"^status +ok$", capsys.readouterr().out, re.MULTILINE)


def test_inspect_a_dicom_shows_its_header_and_no_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pydicom

    ds = pydicom.dcmread(ROOT / "examples" / "phantom_normal_mono2.dcm")
    ds.PatientName, ds.PatientID, ds.StudyDescription = "Doe^Jane", "4711-ID", "CHEST of Jane Doe"
    ds.save_as(tmp_path / "a.dcm")
    assert run("inspect", tmp_path / "a.dcm") == 0
    shown = capsys.readouterr().out
    assert "JPEG-LS Lossless" in shown and re.search(r"view_position +PA", shown)
    assert "Doe" not in shown and "4711" not in shown and ds.StudyInstanceUID not in shown


def test_inspect_what_triage_would_turn_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dcm").write_text("<html></html>")
    assert run("inspect", tmp_path / "a.dcm", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["reason"]["code"]) == ("failed", "unreadable")
    for path in (tmp_path, tmp_path / "typo"):
        assert run("inspect", path) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_inspect_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", bundle, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "fake" and report["verified"] and report["bytes"] == 36
    assert list(report["variants"]) == ["fp32"] and report["licences"] == {"code": "Apache-2.0", "weights": "none"}
    assert run("inspect", bundle) == 0
    assert re.search(r"^temperature +1.0$", capsys.readouterr().out, re.MULTILINE)
    (bundle / "weights.safetensors").write_bytes(b"changed")
    assert run("inspect", bundle) == 2


def test_doctor_says_what_keeps_triage_from_running(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXRVIT_EDGE_CACHE", str(tmp_path / "cache"))
    assert run("doctor", "--bundle", bundle, "--json") == 1  # its weights are none
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"]["verified"] and not report["ok"]
    assert report["problems"] == ["no back end runs this bundle here; see below"]
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert set(backends) == {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "torch"}
    assert all(backend["why"] and not backend["runs"] for backend in backends.values())
    assert report["decoders"]["JPEG-LS Lossless Image Compression"] == "pyjpegls"
    assert report["cache"] == {"path": str(tmp_path / "cache" / "cxrvit-edge"), "writable": True}
    assert run("doctor", "--bundle", tmp_path / "none") == 1
    assert re.search(r"^ok +no$", capsys.readouterr().out, re.MULTILINE)


def test_doctor_runs_the_golden_check_of_what_is_installed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(_: object, *, backend: str, precision: str, verify: bool) -> Sessions:
        assert verify and precision == "fp32"
        if backend == "torch":
            raise ParityError("torch departs")
        return sessions(FakeSession())

    monkeypatch.setattr("cxrvit_edge.runtime.select.open_sessions", check)
    assert run("doctor", "--bundle", bundle, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert report["ok"] and report["problems"] == [] and backends["onnxruntime"]["runs"] == ["fp32"]
    if backends["torch"]["version"]:
        assert backends["torch"]["why"] == ["torch departs"]


def test_progress_line() -> None:
    assert progress.line(Progress(0, 0), None, 0.0) == "0 done"
    assert progress.line(Progress(10, 0), None, 5.0) == "10 done  2.0 images/s"
    full = progress.line(Progress(10, 40), 100, 5.0)
    assert full == "[##########..........] 50 of 100  2.0 images/s  25 s left  40 from an earlier run"


def test_progress_is_drawn_over_itself_and_wiped(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.ProgressLine([films], tmp_path / "out", shown=True, stream=stream) as line:
        line._thread.join()
        line.update(Progress(1, 0))
        line.update(Progress(2, 0))
    drawn = stream.getvalue().split("\r")
    assert "1 of 3" in drawn[1] and "2 of 3" in drawn[2] and drawn[3].strip() == "" and "\n" not in stream.getvalue()
    silent = io.StringIO()
    with progress.ProgressLine([films], tmp_path / "out", shown=False, stream=silent) as line:
        line.update(Progress(1, 0))
    assert silent.getvalue() == ""


def test_closing_words_name_the_first_failures() -> None:
    run = Run("fake", "0" * 64, "fake", "1", "fp32", "2026-01-01T00:00:00+00:00", 4.0, 8, 2, {"read": 1.2, "run": 7.0})
    stages = {"read": 0.4, "decode": 1.0, "preprocess": 0.6}
    ledger = Ledger(
        wall=4.0, images=8, workers=2, cores=2, stages=stages, run=3.0, starved=0.8, batches=4, ran=8, batch_size=2
    )
    summary = Summary(run, Path("out"), 10, {"ok": 3, "failed": 7}, {"urgent": 1}, 7, ledger, (("a\n.png", "why"),))
    assert progress.told(summary).splitlines() == [
        "failed: a?.png: why",
        "failed: 6 more, see the worklist",
        "10 inputs (2 kept from an earlier run): 3 ok, 7 failed",
        "priority: 1 urgent",
        "operating point: sensitivity of at least 80 %",
        "8 inputs in 4.0 s, 2.0 a second, fake fp32",
        "mean milliseconds an input: read 1, run 7",
        "time: network 75 %, waiting for films 20 %, waiting for results to be taken 0 %, other 5 %",
        "2 readers: busy 25 % (read 20 %, decode 50 %, preprocess 30 %), waiting for room 0 %",
        "batches: 4, 2.0 inputs each, at most 2",
        "wrote out/worklist.csv",
        "wrote out/report.html",
        "wrote out/results.jsonl",
        RESEARCH_USE,
    ]
