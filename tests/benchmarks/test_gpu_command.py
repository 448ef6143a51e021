"""The command for a box with a GPU, rehearsed on the processor: the same code, on a small bundle."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_measure, gpu_parity, gpu_torch
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.runtime.torch import TorchSession

pytestmark = pytest.mark.usefixtures("one_torch_thread")
QUICK = ["--cpu-rehearsal", "--seconds", "0.1", "--gemm", "32", "--copy-mib", "1", "--without", "compiled"]
ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def weights(bundle: Bundle) -> Path:
    return bundle.file(str(next(iter(bundle.manifest.raw["weights"].values()))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "no CUDA device: nothing measured" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_rehearsal(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["--bundle", str(small_bundle), "--out", str(out), "--batch", "1", "--batch", "2", "--images", "3", *QUICK]
    assert gpu.main(argv) == 0
    said = capsys.readouterr().out
    assert (out / "report.txt").read_text() == said
    for engine in ("tensorrt fp16", "tensorrt int8", "tensorrt-rtx fp16", "tensorrt-rtx int8"):
        assert f"passed over: {engine}: " in said
    assert "passed over: torch fp16 graph at batch 2: CUDA graphs need CUDA" in said
    latency = rows(out / "gpu_latency.csv")
    names = ["torch fp32", "torch tf32", "torch fp16", "torch fp16 autocast"]
    assert [(row["batch"], row["candidate"]) for row in latency] == [(b, name) for b in "12" for name in names]
    for row in latency:
        assert 0 < float(row["best_ms"]) <= float(row["p50_ms"]) <= float(row["p90_ms"])
        assert int(row["samples"]) >= gpu_measure.LEAST
        assert float(row["images_a_second"]) == pytest.approx(
            int(row["batch"]) * 1e3 / float(row["best_ms"]), rel=1e-2, abs=0.06
        )
        assert row["bundle"] == Bundle.open(small_bundle).sha256[:12]
        assert row["card"] == "rehearsal on the processor"
    apart = rows(out / "gpu_parity.csv")
    assert {(row["candidate"], row["image"]) for row in apart} == {(n, row["image"]) for n in names for row in apart}
    assert len(apart) == 3 * len(names)
    assert max(float(row["logits"]) for row in apart if row["candidate"] == "torch fp32") < 1e-4
    assert all(0 < float(row["logits"]) < 0.5 for row in apart if row["candidate"] == "torch fp16")
    floors = rows(out / "gpu_floor.csv")  # this bundle has no fp16 graph to count
    assert {row["candidate"] for row in floors} == {"torch fp32", "torch tf32"}
    assert all(float(row["per_cent_of_limit"]) > 0 for row in floors)
    last = said.splitlines()[-len(latency) :]
    assert [" ".join(line.split()[:2]) for line in last] == [" ".join(row["candidate"].split()[:2]) for row in latency]


def test_with_nothing_but_numpy_and_torch(small_bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('cv2', 'safetensors', 'onnx', 'onnxruntime', 'typer', 'pydicom', 'tensorrt', 'tensorrt_rtx'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks import gpu\n"
        "sys.exit(gpu.main(sys.argv[1:]))\n"
    )
    argv = ["--bundle", str(small_bundle), "--out", str(tmp_path), "--batch", "1", "--without", "fp16", *QUICK]
    ended = subprocess.run(
        [sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "cv2 is not installed): the bundle's golden set stands in" in ended.stdout
    assert "passed over: the floor (onnx is not installed" in ended.stdout
    assert {row["candidate"] for row in rows(tmp_path / "gpu_parity.csv")} == {"torch fp32", "torch tf32"}
    assert not (tmp_path / "gpu_floor.csv").exists()


def test_weights_read_by_hand_are_the_same(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(Bundle.open(small_bundle))
    torch.manual_seed(0)  # the findings' head is not in a bundle
    expected = gpu_torch.load(path).state_dict()
    torch.manual_seed(0)
    monkeypatch.setattr(gpu_torch, "find_spec", lambda name: None)
    found = gpu_torch.load(path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_each_way_gives_the_reference(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    images = golden.load_inputs(bundle)
    net, expected = gpu_torch.load(weights(bundle)), TorchSession(weights(bundle)).run(images[1:3])
    for way in gpu_torch.WAYS[:4]:
        bound = gpu_torch.Bound(net, way, images[:2], "cpu")
        bound.whole(images[2:4])  # what was there before leaves no trace
        found = bound.whole(images[1:3])
        allowed = 1e-4 if way.kind == "fp32" else 0.05
        assert golden.compare(found, expected).logits < allowed, way.name
        assert all(value.dtype == np.float32 for value in found)
    assert {value.dtype for value in net.state_dict().values()} <= {torch.float32, torch.int64}  # left as it was


def test_one_that_fails_later_is_left_out_and_the_others_stand() -> None:
    calls: list[str] = []

    def breaks() -> None:
        calls.append("breaks")
        if calls.count("breaks") == 3:
            raise RuntimeError("out of memory\nwith a trace")

    told: list[str] = []
    times = gpu_measure.in_turn({"breaks": breaks, "works": lambda: calls.append("works")}, 0.0, told.append)
    assert list(times) == ["works"]
    assert len(times["works"]) == gpu_measure.LEAST
    assert calls[:6] == ["breaks", "works"] * 3
    assert calls[6:] == ["works"] * 3  # the first of the six does not count
    assert told == ["passed over: breaks: out of memory"]
    assert gpu_measure.in_turn({}, 0.0, told.append) == {}


def test_images_in_batches_the_last_filled_up() -> None:
    sizes: list[int] = []

    def run(batch: Any) -> Outputs:
        sizes.append(len(batch))
        return Outputs(batch[:, 0, 0, :3], batch, batch)

    images = np.arange(5 * 9, dtype=np.float32).reshape(5, 1, 3, 3)
    found = gpu_parity.outputs(run, images, 2)
    assert sizes == [2, 2, 2]
    assert np.array_equal(found.severity_map, images)


def test_differences_and_flips(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    reference = Outputs(np.array([[4.0, 0, 0], [0, 4, 0]], np.float32), *(np.zeros((2, 1, 4, 4), np.float32),) * 2)
    other = Outputs(np.array([[4.0, 0, 0], [0, 0, 4]], np.float32), *(np.full((2, 1, 4, 4), 0.5, np.float32),) * 2)
    table = gpu_parity.rows(bundle, "x", other, reference, ["a", "b"])
    assert [row["label_flipped"] for row in table] == [0, 1]
    assert [row["logits"] for row in table] == [0.0, 4.0]
    assert table[0]["severity_map"] == 0.5
    whole = gpu_parity.summary(table)
    assert (whole["images"], whole["label_flipped"], whole["logits"]) == (2, 1, 4.0)
    other.logits[0] = np.nan  # overflow in half must not look like agreement
    assert np.isnan(gpu_parity.summary(gpu_parity.rows(bundle, "x", other, reference, ["a", "b"]))["logits"])


def test_films_of_a_folder(small_bundle: Path, exported: Any, tmp_path: Path) -> None:
    import hashlib
    import shutil

    (tmp_path / "note.txt").write_text("no radiograph")
    film = next((exported.data / "images").glob("*.png"))
    shutil.copy(film, tmp_path / "film.png")
    told: list[str] = []
    images, sha256, _ = gpu_parity.films(Bundle.open(small_bundle), tmp_path, 4, told.append)
    assert images.shape == (1, 1, 64, 64)
    assert sha256 == [hashlib.sha256(film.read_bytes()).hexdigest()]
    assert told == ["1 files passed over that are no readable radiograph"]
    (tmp_path / "film.png").unlink()
    with pytest.raises(SystemExit, match="no file in it can be read"):
        gpu_parity.films(Bundle.open(small_bundle), tmp_path, 4, told.append)


def test_a_box_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    gpu.card(told.append)
    assert told == ["no nvidia-smi (FileNotFoundError): no power limit, clocks or temperature"]


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Card, 580.1, 700.00 W, 71.10 W, 345 MHz, 1980 MHz, 31'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = gpu.card(pytest.fail)
    assert (found["name"], found["power.limit"], found["temperature.gpu"]) == ("NVIDIA Card", "700.00 W", "31")
