"""A benchmark report of made-up, seeded figures: every part that a box or a data set may lack can be left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import auc, delong

CLASSES = ("normal", "other_infection", "covid19")
CANDIDATES = ("onnxruntime fp32", "onnxruntime int8-cpu", "openvino int8-cpu")
POINTS = {"normal": 0.363585, "other_infection": 0.373827, "covid19": 0.245416}
STAGES = {"queue": 210.0, "read": 0.6, "decode": 9.4, "preprocess": 14.2, "run": 61.0, "interpret": 1.9, "write": 6.1}


def build(
    *,
    images: int = 200,
    candidates: Sequence[str] = CANDIDATES,
    data: bool = True,
    classes: Sequence[int] = (0, 1, 2),
    severity: bool = True,
    sets: bool = True,
    sensors: bool = True,
    energy: bool = False,
    end_to_end: bool = True,
    parity: bool = True,
    flips: int = 3,
    problems: bool = True,
    passed_over: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """classes: those that the labelled images have. sets: whether the bundle has them, and sensitive points.
    flips: images that each variant judges otherwise."""
    rng = np.random.default_rng(seed)
    accuracy = _accuracy(rng, images, candidates, classes, severity, problems) if data else None
    for block in accuracy["by_candidate"].values() if accuracy else ():
        block["sensitive"] = _lower(block["operating"]) if sets else None
        block["selective"] = _sets(rng, block) if sets else None
    return {
        "schema": 1,
        "tool": {"name": "cxrvit-edge", "version": "0.1.0"},
        "created": "2026-11-23T11:06:42Z",
        "research_use": "Research use only, not a medical device; the map is not for localisation.",
        "caveat": "Trained on public images whose source and label are confounded (nearly all normal films come from "
        "one collection): its figures are no evidence of clinical performance.",
        "bundle": {
            "name": "default",
            "sha256": "c0ffee12" * 8,
            "weights_sha256": "d15ea5e0" * 8,
            "classes": list(CLASSES),
            "operating_points": dict(POINTS),
            "temperature": 1.193,
            "variants": ["fp32", "fp16", "int8", "int8-cpu"],
        },
        "settings": {
            "seconds": 10.0,
            "data": "films/labels.csv" if data else None,
            "split": "test",
            "images": None,
            "reference": None,
            "draws": 2000,
            "seed": 0,
        },
        "environment": _environment(sensors),
        "candidates": [_candidate(name) for name in candidates],
        "passed_over": [
            {"name": "tensorrt int8", "why": "no NVIDIA driver was found (libcuda.so.1 cannot be loaded)"},
            {
                "name": "onnxruntime fp16",
                "why": "fp16 on this processor is emulated: slower than fp32; ask with --precision",
            },
        ]
        if passed_over
        else [],
        "latency": _latency(rng, candidates, energy),
        "end_to_end": {name: _end_to_end(i, images) for i, name in enumerate(candidates)} if end_to_end else {},
        "accuracy": accuracy,
        "parity": [_parity(rng, name, candidates[0], images, flips, classes) for name in candidates[1:]]
        if parity and data
        else [],
    }


def estimate(value: float | None, half: float = 0.02, why: str | None = None) -> dict[str, Any]:
    if value is None or not math.isfinite(value):
        none: dict[str, Any] = {"value": None, "low": None, "high": None}
        return {**none, "why": why} if why else none
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def _candidate(name: str) -> dict[str, Any]:
    backend, precision = name.split()
    return {
        "name": name,
        "backend": backend,
        "version": "1.23.2",
        "precision": precision,
        "variant": f"{precision}.onnx",
        "batch_size": 4,
        "threads": 2,
        "golden": {"logits": 3.1e-5 if precision == "fp32" else 0.021, "maps": 2.4e-6, "passed": True},
        "notes": [] if precision == "fp32" else ["the golden check allows max(5e-2, 3 x the spread at export)"],
    }


def _environment(sensors: bool) -> dict[str, Any]:
    return {
        "box": {
            "processor": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cores": 2,
            "cpu_flags": ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
            "memory_mb": 15991,
            "os": "Linux 6.1.0 (Debian GNU/Linux 12)",
            "machine": "x86_64",
            "python": "3.11.2",
            "gpus": [{"name": "NVIDIA RTX A2000", "sm": "8.6", "memory_mb": 6138, "driver": "570.86"}]
            if sensors
            else [],
        },
        "versions": {
            "cxrvit-edge": "0.1.0",
            "numpy": "2.3.1",
            "onnxruntime": "1.23.2",
            "opencv": "4.12.0",
            "openvino": "2025.3",
        },
        "clock": {"governor": "performance", "mhz": {"start": 2700.0, "end": 2694.0}}
        if sensors
        else {"governor": None, "mhz": None},
        "power_mode": "MAXN" if sensors else None,
        "temperature_c": {"sensor": "coretemp", "start": 44.0, "end": 61.5, "most": 63.0} if sensors else None,
        "load": {"start": 0.12},
        "notes": ["no energy counter: /sys/class/powercap/intel-rapl is not readable"]
        + ([] if sensors else ["no temperature: the box has no hwmon sensor", "no clock: cpufreq is absent"]),
    }


def _latency(rng: np.random.Generator, candidates: Sequence[str], energy: bool) -> dict[str, Any]:
    out = {}
    best = [108.0, 63.0, 49.0, 55.0, 70.0, 81.0, 90.0]
    for i, name in enumerate(candidates):
        least = best[i % len(best)]
        times = least * (1 + rng.gamma(2.0, 0.035, 180) + (rng.random(180) > 0.985) * rng.uniform(0.5, 2.0, 180))
        counts, edges = np.histogram(times, 48)
        p50, p90, p99 = np.quantile(times, [0.5, 0.9, 0.99])
        out[name] = {
            "single_stream": {
                "samples": 180,
                "seconds": float(times.sum() / 1000),
                "mean_ms": float(times.mean()),
                "best_ms": float(times.min()),
                "p50_ms": float(p50),
                "p90_ms": float(p90),
                "p99_ms": float(p99),
                "histogram": {"edges_ms": [float(e) for e in edges], "counts": [int(c) for c in counts]},
            },
            "offline": {
                "batch_size": 4,
                "batches": 44,
                "seconds": 10.2,
                "images_a_second": 1000 / least * 0.98,
                "best_images_a_second": 1000 / least * 1.05,
            },
            "ratio": least / min(best[: len(candidates)]),
            "energy": {"joules_a_study": 2.31 * least / 50, "sensor": "NVML", "method": "mean power x time"}
            if energy
            else None,
        }
    return out


def _end_to_end(index: int, images: int) -> dict[str, Any]:
    slower = 1 + 0.35 * (2 - min(index, 2))
    stages = {k: round(v * (slower if k == "run" else 1), 3) for k, v in STAGES.items()}
    a_second = 1000 / (stages["run"] + 3)
    shares = {"network": 0.93, "waiting for films": 0.05, "waiting for results to be taken": 0.005, "other": 0.015}
    return {
        "images": images,
        "files": "the labelled films",
        "seconds": images / a_second,
        "images_a_second": a_second,
        "first_result_s": 0.41,
        "stage_ms": stages,
        "shares": shares,
        "statuses": {"ok": images - 2, "rejected": 2},
        "single_file_ms": {"p50": 96.0 * slower, "p90": 112.0 * slower, "p99": 140.0 * slower} if index == 0 else None,
    }


def _accuracy(
    rng: np.random.Generator,
    images: int,
    candidates: Sequence[str],
    classes: Sequence[int],
    severity: bool,
    problems: bool,
) -> dict[str, Any]:
    truth = rng.choice(classes, images)  # (N,)
    logits = 1.6 * (rng.normal(0, 1, (images, 3)) + 1.7 * np.eye(3)[truth])  # (N, 3)
    by_class = {c: int((truth == k).sum()) for k, c in enumerate(CLASSES)}
    listed = [
        {
            "kind": "absent",
            "count": 7,
            "first": [f"line {i}: images/ward/film{i}.png is not there" for i in range(2, 7)],
        },
        {"kind": "duplicate", "count": 1, "first": ["line 88: the same file as line 12, which is kept"]},
    ]
    if len(classes) < 2:
        listed.append({"kind": "one_class", "count": 1, "first": ["every image is normal: no AUC is defined"]})
    return {
        "data": {
            "path": "films/labels.csv",
            "split": "test",
            "images": images,
            "patients": images * 3 // 4,
            "unlabelled": 3,
            "by_class": by_class,
            "problems": listed if problems else [],
        },
        "caveats": ["covid19 films come from brixia and cohen alone: its AUC may tell the source"],
        "by_candidate": {
            name: _block(rng, truth, logits + rng.normal(0, 0.02 * i, logits.shape), severity)
            for i, name in enumerate(candidates)
        },
    }


def _block(
    rng: np.random.Generator, truth: NDArray[np.integer], logits: NDArray[np.floating], severity: bool
) -> dict[str, Any]:
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    n = len(truth)
    out_auc: dict[str, dict[str, Any]] = {}
    operating: dict[str, dict[str, Any]] = {}
    roc = {}
    for k, name in enumerate(CLASSES):
        positive = truth == k
        e = vars(delong(positive, p[:, k])) if 1 < positive.sum() < n - 1 else estimate(None)
        defined = e["value"] is not None
        out_auc[name] = {
            **e,
            "cluster_low": e["low"] - 0.007 if defined else None,
            "cluster_high": min(1.0, e["high"] + 0.006) if defined else None,
            **({} if defined else {"why": "one class only"}),
        }
        on = p[:, k] >= POINTS[name]
        operating[name] = {
            "threshold": POINTS[name],
            "sensitivity": estimate(float(on[positive].mean()) if positive.any() else None, 0.05),
            "specificity": estimate(float((~on)[~positive].mean()) if (~positive).any() else None, 0.04),
            "accuracy": estimate(float((on == positive).mean()), 0.03),
        }
        roc[name] = _curve(positive, p[:, k])
    means = [e["value"] for e in out_auc.values()]
    mean = float(np.mean(means)) if None not in means else None
    operating["mean"] = {
        key: estimate(_mean([operating[c][key]["value"] for c in CLASSES]), 0.03)
        for key in ("sensitivity", "specificity", "accuracy")
    }
    return {
        "images": n,
        "patients": n * 3 // 4,
        "refused": {"not_a_chest": 2},
        "classes": {c: int((truth == k).sum()) for k, c in enumerate(CLASSES)},
        "auc": {**out_auc, "mean": estimate(mean, 0.015, "one class only")},
        "operating": operating,
        "roc": roc,
        "calibration": _calibration(truth, p),
        "severity": _severity(rng, n // 2) if severity else None,
        "by_view": {v: _group(rng, n // 2, mean) for v in ("AP", "PA")},
        "by_source": {s: _group(rng, n // 4, mean if s == "cohen" else None) for s in ("nih", "cohen", "shenzhen")},
        "within_source": {"nih: other_infection against normal": {**estimate(0.874, 0.06), "images": [n // 8, n // 5]}},
    }


def _lower(operating: dict[str, Any]) -> dict[str, Any]:
    """The same classes at lower thresholds."""
    at = {"sensitivity": 0.961, "specificity": 0.612, "accuracy": 0.733}
    return {
        name: {**{k: v / 2 for k, v in e.items() if k == "threshold"}, **{k: estimate(v, 0.031) for k, v in at.items()}}
        for name, e in operating.items()
    }


def _sets(rng: np.random.Generator, block: dict[str, Any]) -> dict[str, Any]:
    def share(images: int) -> dict[str, Any]:
        coverage, single = (round(float(v), 3) if images else None for v in rng.uniform(0.6, 0.9, 2))
        return {"images": images, "coverage": estimate(coverage, 0.041), "single": estimate(single, 0.053)}

    return {
        "alpha": 0.1,
        "threshold": 0.731,
        **share(block["images"]),
        "accuracy": estimate(0.811, 0.037),
        "accuracy_single": estimate(0.907, 0.029),
        "aurc": estimate(0.0617, 0.012),
        "by_class": {name: share(images) for name, images in block["classes"].items()},
        "by_source": {name: share(e["images"]) for name, e in block["by_source"].items()},
    }


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else float(np.mean(np.array(values, float)))


def _group(rng: np.random.Generator, images: int, mean: float | None) -> dict[str, Any]:
    values = [None if mean is None else min(1.0, mean + rng.normal(0, 0.02)) for _ in range(4)]
    why = None if mean is not None else "one class only"
    return {
        "images": images,
        "auc": {c: estimate(v, 0.03, why) for c, v in zip((*CLASSES, "mean"), values, strict=True)},
    }


def _curve(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> list[list[float]]:
    if math.isnan(auc(positive, score)):
        return []
    order = np.argsort(-score)
    hits, misses = np.cumsum(positive[order]) / positive.sum(), np.cumsum(~positive[order]) / (~positive).sum()
    points = [[0.0, 0.0], *([round(float(a), 5), round(float(b), 5)] for a, b in zip(misses, hits, strict=True))]
    step = max(1, math.ceil(len(points) / 199))
    return [*points[::step], [1.0, 1.0]]


def _calibration(truth: NDArray[np.integer], p: NDArray[np.floating]) -> dict[str, Any]:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
    at = np.minimum((confidence * 15).astype(int), 14)
    bins: list[dict[str, Any]] = [
        {
            "low": i / 15,
            "high": (i + 1) / 15,
            "count": int((at == i).sum()),
            "confidence": float(confidence[at == i].mean()) if (at == i).any() else None,
            "accuracy": float(right[at == i].mean()) if (at == i).any() else None,
        }
        for i in range(15)
    ]
    brier = float(((p - np.eye(3)[truth]) ** 2).sum(axis=1).mean())
    ece = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["count"]) / len(truth)
    return {"brier": estimate(brier, 0.03), "ece": estimate(ece, 0.015), "bins": bins}


def _severity(rng: np.random.Generator, n: int) -> dict[str, Any]:
    reference = rng.integers(0, 7, n).astype(float)  # (n,)
    score = np.clip(0.7 * reference + 0.8 + rng.normal(0, 0.8, n), 0, 6)
    gap = score - reference
    bias, half = float(gap.mean()), 1.96 * float(gap.std())
    points = [[round(float(a), 3), round(float(b), 3)] for a, b in zip((score + reference) / 2, gap, strict=True)]
    return {
        "images": n,
        "not_scored": 1,
        "mse": {"value": float((gap**2).mean()), "low": 0.7, "high": 1.2},
        "mae": estimate(float(np.abs(gap).mean()), 0.1),
        "cc": estimate(float(np.corrcoef(score, reference)[0, 1]), 0.05),
        "r2": estimate(1 - float((gap**2).mean() / reference.var()), 0.1),
        "constant": {"score": float(reference.mean()), "mse": float(reference.var())},
        "bland_altman": {
            "bias": {"value": bias, "low": bias - 0.12, "high": bias + 0.12},
            "low": bias - half,
            "high": bias + half,
            "points": points,
        },
    }


def _parity(
    rng: np.random.Generator, name: str, reference: str, images: int, flips: int, classes: Sequence[int]
) -> dict[str, Any]:
    defined = len(classes) > 1
    per_cent = 99.94 - 0.2 * float(rng.random()) if defined else None
    gap = {"value": -0.0006, "low": -0.0021, "high": 0.0008} if defined else estimate(None)
    one = {
        "reference": estimate(0.951 if defined else None),
        "variant": estimate(0.9504 if defined else None),
        "difference": gap,
    }
    means = {k: e["value"] if isinstance(e, dict) else e for k, e in one.items() if k != "difference"}
    figures = {
        "images": images,
        "patients": images * 3 // 4,
        "not_finite": 0,
        "flips": {
            "images": flips,
            "label": flips,
            "flags": flips // 2,
            "priority": flips // 3,
            "status": 0,
            "severity": 0,
        },
        "logits": {"largest": 0.0812, "rms": 0.0123, "rms_of_std": 0.0061},
        "probabilities": {"largest": 0.0214, "rms": 0.0031},
        "severity": {"images": images - 2, "mae": 0.0121, "largest": 0.093, "appeared": 0, "vanished": 0},
        "auc": {**dict.fromkeys(CLASSES, one), "mean": {**means, "difference": gap}, "per_cent": per_cent},
    }
    changes = []
    for i in range(flips):
        change: dict[str, Any] = {
            "sha256": rng.bytes(32).hex(),
            "split": "test",
            "label": ["normal", "other_infection"],
        }
        if i % 2:
            change["flags"] = {"normal": [True, False], "other_infection": [False, True]}
        if i % 3 == 2:
            change["priority"] = ["routine", "elevated"]
        changes.append(change)
    within = flips <= 3
    return {
        "variant": name,
        "reference": reference,
        "executor": name,
        "bounds": {"flips": 3, "probability": 0.05, "logits_rms": 0.02, "severity_mae": 0.05},
        "within": within,
        "failures": [] if within else [f"images flipped: {flips} > 3"],
        "splits": {"test": figures, "both": figures},
        "changes": changes,
        "auc_per_cent": per_cent,
        "at_99": per_cent >= 99 if per_cent is not None else None,
        "at_99_9": per_cent >= 99.9 if per_cent is not None else None,
    }
