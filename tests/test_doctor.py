"""What doctor says of back ends, precisions and the box."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import int8_bundle
import pytest

from cxrvit_edge.doctor import examine
from cxrvit_edge.host import Gpu
from cxrvit_edge.runtime import measure, select
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Float32, Outputs

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_cache")
GPU = Gpu(0, "NVIDIA Test 86", "86", 8 << 30, "999.1")


@pytest.fixture
def three(both: Path) -> Path:
    """A bundle with fp32, int8-cpu and fp16."""
    int8_bundle.add(both, "fp16")
    return both


def backends(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {backend["name"]: backend for backend in report["backends"]}


def test_each_back_end_with_the_precisions_that_pass(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cxrvit_edge.doctor", "cxrvit_edge.runtime.candidates"):
        monkeypatch.setattr(f"{module}.gpus", list)
    report = examine(three)
    assert report["ok"] and report["gpus"] == [] and report["choices"] == []
    found = backends(report)
    assert found["onnxruntime"]["runs"] == ["fp32", "int8"] and found["onnxruntime"]["why"] == []
    for name in ("tensorrt", "tensorrt-rtx"):
        (why,) = found[name]["why"]
        assert found[name]["runs"] == [] and ("not installed" in why or "no CUDA driver on this box" in why)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    chosen = select.open_sessions(select.Bundle.open(three), threads=1).precision
    (choice,) = examine(three)["choices"]
    assert (choice["backend"], choice["chosen"]) == ("onnxruntime", chosen) and set(choice["seconds"]) == {
        "fp32",
        "int8",
    }


def test_a_precision_that_departs_is_told_and_the_rest_runs(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxRuntimeSession.run

    def bent(session: OnnxRuntimeSession, batch: Float32) -> Outputs:
        outputs = run(session, batch)
        return outputs._replace(logits=outputs.logits + 1) if session.precision == "int8" else outputs

    monkeypatch.setattr(OnnxRuntimeSession, "run", bent)
    report = examine(three)
    found = backends(report)["onnxruntime"]
    assert report["ok"] and found["runs"] == ["fp32"]
    (why,) = found["why"]
    assert "int8-cpu does not reproduce the golden outputs" in why


def test_a_gpu_without_an_engine_is_told_the_build_command(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, to ask for its version")
    for module in ("cxrvit_edge.doctor", "cxrvit_edge.runtime.candidates"):
        monkeypatch.setattr(f"{module}.gpus", lambda: [GPU])
    report = examine(three)
    assert report["gpus"] == [
        {"index": 0, "name": "NVIDIA Test 86", "sm": "86", "memory_bytes": 8 << 30, "driver": "999.1"}
    ]
    (why,) = backends(report)["tensorrt-rtx"]["why"]
    assert f"`cxrvit-edge build {three} --precision fp16`" in why
    assert report["ok"]


@pytest.mark.parametrize(("flags", "says"), [(["avx2"], "saturate"), (["avx2", "avx_vnni"], "exact at full speed")])
def test_int8_on_this_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], says: str) -> None:
    monkeypatch.setattr("cxrvit_edge.runtime.onnxruntime.cpu_flags", lambda: flags)
    assert says in examine(tmp_path / "none")["system"]["int8"]


def test_a_bundle_with_nothing_for_a_back_end(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrvit_edge.doctor.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = backends(examine(small_bundle))
    assert found["tensorrt"]["why"] == ["the bundle has no variant for it: fp16, int8; export it again"]
