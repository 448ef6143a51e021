"""Checkpoint to bundle, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_bundle as small
import torch
from small_bundle import Exported

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import BundleError, CxrVitError, InputError, ParityError, UsageError
from cxrvit_edge.findings import check_lungs, judge
from cxrvit_edge.metrics import threshold_at_sensitivity
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from export import __main__ as command
from export import goldens, graph
from export.bundle import export
from export.variants import Options
from train.data import manifest
from train.data.record import Record

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def quick(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the session's traced graph for that of this network: tracing is what takes the time."""

    def traced(net: TriageNet, *, opset: int) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(exported.graph)
        return model

    monkeypatch.setattr(graph, "trace", traced)


@pytest.fixture
def few_films(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goldens, "FILMS", ((1, 160, 144, "none", "PA", 16), (2, 144, 160, "focal", "AP", 8)))


@pytest.fixture(scope="module")
def raw(small_bundle: Path) -> dict[str, Any]:
    def not_json(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    values: dict[str, Any] = json.loads((small_bundle / MANIFEST).read_bytes(), parse_constant=not_json)
    return values


@pytest.fixture(scope="module")
def records(exported: Exported) -> list[Record]:
    return manifest.read(exported.data)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_manifest_says_where_it_comes_from(exported: Exported, raw: dict[str, Any]) -> None:
    assert raw["training"]["stage"] == "joint"
    assert raw["training"]["checkpoint_sha256"] == hashlib.sha256(exported.checkpoint.read_bytes()).hexdigest()
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    assert raw["training"]["commit"] is None or len(raw["training"]["commit"]) == len(head.stdout.strip()) == 40
    assert raw["licences"] == {"code": "Apache-2.0", "weights": "CC-BY-NC-SA-4.0"}
    assert "Not a medical device" in raw["intended_use"]
    assert "confounded" in raw["caveat"]
    assert "CC BY-NC-SA 4.0" in (exported.bundle / "LICENSE-WEIGHTS.md").read_text()
    assert raw["preprocessing"] == PreprocessConfig(size=small.SIZE).to_dict()
    assert raw["network"] == {**json.loads(small.config().to_json()), "folded": True}


def test_manifest_counts_what_was_measured(raw: dict[str, Any]) -> None:
    for split in ("val", "test"):
        found = raw["evaluation"][split]
        assert (found["images"], found["labelled"], found["patients"], found["no_lungs"]) == (6, 6, 6, 0)
        assert found["lung_dice"]["lungvae"]["images"] == 6
        assert 0.8 < found["lung_dice"]["lungvae"]["value"] < 1
        assert found["severity"]["brixia>=1"]["images"] == 2
        assert set(found["sensitive_points"]) == set(CLASSES)
        assert (found["selective"]["images"], found["selective"]["coverage"]["value"]) == (6, 1.0)
        assert list(found["selective"]["by_source"]) == ["generated"]
    assert raw["selective"] == {"alpha": 0.1, "threshold": 1.0, "images": 6, "method": "lac"}  # too few to rule one out
    assert raw["evaluation"]["test"]["refused_by_guard"] == 0
    parity = raw["variants"]["fp32"]["parity"]
    assert parity["within"] and parity["splits"]["both"]["images"] == 12
    assert 0 < parity["splits"]["both"]["logits"]["largest"] <= 1e-4
    assert "onnxruntime" in parity["executor"] and "torch" in parity["reference"]


def test_decisions_hold_on_val_through_the_edges_own_way(small_bundle: Path, records: list[Record]) -> None:
    """Read, preprocess, run and judge as triage does: every val film is let in, and four of five are flagged."""
    bundle = Bundle.open(small_bundle)
    session = OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32", threads=1)
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    val = [r for r in records if r.split == "val"]
    scores, labels = [], np.array([r.label for r in val])
    for record in val:
        tensor, geometry = preprocess(read(record.path), config)
        out = session.run(tensor[None])
        check_lungs(out.lung_mask[0], bundle, geometry)
        found = judge(out, 0, bundle, "PA", geometry)
        scores.append([found.probabilities[name] for name in bundle.manifest.classes])
    for k, name in enumerate(bundle.manifest.classes):
        own = np.array(scores)[:, k]
        point = bundle.manifest.operating_points[name]
        assert (own[labels == k] >= point).mean() >= 0.8
        assert bundle.manifest.sensitive_points is not None
        assert (own[labels == k] >= bundle.manifest.sensitive_points[name]).mean() >= 0.95
        threshold = threshold_at_sensitivity(labels == k, own)
        lower = own[own < threshold].max(initial=0.0)
        assert point == pytest.approx((threshold + lower) / 2, abs=1.01e-6), "as far from both as can be"


def test_network_of_any_size_gives_maps_of_half_of_it(small_bundle: Path) -> None:
    with np.load(small_bundle / "golden_fp32.npz") as stored:
        assert stored["shared.severity_map"].shape == (4, 1, small.SIZE // 2, small.SIZE // 2)
        assert stored["shared.severity_map"].dtype == np.uint16


def test_command_makes_the_same_bundle_again(
    exported: Exported, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "again"
    arguments = [str(exported.checkpoint), "--data", str(exported.data / "manifest.csv"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["export", *arguments, "--name", "small", "--precision", "fp32"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "val: 6 of 6" in printed.err
    first, second = snapshot(exported.bundle), snapshot(out)
    commits = [json.loads(s.pop(MANIFEST)) for s in (first, second)]
    assert first == second
    for values in commits:
        values["training"].pop("commit")  # work may be committed while tests run
    assert commits[0] == commits[1]


@pytest.mark.slow
def test_tracing_again_gives_the_same_graph(exported: Exported) -> None:
    tensors, config, _ = checkpoint.load(exported.bundle / "weights.safetensors")
    again = graph.trace(checkpoint.network(tensors, config))
    assert again.SerializeToString(deterministic=True) == exported.graph.SerializeToString(deterministic=True)


def without_covid(records: list[Record]) -> list[Record]:
    return [r for r in records if r.split != "val" or r.label != 2]


def unlabelled(records: list[Record]) -> list[Record]:
    return [replace(r, label=None) for r in records]


def without_val(records: list[Record]) -> list[Record]:
    return [r for r in records if r.split == "test"]


def one_missing(records: list[Record]) -> list[Record]:
    return [replace(records[0], path=records[0].path.with_name("gone.png")), *records[1:]]


@pytest.fixture
def older(small_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A bundle where the export is to go; whatever happens it must be there, whole, and nothing beside it."""
    folder = shutil.copytree(small_bundle, tmp_path / "out" / "bundle")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before
    assert Bundle.open(folder).manifest.name == "small"
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def run(source: Path, records: list[Record], out: Path) -> Path:
    return export(source, records, out, name="new", say=lambda _: None, options=Options(precisions=("fp32",)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_covid, UsageError, "no covid19 image in the validation split"),
        (unlabelled, UsageError, "no labelled image in the val split"),
        (without_val, UsageError, "no image in the val split"),
        (one_missing, InputError, "gone.png"),
    ],
)
def test_data_that_decides_nothing_leaves_the_old_bundle(
    exported: Exported,
    records: list[Record],
    older: Path,
    quick: None,
    few_films: None,
    change: Callable[[list[Record]], list[Record]],
    error: type[CxrVitError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run(exported.checkpoint, change(records), older)


def not_a_number(net: TriageNet) -> None:
    net.get_parameter("encoder.blocks.0.fc1.weight").data[0, 0] = float("nan")


def too_large(net: TriageNet) -> None:
    net.get_parameter("diagnosis.weight").data[0, 0] = 1e5


@pytest.mark.parametrize(
    ("harm", "message"), [(not_a_number, r"not finite in \['encoder\.blocks\.0\.fc1"), (too_large, "does not fit FP16")]
)
def test_weights_that_cannot_be_stored_leave_the_old_bundle(
    records: list[Record], older: Path, tmp_path: Path, harm: Callable[[TriageNet], None], message: str
) -> None:
    torch.manual_seed(0)
    net = TriageNet(small.config())
    harm(net)
    source = small.write_checkpoint(tmp_path / "model.safetensors", net)
    with pytest.raises(BundleError, match=message):
        run(source, records, older)


def test_a_graph_that_departs_leaves_the_old_bundle(
    exported: Exported, records: list[Record], older: Path, few_films: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: TriageNet, *, opset: int) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(exported.graph)
        next(n for n in reversed(model.graph.node) if n.op_type == "Relu").op_type = "Sigmoid"
        return model

    monkeypatch.setattr(graph, "trace", wrong)
    with pytest.raises(ParityError, match="the bundle was not written"):
        run(exported.checkpoint, records, older)


def test_stopping_by_hand_leaves_the_old_bundle(
    exported: Exported, records: list[Record], older: Path, quick: None, few_films: None
) -> None:
    def say(text: str) -> None:
        if text.startswith("test:"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(exported.checkpoint, records, older, name="new", say=say, options=Options(precisions=("fp32",)))


def test_a_new_bundle_that_cannot_be_moved_leaves_the_old_one(
    exported: Exported,
    records: list[Record],
    older: Path,
    quick: None,
    few_films: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    move = Path.replace

    def full(self: Path, target: Path) -> Path:
        if self.name == "bundle" and self != older:
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="the disk is full, nothing was written there"):
        run(exported.checkpoint, records, older)


def test_a_new_bundle_takes_the_place_of_an_old_one(
    exported: Exported, records: list[Record], small_bundle: Path, tmp_path: Path, quick: None, few_films: None
) -> None:
    folder = shutil.copytree(small_bundle, tmp_path / "out" / "bundle")
    (folder / "left-over.onnx").write_bytes(b"x")
    val_only = [r for r in records if r.split == "val"]
    assert run(exported.checkpoint, val_only, folder) == folder
    b = Bundle.open(folder)
    assert b.manifest.name == "new"
    assert {p.name for p in folder.iterdir()} == {*b.manifest.files, MANIFEST}
    assert set(b.manifest.raw["evaluation"]) == {"val"}
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def no_bundle(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


def a_file(out: Path) -> None:
    out.write_text("years of work")


@pytest.mark.parametrize("make", [no_bundle, a_file])
def test_what_is_no_bundle_is_left_alone(
    exported: Exported, records: list[Record], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=f"{tmp_path / 'out'}: not empty and no bundle; name another --out"):
        run(exported.checkpoint, records, tmp_path / "out")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("extra", [{}, {"preprocessing": {"size": 2 * small.SIZE}}])
def test_preprocessing_of_another_size_than_the_network(
    exported: Exported, records: list[Record], tmp_path: Path, extra: dict[str, Any]
) -> None:
    tensors, config, _ = checkpoint.load(exported.checkpoint)
    checkpoint.save(tmp_path / "m.safetensors", tensors, config, extra)
    with pytest.raises(UsageError, match="its network takes 64"):
        run(tmp_path / "m.safetensors", records, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_as_a_process_ends_with_2_and_a_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "export", "absent.safetensors", "--data", str(tmp_path), "--out", str(tmp_path / "o")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path}/manifest.csv: not found; --data takes the folder that holds manifest.csv"
    )
    assert done.stdout == ""


def refuse(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def test_command_says_what_is_wrong(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(source: object, data: object, out: object) -> str:
        return refuse([str(source), "--data", str(data), "--out", str(out)], monkeypatch, capsys)

    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "file").write_text("in the way")
    good, data, out = exported.checkpoint, exported.data, tmp_path / "out"
    assert "text.safetensors: damaged or not a safetensors file" in told(tmp_path / "text.safetensors", data, out)
    assert "absent.safetensors: no such checkpoint" in told(tmp_path / "absent.safetensors", data, out)
    assert "manifest.csv: not found" in told(good, tmp_path, out)
    assert "not empty and no bundle" in told(good, data, tmp_path / "file")
    assert "\nerror: " in told(good, data, tmp_path / "file" / "below")
    assert "Missing option" in refuse([str(good)], monkeypatch, capsys)
    some = [str(good), "--out", str(out)]
    assert "no --data: name a manifest.csv" in refuse(some, monkeypatch, capsys)
    int8 = refuse([*some, "--data", str(data), "--precision", "int8"], monkeypatch, capsys)
    assert "--precision int8 needs --calibration" in int8
    films = refuse([*some, "--calibration", str(tmp_path)], monkeypatch, capsys)
    assert "name --data too" in films
    spoilt = refuse([*some, "--calibration", str(data), "--smooth", "2"], monkeypatch, capsys)
    assert "--smooth 2.0: give 0 for none" in spoilt
    few = refuse([*some, "--data", str(data), "--calibration", str(data), "--images", "4"], monkeypatch, capsys)
    assert "--images 4: ranges need at least 16" in few
    assert not out.exists()
