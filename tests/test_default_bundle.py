"""The bundle that ships: small enough, whole, and what its manifest says of each variant is within the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import ParityError
from cxrvit_edge.inspection import inspect_bundle
from cxrvit_edge.plain_text import lines
from cxrvit_edge.runtime import builder, golden
from cxrvit_edge.runtime.fusion import fusion, require_fused
from cxrvit_edge.runtime.layers import parse
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.select import open_sessions

BOUNDS = {  # flips, largest probability difference, RMS logit difference of their std, severity score MAE
    "fp16": (0, 0.005, 0.002, 0.005),
    "int8": (3, 0.05, 0.02, 0.05),
    "int8-cpu": (3, 0.05, 0.02, 0.05),
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


def test_it_is_under_45_megabytes(bundle: Bundle) -> None:
    files = {*bundle.manifest.files, MANIFEST}
    assert {p.name for p in bundle.root.iterdir() if p.is_file()} == files
    assert sum((bundle.root / name).stat().st_size for name in files) <= 45_000_000


def test_it_has_every_variant(bundle: Bundle) -> None:
    assert list(bundle.manifest.variants) == ["fp32", "fp16", "int8", "int8-cpu"]
    assert all(v.opset == 20 for v in bundle.manifest.variants.values()), "what JetPack 6 reads"


@pytest.mark.parametrize("name", BOUNDS)
def test_each_variant_is_within_its_bounds(bundle: Bundle, name: str) -> None:
    record = bundle.variant(name).parity
    assert record is not None
    assert record["within"] and not record["failures"] and "allowed_failing" not in record
    found, (flips, probability, rms, mae) = record["splits"]["both"], BOUNDS[name]
    assert found["images"] >= 338
    assert found["flips"]["images"] <= flips
    assert len([c for c in record["changes"] if set(c) - {"sha256", "split", "priority"}]) == found["flips"]["images"]
    assert found["probabilities"]["largest"] <= probability
    assert found["logits"]["rms_of_std"] <= rms
    assert found["severity"]["mae"] <= mae
    gap = found["auc"]["mean"]["difference"]
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_nearly_all_the_work_is_int8(bundle: Bundle) -> None:
    found = bundle.manifest.raw["variants"]["int8"]["quantisation"]
    assert found["int8_multiply_adds"] >= 0.9


def test_calibration_is_from_the_training_split_and_named_by_hash(bundle: Bundle) -> None:
    record = bundle.variant("int8").calibration
    assert record is not None
    assert record["split"] == "train" and record["chosen"] == len(set(record["sha256"])) == 128
    assert all(len(sha) == 64 for sha in record["sha256"])


def test_calibration_images_are_those(bundle: Bundle, shared_data: Path) -> None:
    pytest.importorskip("torch", reason="the chooser reads through train")
    from export.calibration import choose

    record = bundle.variant("int8").calibration
    assert record is not None
    again = choose(shared_data / "manifest.csv", images=record["asked"], seed=record["seed"]).record()
    assert again["sha256"] == record["sha256"]


def test_int8_runs_here_past_its_golden_check(bundle: Bundle, fresh_cache: Path) -> None:
    sessions = open_sessions(bundle, backend="onnxruntime", precision="int8")
    assert sessions.precision == "int8"


def test_inspect_tells_the_figures_and_not_every_hash(bundle: Bundle) -> None:
    report = inspect_bundle(bundle, bundle.root)
    int8 = report["variants"]["int8"]
    assert int8["parity"]["within"] is True
    assert int8["parity"]["flips"] <= 3
    assert int8["quantisation"]["int8_multiply_adds"] >= 0.9
    assert "sha256" not in int8["calibration"] and len(int8["calibration"]["list_sha256"]) == 64
    text = "\n".join(lines(report))
    calibration = bundle.variant("int8").calibration
    assert calibration is not None and not any(sha in text for sha in calibration["sha256"])


def test_a_scale_off_by_a_tenth_builds_and_fails_the_golden_check(bundle: Bundle, tmp_path: Path) -> None:
    """Of one DequantizeLinear: what it gives is a tenth too large. Fusion proof and parity are different tests."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    folder = shutil.copytree(bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    model = onnx.load(folder / "int8.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "backbone.features.transition1.conv.weight.dq")
    scale = next(t for t in model.graph.initializer if t.name == node.input[1])
    value = onnx.numpy_helper.to_array(scale)
    scale.CopyFrom(onnx.numpy_helper.from_array((value * 1.1).astype(value.dtype), scale.name))
    (folder / "int8.onnx").write_bytes(model.SerializeToString())
    compiled = builder.compile_onnx(folder / "int8.onnx", backend="tensorrt-rtx", sm="86")
    require_fused(fusion(parse(compiled.lines), compiled.sources), where="int8.onnx", least=2)
    graph = bundle.graph_for("PA")
    for root, right in ((bundle.root, True), (folder, False)):
        session = OnnxRuntimeSession(root / "int8.onnx", precision="int8", exact=True)
        if right:
            assert golden.check(bundle, "int8", graph, session, again=True)
            continue
        with pytest.raises(ParityError, match="int8 does not reproduce the golden outputs"):
            golden.check(bundle, "int8", graph, session, again=True)
