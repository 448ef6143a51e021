"""Labels from CSVs and folders: what is read, and that whatever is wrong is named and ends nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundle import another_user

from cxrvit_edge import labels
from cxrvit_edge.errors import UsageError
from cxrvit_edge.labels import Labelled, Study
from cxrvit_edge.studies import Problems, sample


def films(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"film")
    return folder


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def problems(found: Labelled) -> dict[str, int]:
    return {p.kind: p.count for p in found.problems}


def first(found: Labelled, kind: str) -> str:
    return next(p.first[0] for p in found.problems if p.kind == kind)


def test_every_column(tmp_path: Path) -> None:
    films(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    path = table(
        tmp_path,
        "Split,Group ID,Label,View,Source,Score,Path\n"
        "test,p1,COVID-19,AP Supine,here,4.5,a/1.png\n"
        "test,,Other  Infection,frontal,,,a/2.png\n"
        "train,p3,normal,PA,here,,a/3.png\n",
    )
    found = labels.read(path)
    assert (found.root, found.problems) == (tmp_path, [])
    assert found.studies == [
        Study(tmp_path / "a/1.png", 2, "p1", "AP", "here", "test", 4.5),
        Study(tmp_path / "a/2.png", 1, "a/2.png", "unknown", "", "test"),
    ]
    assert [s.split for s in labels.read(path, "all").studies] == ["test", "test", "train"]
    assert [s.label for s in labels.read(path, "train").studies] == [0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write(tmp_path: Path, delimiter: str) -> None:
    """A byte order mark, another delimiter, Windows line ends and separators; `file` for the path."""
    films(tmp_path, "x/1.png", "x/2.png")
    rows = ["file,label,patient", "x\\1.png,Normal,one", "x/2.png, covid ,two", ""]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).replace(",", delimiter).encode())
    found = labels.read(tmp_path / "t.csv")
    assert [(s.path.name, s.label, s.patient) for s in found.studies] == [("1.png", 0, "one"), ("2.png", 2, "two")]
    assert found.problems == []


def test_brixia_zones_beside_it(tmp_path: Path) -> None:
    """A zone counts from 1; A, B, C are image-left from the top. A score of the table itself stands before them."""
    films(tmp_path, *(f"{i}.png" for i in range(5)))
    table(tmp_path, "path,label,score\n0.png,covid,\n1.png,covid,5\n2.png,,\n3.png,normal,\n4.png,normal,\n")
    columns = ",".join(f"S-{z}" for z in "ABCDEF")
    rows = ["0.png,3,2,0,1,0,0", "1.png,0,0,0,0,0,0", "2.png,1,1,1,1,1,1.0", "3.png,,,,,,", "4.png,1,2,4,0,0,x"]
    table(tmp_path, "\n".join([f"path,{columns}", *rows, ""]), "severity.csv")
    found = labels.read(tmp_path / "labels.csv")
    assert [s.severity for s in found.studies] == [3, 5, 6, None, None]
    assert found.studies[0].zones is not None
    np.testing.assert_array_equal(found.studies[0].zones, [[1, 1], [1, 0], [0, 0]])
    assert found.studies[2].label is None
    assert problems(found) == {"number": 1}
    assert "severity.csv line 6" in first(found, "number")


@pytest.mark.parametrize("text", ["path,S-A\n", "\xff\xfe", ""])
def test_a_severity_table_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    films(tmp_path, "1.png", "2.png")
    path = table(tmp_path, "path,label\n1.png,covid\n2.png,normal\n")
    (tmp_path / "severity.csv").write_bytes(text.encode("latin-1"))
    found = labels.read(path)
    assert len(found.studies) == 2
    assert problems(found) == {"severity": 1}
    assert "severity.csv" in first(found, "severity")


def test_every_bad_row_is_named_and_the_rest_stands(tmp_path: Path) -> None:
    films(tmp_path, *(f"{i}.png" for i in range(8)))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "5.png")
    path = table(
        tmp_path,
        "path,label,score\n"
        "0.png,normal,\n"
        "1.png,covid,nan\n"
        "2.png,covid,many\n"
        "3.png,covid,7\n"
        "4.png,tuberculosis,\n"
        "5.png,normal,\n"
        "link.png,normal,\n"
        "6.png,normal,\n"
        "6.png,covid,\n"
        "7.png,,\n"
        "7.png,other,\n"
        "gone.png,covid,\n"
        "0.png/inside.png,covid,\n"
        "folder.png,covid,\n"
        f"{'x' * 300}.png,covid,\n"
        ",covid,\n"
        "7.png\n",
    )
    found = labels.read(path)
    assert [(s.path.name, s.label) for s in found.studies] == [
        ("0.png", 0), ("1.png", 2), ("2.png", 2), ("3.png", 2), ("5.png", 0), ("7.png", 1),
    ]  # fmt: skip
    assert [s.severity for s in found.studies] == [None] * 6
    assert problems(found) == {
        "number": 3, "label": 1, "duplicate": 2, "contradiction": 1, "absent": 2, "unreadable": 2, "path": 1,
    }  # fmt: skip
    assert first(found, "number") == "line 3: 1.png: score 'nan'; use 0 to 6, or blank"
    assert "line 6: 4.png: label 'tuberculosis'; use normal, other" in first(found, "label")
    assert first(found, "duplicate") == "line 8: link.png: the same file as line 7: 5.png; counted once"
    assert first(found, "contradiction") == ("line 9: 6.png: labelled normal and covid19; none of its 2 rows is used")
    assert first(found, "absent") == "line 13: gone.png: no such file"
    assert first(found, "path") == "line 17: no path"


def test_only_the_first_five_are_told_and_nothing_unprintable(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\n" + "".join(f"\x1b[31m{i}.png,normal\n" for i in range(9)))
    (found,) = labels.read(path).problems
    assert (found.kind, found.count, len(found.first)) == ("absent", 9, 5)
    assert found.first[0] == "line 2: ?[31m0.png: no such file"
    assert labels.read(path).studies == []


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as parent:  # tmp_path is closed to other users
        folder = films(Path(parent), "1.png", "2.png", "3.png")
        folder.chmod(0o755)
        path = table(folder, "path,label\n1.png,normal\n2.png,covid\n3.png,other\n")
        (folder / "2.png").chmod(0)
        with another_user():
            found = labels.read(path)
    assert [s.path.name for s in found.studies] == ["1.png", "3.png"]
    assert first(found, "unreadable") == "line 3: 2.png: no permission to read it"


def test_paths_may_leave_the_folder(tmp_path: Path) -> None:
    films(tmp_path, "other/1.png", "other/2.png", "here/labels.csv")
    path = table(tmp_path / "here", f"path,label\n../other/1.png,normal\n{tmp_path}/other/2.png,covid\n")
    assert [s.path.resolve() for s in labels.read(path).studies] == [tmp_path / "other/1.png", tmp_path / "other/2.png"]


def test_one_file_by_two_kinds_of_slash_is_one(tmp_path: Path) -> None:
    films(tmp_path, "a/1.png", "a/2.png")
    rows = "path,label\na/1.png,normal\na\\1.png,covid\na/2.png,covid\na\\2.png,covid\n"
    found = labels.read(table(tmp_path, rows))
    assert [s.path.name for s in found.studies] == ["2.png"]
    assert {"contradiction": 1, "duplicate": 1}.items() <= problems(found).items()


def test_a_worklist_is_no_table_of_labels(tmp_path: Path) -> None:
    """Its labels are what the network says: the network would be held against itself."""
    films(tmp_path, "1.png")
    path = table(
        tmp_path, "rank,priority,file,status,reason,view,label\n1,routine,1.png,ok,,PA,normal\n", "worklist.csv"
    )
    with pytest.raises(UsageError, match="labels are the network's own"):
        labels.read(path)


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o600)
    tmp_path.chmod(0o755)
    with another_user(), pytest.raises(UsageError, match="cannot be"):
        labels.read(tmp_path / "closed")


def test_one_class_only_or_no_label_is_said(tmp_path: Path) -> None:
    films(tmp_path, "1.png", "2.png")
    one = labels.read(table(tmp_path, "path,label\n1.png,covid\n2.png,covid\n"))
    assert problems(one) == {"one_class": 1}
    assert first(one, "one_class") == "every labelled image is covid19: no AUC is defined"
    none = labels.read(table(tmp_path, "path,label\n1.png,\n2.png,\n"))
    assert problems(none) == {"no_label": 1}
    assert len(none.studies) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns missing: path (or file), label; it has nothing"),
        ("path,diagnosis\n", "columns missing: label; it has path, diagnosis"),
        ("name,label\n", r"columns missing: path (or file); it has name, label"),
        ("path,label\n", "a header and no row"),
        ("path,label,split\na,covid,train\nb,covid,val\nc,covid,\nd,covid,val\n",
         "no row of the split 'test'; it has blank (1), train (1), val (2); name one of these or all"),
    ],
)  # fmt: skip
def test_tables_that_hold_nothing(tmp_path: Path, text: str, said: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        labels.read(path)
    assert str(refused.value).startswith(str(path))
    assert said in str(refused.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        labels.read(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("path,label\nä.png,normal\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        labels.read(tmp_path / "latin.csv")
    films(tmp_path, "1.png")
    with pytest.raises(UsageError, match="limit 0"):
        labels.read(table(tmp_path, "path,label\n1.png,normal\n"), limit=0)


def test_a_folder_by_class(tmp_path: Path) -> None:
    films(tmp_path, "Normal/b.png", "Normal/a.dcm", "other infection/x.png", "COVID-19/deep/1.png", "Lateral/1.png")
    films(tmp_path, "Normal/.DS_Store", "Normal/Thumbs.db", "notes.txt")
    (tmp_path / "COVID-19/again.png").symlink_to(tmp_path / "Normal/b.png")
    (tmp_path / "COVID-19/broken.png").symlink_to(tmp_path / "gone.png")
    found = labels.read(tmp_path)
    assert [(s.path.relative_to(tmp_path).as_posix(), s.label) for s in found.studies] == [
        ("COVID-19/deep/1.png", 2), ("Normal/a.dcm", 0), ("other infection/x.png", 1),
    ]  # fmt: skip
    assert len({s.patient for s in found.studies}) == 3
    assert {s.split for s in found.studies} == {"all"}
    assert problems(found) == {"folder": 1, "contradiction": 1, "absent": 1}
    assert first(found, "folder").startswith("Lateral: ")
    assert labels.read(tmp_path, "train").studies == found.studies


def test_a_folder_with_a_table_is_the_table(tmp_path: Path) -> None:
    films(tmp_path, "normal/1.png", "normal/2.png", "covid/1.png")
    table(tmp_path, "path,label\nnormal/1.png,normal\ncovid/1.png,covid\n", "manifest.csv")
    assert len(labels.read(tmp_path).studies) == 2


def test_a_folder_of_neither(tmp_path: Path) -> None:
    films(tmp_path, "images/1.png")
    with pytest.raises(UsageError, match=r"it has images; name a CSV of labels, or a folder by class"):
        labels.read(tmp_path)


@given(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3))
def test_a_sample_keeps_the_classes_and_the_order(classes: list[int | None], limit: int, seed: int) -> None:
    studies = [Study(Path(f"{i}.png"), label, str(i)) for i, label in enumerate(classes)]
    found = sample(studies, limit, seed)
    assert len(found) == min(limit, len(studies))
    rows = [int(s.patient) for s in found]
    assert rows == sorted(set(rows))
    assert found == sample(studies, limit, seed)
    whole, kept = Counter(classes), Counter(s.label for s in found)
    if len(whole) <= limit < len(studies):
        assert set(kept) == set(whole)
        for label, n in whole.items():  # a class that is given its one image takes it from the others
            assert abs(kept[label] - limit * n / len(studies)) <= len(whole)


def test_problems_keep_their_order_and_their_length() -> None:
    problems = Problems()
    for i in range(7):
        problems.add("b" if i % 2 else "a", "long " * 100)
    assert [(p.kind, p.count) for p in problems.listed()] == [("a", 4), ("b", 3)]
    assert all(len(words) == 200 for p in problems.listed() for words in p.first)


def test_the_shared_films_as_training_reads_them(shared_data: Path) -> None:
    from train.data import manifest
    from train.severity_eval import zone_truth

    found = labels.read(shared_data / "manifest.csv", "all")
    records = manifest.read(shared_data)
    assert found.problems == []
    assert len(found.studies) == len(records)
    for s, r in zip(found.studies, records, strict=True):
        assert (s.path, s.label, s.patient, s.source, s.split) == (r.path, r.label, r.patient, r.source, r.split)
        zones = zone_truth([r])[0]
        if s.zones is None:
            assert np.isnan(zones).all()
        else:
            np.testing.assert_array_equal(s.zones, zones)
            assert s.severity == zones.sum()
    test = labels.read(shared_data)
    assert Counter(s.label for s in test.studies) == {0: 39, 1: 59, 2: 80, None: 3}
    some = labels.read(shared_data, limit=60)
    assert Counter(s.label for s in some.studies) == {0: 13, 1: 20, 2: 26, None: 1}
