"""How far from the limit: a real bundle and a real graph beside small products and copies."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks import floor, floor_probes, record
from cxrvit_edge.bundle import Bundle
from export.count import Count, Work, count

pytestmark = pytest.mark.usefixtures("one_torch_thread")
SMALL = ["--gemm", "64", "--copy-mib", "1", "--seconds", "0.1"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_floors_are_the_work_at_the_peak_of_its_kind() -> None:
    work = Count((Work("", "fp32", 500, 0, 0), Work("", "int8", 4000, 0, 0)), weights=90, ends=10)
    peak = {"fp32": 100.0, "int8": 1000.0, "bytes": 50.0}
    assert floor.floors(work, peak) == (1000 / 100 + 8000 / 1000, 100 / 50)
    line = floor.row(floor.Graph("g", "", work), 1, peak, "x", 36.0)
    assert line["per_cent_of_limit"] == 50.0
    assert line["int8_per_cent"] == 88.9
    assert floor.floors(work, {"fp32": 100.0, "bytes": 50.0}) == (None, 2.0)  # no peak for INT8: not told
    assert floor.row(floor.Graph("g", "", work), 1, {"bytes": 50.0}, "x", 36.0)["per_cent_of_limit"] == ""


def test_slow_memory_is_the_limit_where_it_takes_longer() -> None:
    work = Count((Work("", "fp32", 500, 0, 0),), weights=90, ends=10)
    line = floor.row(floor.Graph("g", "", work), 1, {"fp32": 1000.0, "bytes": 10.0}, "x", 20.0)
    assert line["per_cent_of_limit"] == 50.0  # 1 s of arithmetic, 10 s of memory


def test_the_command_on_a_bundle_and_a_graph(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    bundle = Bundle.open(small_bundle)
    graph = small_bundle / next(iter(bundle.variant("fp32").files.values()))
    floor.main([str(small_bundle), str(graph), *SMALL, "--record"])
    lines = rows(tmp_path / "floor.csv")
    assert {line["candidate"] for line in lines} >= {"onnxruntime fp32", "torch fp32", "onnxruntime as exported"}
    work = count(onnx.load(graph, load_external_data=False))
    for line in lines:
        assert line["sha256"] == bundle.manifest.files[graph.name][:12]
        assert float(line["gflop"]) == round(work.operations / 1e9, 3)
        assert float(line["least_mb"]) == round(work.least / 1e6, 2)
        achieved = work.operations / (float(line["best_ms"]) / 1e3) / 1e9
        assert float(line["gflop_a_second"]) == pytest.approx(achieved, abs=0.06, rel=1e-3)
        limit = max(float(line["compute_floor_ms"]), float(line["memory_floor_ms"]))
        assert float(line["per_cent_of_limit"]) == pytest.approx(
            100 * limit / float(line["best_ms"]), abs=0.2, rel=1e-2
        )
    parts = rows(tmp_path / "floor_parts.csv")
    assert {line["part"] for line in parts} == {"backbone", "transformer", "heads"}
    ways = {(line["kind"], line["way"].split()[0]) for line in rows(tmp_path / "floor_peaks.csv")}
    assert ways >= {("fp32", "numpy"), ("fp32", "torch"), ("int8", "onnxruntime"), ("bytes", "numpy")}
    peak = max(float(line["peak"]) for line in rows(tmp_path / "floor_peaks.csv") if line["kind"] == "fp32")
    assert float(lines[0]["compute_floor_ms"]) == pytest.approx(work.operations / peak / 1e6, rel=1e-2)
    said = capsys.readouterr().out
    assert "passed over" not in said.replace("passed over: openvino", "")
    assert said.index("floor_peaks.csv") < said.index("floor.csv")  # the table is printed last


def test_a_graph_that_cannot_run_is_counted_all_the_same(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported.graph)
    model.ir_version = 99  # of no runtime yet
    onnx.save(model, tmp_path / "future.onnx")
    made = floor.of_file(tmp_path / "future.onnx", 2)
    assert made.count == count(exported.graph, 2)
    assert not made.runs
    assert "passed over: future.onnx on onnxruntime" in capsys.readouterr().out


def test_a_probe_that_fails_is_told_and_left_out() -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel\nat line 5")

    told: list[str] = []
    probes = [floor_probes.Probe("cpu", "int8", "a library", 1.0, fail), *floor_probes._numpy_gemm(16, 1)]
    kept = list(floor_probes._tried(probes, told.append))
    assert [p.way for p in kept] == ["numpy 16 x 16"]
    assert told == ["passed over: int8 by a library on cpu: no such kernel"]


def test_peaks_are_the_best_of_all_ways() -> None:
    probes = dict(enumerate(floor_probes.on_cpu(32, 1 << 16)))
    peaks = floor_probes.measured(probes, {key: 0.5 * (key + 1) for key in probes})
    assert {p.kind for p in probes.values()} >= {"fp32", "int8", "bytes"}
    fp32 = [p.amount / (0.5 * (key + 1)) for key, p in probes.items() if p.kind == "fp32"]
    assert len(fp32) > 1
    assert floor_probes.best(peaks, "cpu")["fp32"] == max(fp32)
    assert floor_probes.best(peaks, "cuda") == {}
