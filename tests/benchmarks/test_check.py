"""The guard of ratios: what it names, what it lets pass, and what it says that it cannot compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, record
from benchmarks.check_ratios import REGISTRY, Benchmark, MeasureError, read, script
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores, processor

Rows = Sequence[dict[str, Any]]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


def store(name: str, rows: Rows, **box: str) -> None:
    path = record.record(name, list(rows), ("numpy",))
    if box:
        text = path.read_text().replace(f"{processor()}, {cores()} cores", box["box"])
        path.write_text(text)


def lines(*ratios: float | str, n: int = 8, bundle: str = "") -> Rows:
    return [
        {"name": f"part {i}", "unit": "s", "ratio": r, "n": n, "bundle": bundle, "note": "ended with exit code 1"}
        for i, r in enumerate(ratios)
    ]


def benchmark(*measurements: Rows, better: str = "lower", needs: tuple[str, ...] = ()) -> Benchmark:
    left: Iterator[Rows] = iter(measurements)

    def measure(folder: Path) -> Rows:
        assert folder.is_dir()
        try:
            return next(left)
        except StopIteration:
            raise MeasureError("it ended with exit code 3") from None

    direction: Callable[..., Any] = lambda _: better  # noqa: E731
    return Benchmark("theirs", ("name",), ("ratio",), direction, measure, ("n",), needs)


def said(capsys: pytest.CaptureFixture[str], registry: dict[str, Benchmark], *argv: str) -> tuple[int, str]:
    return check.main(list(argv), registry), capsys.readouterr().out


def test_worse_twice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    store("theirs", lines(1.0, 2.0))
    code, out = said(capsys, {"a": benchmark(lines(1.3, 2.0), lines(1.2, 2.9))})
    assert code == 1
    assert "WORSE: a: part 0: 1.000 -> 1.200" in out  # the better of both
    assert "part 1: " not in out  # the second time is for what was worse
    assert "1 same, 0 better, 1 worse, 0 new, 0 not compared" in out


def test_worse_once_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    store("theirs", lines(1.0))
    code, out = said(capsys, {"a": benchmark(lines(1.3), lines(1.05))})
    assert (code, "WORSE" in out) == (0, False)


@pytest.mark.parametrize(("better", "now", "state"), [("higher", 0.8, 1), ("higher", 1.3, 0), ("lower", 0.8, 0)])
def test_either_direction(capsys: pytest.CaptureFixture[str], better: str, now: float, state: int) -> None:
    store("theirs", lines(1.0))
    code, out = said(capsys, {"a": benchmark(lines(now), lines(now), better=better)})
    assert code == state
    assert ("1 better" in out) == (not state)


def test_the_tolerance_is_that_given(capsys: pytest.CaptureFixture[str]) -> None:
    store("theirs", lines(1.0))
    assert said(capsys, {"a": benchmark(lines(1.3), lines(1.3))}, "--tolerance", "0.5")[0] == 0


def test_what_cannot_be_compared_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    store("theirs", lines(1.0), box="Another Processor, 64 cores")
    code, out = said(capsys, {"a": benchmark(lines(9.0))})
    assert (code, "stored on another box (Another Processor, 64 cores)" in out) == (2, True)
    store("theirs", lines(1.0, bundle="0123456789ab"))
    code, out = said(capsys, {"a": benchmark(lines(9.0, bundle=Bundle.open().sha256[:12]))})
    assert (code, "stored of another bundle (0123456789ab)" in out) == (2, True)
    store("theirs", lines(1.0, n=256))
    code, out = said(capsys, {"a": benchmark(lines(9.0))})
    assert (code, "stored of other work (256; now 8)" in out) == (2, True)
    code, out = said(capsys, {"a": benchmark(lines(9.0), needs=("no-such-package",))})
    assert (code, "no-such-package is not installed" in out) == (2, True)
    code, out = said(capsys, {"a": benchmark()})
    assert (code, "it ended with exit code 3" in out) == (2, True)
    code, out = said(capsys, {"a": benchmark(lines(""))})
    assert (code, "ended with exit code 1" in out) == (2, True)
    store("theirs", lines(1.0, 2.0))
    code, out = said(capsys, {"a": benchmark(lines(1.0))})
    assert code == 0
    assert "part 1 not compared not measured now" in " ".join(out.split())


def test_what_was_recorded_is_compared_the_next_time(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    store("theirs", lines(1.0, n=256))
    registry = {"a": benchmark(lines(1.5), lines(1.8), lines(1.9)), "b": benchmark(lines(3.0))}
    code, out = said(capsys, registry, "--record")
    assert code == 0
    assert [row["ratio"] for row in read(results / "check.csv")] == ["1.5", "3.0"]
    code, out = said(capsys, registry, "--only", "a")
    assert code == 1
    assert "WORSE: a: part 0: 1.500 -> 1.800" in out
    registry = {"a": benchmark(lines(1.4)), "b": benchmark()}
    said(capsys, registry, "--only", "a", "--record")
    assert {row["benchmark"]: row["ratio"] for row in read(results / "check.csv")} == {"a": "1.4", "b": "3.0"}


def test_rows_of_one_name_are_told_apart_by_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    twice = [{**lines(r)[0]} for r in (1.0, 2.0)]
    store("theirs", twice)
    code, out = said(
        capsys, {"a": benchmark([{**lines(r)[0]} for r in (1.0, 2.6)], [{**lines(r)[0]} for r in (1.0, 2.6)])}
    )
    assert code == 1
    assert "WORSE: a: part 0 (2): 2.000 -> 2.600" in out


def test_a_row_of_several_ratios() -> None:
    entry = Benchmark("theirs", ("name",), ("a", "b"), lambda _: "higher", lambda _: [], ("n",))
    found = entry.ratios([{"name": "x", "a": "1.5", "b": "", "n": "8", "note": "out of memory"}])
    assert [(r.key, r.why, r.work) for r in found] == [("x: a", "", "8"), ("x: b", "out of memory", "8")]
    assert found[0].value == 1.5


def test_packages_that_changed_are_told(capsys: pytest.CaptureFixture[str], results: Path) -> None:
    import numpy as np

    store("theirs", lines(1.0))
    path = results / "theirs.csv"
    path.write_text(path.read_text().replace(np.__version__, "1.0.0"))
    out = said(capsys, {"a": benchmark(lines(1.0))})[1]
    assert f"numpy 1.0.0 -> {np.__version__}" in out


def test_a_script_records_where_it_is_told_to(tmp_path: Path, results: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    rows = script("help_time", "--rounds", "1", writes="help_time")(folder)
    (ratio,) = REGISTRY["help"].ratios(rows)
    assert ratio.value > 0
    assert not (results / "help_time.csv").exists()
    with pytest.raises(MeasureError, match="exit code 2 and no rows"):
        script("help_time", "--no-such-option", writes="none")(folder)


def test_every_stored_ratio_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = {name: b.stored_ratios() for name, b in REGISTRY.items()}
    for ratios in found.values():
        assert len({r.key for r in ratios}) == len(ratios)
        assert all(r.value > 0 and r.box for r in ratios if not r.why)
    assert {name for name, ratios in found.items() if ratios} >= {"help", "precision", "startup", "host", "overlap"}
    assert {r.better for r in found["host"]} == {"higher"}  # images a second
    assert {r.better for r in found["startup"]} == {"lower"}
