"""Folds: every patient in one, alike in their strata, the same whatever the order; sources left out one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrvit_edge.errors import UsageError
from train.data.record import Record
from train.data.split import Fold, check_disjoint, folds_by_patient, folds_by_source, leave_out

SCORES = np.ones((3, 2), np.float32)


def record(patient: str, source: str = "a", label: int | None = None, scored: bool = False) -> Record:
    path = Path(f"{source}-{patient}.png")
    return Record(path, source, patient, "train", label=label, brixia=SCORES if scored else None)


ROWS = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from("ab"), st.sampled_from([None, 0, 1, 2]), st.booleans()),
    min_size=8, max_size=60,
).filter(lambda rows: len({r[0] for r in rows}) >= 5)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(2, 5), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_patient_lies_in_one_fold_whatever_the_order(rows: list, k: int, seed: int, random: object) -> None:
    records = [record(f"p{p}", s, y, scored) for p, s, y, scored in rows]
    found = folds_by_patient(records, k, seed=seed)
    assert set(found) == {(r.source, r.patient) for r in records}
    assert set(found.values()) == set(range(k))  # none is empty
    assert all(len({f for (_, p), f in found.items() if p == r.patient}) == 1 for r in records)
    random.shuffle(records)  # type: ignore[attr-defined]
    assert folds_by_patient(records, k, seed=seed) == found
    for number in range(k):
        out = leave_out(records, Fold("x", found, number))
        check_disjoint(out)
        assert [(r.path, r.patient) for r in out] == [(r.path, r.patient) for r in records]
        assert [r.split == "test" for r in out] == [found[r.source, r.patient] == number for r in records]
        assert {r.split for r in out} == {"train", "test"}


STRATA = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 1, 2]), st.booleans()), min_size=5, max_size=70)


@settings(max_examples=60, deadline=None)
@given(STRATA, st.integers(2, 5), st.integers(0, 3))
def test_a_stratum_is_spread_evenly(rows: list[tuple[str, int, bool]], k: int, seed: int) -> None:
    records = [record(f"p{i}", *row) for i, row in enumerate(rows)]
    found = folds_by_patient(records, k, seed=seed)
    for stratum in set(rows):
        held = Counter(found[r.source, r.patient] for r, row in zip(records, rows, strict=True) if row == stratum)
        assert max(held[f] for f in range(k)) - min(held[f] for f in range(k)) <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=30), st.integers(2, 5))
def test_patients_of_many_images_are_spread_too(films: list[int], k: int) -> None:
    records = [record(f"p{i}") for i, n in enumerate(films) for _ in range(n)]
    found = folds_by_patient(records, k)
    held = Counter(found[r.source, r.patient] for r in records)
    assert max(held.values()) - min(held.values()) <= max(films)


def test_another_seed_draws_others() -> None:
    records = [record(f"p{i}", label=i % 3) for i in range(60)]
    assert folds_by_patient(records, 5, seed=0) != folds_by_patient(records, 5, seed=1)


def test_each_source_is_left_out_whole_and_its_patients_are_learned_nowhere() -> None:
    records = [record(str(i), "abc"[i % 3]) for i in range(30)]
    records.append(record("1", "a"))  # a near duplicate of one of b's
    names, of = folds_by_source(records)
    assert names == ["a", "b", "c"]
    out = leave_out(records, Fold("b", of, 1))
    assert {r.source for r in out if r.split == "train"} == {"a", "c"}
    assert sorted((r.source, r.patient) for r in out if r.split == "test" and r.source != "b") == [("a", "1")]
    check_disjoint(out)
    # also where the licence has taken away the image that lies in the fold
    alone = [r for r in records if (r.source, r.patient) != ("b", "1")]
    assert next(r for r in leave_out(alone, Fold("b", of, 1)) if (r.source, r.patient) == ("a", "1")).split == "test"


def test_some_patients_are_val_where_it_is_asked_for() -> None:
    records = [record(str(i), "ab"[i % 2]) for i in range(600)]
    of = folds_by_patient(records, 3)
    first, second = (leave_out(records, Fold("0/3", of, 0, val=0.1), seed=seed) for seed in (0, 1))
    counts = Counter(r.split for r in first)
    assert counts["test"] == 200
    assert 20 < counts["val"] < 60
    assert [r.split for r in first] != [r.split for r in second]
    check_disjoint(first)


def test_rows_that_no_fold_has_are_never_read() -> None:
    records = [record(str(i)) for i in range(10)]
    of = folds_by_patient(records[:8], 2)
    assert leave_out(records, Fold("0/2", of, 0)) == leave_out(records[:8], Fold("0/2", of, 0))


def test_wrong_folds_are_named() -> None:
    records = [record(str(i)) for i in range(3)]
    for k in (1, 4):
        with pytest.raises(UsageError, match=f"--folds {k}: from 2 to the number of patients, 3"):
            folds_by_patient(records, k)
    with pytest.raises(UsageError, match="--by source: every image is of a; name further --data"):
        folds_by_source(records)
    with pytest.raises(UsageError, match="the run is fold 1/5 of a cross-validation"):
        leave_out(records, ["fold 1/5"])
