"""Splits: by patient, the same whatever other rows there are, and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.errors import UsageError
from train.data import split
from train.data.record import Record, Split


def record(patient: str, source: str = "a", own: Split = "train", label: int | None = None) -> Record:
    return Record(path=Path(f"{source}-{patient}.png"), source=source, patient=patient, split=own, label=label)


PATIENTS = st.lists(st.tuples(st.sampled_from("ab"), st.text("0123456789", min_size=1, max_size=3)), max_size=40)


@given(PATIENTS, PATIENTS, st.integers(0, 3))
def test_disjoint_and_unmoved_by_other_rows(
    some: list[tuple[str, str]], more: list[tuple[str, str]], seed: int
) -> None:
    records = [record(p, s) for s, p in some]
    alone = split.assign(records, seed=seed)
    together = split.assign([record(p, s) for s, p in more] + records, seed=seed)
    assert [r.split for r in together[len(more) :]] == [r.split for r in alone]
    assert all(len({r.split for r in together if (r.source, r.patient) == key}) == 1 for key in some + more)
    assert [(r.path, r.patient) for r in alone] == [(r.path, r.patient) for r in records]


@given(st.integers(0, 99999), st.integers(0, 9))
def test_a_patients_prefix_changes_nothing(patient: int, seed: int) -> None:
    assert split.draw("nih", str(patient), seed=seed) == split.draw("nih", f"nih:{patient}", seed=seed)


@given(st.integers(0, 99999), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_test_fraction_keeps_who_was_in_it(patient: int, small: float, more: float) -> None:
    if split.draw("a", str(patient), val=0, test=small) == "test":
        assert split.draw("a", str(patient), val=0, test=small + more) == "test"


def test_fractions_are_met_and_seeds_differ() -> None:
    records = [record(str(p)) for p in range(4000)]
    counts = Counter(r.split for r in split.assign(records, val=0.1, test=0.2))
    assert abs(counts["val"] - 400) < 80 and abs(counts["test"] - 800) < 110
    first, second = ([r.split for r in split.assign(records, seed=s)] for s in (0, 1))
    assert first != second
    with pytest.raises(UsageError, match=r"fractions val 0\.6 and test 0\.6"):
        split.assign(records, val=0.6, test=0.6)


def test_val_is_drawn_where_there_is_none() -> None:
    records = [record(str(p), own="test" if p % 4 == 0 else "train") for p in range(400)]
    drawn = split.with_val(records, val=0.2)
    assert [r.split == "test" for r in drawn] == [p % 4 == 0 for p in range(400)]
    assert 30 < sum(r.split == "val" for r in drawn) < 90
    assert split.with_val(drawn, val=0.9) == drawn


def test_one_source_is_left_out() -> None:
    records = [record(str(p), "ab"[p % 2], ("train", "val", "test")[p % 3]) for p in range(60)]
    records.append(record("1", "a"))  # a near duplicate of one of b's
    out = split.leave_out(records, "b")
    assert Counter((r.source, r.split) for r in out) == {("b", "test"): 30, ("a", "train"): 20, ("a", "val"): 10}
    split.check_disjoint(out)
    with pytest.raises(UsageError, match="no source 'c' to leave out; there are a, b"):
        split.leave_out(records, "c")
    with pytest.raises(UsageError, match="without a nothing is left to train on"):
        split.leave_out([r for r in records if r.source == "a"], "a")


def test_several_sources_are_left_out_together() -> None:
    records = [record(str(p), "abc"[p % 3], ("train", "val", "test")[p // 3 % 3]) for p in range(90)]
    out = split.leave_out(records, ["a", "c"])
    assert Counter((r.source, r.split) for r in out) == {
        ("a", "test"): 30, ("c", "test"): 30, ("b", "train"): 20, ("b", "val"): 10,
    }  # fmt: skip
    assert split.leave_out(records, ["b"]) == split.leave_out(records, "b")
    with pytest.raises(UsageError, match="no source 'd', 'e' to leave out; there are a, b, c"):
        split.leave_out(records, ["e", "a", "d"])
    with pytest.raises(UsageError, match="no source '' to leave out"):
        split.leave_out(records, [])
    with pytest.raises(UsageError, match="without a, b, c nothing is left to train on"):
        split.leave_out(records, ("c", "b", "a"))


def test_patients_that_straddle_are_counted() -> None:
    records = [record("1"), record("1", own="val"), record("2"), record("3", own="test"), record("3", "b")]
    with pytest.raises(UsageError, match=r"2 of 3 patients lie in more than one split \(in a, b\); give all images"):
        split.check_disjoint(records)
    split.check_disjoint(records[1:4])


def test_class_balance() -> None:
    records = [record(str(i), label=label) for i, label in enumerate([0, 0, 0, 0, 1, None, 2, 2])]
    records.append(record("9", own="test", label=1))
    counts = split.class_counts(records)
    np.testing.assert_array_equal(counts, [4, 1, 2])
    np.testing.assert_array_equal(split.class_counts(records, None), [4, 2, 2])
    full = split.class_weights(counts, power=1)
    np.testing.assert_allclose(full * counts, 7 / 3, rtol=1e-6)  # every class weighs the same
    np.testing.assert_allclose(split.class_weights(counts) ** 2, full, rtol=1e-6)
    np.testing.assert_array_equal(split.class_weights(counts, power=0), [1, 1, 1])
    assert np.isfinite(split.class_weights(np.array([5, 0, 0]))).all()
    np.testing.assert_array_equal(split.class_counts([]), [0, 0, 0])
