"""Splits and folds by patient, seeded; a split is the same for a patient whatever other rows there are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import CLASSES
from train.data.record import Record, Split

VAL, TEST = 0.1, 0.1  # of the patients of a source that has no splits of its own; the paper does not say


def draw(source: str, patient: str, *, seed: int = 0, val: float = VAL, test: float = TEST) -> Split:
    """Split of a patient, from a hash of seed, source and patient: adding or removing others moves nobody.

    val, test: expected fractions of patients
    """
    if not (val >= 0 and test >= 0 and val + test <= 1):
        raise UsageError(f"fractions val {val} and test {test}: at least 0, together at most 1")
    digest = hashlib.sha256(f"{seed}\0{source}\0{patient.removeprefix(source + ':')}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if u < test else "val" if u < test + val else "train"


def assign(records: Sequence[Record], *, seed: int = 0, val: float = VAL, test: float = TEST) -> list[Record]:
    """The records in splits drawn anew; what they had is dropped."""
    return [replace(r, split=draw(r.source, r.patient, seed=seed, val=val, test=test)) for r in records]


def with_val(records: Sequence[Record], *, seed: int = 0, val: float = VAL) -> list[Record]:
    """If no record is val, some patients of train become it."""
    if any(r.split == "val" for r in records):
        return list(records)
    return [
        replace(r, split=draw(r.source, r.patient, seed=seed, val=val, test=0)) if r.split == "train" else r
        for r in records
    ]


def leave_out(
    records: Sequence[Record], source: str | Sequence[str], *, seed: int = 0, val: float = VAL
) -> list[Record]:
    """Leave sources out, one name or several: all of theirs is test, of the rest what was test is train, some is val.

    Patients of theirs who also lie in another source (near duplicates) are dropped there. UsageError if a source is
    not there, if none is named, or if there is no other. A `Fold` is left out as it says.
    """
    if isinstance(source, Fold):
        return source.split(records, seed=seed)
    names = {source} if isinstance(source, str) else set(source)
    sources = sorted({r.source for r in records})
    if folds := sorted(n for n in names - set(sources) if n.startswith(FOLD)):
        raise UsageError(f"the run is {folds[0]} of a cross-validation, whose crossval.json has what it was judged on")
    if unknown := sorted(names - set(sources)) or ([] if names else [""]):
        raise UsageError(
            f"no source {', '.join(map(repr, unknown))} to leave out; there are {', '.join(sources) or 'none'}"
        )
    held = {r.patient for r in records if r.source in names}
    out = [replace(r, split="test") for r in records if r.source in names]
    rest = [r for r in records if r.source not in names and r.patient not in held]
    if not rest:
        raise UsageError(f"without {', '.join(sorted(names))} nothing is left to train on; name a further source")
    return out + with_val([r if r.split == "val" else replace(r, split="train") for r in rest], seed=seed, val=val)


FOLD = "fold "
Folds = Mapping[tuple[str, str], int]  # (source, patient) -> fold, from 0


class Fold(list[str]):
    """What `leave_out` holds out in one round of a cross-validation; as a list it is the name that its run goes by.

    of: the fold of every patient that may be read; number: the one that is test; val: fraction of the other patients
    that is val.
    """

    def __init__(self, name: str, of: Folds, number: int, *, val: float = 0.0) -> None:
        super().__init__([FOLD + name])
        self.of, self.number, self.val = of, number, val

    def split(self, records: Sequence[Record], *, seed: int = 0) -> list[Record]:
        """Rows of patients in `of`, in order: test if any row of the patient lies in the fold, else train or val."""
        held = {patient for (_, patient), fold in self.of.items() if fold == self.number}

        def split(patient: str) -> Split:
            return "test" if patient in held else draw("val", patient, seed=seed, val=self.val, test=0)

        return [replace(r, split=split(r.patient)) for r in records if (r.source, r.patient) in self.of]


def folds_by_patient(records: Sequence[Record], k: int, *, seed: int = 0) -> dict[tuple[str, str], int]:
    """k folds of patients, alike in source, label and whether a radiologist scored the zones.

    Greedy: the patients of most strata and most images first, each into the fold that has least of what it brings. The
    order of the rows changes nothing. Strata whose patients have one image each differ by at most one between folds.
    UsageError for fewer patients than folds.
    """
    strata: dict[str, Counter[tuple[str, int | None, bool]]] = {}
    for r in records:
        strata.setdefault(r.patient, Counter())[r.source, r.label, r.brixia is not None or r.zones is not None] += 1
    if not 2 <= k <= len(strata):
        raise UsageError(f"--folds {k}: from 2 to the number of patients, {len(strata)}")
    total = sum(strata.values(), Counter())

    def drawn(patient: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()

    have: list[Counter[tuple[str, int | None, bool]]] = [Counter() for _ in range(k)]
    fold: dict[str, int] = {}
    for patient in sorted(strata, key=lambda p: (-len(strata[p]), -strata[p].total(), drawn(p))):
        own = strata[patient]
        loads = [(sum(h[s] * n / total[s] for s, n in own.items()), h.total()) for h in have]
        fold[patient] = min(range(k), key=loads.__getitem__)
        have[fold[patient]] += own
    return {(r.source, r.patient): fold[r.patient] for r in records}


def folds_by_source(records: Sequence[Record]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """The sources by name, and the fold of each patient: one a source. UsageError if there is one source only."""
    names = sorted({r.source for r in records})
    if len(names) < 2:
        raise UsageError(f"--by source: every image is of {names[0] if names else 'none'}; name further --data")
    return names, {(r.source, r.patient): names.index(r.source) for r in records}


def check_disjoint(records: Sequence[Record]) -> None:
    """UsageError with the count if a patient lies in two splits. No patient is named."""
    splits: dict[str, set[str]] = {}
    for r in records:
        splits.setdefault(r.patient, set()).add(r.split)
    straddling = [p for p, s in splits.items() if len(s) > 1]
    if straddling:
        sources = sorted({r.source for r in records if r.patient in set(straddling)})
        raise UsageError(
            f"{len(straddling)} of {len(splits)} patients lie in more than one split (in {', '.join(sources)}); "
            "give all images of a patient one split, leave the column split out, or name one only of sources that "
            "share them"
        )


def class_counts(records: Sequence[Record], split: Split | None = "train") -> NDArray[np.int64]:
    """(3,) images of each of CLASSES in a split, None for all; images without a label count for none."""
    labels = [r.label for r in records if r.label is not None and split in (None, r.split)]
    return np.bincount(np.asarray(labels, np.int64), minlength=len(CLASSES))


def class_weights(counts: NDArray[np.int64], *, power: float = 0.5) -> NDArray[np.float32]:
    """(n / (k counts)) ** power for a loss weighted by class: 1 is full balance, 0 none, a class without image as of 1.

    (k,) counts -> (k,) float32.
    """
    return np.asarray((counts.sum() / (len(counts) * np.maximum(counts, 1))) ** power, np.float32)
