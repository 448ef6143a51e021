"""Real runs of a small bundle against each other."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import int8_bundle
import pytest
from compare_sides import judged, side, write_results
from small_bundle import Exported

from cxrvit_edge.compare import JSON, PAGE, compare, told
from cxrvit_edge.compare.films import Films, truths
from cxrvit_edge.errors import CxrVitError, UsageError
from cxrvit_edge.findings import Finding
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.triage import Triage

LESIONS = ("none", "focal", "diffuse")


@pytest.fixture(scope="module")
def bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_bundle.make(exported, tmp_path_factory.mktemp("quantised") / "bundle")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine phantoms by class, one of them twice, and a file that is no image."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(9):
        path = folder / ("normal", "other", "covid")[i % 3] / f"film{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = make_phantom(i, height=160, width=144, lesions=LESIONS[i % 3]).pixels  # type: ignore[arg-type]
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    shutil.copy(folder / "normal" / "film0.png", folder / "normal" / "again.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def outputs(bundle: Path, films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Output folders of triage in fp32 and int8."""
    folder = tmp_path_factory.mktemp("outputs")
    for precision in ("fp32", "int8"):
        Triage.open(bundle, precision=precision).run([films], folder / precision)
    return folder / "fp32", folder / "int8"


def by_file(found: list[Finding]) -> dict[str, Finding]:
    return {finding.file: finding for finding in found}


def test_precisions_over_a_folder_by_class(bundle: Path, films: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    report = compare(
        f"{bundle}@fp32",
        f"{bundle}@onnxruntime:int8",
        data=films,
        out=tmp_path / "out",
        progress=lambda phase, fraction: steps.append((phase, fraction)),
    )
    assert report["images"]["matched"] == 11 and report["images"]["judged"] == 10
    assert report["a"]["precision"] == "fp32" and report["b"]["precision"] == "int8"
    assert report["data"]["labelled"] >= 9 and report["labels"]["images"] == 10
    assert report["same"] is None
    assert [s for s in steps if s[1] == 1.0] == [(f"{bundle}@fp32", 1.0), (f"{bundle}@onnxruntime:int8", 1.0)]
    one, other = (by_file(list(Triage.open(bundle, precision=p)([films]))) for p in ("fp32", "int8"))
    flipped = {file for file in one if one[file].label != other[file].label}
    assert {image["file"] for image in report["flips"]["label"]} == flipped
    largest = max(
        abs((other[file].probabilities or {})[name] - p)
        for file in one
        for name, p in (one[file].probabilities or {}).items()
    )
    said = report["differences"]["probabilities"].values()
    assert 0 < largest == pytest.approx(max(gap["largest"] for gap in said), abs=3e-6)
    assert json.loads((tmp_path / "out" / JSON).read_text()) == report
    page = (tmp_path / "out" / PAGE).read_text("utf-8")
    assert page.count("data:image/jpeg") == 2 * len(report["largest"]["images"]) > 0
    assert "data:image/png" in page
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [PAGE, JSON]
    assert any("on both sides" in line for line in told(report))


def test_two_output_folders_are_compared_without_running_anything(
    outputs: tuple[Path, Path], films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Triage, "open", lambda *_, **__: pytest.fail("a bundle was opened to be run"))
    a, b = (shutil.copytree(folder, tmp_path / folder.name) for folder in outputs)
    before = {p: p.read_bytes() for folder in (a, b) for p in folder.rglob("*") if p.is_file()}
    report = compare(str(a), str(b), out=tmp_path / "out")
    assert report["images"]["matched"] == 11 and report["labels"] is None and report["data"] is None
    assert before == {p: p.read_bytes() for folder in (a, b) for p in folder.rglob("*") if p.is_file()}
    assert (tmp_path / "out" / PAGE).read_text("utf-8").count("data:image/jpeg") > 0
    labelled = compare(str(a), str(b), data=films)
    assert labelled["labels"]["images"] == 10
    assert labelled["differences"] == report["differences"] and labelled["identical"] == report["identical"]
    assert labelled["worklist"]["places"] == report["worklist"]["places"]


def test_content_that_is_labelled_in_two_ways_has_no_label(tmp_path: Path) -> None:
    names = ("a.png", "b.png", "c.png", "d.png")
    for name, content in zip(names, ("one", "one", "two", "two"), strict=True):
        (tmp_path / name).write_text(content)
    films = Films((), {str(tmp_path / name): label for name, label in zip(names, (0, 2, 1, 1), strict=True)})
    digest = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    assert truths(films, []) == {digest["c.png"]: 1}
    ran = side(*(judged(str(tmp_path / name), sha256=digest[name]) for name in names))
    assert truths(films, [ran]) == {digest["c.png"]: 1}


def test_an_output_folder_against_a_run(bundle: Path, outputs: tuple[Path, Path], films: Path, tmp_path: Path) -> None:
    report = compare(
        str(outputs[0]), f"{bundle}@fp32", data=[films / "normal", films / "notes.txt"], out=tmp_path / "out"
    )
    assert report["images"]["matched"] == 5 and report["images"]["only_in_b"]["count"] == 0
    assert report["images"]["only_in_a"]["count"] == 6 and len(report["images"]["only_in_a"]["first"]) == 5
    assert report["flips"]["images"] == 0 and "run to run" in report["same"]
    largest = [gap["largest"] for gap in report["differences"]["probabilities"].values()]
    assert max(largest) <= 2e-6  # batches of another size add up in another order
    assert report["a"]["bundle_at_hand"] is not False
    assert (tmp_path / "out" / PAGE).is_file()


def test_a_folder_against_itself(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(outputs[0])
    report = compare(str(outputs[0]), str(tmp_path / "link"))
    assert "the same output folder" in report["same"]
    assert report["identical"] == report["images"]["matched"] == 11
    assert report["worklist"]["spearman"] == 1 and report["worklist"]["moved"] == 0


def test_a_table_of_labels_gives_split_label_and_view(bundle: Path, films: Path, tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split", "view"))
        for i in range(9):
            name = ("normal", "other", "covid")[i % 3]
            shutil.copy(films / name / f"film{i}.png", tmp_path)
            rows.writerow((f"film{i}.png", name, "test" if i < 6 else "train", "AP" if i else ""))
        rows.writerow(("absent.png", "covid", "test", "PA"))
    report = compare(f"{bundle}@fp32", f"{bundle}@int8", data=tmp_path / "labels.csv")
    assert report["images"]["matched"] == 6 and report["labels"]["images"] == 6
    assert report["data"]["split"] == "test"
    assert any("absent.png" in note for note in report["notes"])
    images = [f for f in Triage.open(bundle, precision="fp32")([tmp_path]) if f.status == "ok"]
    assert {f.view for f in images} == {"unknown"}  # without the table


def test_an_output_folder_among_the_images_is_none_of_them(
    bundle: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(films / "covid", tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    for _ in range(2):
        report = compare(f"{bundle}@fp32", f"{bundle}@fp32", data=".", out="compare-out")
        assert report["images"]["matched"] == 3 and report["images"]["a"] == 3
    assert "one bundle, back end, precision and operating point" in report["same"]


@pytest.mark.parametrize(
    ("a", "b", "data", "said"),
    [
        ("{out}", "fp32", None, "give --data"),
        ("{bundle}@fp32", "{bundle}@int8", None, "give --data"),
        ("{bundle}@fp32", "{bundle}@int8", "{tmp}/absent", "no such file or folder"),
        ("{bundle}@fp32", "{bundle}@int8", "{tmp}/empty", "holds no files"),
        ("{bundle}@fp16", "{bundle}@int8", "{films}", "fp16"),
        ("{bundle}@tensorrt:int8", "{bundle}@int8", "{films}", "tensorrt"),
        ("{bundle}@fp32", "{other}", "{films}", "no class in common"),
    ],
)
def test_what_cannot_be_compared_is_told(
    bundle: Path, films: Path, tmp_path: Path, a: str, b: str, data: str | None, said: str
) -> None:
    out = write_results(tmp_path / "out", judged("a.png"))
    strange = judged("a.png", probabilities={"tuberculosis": 0.7}, flags={}, label="tuberculosis")
    other = write_results(tmp_path / "other", strange)
    (tmp_path / "empty").mkdir()
    places = {"out": out, "bundle": bundle, "tmp": tmp_path, "films": films, "other": other}
    with pytest.raises(CxrVitError, match=said):
        compare(a.format(**places), b.format(**places), data=data and data.format(**places))


def test_an_out_that_cannot_be_written_is_told_before_anything_runs(
    outputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        compare(str(outputs[0]), str(outputs[1]), out=tmp_path / "file")
