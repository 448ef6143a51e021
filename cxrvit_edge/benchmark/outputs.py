"""outputs.csv: what each candidate said of each image, to be read again and to hold a later report against."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import StrPath
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Judgement, Severity
from cxrvit_edge.labels import Problem
from cxrvit_edge.parity import Observation
from cxrvit_edge.radiograph import View
from cxrvit_edge.report.worklist import ZONES

ABOUT = ("candidate", "precision", "bundle", "weights", "sha256", "view")
SAID = ("label", "priority", "score", *ZONES, "refused")
VIEWS: dict[str, View] = {"PA": "PA", "AP": "AP", "lateral": "lateral", "unknown": "unknown"}
FIRST = 5


@dataclass(frozen=True)
class Stored:
    """bundle, weights: hashes of what gave these outputs. Observations without truth, patient, source and split."""

    path: Path
    bundle: str
    weights: str
    by_candidate: Mapping[str, list[Observation]]
    precisions: Mapping[str, str]

    def reference(self) -> str:
        """The candidate to compare with: the only one, else ONNX Runtime's fp32, else the first of fp32, or of all."""
        names = list(self.by_candidate)
        fp32 = [name for name in names if self.precisions[name] == "fp32"]
        return min(fp32 or names, key=lambda name: (name != "onnxruntime fp32", names.index(name)))


def weights_sha256(bundle: Bundle) -> str:
    """Of the weights that a bundle's graphs share: the same for two exports of the same ones."""
    named = sorted({bundle.manifest.files[str(name)] for name in bundle.manifest.raw["weights"].values()})
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def write_outputs(
    path: Path,
    observations: Mapping[str, Sequence[Observation]],
    *,
    classes: Sequence[str],
    precisions: Mapping[str, str],
    bundle: str,
    weights: str,
) -> None:
    """One row a candidate and image. An image is named by its hash alone; float32 logits come back as they were."""
    columns = [*ABOUT, *(f"{kind}_{name}" for kind in ("logit", "p", "flag") for name in classes), *SAID]
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        for name, seen in observations.items():
            about = {"candidate": name, "precision": precisions[name], "bundle": bundle, "weights": weights}
            writer.writerows({**about, **_row(o, classes)} for o in seen)


def _row(o: Observation, classes: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"sha256": o.sha256, "view": o.view, "refused": o.refused or "", "priority": o.priority}
    row |= {f"logit_{name}": str(np.float32(v)) for name, v in zip(classes, o.logits, strict=True)}
    if o.judgement is None:
        return row
    j = o.judgement
    row |= {"label": j.label, "score": "" if j.severity.score is None else j.severity.score}
    row |= {f"p_{name}": j.probabilities[name] for name in classes}
    row |= {f"flag_{name}": int(j.flags[name]) for name in classes}
    if j.severity.zones is not None:
        row |= zip(ZONES, (zone for side in zip(*j.severity.zones, strict=True) for zone in side), strict=True)
    return row


def read_outputs(path: StrPath, classes: Sequence[str]) -> Stored:
    """UsageError if it is no file of `write_outputs` for these classes, or of several bundles."""
    path = Path(path)
    hint = "name an outputs.csv that `cxrvit-edge benchmark` wrote"
    by_candidate: dict[str, list[Observation]] = {}
    precisions: dict[str, str] = {}
    bundles: set[tuple[str, str]] = set()
    line = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            for row in (rows := csv.DictReader(f)):
                line = rows.line_num
                name = row["candidate"]
                precisions[name] = row["precision"]
                bundles.add((row["bundle"], row["weights"]))
                by_candidate.setdefault(name, []).append(_observation(row, classes))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except KeyError as error:
        raise UsageError(f"{path}: no column {error}; {hint} with a bundle of the same classes") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UsageError(f"{path} line {line}: not a row of outputs ({error}); {hint}") from error
    if not by_candidate:
        raise UsageError(f"{path}: holds no outputs; {hint}")
    if len(bundles) > 1:
        raise UsageError(f"{path}: holds outputs of {len(bundles)} bundles; {hint}, with one")
    return Stored(path, *bundles.pop(), by_candidate, precisions)


def _observation(row: Mapping[str, str], classes: Sequence[str]) -> Observation:
    logits = np.array([float(row[f"logit_{name}"]) for name in classes], np.float32)
    if len(row["sha256"]) != 64:
        raise ValueError(f"sha256 is {row['sha256']!r}")
    if None in row.values() or None in row:
        raise ValueError("it has another number of cells than the header")
    judgement = None
    if not row["refused"]:
        zones = [row[zone] for zone in ZONES]
        severity = Severity()
        if row["score"]:
            left, right = [float(z) for z in zones[:3]], [float(z) for z in zones[3:]]
            severity = Severity(float(row["score"]), tuple(zip(left, right, strict=True)))
        judgement = Judgement(
            {name: float(row[f"p_{name}"]) for name in classes},
            row["label"],
            {name: bool(int(row[f"flag_{name}"])) for name in classes},
            severity,
            row["priority"],
        )
    return Observation(
        row["sha256"], "", "", "", VIEWS.get(row["view"], "unknown"), None, logits, judgement, row["refused"] or None
    )


def require_same(stored: Stored, bundle: Bundle) -> str | None:
    """A note if the outputs came from another export of the same weights. UsageError if from other weights."""
    if stored.bundle == bundle.sha256:
        return None
    if stored.weights != weights_sha256(bundle):
        raise UsageError(
            f"--reference {stored.path}: its outputs are those of another bundle ({stored.bundle[:12]}, this is "
            f"{bundle.sha256[:12]}) with other weights; measure this bundle, or use `cxrvit-edge compare`"
        )
    return (
        f"the reference was stored by another export ({stored.bundle[:12]}) of the same weights: flags and priorities "
        "may differ since its operating points did"
    )


def matched(
    reference: Sequence[Observation], observed: Sequence[Observation]
) -> tuple[list[Observation], list[Observation], list[Problem]]:
    """Both sides over the images that both have, in the order of `observed`, and what one of them lacks.

    The reference's get truth, patient, source and split of the other side.
    """
    by_hash = {o.sha256: o for o in reference}
    pairs = [(by_hash[o.sha256], o) for o in observed if o.sha256 in by_hash]
    known = [replace(a, patient=b.patient, source=b.source, split=b.split, truth=b.truth) for a, b in pairs]
    return known, [b for _, b in pairs], list(_missing(by_hash, observed))


def _missing(by_hash: Mapping[str, Observation], observed: Sequence[Observation]) -> Iterator[Problem]:
    hashes = {o.sha256 for o in observed}
    for kind, absent, where in (
        ("not_in_reference", [h for h in dict.fromkeys(o.sha256 for o in observed) if h not in by_hash], "reference"),
        ("only_in_reference", [h for h in by_hash if h not in hashes], "data"),
    ):
        if absent:
            lines = tuple(f"{digest[:16]}: not in the {where}, left out of the parity" for digest in absent[:FIRST])
            yield Problem(kind, len(absent), lines)
