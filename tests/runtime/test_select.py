"""Which session is opened, and what is said where none can be."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import small_bundle as small

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import BundleError, EngineError, ParityError, UsageError
from cxrvit_edge.runtime import select
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.select import open_sessions
from cxrvit_edge.runtime.session import Float32, Outputs

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_cache")


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)


def shift_golden(folder: Path, name: str) -> None:
    """Outputs that no session gives."""
    with np.load(folder / name) as stored:
        arrays = dict(stored)
    arrays["shared.logits"] = arrays["shared.logits"] + np.float32(0.5)
    (folder / name).unlink()
    np.savez(folder / name, **arrays)


def add_variant(folder: Path, name: str, *, file: str = "fp32.onnx", golden: str = "golden_fp32.npz") -> None:
    """A further variant in the manifest, made of files that are there."""
    variants = json.loads((folder / MANIFEST).read_bytes())["variants"]
    small.reseal(
        folder, {"variants": {**variants, name: {**variants["fp32"], "files": {"shared": file}, "golden": golden}}}
    )


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
        ({"backend": "openvino"}, UsageError, "--backend openvino: choose auto, onnxruntime"),
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
    shift_golden(folder, "golden_fp32.npz")
    small.reseal(folder)
    with pytest.raises(ParityError, match="fp32 does not reproduce the golden outputs"):
        open_sessions(Bundle.open(folder), **asked)  # type: ignore[arg-type]


def test_auto_passes_over_a_variant_that_departs_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select._RUNS, "onnxruntime", ("fp16", "fp32"))
    shutil.copy(folder / "golden_fp32.npz", folder / "golden_fp16.npz")
    shift_golden(folder, "golden_fp16.npz")
    add_variant(folder, "fp16", golden="golden_fp16.npz")
    sessions = open_sessions(Bundle.open(folder))
    assert sessions.precision == "fp32"
    (note,) = sessions.notes
    assert note.startswith("onnxruntime fp16 passed over: ")
    assert "does not reproduce" in note
    with pytest.raises(ParityError, match="fp16"):
        open_sessions(Bundle.open(folder), precision="fp16")


def test_auto_passes_over_a_variant_that_does_not_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select._RUNS, "onnxruntime", ("fp16", "fp32"))
    (folder / "fp16.onnx").write_bytes(b"no graph")
    add_variant(folder, "fp16", file="fp16.onnx")
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
