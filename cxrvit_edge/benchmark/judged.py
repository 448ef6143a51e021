"""What the candidates said of labelled images: accuracy, and parity with the reference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cxrvit_edge import evaluation, parity
from cxrvit_edge.benchmark import outputs
from cxrvit_edge.benchmark.candidates import REFERENCE, Contender
from cxrvit_edge.benchmark.observe import Observed
from cxrvit_edge.benchmark.options import Options
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.labels import Labelled, Problem, Study

Report = dict[str, Any]
ONE_SOURCE, FEW = 0.9, 50  # share of a class from one source, and images of a class, from which it is told


def figures(
    options: Options,
    bundle: Bundle,
    contenders: Sequence[Contender],
    data: Labelled | None,
    seen: Observed | None,
    stored: outputs.Stored | None,
) -> tuple[Report | None, list[Report], list[str]]:
    """Accuracy, parity and notes; the problems of the data and of the reference are in the first."""
    if data is None or seen is None:
        return None, [], []
    records, problems, notes = _parity(options, bundle, contenders, seen, stored)
    named = [*data.problems, *seen.problems, *problems]
    accuracy = {
        "data": {
            **_data(options, bundle, seen.studies),
            "problems": [{"kind": p.kind, "count": p.count, "first": list(p.first)} for p in named],
        },
        "caveats": _caveats(seen.studies, bundle.manifest.classes),
        "by_candidate": {
            name: evaluation.accuracy(own, seen.studies, bundle, draws=options.draws, seed=options.seed)
            for name, own in seen.by_candidate.items()
            if own
        },
    }
    return accuracy, records, notes


def _data(options: Options, bundle: Bundle, studies: Sequence[Study]) -> Report:
    counts = Counter(study.label for study in studies)
    return {
        "path": None if options.data is None else os.fspath(options.data),
        "split": options.split,
        "images": len(studies),
        "patients": len({study.patient for study in studies}),
        "unlabelled": counts[None],
        "by_class": {name: counts[k] for k, name in enumerate(bundle.manifest.classes)},
    }


def _parity(
    options: Options,
    bundle: Bundle,
    contenders: Sequence[Contender],
    seen: Observed,
    stored: outputs.Stored | None,
) -> tuple[list[Report], list[Problem], list[str]]:
    """Every candidate against the stored outputs, else against ONNX Runtime's fp32."""
    if stored is None:
        name = " ".join(REFERENCE)
        if name not in seen.by_candidate:
            return [], [], [f"no parity: {name} is the reference, and did not run here"]
        reference, against = seen.by_candidate[name], name
    else:
        name = ""
        reference, against = stored.by_candidate[stored.reference()], f"stored: {stored.path.name} {stored.reference()}"
    records: list[Report] = []
    problems: dict[str, Problem] = {}
    notes: list[str] = []
    for c in contenders:
        if c.name == name or not seen.by_candidate.get(c.name):
            continue
        known, own, missing = outputs.matched(reference, seen.by_candidate[c.name])
        problems |= {problem.kind: problem for problem in missing}
        if not known:
            notes.append(f"no parity of {c.name}: the reference holds none of these images")
            continue
        try:
            bounds = parity.BOUNDS.get(c.variant, parity.BOUNDS["int8"])
            record = parity.compare(known, own, bundle, bounds, c.name, against=against, draws=options.draws)
        except CxrVitError as error:
            notes.append(f"no parity of {c.name}: {error}")
            continue
        records.append({"variant": c.name, **record, **parity.per_cent(record)})
    return records, list(problems.values()), notes


def _caveats(studies: Sequence[Study], classes: Sequence[str]) -> list[str]:
    """Where class and source go together, so that telling sources apart would look like telling diseases apart."""
    by_class = {name: Counter(s.source for s in studies if s.label == k and s.source) for k, name in enumerate(classes)}
    out = []
    if len({source for counts in by_class.values() for source in counts}) > 1:
        for name, counts in by_class.items():
            if not counts:
                continue
            source, most = counts.most_common(1)[0]
            others = {other: c for other, c in by_class.items() if c and other != name}
            apart = any(c[source] < 0.5 * c.total() for c in others.values())
            if most >= ONE_SOURCE * counts.total() and apart:
                gave = " and ".join(f"{c[source]} of {c.total()} {other}" for other, c in others.items())
                out.append(f"{most} of {counts.total()} {name} images are from {source}, as are {gave}")
    if out:
        out.append("class and source go together here: see the figures within one source")
    few = [f"{name} {counts}" for name, counts in _labelled(studies, classes).items() if counts < FEW]
    if few:
        out.append(f"few images, so intervals are wide: {', '.join(few)}")
    return out


def _labelled(studies: Sequence[Study], classes: Sequence[str]) -> dict[str, int]:
    return {name: sum(s.label == k for s in studies) for k, name in enumerate(classes)}
