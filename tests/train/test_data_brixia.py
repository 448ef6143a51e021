"""The Brixia set and its scores of Cohen's images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge import radiograph
from cxrvit_edge.errors import UsageError
from train.data import brixia, cohen, scores

SENIOR = [[0, 3], [1, 2], [2, 1]]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[files.Row]]:
    return files.make_brixia(tmp_path / "brixia")


def rewrite(made: tuple[Path, list[files.Row]], columns: tuple[str, ...] = files.BRIXIA_COLUMNS) -> Path:
    files.write_table(made[0] / "metadata_global_v2.csv", made[1], columns, ";")
    return made[0]


def test_every_image_is_a_record(made: tuple[Path, list[files.Row]]) -> None:
    root, rows = made
    left_out: Counter[str] = Counter()
    records = brixia.read(root, left_out=left_out)
    assert left_out == {"patient_in_test": 1}  # the other image of the last patient
    assert [r.path.name for r in records] == [r["Filename"] for r in rows if r["Filename"] != "1006.dcm"]
    assert [r.view for r in records] == ["AP", "PA", "unknown", "AP", "PA", "unknown", "PA"]
    assert {(r.label, r.source, r.reuse) for r in records} == {(2, "brixia", "non-commercial")}
    assert [r.day for r in records] == [0, 3, 0, 3, 0, 3, 3]
    assert [r.split for r in records].count("test") == 1 and records[-1].split == "test"
    np.testing.assert_array_equal(records[0].brixia, [[0, 3], [1, 0], [2, 1]])  # its zero was lost in the table
    assert records[0].second_brixia is None
    np.testing.assert_array_equal(records[-1].second_brixia, np.full((3, 2), 2))
    assert radiograph.read(records[1].path).view == "PA"


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_either_delimiter(tmp_path: Path, delimiter: str) -> None:
    root, _ = files.make_brixia(tmp_path, delimiter=delimiter)
    assert len(brixia.read(root / "metadata_global_v2.csv")) == 7


def test_scores_that_disagree_or_lack_are_left_out(made: tuple[Path, list[files.Row]]) -> None:
    made[1][1]["BrixiaScoreGlobal"] = "18"
    made[1][2]["BrixiaScore"] = ""
    left_out: Counter[str] = Counter()
    assert len(brixia.read(rewrite(made), left_out=left_out)) == 5
    assert left_out == {"patient_in_test": 1, "score_disagrees": 1, "no_score": 1}


def test_the_table_may_know_the_view(made: tuple[Path, list[files.Row]]) -> None:
    for row, view in zip(made[1], ("AP", "LL", *["PA"] * 6), strict=True):
        row["ViewPosition"] = view
    left_out: Counter[str] = Counter()
    records = brixia.read(rewrite(made, (*files.BRIXIA_COLUMNS, "ViewPosition")), left_out=left_out)
    assert [r.view for r in records] == ["AP", *["PA"] * 5]
    assert left_out["lateral_view"] == 1


def test_absent_images_are_counted_and_named(made: tuple[Path, list[files.Row]]) -> None:
    (made[0] / "dicom_clean" / "1002.dcm").unlink()
    with pytest.raises(UsageError, match=r"1 of 7 frontal images listed are absent, first .*dicom_clean/1002\.dcm"):
        brixia.read(made[0])
    left_out: Counter[str] = Counter()
    assert len(brixia.read(made[0], absent="skip", left_out=left_out)) == 6
    assert left_out == {"patient_in_test": 1, "not_found": 1}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("BrixiaScore", "412012", "BrixiaScore is '412012'; use six digits of 0 to 3"),
        ("BrixiaScore", "1120123", "BrixiaScore is '1120123'"),
        ("ConsensusTestset", "maybe", "ConsensusTestset is 'maybe'; use 0 or 1"),
    ],
)
def test_an_unknown_value_is_named_with_its_line(
    made: tuple[Path, list[files.Row]], column: str, value: str, message: str
) -> None:
    made[1][2][column] = value
    with pytest.raises(UsageError, match=rf"metadata_global_v2\.csv line 4: {message}"):
        brixia.read(rewrite(made))


def test_a_missing_column_and_a_wrong_folder_are_named(made: tuple[Path, list[files.Row]], tmp_path: Path) -> None:
    rewrite(made, tuple(c for c in files.BRIXIA_COLUMNS if c != "BrixiaScore"))
    with pytest.raises(UsageError, match="columns missing: brixiascore; it has filename"):
        brixia.read(made[0])
    with pytest.raises(UsageError, match=r"holds no metadata_global_v2\.csv, or public-annotations"):
        brixia.read(tmp_path)


def test_without_subjects_a_study_is_a_patient(made: tuple[Path, list[files.Row]]) -> None:
    records = brixia.read(rewrite(made, tuple(c for c in files.BRIXIA_COLUMNS if c != "Subject")))
    assert [r.patient for r in records] == [f"st{i}" for i in range(8)]


@pytest.mark.parametrize("place", ["", "data"])
def test_public_scores_of_cohens_images(tmp_path: Path, place: str) -> None:
    repository = tmp_path / "Brixia-score-COVID-19"
    files.make_cohen(tmp_path / "covid-chestxray-dataset")
    names = ["film-0.png", "film-3.jpg", "immagine 2.png"]
    files.write_annotations(repository / place / "public-annotations.csv", names)
    left_out: Counter[str] = Counter()
    records = brixia.read(repository, left_out=left_out)
    assert [(r.path.name, r.source, r.patient, r.label) for r in records] == [
        ("film-0.png", "cohen", "0", 2),
        ("film-3.jpg", "cohen", "1", 0),
    ]
    for record in records:
        np.testing.assert_array_equal(record.brixia, SENIOR)
        np.testing.assert_array_equal(record.second_brixia, np.ones((3, 2)))
    assert left_out == {"lateral_view": 1, "not_xray": 1, "no_score": 6}
    files.write_annotations(repository / place / "public-annotations.csv", ["another.png"])
    with pytest.raises(UsageError, match="none of its 1 images is listed by"):
        brixia.read(repository)


def test_scores_in_cohens_folder_are_taken_there(tmp_path: Path) -> None:
    root, _ = files.make_cohen(tmp_path)
    files.write_annotations(root / cohen.ANNOTATIONS, ["film-1.jpg"])
    assert [r.path.name for r in cohen.read(root) if r.brixia is not None] == ["film-1.jpg"]


def test_a_wrong_public_score_is_named(tmp_path: Path) -> None:
    path = tmp_path / "public-annotations.csv"
    files.write_annotations(path, ["a.png", "b.png"])
    path.write_text(path.read_text().replace("b.png,0,", "b.png,7,"))
    with pytest.raises(UsageError, match=r"public-annotations\.csv line 3: has s-a '7'; use 0, 1, 2 or 3"):
        scores.public_annotations(path)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.sampled_from(["{}", "0{}", " {} ", "{}.0"]))
def test_six_digits_survive_a_spreadsheet(digits: list[int], form: str) -> None:
    number = str(int("".join(map(str, digits))))  # as a spreadsheet writes it: no leading zero
    text = form.format(number)
    if len(text.strip().removesuffix(".0")) > 6:
        return
    found = scores.from_digits(text, "here")
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, [[digits[0], digits[3]], [digits[1], digits[4]], [digits[2], digits[5]]])


@given(st.text(max_size=8))
def test_anything_else_is_refused_or_six_zones(text: str) -> None:
    try:
        found = scores.from_digits(text, "here")
    except UsageError as error:
        assert str(error).startswith("here: BrixiaScore is ")
        return
    if found is None:
        assert not text.strip()
    else:
        assert found.shape == (3, 2) and set(found.ravel()) <= {0, 1, 2, 3}
        assert set(text.strip()) <= set("0123.")
