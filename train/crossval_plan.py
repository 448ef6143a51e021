"""Which images a cross-validation judges in which fold, and their predictions on disk, which name no patient."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from train.choose import selected
from train.data.record import Record
from train.data.split import Fold, Folds, folds_by_patient, folds_by_source
from train.predict import Predictions


@dataclass(frozen=True)
class Plan:
    """records: those that are judged, of train and val; keys: what pairs them with another cross-validation's;
    fold: (N,) the fold in which each is held out; of: that of every patient that may be learned from."""

    records: list[Record]
    keys: list[str]
    fold: NDArray[np.int64]
    of: Folds
    names: list[str]

    def held_out(self, k: int, val: float = 0.0) -> Fold:
        return Fold(self.names[k], self.of, k, val=val)

    def digest(self) -> str:
        """Of which image, with which label, lies in which fold."""
        rows = (f"{key} {f} {r.label}\n" for key, f, r in zip(self.keys, self.fold, self.records, strict=True))
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()

    def folds_digest(self) -> str:
        """Of which patient lies in which fold: two cross-validations with the same one hold out alike."""
        rows = (f"{source}\0{patient}\0{fold}\n" for (source, patient), fold in self.of.items())
        return hashlib.sha256("".join(sorted(rows)).encode("utf-8", "surrogateescape")).hexdigest()


def plan_of(values: Mapping[str, Any]) -> Plan:
    """Folds are those of all train and val images of the data, whatever licence, view or source is asked for."""
    everything = {**values, "all_licences": True, "view": "any", "source": None, "leave_out": None}
    records = [r for r in selected(everything)[0] if r.split != "test"]
    judged = [r for r in records if not values["source"] or r.source in values["source"]]
    if values["by"] == "source":
        names, of = folds_by_source(judged)
    else:
        of = folds_by_patient(records, values["folds"], seed=values["split_seed"])
        names = [f"{k}/{values['folds']}" for k in range(values["folds"])]
    fold = np.array([of[r.source, r.patient] for r in judged], np.int64)
    return Plan(judged, keys_of(judged), fold, of, names)


def keys_of(records: Sequence[Record]) -> list[str]:
    """SHA-256 of each image's file; a file that is there again gets its number behind it."""
    seen: Counter[str] = Counter()
    out = []
    for r in records:
        digest = hashlib.sha256(r.path.read_bytes()).hexdigest()
        out.append(f"{digest}:{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return out


def save(path: Path, plan: Plan, p: Predictions, rows: Sequence[int]) -> None:
    """rows: of the plan, for each prediction. `patient` is a number, the same for images of one patient."""
    patients = np.unique([r.patient for r in plan.records], return_inverse=True)[1]
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        key=np.array([plan.keys[i] for i in rows], str),
        fold=plan.fold[list(rows)],
        patient=patients[list(rows)],
        logits=p.logits,
        zones=p.zones,
        lung_dice=p.lung_dice,
        lungs_kind=np.array([r.lungs_kind or "" for r in p.records], str),
        source=np.array([r.source for r in p.records], str),
        view=np.array([r.view for r in p.records], str),
        label=p.labels,
    )
    part.replace(path)


def load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise UsageError(f"{path}: not there; name the --out of a cross-validation whose folds are all made")
    with np.load(path) as stored:
        return dict(stored)


def paired(plan: Plan, stored: Mapping[str, NDArray[Any]]) -> tuple[Predictions, list[int]]:
    """Stored predictions of the plan's images, and the row of each in the plan."""
    at = {key: i for i, key in enumerate(stored["key"].tolist())}
    rows = [i for i, key in enumerate(plan.keys) if key in at]
    from_ = [at[plan.keys[i]] for i in rows]
    arrays = (stored[name][from_] for name in ("logits", "zones", "lung_dice"))
    return Predictions([plan.records[i] for i in rows], *arrays), rows


def part_of(p: Predictions, rows: Sequence[int]) -> Predictions:
    index = np.asarray(rows, np.intp)
    return Predictions([p.records[i] for i in rows], p.logits[index], p.zones[index], p.lung_dice[index])
