"""The bundle that ships: small enough, whole, and what its manifest says of each variant is within the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.inspection import inspect_bundle
from cxrvit_edge.plain_text import lines
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
    assert len(list(lines(report))) < 250
