"""Which records of the data sets named a command works on, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import CLASSES
from train.data.manifest import MASK_KINDS, OPTIONAL_KINDS, REUSABLE
from train.data.record import Record
from train.data.sources import open_records
from train.data.split import check_disjoint, leave_out

USES = {
    "backbone": "findings",
    "diagnosis": "label",
    "severity": "zones",
    "lungs": "lungs",
    "simclr": "image",
    "joint": "image",
}


CHOICES = {
    "view": ("any", "PA", "AP"),
    "uncertain": ("ones", "zeros", "ignore"),
    "absent": ("error", "skip"),
    "positive": ("tests", "all"),
    "mask_kind": (*MASK_KINDS, *OPTIONAL_KINDS),
    "roi": ("max", "average"),
    "split": ("train", "val", "test"),
    "device": ("auto", "cpu", "cuda"),
}


def check(values: Mapping[str, Any]) -> None:
    """UsageError for a value that is none of its choices, before anything is read."""
    for name, allowed in CHOICES.items():
        given = values.get(name)
        wrong = [v for v in (given if isinstance(given, list) else [given]) if v is not None and v not in allowed]
        if wrong:
            raise UsageError(f"--{name.replace('_', '-')} {wrong[0]}: choose one of {', '.join(allowed)}")


def usable(r: Record, uses: str, values: Mapping[str, Any]) -> bool:
    if uses == "findings":
        return bool(np.isfinite(r.findings).any())
    if uses == "label":
        return r.label is not None
    if uses == "zones":
        return r.zones is not None or r.brixia is not None or (r.label == 0 and values["normal_weight"] > 0)
    if uses == "lungs":
        if values["network"] == "adain":
            return r.lungs is not None or r.label is not None
        return r.lungs is not None and (
            r.split != "train" or r.lungs_kind not in ("lungvae", "v7")
        )  # no codes for them
    return True


def selected(values: Mapping[str, Any]) -> tuple[list[Record], Counter[str]]:
    """All splits, by the options of data (train/options.py), and how many were left out for which reason.

    UsageError if nothing is left.
    """
    check(values)
    counts: Counter[str] = Counter()
    records = open_records(
        values["data"],
        uncertain=values["uncertain"],
        absent=values["absent"],
        left_out=counts,
        masks=tuple(values["mask_kind"] or MASK_KINDS),
        other=values["other"],
        positive=values["positive"],
        seed=values["split_seed"],
    )
    if not values["all_licences"]:
        records = _keep(records, lambda r: r.reuse in REUSABLE, "licence", counts)
    if values["view"] != "any":
        records = _keep(records, lambda r: r.view.startswith(values["view"]), "view", counts)
    if values["source"]:
        records = _keep(records, lambda r: r.source in values["source"], "source", counts)
    if not records:
        raise UsageError(f"no image is left ({told(counts)}); name other --data or filter less")
    if values["leave_out"]:
        records = leave_out(records, values["leave_out"], seed=values["split_seed"])
    check_disjoint(records)
    return records, counts


def chosen(stage: str, values: Mapping[str, Any], say: Callable[[str], None]) -> list[Record]:
    """Train and val records that the stage can use. UsageError if there is none to learn from."""
    records, counts = selected(values)
    records = _keep(records, lambda r: r.split != "test", "test split", counts)
    uses = USES[stage]
    records = _keep(records, lambda r: usable(r, uses, values), f"no {uses}", counts)
    say(f"{len(records)} images to learn {stage} from; left out: {told(counts)}")
    if not any(r.split == "train" for r in records):
        raise UsageError(f"no image to learn {stage} from ({told(counts)}); name other --data or filter less")
    labels = {r.label for r in records if r.split == "train"} - {None}
    if stage == "diagnosis" and len(labels) < 2:
        only = CLASSES[next(iter(labels)) or 0]
        raise UsageError(f"every training image is {only}: nothing to tell apart; name --data with other classes too")
    return records


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{k} {n}" for k, n in (+counts).items()) or "none"


def _keep(records: list[Record], which: Callable[[Record], bool], reason: str, counts: Counter[str]) -> list[Record]:
    kept = [r for r in records if which(r)]
    counts[reason] += len(records) - len(kept)
    return kept
