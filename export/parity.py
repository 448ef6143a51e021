"""Parity at export: observations of the records of val and test, and what becomes of a variant outside its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cxrvit_edge import parity
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError, ParityError, UsageError
from cxrvit_edge.findings import judge
from cxrvit_edge.parity import BOTH, BOUNDS, Bounds, Observation
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.runtime.session import Session
from export.predict import films
from train.data.record import Record

__all__ = ["BOTH", "BOUNDS", "Bounds", "Observation", "compare", "observe", "require"]

MEASURED = ("val", "test")


def observe(
    session: Session, records: Sequence[Record], bundle: Bundle, progress: Callable[[int, int], None] | None = None
) -> list[Observation]:
    """One Observation a record, in order, in batches of one. InputError if an image cannot be read."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    seen = []
    for done, film in enumerate(films(records, config), 1):
        outputs = session.run(film.tensor[None])
        judgement, refused = None, film.refused
        if refused is None:
            try:
                judgement = judge(outputs, 0, bundle, film.view, film.geometry)
            except InputError as error:
                refused = error.reason
        r, code = film.record, None if refused is None else refused.value
        logits = outputs.logits[0].copy()
        seen.append(Observation(film.sha256, r.patient, r.source, r.split, film.view, r.label, logits, judgement, code))
        if progress:
            progress(done, len(records))
    return seen


def compare(
    reference: Sequence[Observation],
    variant: Sequence[Observation],
    bundle: Bundle,
    bounds: Bounds,
    executor: str,
    *,
    against: str = "fp32",
) -> dict[str, Any]:
    """`cxrvit_edge.parity.compare` of val and test. UsageError if there is none, or the two saw other images."""
    if [o.sha256 for o in reference] == [o.sha256 for o in variant]:
        measured = [i for i, o in enumerate(reference) if o.split in MEASURED]
        if not measured:
            raise UsageError("no image in the val or test split: parity is measured there; name a --data with some")
        reference, variant = ([run[i] for i in measured] for run in (reference, variant))
    return parity.compare(reference, variant, bundle, bounds, executor, against=against)


def require(record: dict[str, Any], name: str, allow_failing: bool) -> None:
    """ParityError if the variant `name` is outside its bounds; if that is allowed the record says so for ever after."""
    if record["within"]:
        return
    if allow_failing:
        record["allowed_failing"] = True
        return
    raise ParityError(
        f"{name} on {record['executor']} departs from {record['reference']}: {'; '.join(record['failures'])}. It was "
        f"not written: see where it departs with --debug DIR, keep more layers in FP16, give other bounds, or write it "
        f"marked as failing with --allow-failing {name}"
    )
