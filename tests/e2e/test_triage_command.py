"""The command as a user runs it, with the embedded bundle."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import lines

from cxrvit_edge.bundle import default_path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def examples_out(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A finished run over examples/."""
    out = tmp_path_factory.mktemp("examples") / "triage-out"
    result = command(cache, "triage", "examples/", "--out", str(out))
    assert result.returncode == 0, result.stderr
    return out


def command(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXRVIT_EDGE_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "cxrvit_edge", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_examples(examples_out: Path) -> None:
    found = lines(examples_out)
    shown = [path for path in EXAMPLES.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert set(found) == {path.relative_to(ROOT).as_posix() for path in shown}
    for name, line in found.items():
        film = name.endswith((".png", ".jpg", ".dcm")) and "phantom" in name and "lateral" not in name
        assert line["status"] == ("ok" if film else "rejected"), line
    assert found["examples/phantom_lateral.dcm"]["reason"]["code"] == "lateral_view"  # type: ignore[index]
    judged = found["examples/phantom_normal_pa.png"]
    assert judged["severity"]["score"] is not None  # type: ignore[index]
    assert sum(judged["probabilities"].values()) == pytest.approx(1, abs=1e-4)  # type: ignore[attr-defined]
    assert found["examples/phantom_normal_mono2.dcm"]["view"] == "PA"
    with (examples_out / "worklist.csv").open(newline="") as f:
        assert len(list(csv.reader(f))) == len(found) + 1
    page = (examples_out / "report.html").read_text("utf-8").replace("<wbr>", "")
    assert "phantom_normal_pa.png" in page and "Research use only" in page


def test_run_again_it_does_nothing_anew(examples_out: Path, cache: Path) -> None:
    before = (examples_out / "results.jsonl").read_bytes()
    result = command(cache, "triage", "examples/", "--out", str(examples_out), "--json")
    assert result.returncode == 0 and json.loads(result.stdout)["run"]["done"] == 0
    assert (examples_out / "results.jsonl").read_bytes() == before


def test_backends_and_precisions_agree(cache: Path, tmp_path: Path) -> None:
    """With torch, as near as each is to be."""
    pytest.importorskip("torch")
    films = [str(EXAMPLES / name) for name in ("phantom_normal_pa.png", "phantom_diffuse_mono1.dcm")]
    runs = (("torch", "fp32", 0.0), ("onnxruntime", "fp32", 1e-3), ("onnxruntime", "int8", 0.05))
    seen = []
    for backend, precision, _ in runs:
        out = tmp_path / f"{backend}-{precision}"
        chosen = ("--backend", backend, "--precision", precision)
        assert command(cache, "triage", *films, "--out", str(out), *chosen).returncode == 0
        seen.append(lines(out))
    reference = seen[0]
    for found, (backend, precision, apart) in zip(seen, runs, strict=True):
        for name, line in found.items():
            assert (line["backend"], line["precision"]) == (backend, precision)
            assert line["probabilities"] == pytest.approx(reference[name]["probabilities"], abs=apart)
            score = reference[name]["severity"]["score"]  # type: ignore[index]
            assert line["severity"]["score"] == pytest.approx(score, abs=10 * apart)  # type: ignore[index]


def test_a_bundle_with_one_byte_changed_is_not_used(cache: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(default_path(), changed)
    weights = changed / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = command(cache, "triage", "examples/", "--out", str(tmp_path / "out"), "--bundle", str(changed))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and "weights.safetensors" in result.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_and_inspect(cache: Path) -> None:
    result = command(cache, "doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0 and report["problems"] == [] and report["bundle"]["verified"]
    assert "fp32" in next(b["runs"] for b in report["backends"] if b["name"] == "onnxruntime")
    bundle = json.loads(command(cache, "inspect", str(default_path()), "--json").stdout)
    assert bundle["verified"] and bundle["bytes"] < 45e6 and set(bundle["licences"]) == {"code", "weights"}


def test_real_dicoms(shared_data: Path, cache: Path, tmp_path: Path) -> None:
    """Chests are judged, all else is turned away by its header; without body part the hip cannot be decoded."""
    import pydicom

    hip = pydicom.dcmread(shared_data / "dicom_negative" / "nema_RG2_JPLY_hip.dcm")
    for keyword in ("BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName"):
        if keyword in hip:
            del hip[keyword]
    hip.save_as(tmp_path / "unnamed.dcm")
    folders = [shared_data / "dicom", shared_data / "dicom_negative"]
    out = tmp_path / "out"
    result = command(cache, "triage", *map(str, folders), str(tmp_path / "unnamed.dcm"), "--out", str(out))
    assert result.returncode == 1 and "unnamed.dcm" in result.stderr
    status = {Path(name).name: line["status"] for name, line in lines(out).items()}
    for path in folders[0].glob("*.dcm"):
        assert status[path.name] == "ok"
    for path in folders[1].glob("*.dcm"):
        assert status[path.name] == "rejected"
    assert status["unnamed.dcm"] == "failed"


@pytest.mark.slow
def test_real_images(shared_data: Path, cache: Path, tmp_path: Path) -> None:
    folders = [shared_data / "images" / source for source in ("nih", "cohen")]
    result = command(cache, "triage", *map(str, folders), "--out", str(tmp_path / "out"))
    found = lines(tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert len(found) == sum(1 for folder in folders for path in folder.iterdir() if path.is_file())
    assert sum(line["status"] == "ok" for line in found.values()) >= 0.99 * len(found)
