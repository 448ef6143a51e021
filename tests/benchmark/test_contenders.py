"""Which candidates are measured on a box, and why others are not."""

from __future__ import annotations

from pathlib import Path

import int8_bundle
import pytest
import small_bundle as small

from cxrvit_edge.benchmark.candidates import gather
from cxrvit_edge.benchmark.options import Options
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import BundleError, EngineError, ParityError, UsageError
from cxrvit_edge.host import gpus
from cxrvit_edge.runtime import select

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_cache")


def test_auto_is_every_precision_of_what_triage_would_take(both: Path) -> None:
    found, passed = gather(Bundle.open(both), Options(threads=1))
    assert [c.name for c in found] == ["onnxruntime fp32", "onnxruntime int8"] and passed == []
    assert [c.variant for c in found] == ["fp32", "int8-cpu"]
    assert all(c.golden["passed"] and c.golden["logits"] <= 0.05 for c in found)
    about = found[1].to_dict()
    assert about["batch_size"] == 2 and about["notes"] == ["not tuned for this box: `cxrvit-edge build` does that"]


def test_one_that_departs_is_passed_over_and_the_rest_stands(both: Path) -> None:
    small.shift_golden(both, int8_bundle.GOLDEN)
    found, passed = gather(Bundle.open(both), Options(threads=1))
    assert [c.name for c in found] == ["onnxruntime fp32"]
    assert [p.name for p in passed] == ["onnxruntime int8"]
    assert "does not reproduce the golden outputs" in passed[0].why


def test_a_pass_on_record_is_not_taken_for_a_figure(both: Path) -> None:
    bundle = Bundle.open(both)
    first, _ = gather(bundle, Options(threads=1))
    again, _ = gather(bundle, Options(threads=1))
    assert [c.golden["logits"] for c in again] == [c.golden["logits"] for c in first]


def test_nothing_runs(both: Path) -> None:
    small.shift_golden(both, int8_bundle.GOLDEN)
    with pytest.raises(ParityError, match=r"nothing of this bundle runs here: onnxruntime int8: .* golden outputs"):
        gather(Bundle.open(both), Options(backends=("onnxruntime",), precisions=("int8",), threads=1))


def test_outside_its_parity_bounds_only_where_asked_for(both: Path) -> None:
    int8_bundle.add(
        both,
        "int8-cpu",
        files={"shared": int8_bundle.GRAPH},
        golden=int8_bundle.GOLDEN,
        tolerance={"logits": 0.05, "maps": 0.01},
        parity={"within": False},
    )
    bundle = Bundle.open(both)
    found, passed = gather(bundle, Options(threads=1))
    assert [c.name for c in found] == ["onnxruntime fp32"]
    why = "it was exported outside its parity bounds; --precision all measures it"
    assert passed == [("onnxruntime int8", why, False)]
    for precisions in (("int8",), ("all",)):
        found, passed = gather(bundle, Options(precisions=precisions, threads=1))
        assert "onnxruntime int8" in [c.name for c in found] and passed == []


def test_a_precision_that_was_named_is_never_left_out_in_silence(both: Path) -> None:
    """auto says nothing of back ends that are not here, but fp16 was asked for."""
    int8_bundle.add(both, "fp16")
    found, passed = gather(Bundle.open(both), Options(precisions=("fp16", "int8"), threads=1))
    assert [c.name for c in found] == ["onnxruntime fp32", "onnxruntime int8"]
    assert [missing.name.split()[-1] for missing in passed] == ["fp16"] and passed[0].why


def test_with_data_the_reference_comes_too(both: Path, tmp_path: Path) -> None:
    bundle, asked = Bundle.open(both), {"backends": ("onnxruntime",), "precisions": ("int8",), "threads": 1}
    found, _ = gather(bundle, Options(**asked))  # type: ignore[arg-type]
    assert [c.name for c in found] == ["onnxruntime int8"]
    found, _ = gather(bundle, Options(data=tmp_path, **asked))  # type: ignore[arg-type]
    assert [c.name for c in found] == ["onnxruntime fp32", "onnxruntime int8"]
    found, _ = gather(bundle, Options(data=tmp_path, reference=tmp_path / "outputs.csv", **asked))  # type: ignore[arg-type]
    assert [c.name for c in found] == ["onnxruntime int8"]


def test_all_names_what_is_not_here_and_torch_comes_by_name(both: Path) -> None:
    if gpus():
        pytest.skip("a GPU is here")
    found, passed = gather(Bundle.open(both), Options(backends=("all",), threads=1))
    names = [c.name for c in found]
    assert names[:2] == ["onnxruntime fp32", "onnxruntime int8"] and not any("torch" in name for name in names)
    for precision in ("fp32", "int8"):
        assert (f"openvino {precision}" in names) != (f"openvino {precision}" in [p.name for p in passed])
    found, _ = gather(Bundle.open(both), Options(backends=("torch", "onnxruntime"), threads=1))
    assert [c.name for c in found] == ["torch fp32", "onnxruntime fp32", "onnxruntime int8"]


def test_a_back_end_that_cannot_run_is_named(both: Path) -> None:
    if gpus():
        pytest.skip("a GPU is here")
    int8_bundle.add(both, "fp16")
    found, passed = gather(Bundle.open(both), Options(backends=("tensorrt", "onnxruntime"), threads=1))
    assert [c.name for c in found] == ["onnxruntime fp32", "onnxruntime int8"]
    assert [p.name for p in passed] == ["tensorrt fp16"] and "no CUDA driver" in passed[0].why
    with pytest.raises(EngineError, match="nothing of this bundle runs here: tensorrt fp16: no CUDA driver"):
        gather(Bundle.open(both), Options(backends=("tensorrt",), threads=1))


def test_what_the_bundle_or_the_back_end_does_not_have(both: Path) -> None:
    bundle = Bundle.open(both)
    with pytest.raises(BundleError, match="no 'fp16' variant"):
        gather(bundle, Options(precisions=("fp16",)))
    with pytest.raises(UsageError, match="--precision fp8"):
        select.open_every(bundle, precisions=("fp8",))
    opened, passed = select.open_every(bundle, backends=("tensorrt", "torch"), precisions=("int8",))
    assert opened == [] and [p.name for p in passed] == ["tensorrt int8", "torch int8"]
    assert "does not run int8 of this bundle" in passed[0].why
