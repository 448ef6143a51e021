"""Every dataset by its path: which reader a folder is for, and records of several as one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from cxrvit_edge.errors import UsageError
from cxrvit_edge.table import read_table
from train.data import bimcv, brixia, chexpert, cohen, hospital, manifest, nih, padchest, split
from train.data.gather import Absent
from train.data.record import Record


def _is_chexpert(path: Path) -> bool:
    table = path / "train.csv" if path.is_dir() else path
    return table.is_file() and table.suffix == ".csv" and chexpert.is_layout(read_table(table, header_only=True))


@dataclass(frozen=True)
class Kind:
    """looks_for: what its folder holds; options: which of open_records' options its reader takes."""

    read: Callable[..., list[Record]]
    is_layout: Callable[[Path], bool]
    looks_for: str
    options: tuple[str, ...] = ("seed",)


KINDS = {  # in the order of detection
    "chexpert": Kind(chexpert.read, _is_chexpert, "train.csv with Frontal/Lateral and AP/PA", ("uncertain",)),
    "manifest": Kind(manifest.read, manifest.is_layout, manifest.LOOKS_FOR, ("masks",)),
    "nih": Kind(nih.read, nih.is_layout, nih.LOOKS_FOR, ("seed", "other")),
    "padchest": Kind(padchest.read, padchest.is_layout, padchest.LOOKS_FOR, ("seed", "other")),
    "bimcv": Kind(bimcv.read, bimcv.is_layout, bimcv.LOOKS_FOR, ("seed", "positive")),
    "cohen": Kind(cohen.read, cohen.is_layout, cohen.LOOKS_FOR),
    "brixia": Kind(brixia.read, brixia.is_layout, brixia.LOOKS_FOR),
    "hospital": Kind(hospital.read, hospital.is_layout, hospital.LOOKS_FOR),
}


def open_records(
    specs: Sequence[str | Path],
    *,
    uncertain: Literal["ones", "zeros", "ignore"] = "ignore",
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    reuse: Sequence[str] | None = None,
    masks: Sequence[str] = manifest.MASK_KINDS,
    other: bool = False,
    positive: Literal["tests", "all"] = "tests",
    seed: int = 0,
) -> list[Record]:
    """Records of all specs in their order: PATH, whose kind is seen from what it holds, or KIND=PATH.

    Patients carry their source ("nih:12"), so that two sources' never collide. A CheXpert without valid.csv has a tenth
    of its patients in val.
    uncertain, absent, masks, other, positive, seed: as the readers have them
    reuse: licence classes to keep (None: all)
    left_out: takes the rows left out, as "nih: not_found"
    Raises UsageError: no spec, an unknown kind, a folder of no kind, an image in two sources, patients that straddle
    splits, no image with such a licence, and whatever the readers raise.
    """
    if not specs:
        raise UsageError("no data named; give at least one PATH or KIND=PATH")
    options = {"uncertain": uncertain, "masks": masks, "other": other, "positive": positive, "seed": seed}
    records: list[Record] = []
    seen: dict[Path, int] = {}
    for number, spec in enumerate(specs):
        name, path = _parse(spec)
        kind, counts = KINDS[name], Counter[str]()
        read = partial(kind.read, absent=absent, left_out=counts)
        found = read(path, **{option: options[option] for option in kind.options})
        if name == "chexpert":
            found = split.with_val(found, seed=seed)
        found = [_with_source(r, name) for r in found]
        both = {r.source for r in found} & {r.source for r in records} if name == "hospital" else set()
        if both:
            raise UsageError(f"{spec}: a source is called {min(both)!r} already; rename its folder, table or rows")
        twice = [r.path for r in found if seen.setdefault(r.path.absolute(), number) != number]
        if twice:
            raise UsageError(
                f"{spec}: {len(twice)} of its images come with another source too, first {twice[0]}; name each image "
                "once (Brixia's scores of Cohen's images: put public-annotations.csv into Cohen's folder)"
            )
        kept = [r for r in found if reuse is None or r.reuse in reuse]
        counts["licence"] += len(found) - len(kept)
        records.extend(kept)
        if left_out is not None:
            left_out.update({f"{name}: {reason}": n for reason, n in counts.items() if n})
    if not records:
        raise UsageError(f"no image has a licence in: {', '.join(reuse or ())}; allow further licences")
    split.check_disjoint(records)
    return records


def detect(path: Path) -> str:
    """The kind of a folder or table. UsageError that says what each kind looks for if it is none."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the spelling and the mount")
    for name, kind in KINDS.items():
        if kind.is_layout(path):
            return name
    known = "\n".join(f"  {name}: {kind.looks_for}" for name, kind in KINDS.items())
    raise UsageError(f"{path}: no dataset that is known here; name it as KIND=PATH. Each kind looks for:\n{known}")


def _parse(spec: str | Path) -> tuple[str, Path]:
    if isinstance(spec, str) and "=" in spec:
        name, _, place = spec.partition("=")
        if name in KINDS:
            return name, Path(place)
        if not Path(spec).exists():
            raise UsageError(f"{spec}: {name!r} is no kind; use one of {', '.join(KINDS)}")
    return detect(Path(spec)), Path(spec)


def _with_source(record: Record, name: str) -> Record:
    """A manifest's groups carry a source already, which is not the record's own where near duplicates were merged."""
    named = record.patient.startswith(f"{record.source}:") or (name == "manifest" and ":" in record.patient)
    return record if named else replace(record, patient=f"{record.source}:{record.patient}")
