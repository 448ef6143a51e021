"""The choice of calibration images: the same wherever and however the files lie, every stratum, never a lateral."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import chexpert_files as files
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from export import calibration
from export.calibration import MIN_IMAGES, Calibration, choose, pick
from export.candidates import Candidate
from train.data.manifest import REUSABLE

CONFIG = PreprocessConfig(size=64)


@pytest.fixture(scope="module")
def table() -> list[files.Row]:
    return files.rows(60)


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory: pytest.TempPathFactory, table: list[files.Row]) -> Path:
    return files.make(tmp_path_factory.mktemp("chexpert") / "CheXpert-v1.0-small", table)


def names(chosen: Calibration, root: Path) -> list[str]:
    return [image.path.relative_to(root).as_posix() for image in chosen.images]


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([columns, *rows])
    return path


# the chooser alone

people = st.integers(0, 9).map(str)
strata = st.sampled_from("ABCDE")


@st.composite
def sources(draw: st.DrawFn, own_patient: bool = False) -> list[Candidate]:
    drawn = draw(st.lists(st.tuples(strata, people), min_size=1, max_size=40))
    return [Candidate(Path(str(i)), str(i), s, str(i) if own_patient else p) for i, (s, p) in enumerate(drawn)]


def take_all(candidate: Candidate) -> bool:
    return True


@given(sources(), st.integers(1, 50), st.integers(0, 5), st.randoms())
def test_order_says_nothing_and_none_comes_twice(source: list[Candidate], n: int, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    chosen = pick(source, n, seed, take_all)
    shuffled = list(source)
    random.shuffle(shuffled)
    assert pick(shuffled, n, seed, take_all) == chosen
    assert len(set(chosen)) == len(chosen) == min(n, len(source))
    assert pick(source, n + 3, seed, take_all)[:n] == chosen


@given(sources(), st.integers(1, 50), st.integers(0, 5))
def test_patients_come_once_before_any_comes_twice(source: list[Candidate], n: int, seed: int) -> None:
    """Save where a stratum has none but patients who came already."""
    left = Counter(c.patient for c in source)
    came: Counter[str] = Counter()
    represented: set[str] = set()
    for candidate in pick(source, n, seed, take_all):
        behind = {p for p in left if left[p] and came[p] < came[candidate.patient]}
        if behind:
            assert candidate.stratum not in represented
            assert not behind & {c.patient for c in source if c.stratum == candidate.stratum}
        left[candidate.patient] -= 1
        came[candidate.patient] += 1
        represented.add(candidate.stratum)


@given(sources(), st.integers(1, 50), st.integers(0, 5))
def test_every_stratum_is_represented(source: list[Candidate], n: int, seed: int) -> None:
    there = {c.stratum for c in source}
    assert len({c.stratum for c in pick(source, n, seed, take_all)}) == min(n, len(there))


@given(sources(own_patient=True), st.integers(1, 50), st.integers(0, 5))
def test_strata_come_in_turn(source: list[Candidate], n: int, seed: int) -> None:
    chosen = Counter(c.stratum for c in pick(source, n, seed, take_all))
    there = Counter(c.stratum for c in source)
    for stratum, images in there.items():
        assert chosen[stratum] >= min(images, max(chosen.values()) - 1)


@given(sources(own_patient=True), st.integers(1, 50), st.integers(0, 5), strata, st.text(max_size=5))
def test_a_file_more_displaces_one_at_most(source: list[Candidate], n: int, seed: int, stratum: str, name: str) -> None:
    before = pick(source, n, seed, take_all)
    more = Candidate(Path("new"), f"new{name}", stratum, "new")
    after = pick([*source, more], n, seed, take_all)
    assert len(set(before) - set(after)) <= 1
    if more not in after:
        assert after == before


@given(sources(own_patient=True), st.integers(1, 50), st.integers(0, 5), st.sets(st.integers(0, 39)))
def test_what_is_refused_is_replaced(source: list[Candidate], n: int, seed: int, broken: set[int]) -> None:
    whole = [c for c in source if int(c.key) not in broken]
    assert pick(source, n, seed, lambda c: c in whole) == pick(whole, n, seed, take_all)


def test_the_seed_decides() -> None:
    source = [Candidate(Path(str(i)), str(i), "AB"[i % 2], str(i)) for i in range(100)]
    one, two = ({c.key for c in pick(source, 20, seed, take_all)} for seed in (0, 1))
    assert 0 < len(one & two) < 20


# CheXpert


def test_chexpert_in_both_layouts_copied_renamed_and_reordered(
    tmp_path: Path, chexpert: Path, table: list[files.Row]
) -> None:
    first = choose(chexpert, images=32)
    assert names(choose(chexpert, images=32), chexpert) == names(first, chexpert)
    copy = tmp_path / "elsewhere" / "renamed"
    for place in sorted(names_below(chexpert), reverse=True):
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(chexpert / place, copy / place)
    files.write_table(copy / "train.csv", table[::-1], "underscores")
    second = choose(copy, images=32)
    assert names(second, copy) == names(first, chexpert)
    assert second.record() == first.record() | {"folder": "renamed"}
    assert names(choose(copy / "train.csv", images=32), copy) == names(first, chexpert)
    assert set(names(choose(copy, images=32, seed=1), copy)) != set(names(first, chexpert))


def names_below(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in root.rglob("*.jpg")]


def test_chexpert_strata_and_no_lateral(chexpert: Path, table: list[files.Row]) -> None:
    frontal = [r for r in table if r["AP/PA"] in ("AP", "PA")]
    everything = choose(chexpert, images=len(table))
    assert set(names(everything, chexpert)) == {r["Path"] for r in frontal}
    assert everything.record()["passed_over"] == {"lateral_view": len(table) - len(frontal)}
    there = {image.stratum for image in everything.images}
    assert {s.split("/")[0] for s in there} == {"AP", "PA"}
    assert {s.split("/")[1] for s in there} == {"female", "male", "unknown"}
    chosen = choose(chexpert, images=len(there))
    assert {image.stratum for image in chosen.images} == there
    by_name = {r["Path"]: r for r in table}
    for image, name in zip(chosen.images, names(chosen, chexpert), strict=True):
        view, sex, finding = image.stratum.split("/")
        assert (view, sex) == (by_name[name]["AP/PA"], by_name[name]["Sex"].lower()) == (image.view, sex)
        positive = {label for label in files.LABELS if by_name[name][label] == "1.0"}
        assert finding == "none" or finding in {label.lower().replace(" ", "_") for label in positive}
        assert ("Pneumonia" in positive) == (finding == "pneumonia")


def test_chexpert_patients_come_once(chexpert: Path) -> None:
    """Save for strata that only a patient who came already can represent."""
    chosen = choose(chexpert, images=50)
    came: set[str] = set()
    of_stratum = Counter(image.stratum for image in chosen.images)
    for image, name in zip(chosen.images, names(chosen, chexpert), strict=True):
        patient = name.split("/")[1]
        assert patient not in came or of_stratum[image.stratum] == 1
        came.add(patient)
    assert len(came) > 45


@pytest.mark.parametrize("name", ["train_small_layout_synthetic.csv", "train_jfhealthcare_layout_synthetic.csv"])
def test_the_real_layouts(tmp_path: Path, shared_data: Path, name: str) -> None:
    with (shared_data / "chexpert_layout" / name).open(newline="") as f:
        listed = list(csv.DictReader(f))
    root = tmp_path / "CheXpert-v1.0-small"
    files.write_images(root, ["/".join(Path(r["Path"]).parts[-4:]) for r in listed])
    (root / "train.csv").write_bytes((shared_data / "chexpert_layout" / name).read_bytes())
    first = choose(root, images=48)
    copy = shutil.copytree(root, tmp_path / "copy")
    assert names(choose(copy, images=48), copy) == names(first, root)
    frontal = {"/".join(Path(r["Path"]).parts[-4:]) for r in listed if r["AP/PA"] in ("AP", "PA")}
    assert len(first.images) == 48 and set(names(first, root)) <= frontal
    there = {image.stratum for image in choose(root, images=120).images}
    assert {image.stratum for image in first.images} == there


def test_broken_images_are_passed_over(tmp_path: Path, chexpert: Path) -> None:
    copy = shutil.copytree(chexpert, tmp_path / "copy")
    before = choose(chexpert, images=24)
    absent, cut, blank, twin, *_ = (copy / name for name in names(before, chexpert))
    absent.unlink()
    cut.write_bytes(cut.read_bytes()[:600])
    files.cv2.imwrite(str(blank), np.full((96, 88), 7, np.uint8))
    twin.write_bytes((copy / names(before, chexpert)[-1]).read_bytes())
    after = choose(copy, images=24)
    record = after.record()
    assert record["chosen"] == 24
    assert record["passed_over"]["not_found"] == record["passed_over"]["blank"] == 1
    assert record["passed_over"]["truncated"] == record["passed_over"]["duplicate"] == 1
    assert len(set(record["sha256"])) == 24
    assert len(set(names(before, chexpert)) - set(names(after, copy))) <= 5


def test_the_record_is_for_the_manifest(chexpert: Path) -> None:
    chosen = choose(chexpert, images=20, seed=3)
    record = json.loads(json.dumps(chosen.record()))
    hashes = [hashlib.sha256(image.path.read_bytes()).hexdigest() for image in chosen.images]
    assert record["sha256"] == hashes
    assert record["list_sha256"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert sum(record["strata"].values()) == record["chosen"] == record["asked"] == 20
    assert (record["source"], record["folder"], record["seed"]) == ("chexpert", "CheXpert-v1.0-small", 3)
    assert record["split"] == "train"
    text = json.dumps(record)
    assert str(chexpert.parent) not in text and "patient0" not in text


def test_tensors_are_the_edges(chexpert: Path) -> None:
    chosen = choose(chexpert, images=18)
    tensors = list(calibration.tensors(chosen, CONFIG))
    assert {(t.shape, t.dtype.name) for t in tensors} == {((1, 1, 64, 64), "float32")}
    for image, tensor in zip(chosen.images, tensors, strict=True):
        np.testing.assert_array_equal(tensor[0], preprocess(read(image.path), CONFIG)[0])


def test_a_file_that_changed_is_named(tmp_path: Path, chexpert: Path) -> None:
    copy = shutil.copytree(chexpert, tmp_path / "copy")
    chosen = choose(copy, images=16)
    path = chosen.images[3].path
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="has changed since it was chosen"):
        list(calibration.tensors(chosen, CONFIG))
    path.unlink()
    with pytest.raises(UsageError, match=f"{path.name}: no such file.* choose again"):
        list(calibration.tensors(chosen, CONFIG))


# the other sources


def test_a_manifest_by_folder_or_name(tmp_path: Path) -> None:
    columns = ["path", "label", "view", "group_id", "source", "reuse", "split"]
    rows = []
    for i in range(40):
        split = "val" if i % 4 == 3 else "train"
        view, label = ("PA", "AP Supine", "lateral")[i % 3], ("normal", "covid", "")[i // 2 % 3]
        reuse = "unknown" if i in (4, 8) else "yes"
        rows.append([f"images/{i:02d}.jpg", label, view, f"g{i}", ("nih", "cohen")[i % 2], reuse, split])
    files.write_images(tmp_path, [row[0] for row in rows])
    write_csv(tmp_path / "manifest.csv", columns, rows)
    chosen = choose(tmp_path, images=30)
    kept = [row for row in rows if row[6] == "train" and row[2] != "lateral" and row[5] == "yes"]
    assert chosen.record()["passed_over"]["licence"] == 2
    assert set(names(chosen, tmp_path)) == {row[0] for row in kept}
    assert {image.view for image in chosen.images} == {"PA", "AP"}
    classes = {"normal": "normal", "covid": "covid19", "": "unlabelled"}
    strata = {f"{row[2].split()[0]}/{row[4]}/{classes[row[1]]}" for row in kept}
    assert {image.stratum for image in chosen.images} == strata
    assert chosen.record() == choose(tmp_path / "manifest.csv", images=30).record()
    assert (chosen.kind, chosen.split) == ("manifest", "train")
    every = choose(tmp_path, images=40, split=None)
    assert len(every.images) == sum(row[2] != "lateral" and row[5] == "yes" for row in rows) and every.split is None
    with pytest.raises(UsageError, match=r"split test: no frontal image .*another folder, CSV or split"):
        choose(tmp_path, split="test")


@pytest.mark.parametrize("column", ["path", "Path", "file"])
def test_any_csv_with_a_path(tmp_path: Path, column: str) -> None:
    rows = []
    for i in range(30):
        name = f"set/{i:02d}.jpg" if i else str(tmp_path / "set" / "00.jpg")
        view = "Lateral" if i % 10 == 9 else ("PA", "")[i % 2]
        rows.append([name, view, ("F", "male")[i % 2], ("sick", "well")[i // 15], ("train", "valid")[i % 15 // 13]])
    files.write_images(tmp_path, [f"set/{i:02d}.jpg" for i in range(30)])
    path = write_csv(tmp_path / "list.csv", [column, "View", "sex", "label", "split"], [*rows, rows[1]])
    chosen = choose(path)
    assert (chosen.kind, chosen.folder, chosen.split) == ("csv", tmp_path.name, "train")
    expected = {f"set/{i:02d}.jpg" for i in range(30) if i % 10 != 9 and i % 15 < 13}
    assert set(names(chosen, tmp_path)) == expected and len(chosen.images) == len(expected)
    strata = {"PA/female/sick", "PA/female/well", "unknown/male/sick", "unknown/male/well"}
    assert {image.stratum for image in chosen.images} == strata
    only_paths = write_csv(tmp_path / "paths.csv", [column], [[row[0]] for row in rows])
    assert len(choose(only_paths).images) == 30 and choose(only_paths).split is None


def test_a_folder_of_images(tmp_path: Path) -> None:
    root = tmp_path / "films"
    files.write_images(root, [f"{i % 3}/{i:02d}.png" for i in range(20)] + ["0/view2_lateral.png"])
    (root / "notes.txt").write_text("no image")
    for i, (view, sex) in enumerate([("PA", "F"), ("PA", "F"), ("AP", "M"), ("LL", "M")]):
        write_dicom(root / "ct" / f"{i}.dcm", view, sex, "SECRETID" if i < 2 else f"P{i}")
    chosen = choose(root, images=22)
    record = chosen.record()
    assert record["strata"] == {"AP/male": 1, "PA/female": 1, "unknown/unknown": 20}
    assert record["passed_over"] == {"lateral_view": 2, "not_an_image": 1}
    assert "SECRETID" not in json.dumps(record)
    assert len(choose(root, images=23).images) == 23  # patients have run out
    moved = root.rename(tmp_path / "moved")
    assert choose(moved, images=22).record() == record | {"folder": "moved"}


def write_dicom(path: Path, view: str, sex: str, patient: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", view
    ds.PatientID, ds.PatientSex = patient, sex
    pixels = files.film(path.name)
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3.4"
    ds.save_as(path, enforce_file_format=True)


# what cannot be used


def test_too_few_images_are_counted(tmp_path: Path) -> None:
    files.write_images(tmp_path, [f"{i}.png" for i in range(5)])
    (tmp_path / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match=rf"5 usable frontal images \(1 \w+\), and ranges need at least {MIN_IMAGES}"):
        choose(tmp_path)
    with pytest.raises(UsageError, match=f"8 calibration images: ranges need at least {MIN_IMAGES}"):
        choose(tmp_path, images=8)


def test_no_frontal_image(tmp_path: Path) -> None:
    files.write_images(tmp_path, [f"{i}_lateral.png" for i in range(5)])
    with pytest.raises(UsageError, match=r"no frontal image \(5 lateral_view\); name another"):
        choose(tmp_path)
    table = [files.row(f"train/patient{i:05d}/study1/view1_lateral.jpg", frontal="Lateral", view="") for i in range(5)]
    with pytest.raises(UsageError, match="no frontal image in its 5 rows"):
        choose(files.make(tmp_path / "CheXpert", table))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: .*check the path"):
        choose(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no frontal image \(none passed over\)"):
        choose(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,view\n1.png,PA\n", r"columns missing: path; it has image, view"),
        (b"path\n\xff\xfe.png\n", "not UTF-8"),
        (b"path,view\n,PA\n", "line 2: no path"),
        (b"path,label\n" + b"".join(b"%d.png,%d\n" % (i, i) for i in range(40)), "column label has 40 values"),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UsageError, match=rf"list\.csv.*{message}"):
        choose(tmp_path / "list.csv")


def test_a_chexpert_table_without_a_column_is_no_folder_of_images(tmp_path: Path, chexpert: Path) -> None:
    copy = shutil.copytree(chexpert, tmp_path / "copy")
    text = (copy / "train.csv").read_text().replace("AP/PA", "Projection", 1)
    (copy / "train.csv").write_text(text)
    with pytest.raises(UsageError, match="columns missing: ap/pa"):
        choose(copy)


def test_the_real_manifest(shared_data: Path) -> None:
    first, second = (choose(shared_data, images=64) for _ in range(2))
    assert first.record() == second.record()
    assert len(first.images) == 64 and set(first.record()["passed_over"]) == {"licence"}
    with (shared_data / "manifest.csv").open(newline="") as f:
        listed = {r["path"]: r for r in csv.DictReader(f)}
    rows = [listed[name] for name in names(first, shared_data)]
    assert {r["split"] for r in rows} == {"train"}
    assert {r["reuse"] for r in rows} <= set(REUSABLE)
    assert len({r["group_id"] for r in rows}) == 64
    assert {r["label"] for r in rows} == {"normal", "other", "covid", ""}
