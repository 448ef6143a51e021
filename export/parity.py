"""The parity contract: what a variant says of each image, held against the reference image by image.

A parity record is plain JSON; figures have six significant digits, and None stands for what is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError, ParityError, Reason, UsageError
from cxrvit_edge.findings import Judgement, judge
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.radiograph import View
from cxrvit_edge.runtime.session import Float32, Session
from export.decisions import softmax
from export.parity_auc import auc_table
from export.predict import films
from train.data.record import Record

BOTH = "both"


@dataclass(frozen=True)
class Bounds:
    """What a variant may differ in on val and test together.

    flips: images whose label, a flag or status is another, or whose severity came or went; probability: largest
    difference; logits_rms: of the logits' standard deviation inside each class; severity_mae: of the score, 0-6.
    """

    flips: int
    probability: float
    logits_rms: float
    severity_mae: float


BOUNDS = {
    "fp32": Bounds(0, 1e-4, 1e-4, 1e-3),
    "fp16": Bounds(0, 0.005, 0.002, 0.005),
    "int8": Bounds(3, 0.05, 0.02, 0.05),
    "int8-cpu": Bounds(3, 0.05, 0.02, 0.05),
}


@dataclass(frozen=True)
class Observation:
    """What triage says of one image. truth: its class label; refused: code of the rejection, judgement is None then."""

    sha256: str  # of the file
    patient: str
    source: str
    split: str
    view: View
    truth: int | None
    logits: Float32  # (3,), also of an image that is refused
    judgement: Judgement | None
    refused: str | None

    @property
    def score(self) -> float | None:
        return self.judgement.severity.score if self.judgement else None

    @property
    def priority(self) -> str:
        return self.judgement.priority if self.judgement else "review"


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


class _Pair(NamedTuple):
    reference: Observation
    variant: Observation

    @property
    def changes(self) -> dict[str, Any]:
        """What is said otherwise, as [reference, variant]; empty if nothing is."""
        a, b = self
        out: dict[str, Any] = {}
        if a.refused != b.refused:
            out["status"] = [a.refused or "ok", b.refused or "ok"]
        if a.judgement and b.judgement:
            if a.judgement.label != b.judgement.label:
                out["label"] = [a.judgement.label, b.judgement.label]
            own, other = a.judgement.flags, b.judgement.flags
            if flags := {name: [own[name], other[name]] for name in own if own[name] != other[name]}:
                out["flags"] = flags
            if (a.score is None) != (b.score is None):
                out["severity"] = [a.score, b.score]
        if a.priority != b.priority:
            out["priority"] = [a.priority, b.priority]
        return out


def compare(
    reference: Sequence[Observation],
    variant: Sequence[Observation],
    bundle: Bundle,
    bounds: Bounds,
    executor: str,
    *,
    against: str = "fp32",
) -> dict[str, Any]:
    """Parity record of val, test and both together, judged on both; `against` says what the reference is.

    {reference, executor, bounds, within, failures: sentences, splits: {val, test, both: figures}, changes: [{sha256,
    split, label, flags, priority, status, severity as [reference, variant]}]}. UsageError if the two saw other images,
    or none of val and test.
    """
    if [o.sha256 for o in reference] != [o.sha256 for o in variant]:
        raise UsageError(f"{executor}: reference and variant did not see the same images; observe both over one list")
    pairs = [_Pair(a, b) for a, b in zip(reference, variant, strict=True) if a.split in ("val", "test")]
    if not pairs:
        raise UsageError("no image in the val or test split: parity is measured there; name a --data with some")
    by_split = {name: [p for p in pairs if p.reference.split == name] for name in ("val", "test")}
    splits = {name: _figures(own, bundle) for name, own in {**by_split, BOTH: pairs}.items() if own}
    failures = _failures(splits[BOTH], bounds)
    record = {
        "reference": against,
        "executor": executor,
        "bounds": asdict(bounds),
        "within": not failures,
        "failures": failures,
        "splits": splits,
        "changes": [
            {"sha256": p.reference.sha256, "split": p.reference.split, **changes}
            for p in pairs
            if (changes := p.changes)
        ],
    }
    plain: dict[str, Any] = _plain(record)
    return plain


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


def _figures(pairs: Sequence[_Pair], bundle: Bundle) -> dict[str, Any]:
    a = np.stack([p.reference.logits for p in pairs]).astype(np.float64)  # (N, K)
    b = np.stack([p.variant.logits for p in pairs]).astype(np.float64)
    changes = [p.changes for p in pairs]
    with np.errstate(all="ignore"):  # a network that gives no numbers is a failure, not a warning
        p, q = (softmax(logits, bundle.manifest.temperature) for logits in (a, b))
        logits, probabilities = _difference(a, b), _difference(p, q)
        spread = float(np.sqrt(a.var(axis=0).mean()))
        logits["rms_of_std"] = float(np.divide(logits["rms"], spread))
    finite = np.isfinite(b).all(axis=1) & np.array([o.variant.refused != Reason.NOT_FINITE.value for o in pairs])
    scores = [(o.reference.score, o.variant.score) for o in pairs]
    gaps = np.array([abs(x - y) for x, y in scores if x is not None and y is not None])
    count = {k: sum(k in c for c in changes) for k in ("label", "flags", "priority", "status", "severity")}
    return {
        "images": len(pairs),
        "patients": len({o.reference.patient for o in pairs}),
        "not_finite": int((~finite).sum()),
        "flips": {"images": sum(bool(set(c) - {"priority"}) for c in changes), **count},
        "logits": logits,
        "probabilities": probabilities,
        "severity": {
            "images": len(gaps),
            "mae": float(gaps.mean()) if len(gaps) else None,
            "largest": float(gaps.max()) if len(gaps) else None,
            "appeared": sum("severity" in c and c["severity"][0] is None for c in changes),
            "vanished": sum("severity" in c and c["severity"][1] is None for c in changes),
        },
        "auc": auc_table(
            [o.reference.truth for o in pairs],
            p,
            q,
            [o.reference.patient for o in pairs],
            bundle.manifest.classes,
        ),
    }


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, float]:
    gap = b - a
    return {"largest": float(np.abs(gap).max()), "rms": float(np.sqrt((gap**2).mean()))}


def _failures(found: dict[str, Any], bounds: Bounds) -> list[str]:
    held = (
        ("images flipped:", found["flips"]["images"], bounds.flips),
        ("largest probability difference", found["probabilities"]["largest"], bounds.probability),
        ("RMS logit difference, of their standard deviation,", found["logits"]["rms_of_std"], bounds.logits_rms),
        ("severity score MAE", found["severity"]["mae"], bounds.severity_mae),
    )
    out = [f"images with values that are not finite: {found['not_finite']}"] if found["not_finite"] else []
    for words, value, bound in held:
        if value is None or value <= bound:  # None: no image had a score in both; those that lost it are flips
            continue
        out.append(f"{words} {value:.6g} > {bound:g}" if np.isfinite(value) else f"{words} is not finite")
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
