"""How the network becomes INT8: which estimator, how much migration, which blocks stay in FP16; all chosen on val."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import Float32
from export import migrate, quantise, ranges, sensitivity, surgery
from export.count import multiply_adds
from export.exact import Measured, Yardstick
from export.parity import BOUNDS, Bounds

if TYPE_CHECKING:
    import onnx

PERCENTILES = (99.99, 99.999)
SMOOTH = 0.5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Int8Options:
    """calibration: a CheXpert folder, a manifest, a CSV or a folder of images; None leaves INT8 out.

    estimator: one of ESTIMATORS, or auto; smooth: alpha of the migration, 0 for none, None for auto; search_images,
    sensitivity_images: of val, for the choices (0 sensitivity images: the blocks are measured only if they must be).
    """

    calibration: Path | None = None
    images: int = 128
    seed: int = 0
    estimator: str = "auto"
    percentile: float = 99.99
    smooth: float | None = None
    search_images: int = 48
    sensitivity_images: int = 8
    bounds: Bounds = field(default_factory=lambda: BOUNDS["int8"])

    def __post_init__(self) -> None:
        if self.estimator not in ("auto", *ranges.ESTIMATORS):
            raise UsageError(f"--range {self.estimator}: choose auto, {', '.join(ranges.ESTIMATORS)}")
        if self.smooth is not None and not 0 <= self.smooth < 1:
            raise UsageError(f"--smooth {self.smooth}: give 0 for none, or a number under 1")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile {self.percentile}: give a number over 50 and up to 100")
        if self.search_images < 1 or self.sensitivity_images < 0:
            raise UsageError("--search-images must be at least 1, --sensitivity-images at least 0")


@dataclass(frozen=True)
class Candidate:
    estimator: str
    percentile: float
    smooth: float

    def __str__(self) -> str:
        range_ = f"percentile {self.percentile:g}" if self.estimator == "percentile" else self.estimator
        return f"{range_}, smoothing {self.smooth:g}" if self.smooth else range_


@dataclass(frozen=True)
class Recipe:
    """model: float32, migrated; nodes: those in INT8; record: for the manifest."""

    model: onnx.ModelProto
    nodes: frozenset[str]
    scales: Mapping[quantise.Form, Mapping[str, quantise.Scale]]  # form -> tensor -> scale
    record: dict[str, Any]


def candidates(options: Int8Options) -> Iterator[Candidate]:
    """Each estimator without migration, and with it."""
    pairs: list[tuple[str, float]] = []
    for name in ranges.ESTIMATORS if options.estimator == "auto" else (options.estimator,):
        if name == "percentile" and options.estimator == "auto":
            pairs += [(name, p) for p in PERCENTILES]
        else:
            pairs.append((name, options.percentile))
    for smooth in (0.0, SMOOTH) if options.smooth is None else (options.smooth,):
        for name, percentile in pairs:
            yield Candidate(name, percentile, smooth)


def choose(
    model: onnx.ModelProto,
    calibration: Sequence[Float32],
    val: Sequence[Float32],
    temperature: float,
    points: Mapping[str, float],
    options: Int8Options,
    say: Say,
) -> Recipe:
    """Recipe for the float32 graph `model`. UsageError if an image makes it overflow."""
    everything = {w.node for w in quantise.quantisable(model)}
    say(f"ranges of {len(everything)} weighted nodes over {len(calibration)} images")
    found = ranges.collect(model, quantise.tensors(model, "onnxruntime"), calibration)
    yardstick = Yardstick(model, _spread(val, options.search_images), temperature, points)
    tried: dict[Candidate, Measured] = {}
    versions: dict[float, tuple[onnx.ModelProto, dict[str, ranges.Range]]] = {0.0: (model, found)}
    wanted = list(candidates(options))
    for candidate in wanted:
        if candidate.smooth not in versions:
            versions[candidate.smooth] = _migrated(model, found, candidate.smooth, everything, calibration)
        base, own = versions[candidate.smooth]
        step = surgery.copy(base)
        scales = ranges.scales(own, candidate.estimator, percentile=candidate.percentile, form="tensorrt")
        quantise.quantise(step, everything, scales, "tensorrt")
        tried[candidate] = measured = yardstick.measure(step)
        say(f"{candidate}: {measured.flips} flips, RMS {measured.logits_rms:.2%}, {measured.probability:.4f}")
    best = min(tried, key=lambda c: (tried[c].flips, tried[c].logits_rms))
    base, own = versions[best.smooth]
    both = _scales(own, best)
    rungs, costs, kept = _ladder(base, both["tensorrt"], yardstick, val, temperature, points, options, say)
    nodes = everything - {n for name in kept for n in sensitivity.units(base)[name]}
    if best.smooth and kept:  # a matrix that stays in FP16 keeps its stored weight
        base, own = _migrated(model, found, best.smooth, nodes, calibration)
        both = _scales(own, best)
    work = multiply_adds(model)
    record = {
        "range": str(best),
        "tried": {
            str(c): {"flips": m.flips, "logits_rms": _short(m.logits_rms), "probability": _short(m.probability)}
            for c, m in tried.items()
        },
        "search_images": min(options.search_images, len(val)),
        "int8_operations": len(nodes),
        "operations": len(quantise.weighted_nodes(model)),
        "int8_multiply_adds": _short(sum(work[n] for n in nodes) / sum(work.values())),
        "multiply_adds": sum(work.values()),
        "fp16_nodes": sorted(w.node for w in quantise.weighted_nodes(model) if w.node not in nodes),
        "ladder": rungs,
        "costs": {name: _short(cost) for name, cost in costs.items()},
    }
    return Recipe(base, frozenset(nodes), both, record)


def _scales(found: Mapping[str, ranges.Range], c: Candidate) -> dict[quantise.Form, dict[str, quantise.Scale]]:
    forms: tuple[quantise.Form, ...] = ("tensorrt", "onnxruntime")
    return {form: ranges.scales(found, c.estimator, percentile=c.percentile, form=form) for form in forms}


def _ladder(
    base: onnx.ModelProto,
    scales: Mapping[str, quantise.Scale],
    yardstick: Yardstick,
    val: Sequence[Float32],
    temperature: float,
    points: Mapping[str, float],
    options: Int8Options,
    say: Say,
) -> tuple[list[dict[str, Any]], dict[str, float], tuple[str, ...]]:
    """Rungs, costs by unit, units that stay in FP16. Costs are measured if asked for, or if the first rung fails."""

    def within(m: Measured) -> bool:
        b = options.bounds
        return m.flips <= b.flips and m.logits_rms <= b.logits_rms and m.probability <= b.probability

    rungs = list(sensitivity.ladder(base, scales, yardstick, (), within))
    costs: dict[str, float] = {}
    if options.sensitivity_images or not rungs[-1].within:
        few = _spread(val, options.sensitivity_images or 8)
        say(f"cost of each of {len(sensitivity.units(base))} blocks in INT8, on {len(few)} images")
        costs = sensitivity.costs(base, scales, Yardstick(base, few, temperature, points))
        for name, cost in list(costs.items())[:10]:
            say(f"  {name}: RMS {cost:.2%}")
    if not rungs[-1].within:
        rungs = list(sensitivity.ladder(base, scales, yardstick, list(costs), within))
    for rung in rungs:
        say(str(rung))
    return [{**r.to_dict(), "logits_rms": _short(r.logits_rms)} for r in rungs], costs, rungs[-1].kept


def _migrated(
    model: onnx.ModelProto,
    found: Mapping[str, ranges.Range],
    alpha: float,
    nodes: frozenset[str] | set[str],
    calibration: Sequence[Float32],
) -> tuple[onnx.ModelProto, dict[str, ranges.Range]]:
    out = surgery.copy(model)
    changed = migrate.migrate(out, found, alpha, nodes)
    return out, {**found, **ranges.collect(out, changed, calibration)} if changed else dict(found)


def _spread(images: Sequence[Float32], n: int) -> list[Float32]:
    """n of them, evenly over the list."""
    if len(images) <= n:
        return list(images)
    return [images[i * len(images) // n] for i in range(n)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
