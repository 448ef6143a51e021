"""The figures the paper reports (section 4.4), with intervals, of predictions and of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Selective
from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import DRAWS, RATES, cluster_bootstrap, delong, mean_auc, number, plain, rates, severity
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.selective import figures as selective_figures
from train.data.record import Record
from train.diagnosis_eval import diagnosis, findings, thresholds, within_source
from train.films import Broken
from train.lungs_eval import lung_dice
from train.predict import Networks, Pooling, Predictions, predict_files
from train.runs import Run, combine, find_weights, is_bundle, load_run
from train.severity_eval import CUTS, brixia_scores, severity_figures, training_mean

__all__ = ["Predictions", "evaluate_run", "figures_of", "report"]

SCHEMA = 1
CAVEAT = (
    "Source and label are confounded in public data: nearly all normal films come from one collection, nearly all "
    "COVID-19 films from others, and a network can score high by recognising the source (border, text, window, "
    "format). A high AUC here is no evidence of clinical performance; figures inside one source are closer to it. "
    "Research use only."
)


def report(
    p: Predictions,
    operating_points: Mapping[str, float],
    temperature: float,
    *,
    sensitive_points: Mapping[str, float] | None = None,
    selective: Selective | None = None,
) -> dict[str, Any]:
    """What a bundle's manifest keeps of its evaluation, with 95 % intervals, as plain values for JSON.

    Pooled, and inside each source that has five images of two classes; sensitivity, specificity and accuracy at the
    operating points, and at the sensitive ones; prediction sets; severity against Brixia zones cut at >= 1 and >= 2;
    lung Dice by mask convention.
    """
    known = np.flatnonzero(p.labels >= 0)
    labels = p.labels[known]
    patients = [p.records[int(i)].patient for i in known]
    scaled = p.logits[known].astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    out: dict[str, Any] = {"images": len(p.records), "labelled": len(known), "patients": len(set(patients))}
    out["auc"] = {name: plain(delong(labels == k, probabilities[:, k])) for k, name in enumerate(CLASSES)}
    out["auc"]["mean"] = plain(cluster_bootstrap(lambda i: mean_auc(labels[i], probabilities[i]), patients))
    out["auc_within_source"] = within_source([p.records[int(i)] for i in known], scaled)
    out["operating_points"] = _rates(labels, probabilities, operating_points)
    if sensitive_points is not None:
        out["sensitive_points"] = _rates(labels, probabilities, sensitive_points)
    if selective is not None:
        sources = [p.records[int(i)].source for i in known]
        out["selective"] = selective_figures(labels, probabilities, patients, sources, CLASSES, selective)
    out["severity"] = {f"brixia>={t:g}": _severity(p, t) for t in CUTS}
    out["lung_dice"] = lung_dice(p)
    out["no_lungs"] = int(np.isnan(p.zones[:, 0, 0]).sum())
    return out


def _rates(
    labels: NDArray[np.integer], probabilities: NDArray[np.float64], points: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    found = {name: rates(labels == k, probabilities[:, k], points[name]) for k, name in enumerate(CLASSES)}
    return {name: dict(zip(RATES, map(number, values), strict=True)) for name, values in found.items()}


def _severity(p: Predictions, threshold: float) -> dict[str, Any]:
    """Score against counted Brixia zones, beside the best constant of these very images."""
    truth, score = brixia_scores(p.records, threshold), p.scores
    scored = np.flatnonzero(np.isfinite(truth) & np.isfinite(score))
    if scored.size == 0:
        return {"images": 0}
    t, s = truth[scored], score[scored]
    mse = cluster_bootstrap(lambda i: float(((t[i] - s[i]) ** 2).mean()), [p.records[int(i)].patient for i in scored])
    figures = {k: number(v) for k, v in asdict(severity(t, s)).items()}
    return {
        "images": int(scored.size),
        **figures,
        "mse_interval": plain(mse),
        "mse_constant": round(float(t.var()), 4),
    }


def groups(records: Sequence[Record]) -> dict[str, dict[str, list[int]]]:
    """Rows by source, by view and by both; "AP, all" is AP with AP Supine, as the paper's AP."""
    out: dict[str, dict[str, list[int]]] = {"source": {}, "view": {}, "source and view": {}}
    for i, r in enumerate(records):
        views = [r.view, "AP, all"] if r.view in ("AP", "AP Supine") else [r.view]
        out["source"].setdefault(r.source, []).append(i)
        for view in views:
            out["view"].setdefault(view, []).append(i)
            out["source and view"].setdefault(f"{r.source}, {view}", []).append(i)
    return {kind: dict(sorted(rows.items())) for kind, rows in out.items()}


def _part(p: Predictions, rows: Sequence[int]) -> Predictions:
    index = np.asarray(rows, np.intp)
    said = None if p.findings is None else p.findings[index]
    return Predictions([p.records[i] for i in rows], p.logits[index], p.zones[index], p.lung_dice[index], said)


def judged(p: Predictions, view: str) -> NDArray[np.intp]:
    """Rows with a label that are of the view; "AP" includes AP Supine, as in training."""
    return np.flatnonzero((p.labels >= 0) & [view == "any" or r.view.startswith(view) for r in p.records])


def figures_of(
    p: Predictions,
    tasks: Sequence[str],
    *,
    fixed: Mapping[str, float] | None = None,
    constants: Mapping[float, float] | None = None,
    view: str = "any",
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Every figure of P10 that `tasks` give, as plain values for JSON.

    fixed: thresholds chosen on val; constants: a constant predictor's score by Brixia cut. Diagnosis and severity are
    given pooled and under `groups`. view: diagnosis is judged on images of it alone.
    """
    constants = constants or {}
    patients = [r.patient for r in p.records]
    out: dict[str, Any] = {"images": len(p.records), "patients": len(set(patients)), "tasks": list(tasks)}

    def of(part: Predictions) -> dict[str, Any]:
        found: dict[str, Any] = {"images": len(part.records)}
        if "diagnosis" in tasks:
            known = judged(part, view)
            named = [part.records[int(i)].patient for i in known]
            found["diagnosis"] = diagnosis(part.labels[known], part.probabilities[known], named, fixed, draws=draws)
        if "severity" in tasks:
            found["severity"] = {
                f"brixia>={t:g}": severity_figures(part, t, constants.get(t, float("nan")), draws=draws) for t in CUTS
            }
        return found

    out |= of(p)
    out["groups"] = {
        kind: {name: of(_part(p, rows)) for name, rows in parts.items()} for kind, parts in groups(p.records).items()
    }
    if "diagnosis" in tasks:
        known = judged(p, view)
        named = [p.records[int(i)] for i in known]
        out["auc_within_source"] = within_source(named, p.logits[known].astype(np.float64), draws=draws)
    if "findings" in tasks and p.findings is not None:
        out["findings"] = findings(np.stack([r.findings for r in p.records]), p.findings, patients, draws=draws)
    if "lungs" in tasks:
        out["lung_dice"] = lung_dice(p, draws=draws)
    if "severity" in tasks:
        out["no_lungs"] = int(np.isnan(p.zones[:, 0, 0]).sum())
    return out


def evaluate_run(
    run: Path,
    records: Sequence[Record],
    *,
    split: str = "test",
    severity: Path | None = None,
    lungs: Path | None = None,
    pooling: Pooling | None = None,
    out: Path | None = None,
    device: str = "cpu",
    batch: int = 8,
    broken: Broken = "error",
    draws: int = DRAWS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Figures of a run on `split` of `records`; evaluation-<split>.json is written into `out`, else the run's folder.

    run: a run's folder, its .safetensors, or a bundle's folder (which needs `out`: a bundle holds nothing else);
    severity, lungs: runs that give what `run` lacks. pooling: of zones, else as the severity run was trained.
    records: all splits; thresholds are chosen on val, the constant severity is the training split's mean. A run that
    learned one view is judged on it alone, and its thresholds are chosen on it.
    broken: a file that cannot be read is an InputError, or it is left out and counted as `unreadable`.
    UsageError if there is nothing to evaluate.
    """
    chosen = [r for r in records if r.split == split]
    if not chosen:
        raise UsageError(f"no image in the {split} split; name another --split, or --data that has one")
    if out is None and is_bundle(run):
        raise UsageError(f"{run}: a bundle's files are sealed; name --out for the evaluation")
    folder = out or find_weights(run).parent
    main = load_run(run, device)
    others = (None if path is None else load_run(path, device) for path in (severity, lungs))
    networks, given, lungs_from = combine(main, *others)
    pooled: Pooling = pooling or given.get("severity", main).pooling
    tasks = _useful(networks, chosen)
    if not tasks.tasks:
        raise UsageError(
            f"{main.name}: a {main.stage} run gives findings alone, and no image of the {split} split has any; "
            "name --data that has findings, such as NIH or CheXpert"
        )
    view = given["diagnosis"].view if "diagnosis" in given else "any"

    def measure(part: str) -> Predictions:
        return predict_files(
            tasks if part == split else Networks(diagnosis=tasks.diagnosis, preprocessing=tasks.preprocessing),
            [r for r in records if r.split == part],
            batch=batch,
            pooling=pooled,
            broken=broken,
            progress=lambda done, n: say(f"{part}: {done} of {n} images") if done == n or done % 80 < batch else None,
        )

    p = measure(split)
    if not p.records:
        raise UsageError(
            f"none of the {len(chosen)} images of the {split} split can be read; look at them with inspect"
        )
    fixed = None
    if tasks.diagnosis is not None and any(r.split == "val" for r in records):
        v = p if split == "val" else measure("val")
        known = judged(v, view)
        fixed = thresholds(v.labels[known], v.probabilities[known])
    constants = {t: training_mean(_learned_from(records, given.get("severity", main)), t) for t in CUTS}
    sources = sorted({r.source for r in p.records})
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "split": split,
        "run": main.described(),
        "with": {task: r.described() for task, r in given.items() if r is not main},
        "measured_on": f"{split} split of {', '.join(sources)}, {len(p.records)} images"
        + (f"; diagnosis on those of view {view} alone" if view != "any" else ""),
        "unreadable": len(chosen) - len(p.records),
        "sources": {s: sum(r.source == s for r in p.records) for s in sources},
        "external": {task: _external(given[task], sources) for task in tasks.tasks},
        "caveat": CAVEAT,
        "pooling": pooled,
        "lungs_from": lungs_from if tasks.severity is not None else None,
        **figures_of(p, tasks.tasks, fixed=fixed, constants=constants, view=view, draws=draws),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"evaluation-{split}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    say(f"wrote {path}")
    return result


def _useful(n: Networks, records: Sequence[Record]) -> Networks:
    """Without the findings' head where no record has findings: it costs a second pass of the trunk."""
    if n.findings is None or any(np.isfinite(r.findings).any() for r in records):
        return n
    return replace(n, findings=None)


def _external(run: Run, sources: Sequence[str]) -> bool | None:
    """Whether none of the sources was in the run's training; None if it does not name its own."""
    return not set(sources) & set(run.sources) if run.sources else None


def _learned_from(records: Sequence[Record], run: Run) -> list[Record]:
    """Those of the sources that the run names as its own; all, if it names none."""
    return [r for r in records if not run.sources or r.source in run.sources]
