"""Every layout is known by what it holds, and several are one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import chexpert_files
import dataset_files as files
import numpy as np
import pytest
from train_files import make_folder

from cxrvit_edge.errors import UsageError
from cxrvit_edge.radiograph import read
from train.data import split
from train.data.sources import KINDS, detect, open_records

MAKERS: dict[str, Callable[[Path], object]] = {
    "chexpert": lambda root: chexpert_files.make(root, chexpert_files.rows(12)),
    "manifest": make_folder,
    "nih": files.make_nih,
    "padchest": files.make_padchest,
    "bimcv": files.make_bimcv,
    "cohen": files.make_cohen,
    "brixia": files.make_brixia,
    "hospital": files.make_hospital,
}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {}
    for kind, make in MAKERS.items():
        roots[kind] = tmp_path_factory.mktemp("sets") / f"{kind}-set"
        make(roots[kind])
    return roots


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_folder_is_of_one_kind(every: dict[str, Path], kind: str) -> None:
    assert detect(every[kind]) == kind
    fits = [name for name, k in KINDS.items() if k.is_layout(every[kind])]
    assert fits == [kind]


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_a_reader_gives_can_be_read(every: dict[str, Path], kind: str) -> None:
    records = open_records([f"{kind}={every[kind]}"])
    assert records and all(":" in r.patient for r in records)
    assert min(read(records[0].path).pixels.shape) >= 64


def test_several_are_one_list(every: dict[str, Path]) -> None:
    left_out: Counter[str] = Counter()
    roots = {kind: root for kind, root in every.items() if kind != "manifest"}
    records = open_records(list(roots.values()), left_out=left_out)
    each = {kind: open_records([root]) for kind, root in roots.items()}
    assert [r.path for r in records] == [r.path for kind in roots for r in each[kind]]
    assert left_out["padchest: lateral_view"] == 1 and left_out["brixia: patient_in_test"] == 1
    assert 0 not in left_out.values()
    assert len({r.patient for r in records}) == sum(len({r.patient for r in rs}) for rs in each.values())


def test_sources_that_share_patients_are_refused_where_they_straddle(every: dict[str, Path]) -> None:
    """The manifest's cohen:1 is Cohen's patient 1."""
    with pytest.raises(UsageError, match=r"patients lie in more than one split \(in cohen, nih\); .*share them"):
        open_records([every["manifest"], every["nih"], every["cohen"]])


def test_the_same_number_in_two_sources_is_two_patients(every: dict[str, Path]) -> None:
    nih, cohen = open_records([every["nih"]]), open_records([every["cohen"]])
    assert {r.patient for r in nih} == {"nih:1", "nih:2", "nih:3"}
    assert {r.patient for r in cohen} == {f"cohen:{i}" for i in range(4)}


def test_a_manifests_groups_keep_the_source_they_carry(tmp_path: Path) -> None:
    made = make_folder(tmp_path)
    made.manifest[0]["group_id"] = made.manifest[1]["group_id"] = "elsewhere:7"
    made.manifest[2]["group_id"] = made.manifest[3]["group_id"] = "8"
    records = open_records([made.write()])
    assert [r.patient for r in records[:2]] == ["elsewhere:7"] * 2
    assert [r.patient for r in records[2:4]] == [f"{r.source}:8" for r in records[2:4]]


def test_several_hospitals_in_one_table(tmp_path: Path, every: dict[str, Path]) -> None:
    names = ["CNUH"] * 4 + ["YNU"] * 4 + ["KNUH"] * 4
    table, _ = files.make_hospital(tmp_path / "all", source=names, patient=["1", "2", "3", "4"] * 3)
    records = open_records([every["nih"], table])[-12:]
    assert [r.patient for r in records] == [f"{n}:{p}" for n, p in zip(names, [1, 2, 3, 4] * 3, strict=True)]
    again, _ = files.make_hospital(tmp_path / "YNU")
    with pytest.raises(UsageError, match="a source is called 'YNU' already; rename its folder, table or rows"):
        open_records([table, again])


def test_options_reach_their_readers(every: dict[str, Path]) -> None:
    ones, zeros = (open_records([every["chexpert"]], uncertain=u) for u in ("ones", "zeros"))  # type: ignore[arg-type]
    assert sum(np.nansum(r.findings) for r in ones) > sum(np.nansum(r.findings) for r in zeros)
    assert {r.label for r in open_records([every["nih"]], other=True)} == {0, 1, None}
    assert {r.label for r in open_records([every["bimcv"]], positive="all")} == {2}
    assert all(r.lungs is None for r in open_records([every["manifest"]], masks=()))
    several = [[r.split for r in open_records([every["hospital"]], seed=s)] for s in range(6)]
    assert any(s != several[0] for s in several)


def test_licences(every: dict[str, Path]) -> None:
    left_out: Counter[str] = Counter()
    records = open_records([every["cohen"], every["nih"]], reuse=("yes",), left_out=left_out)
    assert {r.reuse for r in records} == {"yes"}
    assert left_out["cohen: licence"] == 4
    with pytest.raises(UsageError, match="no image has a licence in: none-such"):
        open_records([every["nih"]], reuse=("none-such",))


def test_a_chexpert_without_valid_has_a_val(tmp_path: Path) -> None:
    table = [chexpert_files.row(f"train/patient{p:05d}/study1/view1_frontal.jpg") for p in range(80)]
    root = chexpert_files.make(tmp_path / "chexpert", table)
    counts = Counter(r.split for r in open_records([root]))
    assert 1 <= counts["val"] <= 20 and counts["train"] == 80 - counts["val"]


def test_absent_images_are_skipped_where_asked(tmp_path: Path) -> None:
    root, rows = files.make_hospital(tmp_path)
    (root / rows[0]["path"]).unlink()
    with pytest.raises(UsageError, match="1 of 12 frontal images"):
        open_records([root])
    left_out: Counter[str] = Counter()
    assert len(open_records([root], absent="skip", left_out=left_out)) == 11
    assert left_out == {"hospital: not_found": 1}


def test_what_is_no_dataset_is_told_what_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dataset that is known here") as caught:
        open_records([tmp_path])
    for name, kind in KINDS.items():
        assert f"{name}: {kind.looks_for}" in str(caught.value)
    with pytest.raises(UsageError, match="no such file or folder; check the spelling"):
        open_records([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="'vindr' is no kind; use one of chexpert, manifest"):
        open_records([f"vindr={tmp_path}"])
    with pytest.raises(UsageError, match="no data named"):
        open_records([])


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    root, _ = files.make_hospital(tmp_path / "a=b", 2)
    assert len(open_records([str(root)])) == len(open_records([f"hospital={root}"])) == 2


def test_an_image_comes_once(every: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="9 of its images come with another source too"):
        open_records([every["nih"], every["nih"]])


def test_two_hospitals_of_one_name_are_refused(tmp_path: Path) -> None:
    roots = [files.make_hospital(tmp_path / part / "films-2020", 2)[0] for part in ("a", "b")]
    with pytest.raises(UsageError, match="a source is called 'films-2020' already; rename"):
        open_records(list(roots))


def test_one_source_left_out(every: dict[str, Path]) -> None:
    records = open_records([every["nih"], every["hospital"], every["brixia"]])
    held = split.leave_out(records, "hospital-set")
    assert {r.split for r in held if r.source == "hospital-set"} == {"test"}
    assert "test" not in {r.split for r in held if r.source != "hospital-set"}
    split.check_disjoint(held)


def test_the_real_folder(shared_data: Path) -> None:
    assert detect(shared_data) == "manifest"
    records = open_records([shared_data])
    assert len(records) == 1164 and len({r.patient for r in records}) == 914
