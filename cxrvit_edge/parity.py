"""The parity contract: what a variant says of each image, held against the reference image by image.

A parity record is plain JSON; figures have six significant digits, and None stands for what is not defined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import Reason, UsageError
from cxrvit_edge.findings import Judgement
from cxrvit_edge.metrics import softmax
from cxrvit_edge.parity_auc import auc_table
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.radiograph import View

BOTH = "both"  # every image compared, whatever its split
TARGETS = {"at_99": 99.0, "at_99_9": 99.9}  # per cent
KNOWN_SPLITS = ("train", "val", "test")  # in this order, others by name


@dataclass(frozen=True)
class Bounds:
    """What a variant may differ in over all images compared (at export: val and test together).

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
    draws: int | None = None,
) -> dict[str, Any]:
    """Parity record of each split and of all images together, judged on the latter; `against` names the reference.

    {reference, executor, bounds, within, failures: sentences, splits: {split: figures, "both": of all}, changes:
    [{sha256, split, label, flags, priority, status, severity as [reference, variant]}]}. draws: of the bootstrap, 2000.
    UsageError if the two saw other images, or none.
    """
    if [o.sha256 for o in reference] != [o.sha256 for o in variant]:
        raise UsageError(f"{executor}: reference and variant did not see the same images; observe both over one list")
    pairs = [_Pair(a, b) for a, b in zip(reference, variant, strict=True)]
    if not pairs:
        raise UsageError(f"{executor}: no image to compare; name a --data with some")
    present = {p.reference.split for p in pairs}
    names = [*(s for s in KNOWN_SPLITS if s in present), *sorted(present - {*KNOWN_SPLITS})]
    whole = _figures(pairs, bundle, draws)
    splits = {
        name: whole if len(names) == 1 else _figures([p for p in pairs if p.reference.split == name], bundle, draws)
        for name in names
    }
    splits[BOTH] = whole
    failures = _failures(whole, bounds)
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


def per_cent(record: Mapping[str, Any]) -> dict[str, Any]:
    """{auc_per_cent: mean AUC of the variant in per cent of the reference's, at_99, at_99_9: whether it reaches that}.

    99 % and 99.9 % of the FP32 figure are MLPerf Inference's quality targets. None throughout where no AUC is defined.
    """
    value = record["splits"][BOTH]["auc"]["per_cent"]
    reached = {name: None if value is None else value >= least for name, least in TARGETS.items()}
    return {"auc_per_cent": value, **reached}


def _figures(pairs: Sequence[_Pair], bundle: Bundle, draws: int | None) -> dict[str, Any]:
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
            draws=draws,
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
