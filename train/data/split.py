"""Splits by patient: seeded, and the same for a patient whatever other rows there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    not there, if none is named, or if there is no other.
    """
    names = {source} if isinstance(source, str) else set(source)
    sources = sorted({r.source for r in records})
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
