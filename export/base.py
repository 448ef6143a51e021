"""The fp32 part of a bundle, from a checkpoint (decisions made on val) or from a bundle (decisions kept)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import MANIFEST, SCHEMA, WEIGHTS, Bundle, Guard, PriorityTable, Selective, Tolerance
from cxrvit_edge.errors import ParityError, UsageError
from cxrvit_edge.metrics import softmax
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.torch import TorchSession
from export import decisions, goldens, graph
from export.licence import WEIGHTS_LICENCE
from export.predict import predict
from export.weights import write_weights
from train.data.record import Record
from train.evaluate import Predictions, report

GRAPH = "shared"
GRAPH_FILE, LICENCE_FILE = "fp32.onnx", "LICENSE-WEIGHTS.md"
GUARD_FILE, OOD_FILE = "guard.npz", "ood.npz"
TOLERANCE = Tolerance(logits=1e-4, maps=1e-4, embedding=1e-4)  # fp32, as the bundle's contract has it
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
    sensitive_points: Mapping[str, float]
    selective: Selective
    guard: Guard


@dataclass(frozen=True)
class Base:
    """raw: the manifest so far; net: the reference, float32 arithmetic on the stored weights."""

    raw: dict[str, Any]
    net: TriageNet


def from_checkpoint(source: Path, records: Sequence[Record], work: Path, name: str, say: Say) -> Base:
    """Weights, graph, golden set and manifest of a new bundle in `work`.

    UsageError if val has nothing to decide on; ParityError if ONNX Runtime departs from the reference.
    """
    tensors, config, extra = checkpoint.load(source)
    preprocessing = PreprocessConfig.from_dict(extra.get("preprocessing", {}))
    if preprocessing.size != config.image_size:
        raise UsageError(
            f"{source}: trained on {preprocessing.size} pixels a side at the end, its network takes "
            f"{config.image_size}; end --schedule at {config.image_size}, or --image-size {preprocessing.size}"
        )
    net = checkpoint.network(tensors, config, name=str(source))
    reference = write_weights(net, work / WEIGHTS, {"preprocessing": preprocessing.to_dict()})
    _write_graph(reference, work, say)
    inputs = goldens.write_inputs(work / "golden_inputs.npz", preprocessing)
    expected = TorchSession(work / WEIGHTS).run(inputs)
    goldens.write_outputs(work / "golden_fp32.npz", {GRAPH: expected})
    session = OnnxRuntimeSession(work / GRAPH_FILE, precision="fp32")
    found = golden.compare(session.run(inputs), expected)
    _require_equal(found, source)
    chosen, evaluation = _decide(session, records, preprocessing, say)
    (work / LICENCE_FILE).write_text(WEIGHTS_LICENCE, encoding="utf-8")
    raw: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "licences": {"code": "Apache-2.0", "weights": "CC-BY-NC-SA-4.0"},
        "intended_use": INTENDED_USE,
        "caveat": _caveat(evaluation),
        "training": {**extra, "commit": _commit(), "checkpoint_sha256": sha256(source)},
        "network": json.loads(reference.config.to_json()),
        "classes": list(CLASSES),
        "preprocessing": preprocessing.to_dict(),
        "temperature": chosen.temperature,
        "operating_points": dict(chosen.operating_points),
        "sensitive_points": dict(chosen.sensitive_points),
        "selective": asdict(chosen.selective),
        "guard": asdict(chosen.guard),
        "priority": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(PriorityTable()).items()},
        "views": {"any": GRAPH},
        "weights": {GRAPH: WEIGHTS},
        "golden_inputs": "golden_inputs.npz",
        "variants": {"fp32": _entry()},
        "evaluation": evaluation,
    }
    return Base(raw, reference)


def from_bundle(source: Path, work: Path, name: str | None, say: Say) -> Base:
    """The same of a verified bundle: weights, golden set and guard byte for byte, decisions and evaluation as they are.

    The graph is traced again; golden outputs without an embedding get it from the reference. UsageError if it has more
    than one graph; ParityError if the new graph departs.
    """
    old = Bundle.open(source)
    raw = dict(old.manifest.raw)
    if set(raw["views"].values()) != {GRAPH}:
        raise UsageError(f"{source}: has graphs {sorted(set(raw['views'].values()))}; export each from its checkpoint")
    weights, films, outputs = raw["weights"][GRAPH], raw["golden_inputs"], old.variant("fp32").golden
    for file, new in ((weights, WEIGHTS), (films, "golden_inputs.npz"), (outputs, "golden_fp32.npz")):
        shutil.copyfile(old.file(file), work / new)
    if head := old.manifest.guard.head:  # fitted to these weights
        shutil.copyfile(old.file(head), work / GUARD_FILE)
        raw["guard"] = {**raw["guard"], "head": GUARD_FILE}
    if ood := old.manifest.guard.ood:
        shutil.copyfile(old.file(ood["file"]), work / OOD_FILE)
        raw["guard"] = {**raw["guard"], "ood": {**ood, "file": OOD_FILE}}
    (work / LICENCE_FILE).write_text(WEIGHTS_LICENCE, encoding="utf-8")
    tensors, config, _ = checkpoint.load(work / WEIGHTS)
    net = checkpoint.network(tensors, config, name=str(source))
    _write_graph(net, work, say)
    session = OnnxRuntimeSession(work / GRAPH_FILE, precision="fp32")
    inputs, expected = golden.load_inputs(old), golden.load_outputs(old, "fp32", GRAPH)
    if expected.embedding is None:  # the bundle is older than this output
        expected = expected._replace(embedding=TorchSession(work / WEIGHTS).run(inputs).embedding)
        goldens.write_outputs(work / "golden_fp32.npz", {GRAPH: expected})
    _require_equal(golden.compare(session.run(inputs), expected), source)
    raw |= {
        "name": name or raw["name"],
        "weights": {GRAPH: WEIGHTS},
        "golden_inputs": "golden_inputs.npz",
        "variants": {"fp32": _entry()},
    }
    return Base(raw, net)


def is_bundle(source: Path) -> bool:
    return (source / MANIFEST).is_file() or source.suffix.lower() == ".zip"


def write_manifest(work: Path, raw: dict[str, Any]) -> None:
    raw["files"] = {p.name: sha256(p) for p in sorted(work.iterdir()) if p.name != MANIFEST}
    (work / MANIFEST).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _entry() -> dict[str, Any]:
    return {
        "files": {GRAPH: GRAPH_FILE},
        "opset": graph.OPSET,
        "golden": "golden_fp32.npz",
        "tolerance": asdict(TOLERANCE),
        "calibration": None,
        "parity": None,
    }


def _write_graph(net: TriageNet, work: Path, say: Say) -> None:
    say("tracing the graph")
    graph.save(graph.trace(net, opset=graph.OPSET), work / GRAPH_FILE, WEIGHTS)


def _require_equal(found: golden.Difference, source: Path) -> None:
    if not found.within(TOLERANCE):
        raise ParityError(
            f"{source}: ONNX Runtime's fp32 departs from the reference on the golden set: {found}; the bundle was not "
            "written, run again with another version of onnxruntime"
        )


def _decide(
    session: OnnxRuntimeSession,
    records: Sequence[Record],
    preprocessing: PreprocessConfig,
    say: Say,
) -> tuple[Decisions, dict[str, Any]]:
    """Choose on val, evaluate val and test (read once)."""

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
    probabilities = softmax(p.logits[known], temperature)
    labels = p.labels[known]
    chosen = Decisions(
        temperature,
        decisions.operating_points(labels, probabilities, CLASSES),
        decisions.operating_points(labels, probabilities, CLASSES, decisions.SENSITIVE),
        decisions.selective(labels, probabilities),
        decisions.guard(extent.area, extent.confidence),
    )

    def evaluated(q: Predictions) -> dict[str, Any]:
        return report(
            q,
            chosen.operating_points,
            temperature,
            sensitive_points=chosen.sensitive_points,
            selective=chosen.selective,
        )

    evaluation = {"val": evaluated(p)}
    test = [r for r in records if r.split == "test"]
    if test:
        q, reach = predict(session, test, preprocessing, progress("test"))
        evaluation["test"] = evaluated(q)
        evaluation["test"]["refused_by_guard"] = int(decisions.refused(chosen.guard, *reach).sum())
    return chosen, evaluation


def _caveat(evaluation: Mapping[str, Any]) -> str:
    """What every report must say, and, where the figures ask for it, that the severity score is not to be relied on."""
    measured = evaluation.get("test", evaluation["val"])["severity"]["brixia>=1"]
    if not measured["images"]:
        return f"{CAVEAT} Its severity score was not measured."
    if measured["mse"] >= measured["mse_constant"]:
        return f"{CAVEAT} Its severity score did worse than a constant on scored films: rely on neither score nor rank."
    return CAVEAT


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
