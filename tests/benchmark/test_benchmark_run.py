"""The whole report of a real bundle, small, on real sessions."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle as small
from jsonschema import Draft202012Validator

import cxrvit_edge.benchmark as benchmark
from cxrvit_edge.benchmark import Options, outputs, run, write
from cxrvit_edge.benchmark.environment import PACKAGES
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError

NAMES = ["onnxruntime fp32", "onnxruntime int8"]
QUICK: dict[str, Any] = {"seconds": 0.05, "draws": 100, "threads": 1}


def departs(report: dict[str, Any]) -> list[str]:
    schema = json.loads((files("cxrvit_edge") / "benchmark" / "report.schema.json").read_text("utf-8"))
    return [f"{list(e.absolute_path)}: {e.message[:200]}" for e in Draft202012Validator(schema).iter_errors(report)]


@pytest.fixture(scope="module")
def made(
    exported: small.Exported, quantised: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], Path, list[str]]:
    out, said = tmp_path_factory.mktemp("out"), list[str]()
    report, observations = run(Options(data=exported.data, bundle=quantised, out=out, **QUICK), said.append)
    return report, observations, out, said


def test_the_whole_report(made: Any, quantised: Path) -> None:
    report, observations, _, said = made
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert departs(report) == []
    assert [c["name"] for c in report["candidates"]] == NAMES and report["passed_over"] == []
    assert report["bundle"]["sha256"] == Bundle.open(quantised).sha256
    assert set(report["environment"]["versions"]) <= {*PACKAGES, "opencv"}
    assert list(report["latency"]) == list(report["end_to_end"]) == list(report["accuracy"]["by_candidate"]) == NAMES
    assert min(f["ratio"] for f in report["latency"].values()) == 1.0
    for found in report["latency"].values():
        assert found["single_stream"]["samples"] >= 2 and found["offline"]["batch_size"] == 2
    data = report["accuracy"]["data"]
    assert (data["images"], data["patients"], data["unlabelled"], data["problems"]) == (6, 6, 0, [])
    assert data["by_class"] == {"normal": 2, "other_infection": 2, "covid19": 2}
    assert report["end_to_end"][NAMES[0]]["files"] == "6 PNG: films of --data"
    assert [(p["variant"], p["reference"]) for p in report["parity"]] == [(NAMES[1], NAMES[0])]
    assert report["parity"][0]["splits"]["both"]["images"] == 6
    assert {name: len(own) for name, own in observations.items()} == dict.fromkeys(NAMES, 6)
    starts = ("opening: ", "films: 6 of 6", "in the network: ", "end to end: ", "figures: 2 candidates")
    assert [line.startswith(start) for line, start in zip(said, starts, strict=True)] == [True] * 5


def test_files_of_the_report(made: Any, quantised: Path) -> None:
    report, observations, out, _ = made
    paths = write(report, observations, out)
    assert {p.name for p in paths} >= {
        "report.json",
        "report.html",
        "latency.csv",
        "accuracy.csv",
        "parity.csv",
        "outputs.csv",
    }
    assert all(p.parent == out and p.stat().st_size for p in paths)
    assert json.loads((out / "report.json").read_text()) == report
    bundle = Bundle.open(quantised)
    stored = outputs.read_outputs(out / "outputs.csv", bundle.manifest.classes)
    assert outputs.require_same(stored, bundle) is None and list(stored.by_candidate) == NAMES
    for name, own in observations.items():
        assert outputs.matched(stored.by_candidate[name], own)[2] == []
    (out / "outputs.csv").unlink()
    (out / "outputs.csv").mkdir()
    with pytest.raises(UsageError, match=f"--out {out}: cannot be written"):
        write(report, observations, out)
    (out / "outputs.csv").rmdir()


def test_a_stored_reference(made: Any, exported: small.Exported, quantised: Path, tmp_path: Path) -> None:
    """One image of it is gone, one is of other data, and a label is another: all are named."""
    report, observations, out, _ = made
    write(report, observations, out)
    with (out / "outputs.csv").open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["candidate"] == NAMES[0]]
    rows[0] |= {"sha256": "f" * 64}
    rows[2] |= {"label": "normal" if rows[2]["label"] != "normal" else "covid19"}
    with (tmp_path / "stored.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    again, _ = run(
        Options(
            data=exported.data, bundle=quantised, reference=tmp_path / "stored.csv", out=tmp_path / "out",
            precisions=("fp32",), **QUICK,
        )
    )  # fmt: skip
    assert [c["name"] for c in again["candidates"]] == NAMES[:1]
    assert departs(again) == []
    (parity,) = again["parity"]
    assert (parity["variant"], parity["reference"]) == (NAMES[0], "stored: stored.csv onnxruntime fp32")
    assert parity["splits"]["both"]["images"] == 5 and parity["splits"]["both"]["logits"]["largest"] == 0
    assert [(c["sha256"], list(c)[2:]) for c in parity["changes"]] == [(rows[2]["sha256"], ["label"])]
    kinds = {p["kind"]: p["count"] for p in again["accuracy"]["data"]["problems"]}
    assert kinds == {"not_in_reference": 1, "only_in_reference": 1}


def test_without_data_on_a_box_without_anything(quantised: Path, tmp_path: Path, temporary: Path) -> None:
    report, observations = run(Options(bundle=quantised, out=tmp_path / "out", precisions=("fp32",), **QUICK))
    assert departs(report) == []
    assert report["accuracy"] is None and report["parity"] == [] and observations == {}
    assert "8 DICOM, 8 JPEG, 8 PNG: phantoms" in report["end_to_end"][NAMES[0]]["files"]
    assert list(temporary.iterdir()) == []
    paths = write(report, observations, tmp_path / "out")
    assert "outputs.csv" not in [p.name for p in paths]


def test_bad_labels_leave_a_report(quantised: Path, exported: small.Exported, tmp_path: Path) -> None:
    """Absent and unreadable files, a duplicate, a label of no class and one class only."""
    data = shutil.copytree(exported.data, tmp_path / "data")
    with (data / "manifest.csv").open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["split"] == "test" and row["label"] == "covid"]
    assert len(rows) == 2
    (data / "cut.png").write_bytes((data / rows[0]["path"]).read_bytes()[:2000])
    rows += [{**rows[0]}, {**rows[0], "path": "gone.png"}, {**rows[0], "path": "cut.png"}, {**rows[0], "label": "flu"}]
    with (data / "manifest.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    report, _ = run(Options(data=data / "manifest.csv", bundle=quantised, out=tmp_path / "out", **QUICK))
    kinds = {p["kind"]: p["count"] for p in report["accuracy"]["data"]["problems"]}
    assert kinds == {"duplicate": 1, "absent": 1, "unreadable": 1, "label": 1, "one_class": 1}
    found = report["accuracy"]["by_candidate"][NAMES[0]]["auc"]["covid19"]
    assert found["value"] is None and "one class only" in found["why"]
    assert departs(report) == []
    assert list(report["latency"]) == NAMES and report["parity"][0]["auc_per_cent"] is None
    assert report["accuracy"]["data"]["images"] == 2
    write(report, {}, tmp_path / "out")


def test_no_film_that_can_be_read_leaves_the_latency(quantised: Path, tmp_path: Path) -> None:
    for name in ("normal", "covid"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "film.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    asked = {"precisions": ("fp32",), **QUICK}
    report, observations = run(Options(data=tmp_path / "data", bundle=quantised, out=tmp_path / "out", **asked))
    assert departs(report) == []
    assert list(report["latency"]) == NAMES[:1] and report["accuracy"]["by_candidate"] == {}
    assert [(p["kind"], p["count"]) for p in report["accuracy"]["data"]["problems"]] == [("unreadable", 2)]
    write(report, observations, tmp_path / "out")


def test_no_image_at_all_is_wrong_use(quantised: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\ngone.png,normal\n")
    with pytest.raises(UsageError, match=r"no image to measure, split test .*gone\.png"):
        run(Options(data=tmp_path / "labels.csv", bundle=quantised, out=tmp_path / "out", **QUICK))


def test_a_reference_of_another_bundle_is_refused_before_anything_runs(
    made: Any, small_bundle: Path, tmp_path: Path, exported: small.Exported
) -> None:
    report, observations, out, _ = made
    other = {**report, "bundle": {**report["bundle"], "sha256": "0" * 64, "weights_sha256": "1" * 64}}
    write(other, observations, out)
    with pytest.raises(UsageError, match=r"of another bundle .000000000000"):
        run(Options(data=exported.data, bundle=small_bundle, reference=out / "outputs.csv", out=tmp_path, **QUICK))


def test_an_out_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        run(Options(out=tmp_path / "file" / "out"))


@pytest.mark.parametrize("phase", ["films", "in the network", "end to end"])
def test_an_interrupt_leaves_nothing(
    quantised: Path, exported: small.Exported, tmp_path: Path, temporary: Path, phase: str
) -> None:
    before = set(threading.enumerate())

    def stop(name: str, fraction: float) -> None:
        if name == phase:
            raise KeyboardInterrupt

    data = None if phase == "end to end" else exported.data
    with pytest.raises(KeyboardInterrupt):
        run(Options(data=data, bundle=quantised, out=tmp_path / "out", **QUICK), progress=stop)
    assert list(temporary.iterdir()) == [] and list((tmp_path / "out").iterdir()) == []
    assert set(threading.enumerate()) == before


def test_progress_rises_to_the_end(quantised: Path, exported: small.Exported, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    asked = {"precisions": ("fp32",), **QUICK}
    run(
        Options(data=exported.data, bundle=quantised, out=tmp_path, **asked),
        progress=lambda name, fraction: seen.append((name, fraction)),
    )
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] >= 0.9
    assert list(dict.fromkeys(name for name, _ in seen)) == list(benchmark.SHARES)


def test_class_and_source_that_go_together_are_told() -> None:
    from cxrvit_edge.benchmark.judged import _caveats
    from cxrvit_edge.labels import Study

    def some(label: int, source: str, count: int) -> list[Study]:
        return [Study(Path("x"), label, "p", source=source) for _ in range(count)]

    classes = ("normal", "other_infection", "covid19")
    told = _caveats([*some(0, "nih", 60), *some(1, "nih", 30), *some(1, "b", 30), *some(2, "c", 60)], classes)
    assert told == [
        "60 of 60 normal images are from nih, as are 30 of 60 other_infection and 0 of 60 covid19",
        "60 of 60 covid19 images are from c, as are 0 of 60 normal and 0 of 60 other_infection",
        "class and source go together here: see the figures within one source",
    ]
    apart = [*some(0, "a", 60), *some(1, "a", 60), *some(2, "a", 60)]
    assert _caveats(apart, classes) == []
    assert _caveats(apart[:130], classes) == ["few images, so intervals are wide: covid19 10"]


def test_figures_that_are_none(tmp_path: Path) -> None:
    assert benchmark._plain({"a": (float("nan"), np.float32(1.5), np.arange(2)), "b": float("inf")}) == {
        "a": [None, 1.5, [0, 1]],
        "b": None,
    }


@pytest.mark.slow
def test_on_real_radiographs(shared_data: Path, tmp_path: Path) -> None:
    options = Options(data=shared_data / "manifest.csv", images=12, seconds=0.5, draws=100, out=tmp_path)
    report, observations = run(options)
    write(report, observations, tmp_path)
    assert NAMES[0] in report["accuracy"]["by_candidate"] and report["accuracy"]["data"]["images"] == 12
    assert os.path.getsize(tmp_path / "report.html") < 1_500_000  # noqa: PTH202
