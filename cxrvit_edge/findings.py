"""Network outputs and the bundle's operating points -> Finding, the result of one input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.decision import USUAL, Rule, prediction_sets
from cxrvit_edge.errors import InputError, Reason, Status
from cxrvit_edge.guard_head import describe_outputs, head_of
from cxrvit_edge.ood import Ood, familiar_of
from cxrvit_edge.preprocess import Float32, Geometry
from cxrvit_edge.radiograph import View
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.zones import lung_extent, lung_separation, severity_array, zone_masks

SCHEMA = 1


@dataclass(frozen=True)
class Severity:
    """score: 0-6, the sum of zones (3 x 2: upper to lower; image-left, image-right); None without lungs."""

    score: float | None = None
    zones: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class Judgement:
    """What the network says of one radiograph. prediction_set: the classes it does not rule out; None if its bundle has
    no such sets; ood: how unlike the films it learned from it is; None if its bundle does not tell."""

    probabilities: dict[str, float]
    label: str
    flags: dict[str, bool]
    severity: Severity
    priority: str
    prediction_set: tuple[str, ...] | None = None
    ood: Ood | None = None


@dataclass(frozen=True)
class Finding:
    """One input's line in results.jsonl; the fields of Judgement are None unless status is ok.

    file: POSIX path as reached from the PATH given; reason: {code, message} or None; timings_ms: by stage; sensitivity,
    selective: the `decision.Rule` that made flags and priority.
    """

    file: str
    status: Status
    sha256: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    reason: dict[str, str] | None = None
    warnings: tuple[str, ...] = ()
    view: View = "unknown"
    probabilities: dict[str, float] | None = None
    label: str | None = None
    flags: dict[str, bool] | None = None
    prediction_set: tuple[str, ...] | None = None
    severity: Severity | None = None
    priority: str = "review"
    ood: Ood | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    bundle: str = ""
    backend: str = ""
    precision: str = ""
    sensitivity: int = USUAL.sensitivity
    selective: bool = USUAL.selective

    def to_dict(self) -> dict[str, Any]:
        severity = self.severity and {"score": self.severity.score, "zones": self.severity.zones}
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        possible = None if self.prediction_set is None else list(self.prediction_set)
        lists = {"warnings": list(self.warnings), "prediction_set": possible}
        return {"schema": SCHEMA, **values, **lists, "severity": severity, "ood": self.ood and asdict(self.ood)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Inverse of to_dict. ValueError if it is no line of ours."""
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema {values.get('schema')!r}, not {SCHEMA}")
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        try:
            if known.get("severity") is not None:
                zones = known["severity"]["zones"]
                known["severity"] = Severity(known["severity"]["score"], zones and tuple(tuple(z) for z in zones))
            if known.get("ood") is not None:
                known["ood"] = Ood(float(known["ood"]["score"]), float(known["ood"]["threshold"]))
            known["warnings"] = tuple(known.get("warnings") or ())
            if (possible := known.get("prediction_set")) is not None:
                if not isinstance(possible, list):
                    raise TypeError(f"prediction_set is {possible!r}")
                known["prediction_set"] = tuple(possible)
            return cls(**known)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no finding: {error}") from error


def judge(
    outputs: Outputs,
    index: int,
    bundle: Bundle,
    view: View,
    geometry: Geometry,
    film: Float32 | None = None,
    rule: Rule = USUAL,
) -> Judgement:
    """Row `index` of a batch's outputs -> Judgement. film: `guard.describe` of the input; without it the bundle's guard
    head is not asked. rule: makes flags and priority; the bundle must have what it takes (`Rule.require`).

    A film over the threshold of the bundle's `ood.Familiar` is for review, whatever its flags.

    InputError: not_finite (the network gave no number), not_a_chest (no lungs worth the name were found, or another
    kind of image), lateral_view, rotated or inverted.
    """
    m = bundle.manifest
    logits = outputs.logits[index].astype(np.float64)
    lungs, severity_map = outputs.lung_mask[index], outputs.severity_map[index, 0]
    familiar = None if outputs.embedding is None else familiar_of(bundle)
    score = 0.0 if familiar is None or outputs.embedding is None else familiar.score(outputs.embedding[index])
    if not all(np.isfinite(values).all() for values in (logits, lungs, severity_map, score)):
        raise InputError(Reason.NOT_FINITE, "the network gave values that are not finite; run `cxrvit-edge doctor`")
    head = None if film is None else head_of(bundle)
    if head is not None and film is not None:
        head.check(film, describe_outputs(outputs, index, geometry))
    check_lungs(lungs, bundle, geometry)
    scaled = logits / m.temperature
    exp = np.exp(scaled - scaled.max())
    p = exp / exp.sum()
    probabilities = {name: round(float(v), 6) for name, v in zip(m.classes, p, strict=True)}
    points = rule.points(m)
    flags = {name: value >= points[name] for name, value in probabilities.items()}  # as they are reported
    possible = None
    if m.selective is not None:
        member = prediction_sets(np.array([*probabilities.values()])[None], m.selective.threshold)[0]  # (K,)
        possible = tuple(name for name, within in zip(m.classes, member, strict=True) if within)
    zones = zone_masks(lungs)
    severity = Severity()
    if zones is not None:
        array = severity_array(severity_map, zones)
        rows = tuple((round(float(a), 4), round(float(b), 4)) for a, b in array)
        severity = Severity(round(sum(a + b for a, b in rows), 4), rows)
    ood = None if familiar is None else Ood(score, familiar.threshold)
    undecided = rule.selective and possible is not None and len(possible) != 1
    review = undecided or (ood is not None and ood.over)
    priority = "review" if review else _priority(flags, severity, bundle, view)
    return Judgement(probabilities, m.classes[int(p.argmax())], flags, severity, priority, possible, ood)


def check_lungs(lungs: np.ndarray, bundle: Bundle, geometry: Geometry) -> None:
    """InputError not_a_chest if lungs (2, h, w) are too small, too faint or not side by side."""
    guard = bundle.manifest.guard
    content = geometry.content(lungs)
    separation = lung_separation(content)
    if separation is not None and separation < guard.least_separation:
        raise InputError(
            Reason.NOT_A_CHEST,
            f"the lungs found do not lie side by side (centres {separation:.0%} of the width apart): turned, mirrored, "
            "or not a frontal chest radiograph; look at it",
        )
    area, confidence = lung_extent(content)
    if area < guard.least_lungs or confidence < guard.least_confidence:
        raise InputError(
            Reason.NOT_A_CHEST,
            f"no lungs found ({area:.1%} of the image, confidence {confidence:.2f}): not an upright frontal chest "
            "radiograph, or one that this network cannot judge; look at it",
        )


def _priority(flags: Mapping[str, bool], severity: Severity, bundle: Bundle, view: View) -> str:
    table = bundle.manifest.priority
    if severity.score is None or (bundle.view_matters and view == "unknown"):
        return "review"
    if not any(flags[name] for name in table.flagged):
        return "routine"
    return "urgent" if severity.score >= table.urgent_score else "elevated"
