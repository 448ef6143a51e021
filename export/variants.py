"""The variants of a bundle beside fp32, each held against it before it is written: fp16, int8 and int8-cpu."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrvit_edge.bundle import WEIGHTS, Bundle, Tolerance
from cxrvit_edge.errors import ParityError, UsageError
from cxrvit_edge.preprocess import Float32, PreprocessConfig
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Outputs, Session, joined
from cxrvit_edge.runtime.torch import TorchSession
from export import calibration, goldens, graph, parity, quantise, surgery
from export.fp16 import to_half
from export.half import HalfSession, overflow_margin
from export.predict import films
from export.recipe import Int8Options, Recipe, choose
from train.data.record import Record

if TYPE_CHECKING:
    import onnx

    from cxrvit_edge.model.triage_net import TriageNet

PRECISIONS = ("fp16", "int8", "int8-cpu")  # beside fp32, which every bundle has
INT8_WEIGHTS = "int8.safetensors"
FP16_TOLERANCE = Tolerance(logits=2e-2, maps=2e-3, embedding=2e-2)
INT8_TOLERANCE = Tolerance(logits=5e-2, maps=1e-2, embedding=5e-2)  # at least, or thrice the spread of two executors
ON_HALF = "torch, every result rounded to half; built, not run: no GPU"
ON_EXACT = "ONNX Runtime CPU, Q/DQ in exact arithmetic, FP16 not rounded in between"
ON_CPU = "ONNX Runtime CPU"
AGAINST = "torch CPU, float32 arithmetic on the stored weights"
FORMS: Mapping[quantise.Form, str] = {"tensorrt": "int8", "onnxruntime": "int8-cpu"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """precisions: variants to make beside fp32; attention: decomposed (opset 20) or op (opset 23, one ONNX Attention).

    bounds: by variant, those of the contract by default; allow_failing: variants that are written all the same.
    """

    precisions: Sequence[str] = PRECISIONS
    attention: str = "decomposed"
    int8: Int8Options = field(default_factory=Int8Options)
    bounds: Mapping[str, parity.Bounds] = field(default_factory=lambda: dict(parity.BOUNDS))
    allow_failing: Sequence[str] = ()
    debug: Path | None = None

    def __post_init__(self) -> None:
        if self.attention not in ("decomposed", "op"):
            raise UsageError(f"--attention {self.attention}: choose decomposed or op")
        for option, names in (("--precision", self.precisions), ("--allow-failing", self.allow_failing)):
            if unknown := set(names) - {*PRECISIONS, "fp32"}:
                raise UsageError(f"{option} {', '.join(sorted(unknown))}: choose from fp32, {', '.join(PRECISIONS)}")

    @property
    def opset(self) -> int:
        return graph.ATTENTION_OPSET if self.attention == "op" else graph.OPSET

    @property
    def wanted(self) -> list[str]:
        """INT8 needs calibration images."""
        return [p for p in PRECISIONS if p in self.precisions and (p == "fp16" or self.int8.calibration is not None)]


def make(
    work: Path, net: TriageNet, name: str, records: Sequence[Record], options: Options, say: Say
) -> dict[str, dict[str, Any]]:
    """Measure fp32 and write the files of each wanted variant into the fp32 bundle `work`; their manifest entries.

    net: the reference of the stored weights; name: of the graph. ParityError if one is outside its bounds.
    """
    bundle = Bundle.open(work)
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    measured = [r for r in records if r.split in ("val", "test")]
    chosen = _calibration(options, measured)  # cheap failures first
    say(f"the reference over {len(measured)} images: torch, float32")
    reference = parity.observe(TorchSession(work / WEIGHTS), measured, bundle, _progress(say, "reference"))
    maker = _Maker(work, bundle, name, measured, reference, options, say)
    session = OnnxRuntimeSession(work / "fp32.onnx", precision="fp32")
    entries: dict[str, dict[str, Any]] = {"fp32": {"parity": maker.hold("fp32", session, ON_CPU)}}
    if not options.wanted:
        return entries
    model = graph.trace(net, opset=options.opset)
    if "fp16" in options.wanted:
        entries["fp16"] = maker.fp16(model)
    if chosen is not None:
        say(f"calibration: {len(chosen.images)} images of {chosen.kind} {chosen.folder}")
        tensors = list(calibration.tensors(chosen, config))
        val = [f.tensor[None] for f in films([r for r in measured if r.split == "val"], config)]
        m = bundle.manifest
        recipe = choose(model, tensors, val, m.temperature, m.operating_points, options.int8, say)
        for form, variant in FORMS.items():
            if variant in options.wanted:
                entries[variant] = {**maker.int8(recipe, form, variant), "calibration": chosen.record()}
    return entries


def _calibration(options: Options, records: Sequence[Record]) -> calibration.Calibration | None:
    """The images, if INT8 is wanted."""
    if not {"int8", "int8-cpu"} & set(options.wanted):
        return None
    if not any(r.split == "val" for r in records):
        raise UsageError("no image in the val split: the INT8 recipe is chosen there; name a --data with one")
    assert options.int8.calibration is not None
    return calibration.choose(options.int8.calibration, images=options.int8.images, seed=options.int8.seed)


@dataclass
class _Maker:
    work: Path
    bundle: Bundle
    graph: str
    records: Sequence[Record]
    reference: Sequence[parity.Observation]
    options: Options
    say: Say

    def fp16(self, model: onnx.ModelProto) -> dict[str, Any]:
        half = surgery.copy(model)
        to_half(half)
        file = self._write("fp16", half, WEIGHTS)
        exact = OnnxRuntimeSession(file, precision="fp16", exact=True)
        rounded = HalfSession(self.work / WEIGHTS)
        expected = self._golden("fp16", exact, rounded, FP16_TOLERANCE)
        record = self.hold("fp16", rounded, ON_HALF)
        margin, module = overflow_margin(rounded)
        self.say(f"fp16: the largest value, in {module}, fits {margin:.0f} times into half")
        record["overflow_margin"] = {"times": float(f"{margin:.4g}"), "module": module}
        return self._entry("fp16", expected, record)

    def int8(self, recipe: Recipe, form: quantise.Form, variant: str) -> dict[str, Any]:
        model = surgery.copy(recipe.model)
        quantise.quantise(model, recipe.nodes, recipe.scales[form], form)
        self._write_weights(model)
        on_gpu = form == "tensorrt"
        if on_gpu:
            plain = self._write("int8-float32", model, WEIGHTS, INT8_WEIGHTS)  # the second executor, for the spread
            other: Session = OnnxRuntimeSession(plain, precision="fp32", exact=True)
            plain.unlink()
            to_half(model)
        file = self._write(variant, model, WEIGHTS, INT8_WEIGHTS)
        exact = OnnxRuntimeSession(file, precision="int8", exact=True)
        if not on_gpu:
            other = OnnxRuntimeSession(file, precision="int8")
        tolerance = self._golden(variant, exact, other, INT8_TOLERANCE, spread=True)
        record = self.hold(variant, exact if on_gpu else other, ON_EXACT if on_gpu else ON_CPU)
        return {**self._entry(variant, tolerance, record), "quantisation": recipe.record}

    def _write(self, variant: str, model: onnx.ModelProto, *weights: str) -> Path:
        path = self.work / f"{variant}.onnx"
        graph.save(model, path, *weights)
        return path

    def _write_weights(self, model: onnx.ModelProto) -> None:
        """INT8 weights once: the second form finds the file of the first, and refers to it only if it is equal."""
        from safetensors.numpy import save_file

        path = self.work / INT8_WEIGHTS
        if not path.exists():
            stored = {k: v for k, v in surgery.weights(model).items() if v.dtype == np.int8 and k.endswith(".int8")}
            save_file(stored, path)
            path.chmod(0o644)

    def _golden(
        self, variant: str, exact: Session, other: Session, least: Tolerance, *, spread: bool = False
    ) -> Tolerance:
        """Store the outputs of the graph's exact arithmetic; the tolerance that sessions get.

        Two executors must agree, and the graph must be the network: ParityError if not.
        """
        inputs = golden.load_inputs(self.bundle)
        outputs, second = (_one_by_one(s, inputs) for s in (exact, other))
        goldens.write_outputs(self.work / f"golden_{variant}.npz", {self.graph: outputs})
        apart = golden.compare(second, outputs)
        tolerance = least
        if spread:
            pairs = zip(astuple(least), astuple(apart), strict=True)
            tolerance = Tolerance(*(max(a, 3 * b) for a, b in pairs))
        reference = golden.load_outputs(self.bundle, "fp32", self.graph)
        from_reference = golden.compare(outputs, reference)
        for what, found in (("another executor", apart), ("the fp32 graph", from_reference)):
            allowed = tolerance if what == "another executor" else _far(tolerance)
            if not found.within(allowed):
                self._debug(variant)
                raise ParityError(
                    f"{variant}: on the golden set its graph departs from {what}: {found.against(allowed)}; nothing "
                    "was written: run again with --debug DIR to see where"
                )
        return tolerance

    def hold(self, variant: str, session: Session, executor: str) -> dict[str, Any]:
        self.say(f"{variant} over {len(self.records)} images: {executor}")
        seen = parity.observe(session, self.records, self.bundle, _progress(self.say, variant))
        bounds = self.options.bounds[variant]
        record = parity.compare(
            self.reference,
            seen,
            self.bundle,
            bounds,
            f"{executor} ({session.backend} {session.version})",
            against=AGAINST,
        )
        if not record["within"]:
            self._debug(variant)
        for line in record["failures"]:
            self.say(f"{variant}: {line}")
        parity.require(record, variant, variant in self.options.allow_failing)
        return record

    def _debug(self, variant: str) -> None:
        """Name the first layer that departs, if it was asked for."""
        if self.options.debug is None:
            return
        from export.debug import first_departure

        tensor = golden.load_inputs(self.bundle)[:1]
        self.options.debug.mkdir(parents=True, exist_ok=True)
        found = first_departure(
            self.work / "fp32.onnx",
            self.work / f"{variant}.onnx",
            tensor,
            tolerance=0.1 if variant.startswith("int8") else 0.02,
            folder=self.options.debug,
        )
        if found is None:
            self.say(f"{variant}: no layer departs by itself; see {self.options.debug}")
        else:
            self.say(
                f"{variant}: the first layer that departs is {found.layer} ({found.op}), by {found.difference:.1%}"
            )

    def _entry(self, variant: str, tolerance: Tolerance, record: dict[str, Any]) -> dict[str, Any]:
        return {
            "files": {self.graph: f"{variant}.onnx"},
            "opset": self.options.opset,
            "golden": f"golden_{variant}.npz",
            "tolerance": asdict(tolerance),
            "calibration": None,
            "parity": record,
        }


def _one_by_one(session: Session, inputs: Float32) -> Outputs:
    """Memory of one image, whatever the executor."""
    return joined([session.run(image[None]) for image in inputs])


def _far(t: Tolerance) -> Tolerance:
    """How far the golden set may be from fp32: a wrong graph is far beyond it, what is allowed is for parity to say."""
    return Tolerance(*(5 * value for value in astuple(t)))


def _progress(say: Say, what: str) -> Callable[[int, int], None]:
    return lambda done, n: say(f"{what}: {done} of {n}") if done % 50 == 0 or done == n else None
