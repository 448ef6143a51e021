"""The manifest reader: what a folder says, and what it says wrongly."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from train_files import Folder

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import FINDINGS
from train.data import manifest


def test_every_row_is_a_record(folder: Folder) -> None:
    records = manifest.read(folder.root)
    assert [r.path.relative_to(folder.root).as_posix() for r in records] == [r["path"] for r in folder.manifest]
    assert [r.label for r in records] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, None]
    assert [r.split for r in records] == ["train"] * 8 + ["val"] * 3 + ["test"]
    assert {r.view for r in records} == {"PA", "AP Supine"}
    assert records[2].patient == records[3].patient == "cohen:1"
    assert [r.reuse for r in records].count("unknown") == 1


def test_views_by_other_words(folder: Folder) -> None:
    for row, view in zip(folder.manifest, ["pa", "Posteroanterior", "supine AP", "frontal-unstated"], strict=False):
        row["view"] = view
    views = [r.view for r in manifest.read(folder.write())]
    assert views[:4] == ["PA", "PA", "AP Supine", "frontal-unstated"]
    assert views[4:6] == ["AP Supine", "PA"]


def test_the_manifest_itself_may_be_named(folder: Folder) -> None:
    by_file, by_folder = manifest.read(folder.root / "manifest.csv"), manifest.read(folder.root)
    assert [(r.path, r.label, r.lungs) for r in by_file] == [(r.path, r.label, r.lungs) for r in by_folder]


def test_only_the_licences_asked_for(folder: Folder) -> None:
    records = manifest.read(folder.root, reuse=manifest.REUSABLE)
    assert [r.path.name for r in records] == [Path(r["path"]).name for r in folder.manifest if r["reuse"] == "yes"]
    assert len(records) == 11
    with pytest.raises(UsageError, match="none of its 12 images has a licence in: terms"):
        manifest.read(folder.root, reuse=("terms",))


def test_brixia_zones_are_the_seniors_in_rows_and_columns(folder: Folder) -> None:
    """A, B, C run down the image-left lung, D, E, F down the image-right one."""
    row = folder.severity[0] | {f"S-{z}": str(k) for z, k in zip("ABCDEF", (0, 1, 2, 3, 2, 1), strict=True)}
    folder.severity[0] = row
    by_path = {r.path: r for r in manifest.read(folder.write())}
    brixia = by_path[folder.root / row["path"]].brixia
    assert brixia is not None
    np.testing.assert_array_equal(brixia, [[0, 3], [1, 2], [2, 1]])
    scored = {folder.root / r["path"] for r in folder.severity}
    assert {p for p, r in by_path.items() if r.brixia is not None} == scored


def test_masks_by_preference_of_kind(folder: Folder) -> None:
    first = folder.masks[0]  # lungvae
    assert first["kind"] == "lungvae"
    better = folder.masks[1]["mask_path"]
    folder.masks.append({"mask_path": better, "image_path": first["image_path"], "kind": "generalblockchain"})
    folder.masks.append({"mask_path": better, "image_path": folder.manifest[3]["path"], "kind": "v7"})
    by_path = {r.path.relative_to(folder.root).as_posix(): r for r in manifest.read(folder.write())}
    record = by_path[first["image_path"]]
    assert (record.lungs, record.lungs_kind) == (folder.root / better, "generalblockchain")
    assert by_path[folder.manifest[3]["path"]].lungs is None  # a kind that is left out
    only = manifest.read(folder.root, masks=("lungvae",))
    assert {r.lungs_kind for r in only} == {"lungvae", None}


def test_findings_are_known_for_nih_only(folder: Folder) -> None:
    for record, row in zip(manifest.read(folder.root), folder.manifest, strict=True):
        known = {f: v for f, v in zip(FINDINGS, record.findings, strict=True) if not np.isnan(v)}
        if row["source"] != "nih":
            assert known == {}
            continue
        assert "support_devices" not in known
        assert len(known) == 9
        named = {f for f, v in known.items() if v}
        assert named == ({"no_finding"} if row["label"] == "normal" else {"pneumonia", "lung_opacity"})


def test_the_juniors_scores_are_the_second(folder: Folder) -> None:
    folder.severity[0] |= {f"J-{z}": str(k) for z, k in zip("ABCDEF", (0, 1, 2, 3, 2, 1), strict=True)}
    folder.severity[1] |= {f"J-{z}": "" for z in "ABCDEF"}
    by_path = {r.path.relative_to(folder.root).as_posix(): r for r in manifest.read(folder.write())}
    np.testing.assert_array_equal(by_path[folder.severity[0]["path"]].second_brixia, [[0, 3], [1, 2], [2, 1]])
    assert by_path[folder.severity[1]["path"]].second_brixia is None
    np.testing.assert_array_equal(by_path[folder.severity[2]["path"]].second_brixia, np.full((3, 2), 3))
    folder.severity[0]["J-B"] = "5"
    with pytest.raises(UsageError, match=r"severity\.csv: .* has J-B '5'; use 0, 1, 2 or 3"):
        manifest.read(folder.write())
    for row in folder.severity:
        for zone in "ABCDEF":
            del row[f"J-{zone}"]
    assert all(r.second_brixia is None for r in manifest.read(folder.write()))


def test_sex_and_day(folder: Folder) -> None:
    assert {(r.sex, r.day) for r in manifest.read(folder.root)} == {("unknown", None)}
    for row, sex, day in zip(folder.manifest, "MF" * 6, ["-3", "", "0", "12.5"] * 3, strict=True):
        row |= {"sex": sex, "offset_days": day}
    records = manifest.read(folder.write())
    assert [r.sex for r in records] == ["male", "female"] * 6
    assert [r.day for r in records] == [-3, None, 0, 12.5] * 3
    folder.manifest[5]["offset_days"] = "week 2"
    with pytest.raises(UsageError, match=r"manifest\.csv line 7: offset_days 'week 2'; use a number"):
        manifest.read(folder.write())


def test_opacities_and_the_kind_that_is_asked_for(folder: Folder) -> None:
    mask, image = folder.masks[0]["mask_path"], folder.manifest[3]["path"]
    folder.masks += [{"mask_path": mask, "image_path": image, "kind": k} for k in (manifest.OPACITY, "v7")]
    by_path = {r.path: r for r in manifest.read(folder.write())}
    assert by_path[folder.root / image].opacity == folder.root / mask
    assert by_path[folder.root / image].lungs is None
    assert sum(r.opacity is not None for r in by_path.values()) == 1
    with_v7 = {r.path: r.lungs_kind for r in manifest.read(folder.root, masks=(*manifest.MASK_KINDS, "v7"))}
    assert with_v7[folder.root / image] == "v7"
    assert all(r.lungs is None and r.opacity is None for r in manifest.read(folder.root, masks=()))
    with pytest.raises(UsageError, match=r"mask kind 'v8': use some of generalblockchain.*v7"):
        manifest.read(folder.root, masks=("v8",))


def test_absent_files_may_be_passed_over(folder: Folder) -> None:
    gone, maskless = folder.manifest[3]["path"], folder.masks[0]
    (folder.root / gone).unlink()
    (folder.root / maskless["mask_path"]).unlink()
    left_out: Counter[str] = Counter()
    records = manifest.read(folder.root, absent="skip", left_out=left_out, reuse=("yes",))
    assert left_out == {"not_found": 1, "licence": 1} and len(records) == 10
    by_path = {r.path: r for r in records}
    assert by_path[folder.root / maskless["image_path"]].lungs is None
    for row in folder.manifest:
        (folder.root / row["path"]).unlink(missing_ok=True)
    with pytest.raises(UsageError, match="listed files are absent"):
        manifest.read(folder.root, absent="skip")


def test_severity_and_masks_may_be_absent(folder: Folder) -> None:
    (folder.root / "severity.csv").unlink()
    (folder.root / "masks" / "masks.csv").unlink()
    records = manifest.read(folder.root)
    assert len(records) == 12
    assert all(r.brixia is None and r.lungs is None and r.lungs_kind is None for r in records)


def test_a_wrong_label_is_named_with_its_line(folder: Folder) -> None:
    folder.manifest[4]["label"] = "flu"
    with pytest.raises(UsageError, match=r"manifest\.csv line 6: label 'flu'; use one of .*'normal'"):
        manifest.read(folder.write())


def test_a_wrong_split_is_named_with_its_line(folder: Folder) -> None:
    folder.manifest[0]["split"] = "dev"
    with pytest.raises(UsageError, match=r"manifest\.csv line 2: split 'dev'"):
        manifest.read(folder.write())


@pytest.mark.parametrize(
    ("table", "column"),
    [("manifest", "group_id"), ("manifest", "reuse"), ("severity", "S-F"), ("masks", "image_path")],
)
def test_a_missing_column_is_named(folder: Folder, table: str, column: str) -> None:
    for row in getattr(folder, table):
        del row[column]
    with pytest.raises(UsageError, match=rf"{table}\.csv: columns missing: {column}$"):
        manifest.read(folder.write())


def test_a_score_that_is_no_number_is_named(folder: Folder) -> None:
    folder.severity[1]["S-C"] = "n/a"
    with pytest.raises(UsageError, match=rf"severity\.csv: .*{folder.severity[1]['path']}.*S-C.*'n/a'"):
        manifest.read(folder.write())


def test_absent_images_are_counted_and_named(folder: Folder) -> None:
    for i in (3, 9):
        (folder.root / folder.manifest[i]["path"]).unlink()
    with pytest.raises(UsageError, match=f"2 listed files are absent, first .*{folder.manifest[3]['path']}"):
        manifest.read(folder.root)


def test_absent_masks_are_named(folder: Folder) -> None:
    (folder.root / folder.masks[2]["mask_path"]).unlink()
    with pytest.raises(UsageError, match=f"1 listed files are absent, first .*{folder.masks[2]['mask_path']}"):
        manifest.read(folder.root)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.csv: not found; --data takes the folder"):
        manifest.read(tmp_path)


def test_the_real_folder(shared_data: Path) -> None:
    records = manifest.read(shared_data)
    assert len(records) == 1164
    counts: dict[tuple[str, int | None], int] = defaultdict(int)
    splits: dict[str, set[str]] = defaultdict(set)
    for r in records:
        counts[r.split, r.label] += 1
        splits[r.patient].add(r.split)
    assert [counts["train", k] for k in range(3)] == [180, 274, 355]
    assert [counts["val", k] for k in range(3)] == [37, 55, 68]
    assert [counts["test", k] for k in range(3)] == [39, 59, 80]
    assert sum(counts[s, None] for s in ("train", "val", "test")) == 17
    assert all(len(s) == 1 for s in splits.values())
    assert sum(r.brixia is not None for r in records) == 177
    assert sum(r.second_brixia is not None for r in records) == 177
    assert sum(r.opacity is not None for r in records) == 86
    assert sum(r.sex == "unknown" for r in records) == 119
    assert sum(r.day is None for r in records) == 174
    kinds = Counter(r.lungs_kind for r in manifest.read(shared_data, masks=("v7",)))
    assert kinds == {"v7": 332, None: 832}
    free = manifest.read(shared_data, reuse=manifest.REUSABLE)
    assert len(free) == 651 + 214 + 59
    assert {r.reuse for r in free} == {"yes", "non-commercial", "terms"}
