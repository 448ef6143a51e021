"""Everything in its place: weights, graphs, golden set, decisions, manifest. Written to a side folder, then moved."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import MANIFEST, SCHEMA, WEIGHTS, Guard, PriorityTable, Tolerance
from cxrvit_edge.errors import ParityError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.runtime.golden import compare
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.runtime.torch import TorchSession
from export import decisions, goldens, graph
from export.licence import WEIGHTS_LICENCE
from export.predict import predict
from export.weights import write_weights
from train.data.record import Record
from train.evaluate import report

GRAPH = "shared"
TOLERANCE = Tolerance(logits=1e-4, maps=1e-4)  # fp32, as the bundle's contract has it
INTENDED_USE = (
    "Research on triage of frontal chest radiographs of adults. Not a medical device, not for diagnosis; "
    "the severity map is not for localisation."
)
CAVEAT = (
    "Trained on public images whose source and label are confounded (nearly all normal films come from one collection, "
    "nearly all COVID-19 films from two others): its figures are no evidence of clinical performance."
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Decisions:
    temperature: float
    operating_points: Mapping[str, float]
    guard: Guard


def export(source: Path, records: Sequence[Record], out: Path, *, name: str, say: Say) -> Path:
    """Checkpoint `source` -> bundle folder `out`, decisions made on the val split of `records`, blessed on test.

    UsageError if there is nothing to decide on; ParityError if ONNX Runtime departs from the reference. `out` is
    replaced only by a whole bundle.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not empty and no bundle; name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir(mode=0o755)
        _fill(source, records, work, name, say)
        old = Path(temporary) / "old"  # goes with the side folder, once the new one stands
        if out.exists():
            out.replace(old)
        try:
            work.replace(out)
        except BaseException:
            if old.exists():
                old.replace(out)
            raise
    return out


def _fill(source: Path, records: Sequence[Record], work: Path, name: str, say: Say) -> None:
    import onnx

    tensors, config, extra = checkpoint.load(source)
    preprocessing = PreprocessConfig.from_dict(extra.get("preprocessing", {}))
    if preprocessing.size != config.image_size:
        raise UsageError(
            f"{source}: its preprocessing gives {preprocessing.size} pixels a side, its network takes "
            f"{config.image_size}; train again"
        )
    net = checkpoint.network(tensors, config, name=str(source))
    reference = write_weights(net, work / WEIGHTS, {"preprocessing": preprocessing.to_dict()})
    say("tracing the graph")
    model = graph.trace(reference)
    graph.refer_to_weights(model, work / WEIGHTS, cast_to=onnx.TensorProto.FLOAT)
    onnx.save(model, work / "fp32.onnx")
    onnx.checker.check_model(str(work / "fp32.onnx"))

    inputs = goldens.write_inputs(work / "golden_inputs.npz", preprocessing)
    torch_session = TorchSession(work / WEIGHTS)
    session = OnnxRuntimeSession(work / "fp32.onnx", precision="fp32")
    expected = torch_session.run(inputs)
    goldens.write_outputs(work / "golden_fp32.npz", {GRAPH: expected})
    found = compare(session.run(inputs), expected)
    if not (found.logits <= TOLERANCE.logits and found.maps <= TOLERANCE.maps):  # NaN fails too
        raise ParityError(f"fp32: ONNX Runtime departs from the reference: {found}; the bundle was not written")

    chosen, evaluation, parity = _decide(session, torch_session, records, preprocessing, say)
    (work / "LICENSE-WEIGHTS.md").write_text(WEIGHTS_LICENCE, encoding="utf-8")
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "licences": {"code": "Apache-2.0", "weights": "CC-BY-NC-SA-4.0"},
        "intended_use": INTENDED_USE,
        "caveat": _caveat(evaluation),
        "training": {**extra, "commit": _commit(), "checkpoint_sha256": _sha256(source)},
        "network": json.loads(reference.config.to_json()),
        "classes": list(CLASSES),
        "preprocessing": preprocessing.to_dict(),
        "temperature": chosen.temperature,
        "operating_points": dict(chosen.operating_points),
        "guard": asdict(chosen.guard),
        "priority": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(PriorityTable()).items()},
        "views": {"any": GRAPH},
        "weights": {GRAPH: WEIGHTS},
        "golden_inputs": "golden_inputs.npz",
        "variants": {
            "fp32": {
                "files": {GRAPH: "fp32.onnx"},
                "opset": graph.OPSET,
                "golden": "golden_fp32.npz",
                "tolerance": asdict(TOLERANCE),
                "calibration": None,
                "parity": {**parity, "golden": asdict(found), "executor": f"onnxruntime {session.version} CPU"},
            }
        },
        "evaluation": evaluation,
    }
    manifest["files"] = {p.name: _sha256(p) for p in sorted(work.iterdir())}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _decide(
    session: OnnxRuntimeSession,
    reference: TorchSession,
    records: Sequence[Record],
    preprocessing: PreprocessConfig,
    say: Say,
) -> tuple[Decisions, dict[str, Any], dict[str, Any]]:
    """Choose on val, evaluate val and test (read once), compare ONNX with torch on 32 images of val."""

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, n: say(f"{what}: {done} of {n}") if done % 20 == 0 or done == n else None

    val = [r for r in records if r.split == "val"]
    if not val:
        raise UsageError("no image in the val split: operating points are chosen there; name a --data with one")
    p, extent = predict(session, val, preprocessing, progress("val"))
    known = p.labels >= 0
    if not known.any():
        raise UsageError("no labelled image in the val split: operating points are chosen there; label some")
    temperature = decisions.fit_temperature(p.labels[known], p.logits[known])
    probabilities = decisions.softmax(p.logits[known], temperature)
    points = decisions.operating_points(p.labels[known], probabilities, CLASSES)
    chosen = Decisions(temperature, points, decisions.guard(extent.area, extent.confidence))
    evaluation = {"val": report(p, points, temperature)}
    test = [r for r in records if r.split == "test"]
    if test:
        q, reach = predict(session, test, preprocessing, progress("test"))
        evaluation["test"] = report(q, points, temperature)
        evaluation["test"]["refused_by_guard"] = int(decisions.refused(chosen.guard, *reach).sum())
    return chosen, evaluation, _against_torch(session, reference, val[:: max(1, len(val) // 32)][:32], preprocessing)


def _caveat(evaluation: Mapping[str, Any]) -> str:
    """What every report must say, and, where the figures ask for it, that the severity score is not to be relied on."""
    measured = evaluation.get("test", evaluation["val"])["severity"]["brixia>=1"]
    if not measured["images"]:
        return f"{CAVEAT} Its severity score was not measured."
    if measured["mse"] >= measured["mse_constant"]:
        return f"{CAVEAT} Its severity score did worse than a constant on scored films: rely on neither score nor rank."
    return CAVEAT


def _against_torch(
    session: OnnxRuntimeSession, reference: TorchSession, records: Sequence[Record], preprocessing: PreprocessConfig
) -> dict[str, Any]:
    from cxrvit_edge.preprocess import preprocess
    from cxrvit_edge.radiograph import read

    logits = maps = 0.0
    for record in records:
        tensor = preprocess(read(record.path), preprocessing)[0][None]
        a, b = session.run(tensor), reference.run(tensor)
        logits = float(np.maximum(logits, np.abs(a.logits - b.logits).max()))  # keeps NaN, as max() does not
        maps = float(np.maximum(maps, _largest_map_difference(a, b)))
    return {"images": len(records), "largest_logit_difference": logits, "largest_map_difference": maps}


def _largest_map_difference(a: Outputs, b: Outputs) -> float:
    pairs = ((a.severity_map, b.severity_map), (a.lung_mask, b.lung_mask))
    return float(np.max([np.abs(x - y).max() for x, y in pairs]))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
