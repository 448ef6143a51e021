from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import SIZE, FakeSession, expected_level, film, make_bundle, sessions, write_films

from cxrvit_edge import prepare
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found, discover
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from cxrvit_edge.report import thumbnails
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.triage import Triage

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return write_films(tmp_path / "in", 7)


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def names(findings: Iterator[Finding]) -> list[str]:
    return sorted(Path(f.file).name for f in findings)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_every_input_gets_its_own_result(bundle: Bundle, films: list[Path], batch_size: int | None) -> None:
    session = FakeSession()
    found = {f.file: f for f in Triage(bundle, sessions(session), batch_size=batch_size)(films[0].parent)}
    assert sorted(found) == [path.as_posix() for path in films]
    config = PreprocessConfig(size=SIZE)
    for path in films:
        level = float(expected_level(preprocess(read(path), config)[0][None])[0])
        e = np.exp([0.0, level - 8, level - 4])
        finding = found[path.as_posix()]
        assert finding.probabilities is not None and finding.severity is not None
        assert list(finding.probabilities.values()) == pytest.approx(e / e.sum(), abs=1e-5)
        assert finding.severity.score == pytest.approx(6 * level / 8, abs=1e-3)
    assert sum(session.batches) == len(films)
    if batch_size == 3:
        assert sorted(session.batches) == [1, 3, 3]
    if batch_size == 100:
        assert session.batches == [7]


def test_a_line_has_what_the_contract_says(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    Triage(bundle, sessions(FakeSession())).run(films[0], tmp_path / "out")
    (line,) = lines(tmp_path / "out")
    assert list(line) == [
        *("schema", "file", "status", "sha256", "size", "mtime_ns", "reason", "warnings", "view", "probabilities"),
        *("label", "flags", "prediction_set", "severity", "priority", "ood", "timings_ms", "bundle", "backend"),
        *("precision", "sensitivity", "selective"),
    ]
    assert line["status"] == "ok" and line["reason"] is None and line["size"] == films[0].stat().st_size
    assert line["mtime_ns"] == films[0].stat().st_mtime_ns
    assert list(line["timings_ms"]) == [  # type: ignore[call-overload]
        *("queue", "read", "decode", "preprocess", "run", "interpret", "write")
    ]
    assert line["bundle"] == f"fake@{bundle.sha256[:12]}"
    assert (line["backend"], line["precision"]) == ("fake", "fp32")


def test_a_batch_never_mixes_graphs(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", views={"PA": "pa", "AP": "ap"})
    films = write_films(tmp_path / "in", 6)
    table = tmp_path / "views.csv"
    table.write_text(
        "file,view\n" + "".join(f"{p.name},{'PA' if i < 3 else 'AP Supine'}\n" for i, p in enumerate(films[:5]))
    )
    pa, ap = FakeSession(), FakeSession()
    triage = Triage(bundle, sessions({"pa": pa, "ap": ap}), batch_size=4, views=table)
    found = sorted(triage([films[0].parent]), key=lambda f: f.file)
    assert [f.view for f in found] == ["PA", "PA", "PA", "AP", "AP", "unknown"]
    assert (sum(pa.batches), sum(ap.batches)) == (3, 3)  # unknown is judged by the AP graph
    assert found[5].priority == "review" and found[5].status == "ok"


def test_the_table_of_views_comes_before_the_header(bundle: Bundle, tmp_path: Path) -> None:
    film = EXAMPLES / "phantom_normal_mono2.dcm"
    table = tmp_path / "views.csv"
    table.write_text(f"\ufefffile , View\n{film},AP\n")
    (finding,) = Triage(bundle, sessions(FakeSession()), views=table)([film])
    assert finding.view == "AP" and any("PA" in w and "AP" in w for w in finding.warnings)
    table.write_text("file,view\nexamples/phantom_normal_mono2.dcm,lateral\n")
    (finding,) = Triage(bundle, sessions(FakeSession()), views=table)([film])
    assert (finding.status, finding.view) == ("rejected", "lateral") and finding.reason is not None
    assert finding.reason["code"] == "lateral_view"


@pytest.mark.parametrize(
    ("content", "says"),
    [("name,view\na,PA\n", "needs columns"), ("file,view\na,PA\na,AP\n", "two views"), ("", "needs columns")],
)
def test_a_table_of_views_that_cannot_be_used(bundle: Bundle, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "views.csv").write_text(content)
    with pytest.raises(UsageError, match=says):
        Triage(bundle, sessions(FakeSession()), views=tmp_path / "views.csv")


def test_a_batch_that_fails_is_tried_one_by_one(bundle: Bundle, films: list[Path]) -> None:
    bad = preprocess(read(films[2]), PreprocessConfig(size=SIZE))[0]

    def refuse(batch: Float32) -> bool:
        return any(np.array_equal(image, bad) for image in batch)

    found = {f.file: f for f in Triage(bundle, sessions(FakeSession(refuse=refuse)), batch_size=7)(films)}
    failed = found.pop(films[2].as_posix())
    assert failed.status == "failed" and failed.reason is not None
    assert failed.reason["code"] == "internal" and "RuntimeError in stage run" in failed.reason["message"]
    assert {f.status for f in found.values()} == {"ok"} and len(found) == 6


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), MemoryError()])
def test_an_unexpected_error_fails_its_input_alone(
    bundle: Bundle, films: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = prepare.preprocess

    def sometimes(radiograph: Radiograph, config: PreprocessConfig, out: Float32 | None) -> object:
        if np.array_equal(radiograph.pixels, film(3)):
            raise error
        return real(radiograph, config, out)

    monkeypatch.setattr(prepare, "preprocess", sometimes)
    found = {Path(f.file).name: f for f in Triage(bundle, sessions(FakeSession()))(films)}
    bad = found.pop("film003.png")
    assert bad.status == "failed" and bad.reason is not None and bad.reason["code"] == "internal"
    assert (
        "memory" in bad.reason["message"]
        if isinstance(error, MemoryError)
        else "ZeroDivisionError" in bad.reason["message"]
    )
    assert {f.status for f in found.values()} == {"ok"}


def test_values_that_are_not_finite_fail(bundle: Bundle, films: list[Path]) -> None:
    class Nan(FakeSession):
        def run(self, batch: Float32) -> Outputs:
            outputs = super().run(batch)
            return outputs._replace(logits=outputs.logits * np.nan)

    found = list(Triage(bundle, sessions(Nan()))(films[:2]))
    assert [f.reason and f.reason["code"] for f in found] == ["not_finite"] * 2


def test_bad_inputs_have_a_reason_each(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_films(folder, 1)
    png = cv2.imencode(".png", film(1, 400, 300))[1].tobytes()
    jpeg = cv2.imencode(".jpg", film(1, 400, 300))[1].tobytes()
    dicom = (EXAMPLES / "phantom_normal_mono2.dcm").read_bytes()
    huge = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", (30_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0") + chunk(b"IEND", b"")
    )
    contents = {
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.dcm": dicom[: len(dicom) // 2],
        "empty.dcm": b"",
        "text.dcm": b"please find the image attached\n",
        "html.dcm": b"<!DOCTYPE html><html><body>404</body></html>",
        "readme.txt": b"hello\n",
        "tiny.png": cv2.imencode(".png", np.full((1, 1), 7, np.uint8))[1].tobytes(),
        "huge.png": huge,
        "blank.png": cv2.imencode(".png", np.full((200, 200), 128, np.uint8))[1].tobytes(),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    shutil.copy(folder / "film000.png", folder / "folder.png" / "inside.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    summary = Triage(bundle, sessions(FakeSession())).run([folder, tmp_path / "typo"], tmp_path / "out")
    found = {str(line["file"]).removeprefix(f"{folder}/"): line for line in lines(tmp_path / "out")}
    codes = {name: line["reason"]["code"] for name, line in found.items() if line["reason"]}  # type: ignore[index]
    assert codes == {
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "cut.dcm": "truncated",
        "empty.dcm": "empty_file",
        "text.dcm": "unreadable",
        "html.dcm": "unreadable",
        "readme.txt": "not_an_image",
        "tiny.png": "too_small",
        "huge.png": "too_large",
        "blank.png": "blank",
        "folder.png": "is_directory",
        "gone.png": "not_found",
        f"{tmp_path}/typo": "not_found",
    }
    assert {n for n, line in found.items() if line["status"] == "ok"} == {"film000.png", "folder.png/inside.png"}
    messages = [line["reason"]["message"] for line in found.values() if line["reason"]]  # type: ignore[index]
    assert len(set(messages)) == len(messages)
    assert summary.failures == 8 and summary.statuses == {"ok": 2, "rejected": 5, "failed": 8}
    assert summary.inputs == 15 == len(worklist(tmp_path / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_fails(bundle: Bundle, films: list[Path]) -> None:
    films[0].chmod(0)
    found = {f.file: f for f in Triage(bundle, sessions(FakeSession()))(films)}
    reason = found[films[0].as_posix()].reason
    assert reason is not None and reason["code"] == "no_permission"


def chunk(name: bytes, data: bytes) -> bytes:
    import zlib

    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def worklist(out: Path) -> list[dict[str, str]]:
    with (out / "worklist.csv").open(encoding="utf-8-sig", newline="") as f:
        return list(csv.DictReader(f))


def test_a_run_leaves_its_files_and_its_figures(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    triage = Triage(bundle, sessions(FakeSession(), notes=("tensorrt passed over: why",)))
    summary = triage.run(films[0].parent, tmp_path / "out", progress=lambda p: seen.append((p.done, p.resumed)))
    assert seen == [(i, 0) for i in range(1, 8)]
    assert summary.run.done == 7 and summary.run.resumed == 0 and summary.run.notes == ("tensorrt passed over: why",)
    assert set(summary.run.stage_ms) == {"queue", "read", "decode", "preprocess", "run", "interpret", "write"}
    assert sum(summary.priorities.values()) == 7 == summary.statuses["ok"] and summary.failures == 0
    assert summary.report.read_text("utf-8").count("<tr") >= 7
    pictures = sorted(p.name for p in (tmp_path / "out" / "thumbnails").iterdir())
    hashes = sorted(str(line["sha256"]) for line in lines(tmp_path / "out"))
    assert pictures == sorted(f"{h}{end}" for h in hashes for end in (".jpg", ".overlay.png"))
    json.dumps(summary.to_dict(), allow_nan=False)


def test_run_again_goes_on_and_does_what_changed_or_failed(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = films[0].parent / "broken.png"
    broken.write_bytes(films[0].read_bytes()[:-20])
    (films[0].parent / "notes.txt").write_text("hello")
    assert Triage(bundle, sessions(FakeSession())).run(films[0].parent, out).failures == 1
    films[1].write_bytes(films[2].read_bytes())
    os.utime(films[3], ns=(1, 1))
    films[4].unlink()
    session = FakeSession()
    summary = Triage(bundle, sessions(session)).run(films[0].parent, out)
    assert (summary.run.done, summary.run.resumed, summary.failures) == (3, 5, 1)  # changed, touched, failed
    assert sum(session.batches) == 2
    files = [str(line["file"]) for line in lines(out)]
    assert len(files) == len(set(files)) == 9 == len(worklist(out))  # the one that is gone stays on the list
    broken.write_bytes(films[0].read_bytes())
    assert Triage(bundle, sessions(FakeSession())).run(films[0].parent, out).statuses["failed"] == 0


def test_a_view_that_the_table_changes_is_judged_again(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    Triage(bundle, sessions(FakeSession())).run(films, tmp_path / "out")
    (tmp_path / "v.csv").write_text("file,view\nfilm001.png,AP\n")
    for done in (1, 0):
        summary = Triage(bundle, sessions(FakeSession()), views=tmp_path / "v.csv").run(films, tmp_path / "out")
        assert summary.run.done == done


def test_another_bundle_needs_fresh(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    Triage(bundle, sessions(FakeSession())).run(films, out)
    (out / "mine.txt").write_text("a user's own file")
    other = make_bundle(tmp_path / "other", temperature=2.0)
    with pytest.raises(UsageError, match=r"fake@.* --fresh"):
        Triage(other, sessions(FakeSession())).run(films[:2], out)
    assert len(lines(out)) == 7
    summary = Triage(other, sessions(FakeSession())).run(films[:2], out, fresh=True)
    assert summary.inputs == 2 == len(lines(out))
    assert len(list((out / "thumbnails").iterdir())) == 4
    assert (out / "mine.txt").exists()


SETS = {"method": "lac", "alpha": 0.1, "threshold": 0.6, "images": 99}
POINTS = {"normal": 0.01, "other_infection": 0.01, "covid19": 0.01}


def test_another_rule_needs_fresh(films: list[Path], tmp_path: Path) -> None:
    bundle, out = make_bundle(tmp_path / "bundle", sensitive_points=POINTS, selective=SETS), tmp_path / "out"
    Triage(bundle, sessions(FakeSession())).run(films, out)
    rules: list[tuple[dict[str, Any], str]] = [
        ({"sensitivity": 95}, "sensitivity of at least 95 %;"),
        ({"selective": True}, "sensitivity of at least 80 %, undecided films for review;"),
    ]
    for options, says in rules:
        with pytest.raises(UsageError, match=f"of at least 80 %; this run uses .*{says} give .* --fresh"):
            Triage(bundle, sessions(FakeSession()), **options).run(films, out)
    assert {(line["sensitivity"], line["selective"]) for line in lines(out)} == {(80, False)}
    triage = Triage(bundle, sessions(FakeSession()), sensitivity=95, selective=True)
    summary = triage.run(films, out, fresh=True)
    assert (summary.run.done, summary.to_dict()["run"]["rule"]) == (7, {"sensitivity": 95, "selective": True})
    assert {(line["sensitivity"], line["selective"]) for line in lines(out)} == {(95, True)}
    assert triage.run(films, out).run.resumed == 7


def test_results_from_before_there_were_rules_are_gone_on_with(films: list[Path], tmp_path: Path) -> None:
    """They were made at 80 %, and had no sets."""
    bundle, out = make_bundle(tmp_path / "bundle", sensitive_points=POINTS), tmp_path / "out"
    Triage(bundle, sessions(FakeSession())).run(films, out)
    new = lines(out)
    old = [{k: v for k, v in line.items() if k not in ("prediction_set", "sensitivity", "selective")} for line in new]
    (out / "results.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in old))
    with pytest.raises(UsageError, match="--fresh"):
        Triage(bundle, sessions(FakeSession()), sensitivity=95).run(films, out)
    more = write_films(tmp_path / "more", 1)
    summary = Triage(bundle, sessions(FakeSession())).run([*films, *more], out)
    assert (summary.run.done, summary.run.resumed, summary.inputs) == (1, 7, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sensitivity": 95}, r"--sensitivity 95: the bundle fake has operating points at 80 % alone; export it again"),
        ({"selective": True}, "--selective: the bundle fake has no prediction sets; export it again"),
        ({"sensitivity": 90}, "--sensitivity is 90: choose 80 or 95"),
    ],
)
def test_a_rule_that_the_bundle_has_not(bundle: Bundle, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Triage(bundle, sessions(FakeSession()), **options)
    with pytest.raises(UsageError, match=says):
        Triage.open(bundle, **options)  # before its network, which is none, is opened


def test_the_output_folder_inside_the_input_is_not_read(bundle: Bundle, films: list[Path]) -> None:
    folder = films[0].parent
    for done in (7, 0):
        summary = Triage(bundle, sessions(FakeSession())).run(folder, folder / "out")
        assert (summary.run.done, summary.inputs) == (done, 7)


def test_nothing_to_read_is_told_and_the_empty_worklist_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no files under .*empty"):
        Triage(bundle, sessions(FakeSession())).run(tmp_path / "empty", tmp_path / "out")
    assert worklist(tmp_path / "out") == [] and (tmp_path / "out" / "report.html").exists()
    with pytest.raises(UsageError, match="no such file"):
        Triage(bundle, sessions(FakeSession())).run(tmp_path / "typo", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_output_that_cannot_be_written_ends_the_run(bundle: Bundle, films: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="file: cannot be written"):
        Triage(bundle, sessions(FakeSession())).run(films, tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thumbnails").write_text("in the way")
    with pytest.raises(UsageError, match=r"thumbnails.* cannot be written .*run again"):
        Triage(bundle, sessions(FakeSession())).run(films, tmp_path / "out")


def test_closing_the_iterator_ends_the_threads(bundle: Bundle, films: list[Path]) -> None:
    import threading

    stream = Triage(bundle, sessions(FakeSession()))(films)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("cxrvit-edge")]


def test_what_is_on_its_way_is_bounded(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = write_films(tmp_path / "in", 40)
    taken = 0

    def counted(paths: list[Path], follow_links: bool) -> Iterator[Found]:
        nonlocal taken
        for found in discover(paths, follow_links=follow_links):
            taken += 1
            yield found

    monkeypatch.setattr("cxrvit_edge.triage.discover", counted)
    stream = Triage(bundle, sessions(FakeSession()), workers=2, batch_size=4)(films)
    for done, _ in enumerate(stream):
        assert taken - done <= 2 * (2 + 4)
    assert taken == len(films)


def test_wrong_numbers(bundle: Bundle) -> None:
    for options in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(UsageError, match="at least 1"):
            Triage(bundle, sessions(FakeSession()), **options)  # type: ignore[arg-type]


def test_names_of_any_bytes_come_through(bundle: Bundle, tmp_path: Path) -> None:
    (film_path,) = write_films(tmp_path / "in", 1)
    odd = tmp_path / "in" / os.fsdecode(b"=a\xff,\n\"b'.png")
    film_path.rename(odd)
    summary = Triage(bundle, sessions(FakeSession())).run(tmp_path / "in", tmp_path / "out")
    assert summary.statuses["ok"] == 1
    assert lines(tmp_path / "out")[0]["file"] == odd.as_posix()
    assert Triage(bundle, sessions(FakeSession())).run(tmp_path / "in", tmp_path / "out").run.resumed == 1


def test_killed_at_random_and_started_again_each_input_has_one_result(bundle: Bundle, tmp_path: Path) -> None:
    films = write_films(tmp_path / "in", 40)
    out, root = tmp_path / "out", Path(__file__).resolve().parents[1]
    results = out / "results.jsonl"
    arguments = ["triage", str(films[0].parent), "--out", str(out), "--bundle", str(bundle.root), "--quiet"]
    command = [sys.executable, str(root / "tests" / "slow_cli.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    rng, kills = random.Random(5), 0
    for _ in range(4):
        before = results.stat().st_size if results.exists() else 0
        with subprocess.Popen(command, env=environment) as process:
            more = rng.randrange(1, 5000)
            while process.poll() is None and (results.stat().st_size if results.exists() else 0) < before + more:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)
            process.kill()
        kills += process.returncode == -9
    assert kills >= 2
    subprocess.run(command, env=environment, check=True)
    files = [str(line["file"]) for line in lines(out)]
    assert sorted(files) == [path.as_posix() for path in films]
    assert len(worklist(out)) == len(films)


def test_what_a_killed_run_had_begun_to_write_is_gone_after_the_next(bundle: Bundle, tmp_path: Path) -> None:
    write_films(tmp_path / "in", 2)
    out = tmp_path / "out"
    (out / "thumbnails" / thumbnails.UNFINISHED).mkdir(parents=True)
    begun = [
        out / "thumbnails" / thumbnails.UNFINISHED / "ab.jpg.7",
        out / ".worklist.csv.tmp",
        out / ".report.html.tmp",
    ]
    for path in begun:
        path.write_text("half")
    Triage(bundle, sessions(FakeSession())).run(tmp_path / "in", out)
    assert {p.name for p in out.iterdir()} == {".lock", "results.jsonl", "worklist.csv", "report.html", "thumbnails"}
    assert {p.suffix for p in (out / "thumbnails").iterdir()} == {".jpg", ".png"}
