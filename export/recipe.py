"""How the network becomes INT8: which estimator, how much migration, which blocks stay in FP16; all chosen on val."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import Float32
from export import migrate, quantise, ranges, sensitivity, surgery
from export.calibration import MIN_IMAGES
from export.count import multiply_adds
from export.exact import Measured, Yardstick
from export.parity import BOUNDS, Bounds

if TYPE_CHECKING:
    import onnx

PERCENTILES = (99.99, 99.999, 99.9999)
FINALISTS = 3
SMOOTH = 0.5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Int8Options:
    """calibration: a CheXpert folder, a manifest, a CSV or a folder of images; None leaves INT8 out.

    estimator: one of ESTIMATORS, or auto; smooth: alpha of the migration, 0 for none, None for auto; search_images:
    of val, that all candidates are compared on; sensitivity_images: for the costs of blocks, 0: only where needed.
    """

    calibration: Path | None = None
    images: int = 128
    seed: int = 0
    estimator: str = "auto"
    percentile: float = 99.999
    smooth: float | None = None
    search_images: int = 32
    sensitivity_images: int = 8
    bounds: Bounds = field(default_factory=lambda: BOUNDS["int8"])

    def __post_init__(self) -> None:
        if self.estimator not in ("auto", *ranges.ESTIMATORS):
            raise UsageError(f"--range {self.estimator}: choose auto, {', '.join(ranges.ESTIMATORS)}")
        if self.smooth is not None and not 0 <= self.smooth < 1:
            raise UsageError(f"--smooth {self.smooth}: give 0 for none, or a number under 1")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile {self.percentile}: give a number over 50 and up to 100")
        if self.images < MIN_IMAGES:
            raise UsageError(f"--images {self.images}: ranges need at least {MIN_IMAGES}; 128 is usual")
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
    """Recipe for the float32 graph `model`. UsageError if an image makes it overflow.

    Candidates are compared on some of val, the best three on all of it; the form for processors takes the migration of
    the other, since both share the INT8 weights, and its own range.
    """
    search = _Search(model, calibration, val, temperature, points, options, say)
    best: dict[quantise.Form, Candidate] = {"tensorrt": search.pick("tensorrt", list(candidates(options)))}
    smooth = best["tensorrt"].smooth
    own = dict.fromkeys(replace(c, smooth=smooth) for c in candidates(options))
    best["onnxruntime"] = search.pick("onnxruntime", list(own))
    kept = search.ladders(best)
    nodes = frozenset(search.everything - {n for name in kept for n in search.parts[name]})
    base, ranges_ = search.version(smooth, nodes)
    work = multiply_adds(model)
    record = {
        "range": {form: str(c) for form, c in best.items()},
        "tried": search.tried,
        "search_images": min(options.search_images, len(val)),
        "finalist_images": len(val),
        "int8_operations": len(nodes),
        "operations": len(quantise.weighted_nodes(model)),
        "int8_multiply_adds": _short(sum(work[n] for n in nodes) / sum(work.values())),
        "multiply_adds": sum(work.values()),
        "fp16_nodes": [w.node for w in quantise.weighted_nodes(model) if w.node not in nodes],
        "ladder": search.rungs,
        "costs": {name: _short(cost) for name, cost in search.costs.items()},
    }
    return Recipe(base, nodes, {form: _scales(ranges_, c, form) for form, c in best.items()}, record)


class _Search:
    """What is measured along the way. tried, rungs, costs: for the record."""

    def __init__(
        self,
        model: onnx.ModelProto,
        calibration: Sequence[Float32],
        val: Sequence[Float32],
        temperature: float,
        points: Mapping[str, float],
        options: Int8Options,
        say: Say,
    ) -> None:
        self._model, self._calibration, self._options, self._say = model, calibration, options, say
        self.parts = sensitivity.units(model)
        self.everything = frozenset(n for nodes in self.parts.values() for n in nodes)
        say(f"ranges of {len(self.everything)} weighted nodes over {len(calibration)} images")
        self._found = ranges.collect(model, quantise.tensors(model, "onnxruntime"), calibration)
        self._versions: dict[tuple[float, frozenset[str]], tuple[onnx.ModelProto, dict[str, ranges.Range]]] = {}
        self._whole = Yardstick(model, val, temperature, points)
        self._some = Yardstick(model, _spread(val, options.search_images), temperature, points)
        self._few = Yardstick(model, _spread(val, options.sensitivity_images or 8), temperature, points)
        self.tried: dict[str, dict[str, Any]] = {}
        self.rungs: list[dict[str, Any]] = []
        self.costs: dict[str, float] = {}

    def version(self, smooth: float, nodes: frozenset[str]) -> tuple[onnx.ModelProto, dict[str, ranges.Range]]:
        """The graph after migration into `nodes`, and its ranges."""
        if (smooth, nodes) not in self._versions:
            out = surgery.copy(self._model)
            changed = migrate.migrate(out, self._found, smooth, nodes) if smooth else []
            own = {**self._found, **ranges.collect(out, changed, self._calibration)} if changed else self._found
            self._versions[smooth, nodes] = out, own
        return self._versions[smooth, nodes]

    def pick(self, form: quantise.Form, wanted: Sequence[Candidate]) -> Candidate:
        """The candidate with the least RMS, of those that flip no more than is allowed.

        RMS and not flips: those are few, and which films lie at a threshold is chance.
        """
        most = self._options.bounds.flips

        def badness(m: Measured) -> tuple[int, float]:
            return max(0, m.flips - most), m.logits_rms

        first = {c: self._measure(form, c, self._some, "some") for c in wanted}
        finalists = sorted(wanted, key=lambda c: badness(first[c]))[:FINALISTS]
        if len(wanted) == 1:
            return wanted[0]
        last = {c: self._measure(form, c, self._whole, "all of val") for c in finalists}
        return min(finalists, key=lambda c: badness(last[c]))

    def ladders(self, best: Mapping[quantise.Form, Candidate]) -> tuple[str, ...]:
        """Units that stay in FP16 so that both forms are within the bounds on val."""
        kept: tuple[str, ...] = ()
        if self._options.sensitivity_images:
            self._measure_costs(best["tensorrt"])
        for form, candidate in best.items():
            rungs = list(self._climb(form, candidate, ()))
            if not rungs[-1].within:
                if not self.costs:
                    self._measure_costs(best["tensorrt"])
                rungs = list(self._climb(form, candidate, list(self.costs)))
            for rung in rungs:
                self._say(f"{form}: {rung}")
                self.rungs.append({"form": form, **rung.to_dict(), "logits_rms": _short(rung.logits_rms)})
            kept = max(kept, rungs[-1].kept, key=len)  # both follow one order, so one holds the other
        return kept

    def _climb(self, form: quantise.Form, c: Candidate, order: Sequence[str]) -> Iterator[sensitivity.Rung]:
        base, own = self.version(c.smooth, self.everything)
        return sensitivity.ladder(base, _scales(own, c, form), self._whole, order, self._holds, form)

    def _measure_costs(self, c: Candidate) -> None:
        base, own = self.version(c.smooth, self.everything)
        self._say(f"cost of each of {len(self.parts)} blocks in INT8")
        scales, bounds = _scales(own, c, "tensorrt"), self._options.bounds
        self.costs = sensitivity.costs(base, scales, self._few, lambda m: m.share(bounds))
        for name, cost in list(self.costs.items())[:10]:
            self._say(f"  {name}: {cost:.1%} of its nearest bound")

    def _holds(self, m: Measured) -> bool:
        return m.within(self._options.bounds)

    def _measure(self, form: quantise.Form, c: Candidate, yardstick: Yardstick, on: str) -> Measured:
        base, own = self.version(c.smooth, self.everything)
        step = surgery.copy(base)
        quantise.quantise(step, self.everything, _scales(own, c, form), form)
        m = yardstick.measure(step, exact=form == "tensorrt")
        self._say(f"{form}, {c}, {on}: {m.flips} flips, RMS {m.logits_rms:.2%}, probability {m.probability:.4f}")
        figures = {"flips": m.flips, "logits_rms": _short(m.logits_rms), "probability": _short(m.probability)}
        self.tried.setdefault(f"{form}, {c}", {})[on] = figures
        return m


def _scales(found: Mapping[str, ranges.Range], c: Candidate, form: quantise.Form) -> dict[str, quantise.Scale]:
    return ranges.scales(found, c.estimator, percentile=c.percentile, form=form)


def _spread(images: Sequence[Float32], n: int) -> list[Float32]:
    """n of them, evenly over the list."""
    if len(images) <= n:
        return list(images)
    return [images[i * len(images) // n] for i in range(n)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
