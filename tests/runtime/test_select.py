"""Which session is opened, and what is said where none can be."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import int8_bundle
import numpy as np
import pytest
import small_bundle as small
from int8_bundle import add as add_variant

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import BundleError, EngineError, ParityError, UsageError
from cxrvit_edge.host import Gpu
from cxrvit_edge.runtime import candidates, measure, select
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.select import Sessions, open_sessions
from cxrvit_edge.runtime.session import Float32, Outputs

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_cache")


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)


def test_auto_is_onnxruntime_and_ready_to_run(bundle: Bundle) -> None:
    sessions = open_sessions(bundle)
    assert (sessions.backend, sessions.precision, sessions.notes) == ("onnxruntime", "fp32", ())
    assert sessions.version == sessions["shared"].version
    assert sessions["shared"].run(np.zeros((1, 1, small.SIZE, small.SIZE), np.float32)).logits.shape == (1, 3)


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_what_is_named_is_opened(bundle: Bundle, backend: str, precision: str) -> None:
    sessions = open_sessions(bundle, backend=backend, precision=precision, threads=1)
    assert (sessions.backend, sessions.precision, sessions["shared"].backend) == (backend, "fp32", backend)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"backend": "onednn"}, UsageError, "--backend onednn: choose auto, onnxruntime"),
        ({"precision": "fp8"}, UsageError, "--precision fp8: choose auto, fp32"),
        ({"backend": "tensorrt"}, UsageError, "it would run fp16, int8 .which has fp32"),
        ({"backend": "tensorrt-rtx", "precision": "fp32"}, UsageError, "tensorrt-rtx does not run fp32"),
        ({"precision": "int8"}, BundleError, "no 'int8' variant .it has fp32"),
        ({"backend": "torch", "precision": "fp16"}, BundleError, "no 'fp16' variant"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told(bundle: Bundle, asked: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_sessions(bundle, **asked)  # type: ignore[arg-type]


def test_a_precision_that_the_back_end_does_not_run(folder: Path) -> None:
    add_variant(folder, "int8")
    with pytest.raises(UsageError, match="torch does not run int8"):
        open_sessions(Bundle.open(folder), backend="torch", precision="int8")


@pytest.mark.parametrize("module", ["torch", "safetensors"])
def test_missing_torch_is_told_with_the_command(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"{module} is not installed.*pip install torch=="):
        open_sessions(bundle, backend="torch")


def test_verify_repeats_the_check(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    run = OnnxRuntimeSession.run

    def counted(session: OnnxRuntimeSession, batch: Float32) -> Outputs:
        runs.append(len(batch))
        return run(session, batch)

    monkeypatch.setattr(OnnxRuntimeSession, "run", counted)
    for verify, total in ((False, 1), (False, 1), (True, 2), (False, 2)):
        open_sessions(bundle, verify=verify)
        assert len(runs) == total


@pytest.mark.parametrize("asked", [{}, {"precision": "fp32"}, {"backend": "torch"}], ids=str)
def test_departing_is_a_parity_error_where_nothing_else_is_left(folder: Path, asked: dict[str, str]) -> None:
    small.shift_golden(folder, "golden_fp32.npz")
    with pytest.raises(ParityError, match="fp32 does not reproduce the golden outputs"):
        open_sessions(Bundle.open(folder), **asked)  # type: ignore[arg-type]


def test_auto_passes_over_a_variant_that_departs_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.VARIANTS, "onnxruntime", {"fp16": "fp16", "fp32": "fp32"})
    shutil.copy(folder / "golden_fp32.npz", folder / "golden_fp16.npz")
    small.shift_golden(folder, "golden_fp16.npz")
    add_variant(folder, "fp16", golden="golden_fp16.npz")
    sessions = open_sessions(Bundle.open(folder))
    assert sessions.precision == "fp32"
    (note,) = sessions.notes
    assert note.startswith("onnxruntime fp16 passed over: ")
    assert "does not reproduce" in note
    with pytest.raises(ParityError, match="fp16"):
        open_sessions(Bundle.open(folder), precision="fp16")


def test_auto_passes_over_a_variant_that_does_not_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.VARIANTS, "onnxruntime", {"fp16": "fp16", "fp32": "fp32"})
    (folder / "fp16.onnx").write_bytes(b"no graph")
    add_variant(folder, "fp16", files={"shared": "fp16.onnx"})
    sessions = open_sessions(Bundle.open(folder))
    assert sessions.precision == "fp32"
    assert "fp16.onnx: ONNX Runtime" in sessions.notes[0]
    with pytest.raises(EngineError, match=r"fp16\.onnx"):
        open_sessions(Bundle.open(folder), precision="fp16")


def test_a_graph_that_does_not_load_is_an_engine_error(folder: Path) -> None:
    small.replace(folder / "fp32.onnx", b"no graph")
    small.reseal(folder)
    with pytest.raises(EngineError, match=r"fp32\.onnx"):
        open_sessions(Bundle.open(folder))


def test_a_session_for_each_graph(folder: Path) -> None:
    shutil.copy(folder / "golden_fp32.npz", folder / "golden_two.npz")
    with np.load(folder / "golden_fp32.npz") as stored:
        arrays = {f"{graph}.{k.split('.')[1]}": v for k, v in stored.items() for graph in ("upright", "supine")}
    np.savez(folder / "golden_two.npz", **arrays)
    variant = json.loads((folder / MANIFEST).read_bytes())["variants"]["fp32"]
    graphs = ("upright", "supine")
    small.reseal(
        folder,
        {
            "views": {"PA": "upright", "AP": "supine"},
            "weights": dict.fromkeys(graphs, "weights.safetensors"),
            "variants": {"fp32": {**variant, "files": dict.fromkeys(graphs, "fp32.onnx"), "golden": "golden_two.npz"}},
        },
    )
    sessions = open_sessions(Bundle.open(folder))
    assert set(sessions.by_graph) == set(graphs)
    assert sessions["upright"] is not sessions["supine"]


def one_thread(bundle: Bundle, **asked: Any) -> Sessions:
    return open_sessions(bundle, threads=1, **asked)


def times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[list[str]]:
    """Measuring gives these; what is measured is run once all the same. Returns what was measured, time after time."""
    measured: list[list[str]] = []

    def interleaved(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        measured.append(list(runs))
        for run in runs.values():
            run()
        return {name: seconds[name] for name in runs}

    monkeypatch.setattr(measure, "interleaved", interleaved)
    return measured


@pytest.mark.parametrize(
    ("int8", "chosen", "told"),
    [
        (0.5, "int8", "int8 is 2.0 times as fast as fp32 here: int8"),
        (0.98, "fp32", "int8 is only 2 % faster here than fp32: fp32"),
        (1.04, "fp32", "int8 is 4 % slower here than fp32: fp32"),
    ],
)
def test_auto_takes_the_fastest_measured_once_and_says_so(
    both: Path, monkeypatch: pytest.MonkeyPatch, int8: float, chosen: str, told: str
) -> None:
    measured = times(monkeypatch, fp32=1.0, int8=int8)
    bundle = Bundle.open(both)
    for verify, total in ((False, 1), (False, 1), (True, 2), (False, 2)):
        sessions = one_thread(bundle, verify=verify)
        assert (sessions.backend, sessions.precision, sessions["shared"].precision) == ("onnxruntime", chosen, chosen)
        assert sessions.notes == (told,)
        assert measured == [["fp32", "int8"]] * total
    named = one_thread(bundle, backend="onnxruntime")
    assert (named.precision, len(measured)) == (chosen, 2), "the back end by name, the precision still auto"


def test_measuring_for_real(both: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    sessions = one_thread(Bundle.open(both))
    (path,) = (fresh_cache / "choices").iterdir()
    record = json.loads(path.read_text())
    assert record["chosen"] == sessions.precision and set(record["seconds"]) == {"fp32", "int8"}
    assert all(value > 0 for value in record["seconds"].values())
    assert record["bundle"] == Bundle.open(both).sha256
    assert len(sessions.notes) == 1 and "here" in sessions.notes[0]


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": {"fp32": 1.0}}', '{"seconds": {"fp32": "x", "int8": 1.0}}'])
def test_a_record_that_is_none_is_measured_again(
    both: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    measured = times(monkeypatch, fp32=1.0, int8=0.5)
    bundle = Bundle.open(both)
    one_thread(bundle)
    (path,) = (fresh_cache / "choices").iterdir()
    path.write_text(content)
    assert one_thread(bundle).precision == "int8"
    assert len(measured) == 2
    assert one_thread(bundle).precision == "int8"
    assert len(measured) == 2


def test_a_choice_is_of_this_box_alone(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch, fp32=1.0, int8=0.5)
    bundle = Bundle.open(both)
    one_thread(bundle)
    for name, value in (("processor", "another"), ("cores", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(select, name, lambda value=value: value)
            one_thread(bundle)
    monkeypatch.setattr("onnxruntime.__version__", "9.9")
    one_thread(bundle)
    open_sessions(bundle, threads=2)
    assert len(measured) == 5
    one_thread(bundle)
    assert len(measured) == 5


def test_only_what_is_chosen_is_opened_again(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, fp32=1.0, int8=0.5)
    bundle = Bundle.open(both)
    one_thread(bundle)
    opened = []
    init = OnnxRuntimeSession.__init__

    def counted(session: OnnxRuntimeSession, path: Path, **kw: Any) -> None:
        opened.append(path.name)
        init(session, path, **kw)

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", counted)
    one_thread(bundle)
    assert opened == [int8_bundle.GRAPH]


def test_what_was_chosen_and_departs_gives_way(both: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says int8; the golden check, asked for again, does not."""
    times(monkeypatch, fp32=1.0, int8=0.5)
    bundle = Bundle.open(both)
    one_thread(bundle)
    shutil.rmtree(fresh_cache / "golden")
    run = OnnxRuntimeSession.run

    def bent(session: OnnxRuntimeSession, batch: Float32) -> Outputs:
        outputs = run(session, batch)
        return outputs._replace(logits=outputs.logits + 1) if session.precision == "int8" else outputs

    monkeypatch.setattr(OnnxRuntimeSession, "run", bent)
    sessions = one_thread(bundle)
    assert sessions.precision == "fp32"
    assert len(sessions.notes) == 1 and sessions.notes[0].startswith("onnxruntime int8 passed over: ")
    with pytest.raises(ParityError, match="int8-cpu does not reproduce"):
        one_thread(bundle, precision="int8")


@pytest.mark.parametrize("asked", [{}, {"backend": "onnxruntime"}], ids=str)
def test_int8_by_name_is_not_measured(both: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]) -> None:
    measured = times(monkeypatch)
    sessions = one_thread(Bundle.open(both), precision="int8", **asked)  # type: ignore[arg-type]
    assert (sessions.backend, sessions.precision, sessions.notes, measured) == ("onnxruntime", "int8", (), [])


def test_a_variant_outside_its_bounds_is_taken_by_name_only(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = times(monkeypatch)
    variants = json.loads((both / MANIFEST).read_bytes())["variants"]
    variants[int8_bundle.VARIANT]["parity"] = {"within": False}
    small.reseal(both, {"variants": variants})
    sessions = one_thread(Bundle.open(both))
    assert (sessions.precision, measured) == ("fp32", [])
    assert sessions.notes == ("onnxruntime int8 passed over: it was exported outside its parity bounds",)
    sessions = one_thread(Bundle.open(both), precision="int8")
    assert sessions.precision == "int8" and "outside its parity bounds" in sessions.notes[0]


GPU = Gpu(0, "NVIDIA Test 86", "86", 8 << 30, "999.1")


@pytest.fixture
def with_gpu_variant(folder: Path) -> Path:
    add_variant(folder, "fp16")
    return folder


def test_auto_without_a_gpu_says_nothing_of_it(with_gpu_variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "gpus", list)
    sessions = one_thread(Bundle.open(with_gpu_variant))
    assert (sessions.backend, sessions.precision, sessions.notes) == ("onnxruntime", "fp32", ())


@pytest.mark.parametrize(
    "asked", [{"backend": "tensorrt"}, {"backend": "tensorrt-rtx"}, {"precision": "fp16"}], ids=str
)
def test_a_gpu_by_name_where_there_is_none(
    with_gpu_variant: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]
) -> None:
    monkeypatch.setattr(candidates, "gpus", list)
    with pytest.raises(EngineError, match=r"no CUDA driver on this box.*--backend onnxruntime"):
        one_thread(Bundle.open(with_gpu_variant), **asked)  # type: ignore[arg-type]


def test_a_gpu_whose_package_is_missing(with_gpu_variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "gpus", lambda: [GPU])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT is not installed; .*cxrvit-edge\[tensorrt\]"):
        one_thread(Bundle.open(with_gpu_variant), backend="tensorrt")


def test_a_gpu_without_an_engine_is_told_with_the_command(
    with_gpu_variant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, to ask for its version")
    monkeypatch.setattr(candidates, "gpus", lambda: [GPU])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = Bundle.open(with_gpu_variant)
    sessions = one_thread(bundle)
    assert sessions.backend == "onnxruntime"
    (note,) = sessions.notes
    command = f"run `cxrvit-edge build {bundle.root} --precision fp16`"
    assert (
        note.startswith("NVIDIA Test 86 is there, but no tensorrt-rtx engine of fp16 (not built yet)")
        and command in note
    )
    for asked in ({"backend": "tensorrt-rtx"}, {"precision": "fp16"}):
        with pytest.raises(EngineError, match="but no tensorrt-rtx engine of fp16"):
            one_thread(bundle, **asked)  # type: ignore[arg-type]


def test_notes_of_the_sessions_are_told_as_they_come(bundle: Bundle) -> None:
    sessions = one_thread(bundle)
    assert sessions.notes == ()
    sessions["shared"].notes = ("slower now",)  # type: ignore[misc]
    assert sessions.notes == ("slower now",)
