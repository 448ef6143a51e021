"""Latency and accuracy of a bundle on this box: one report, made by one command."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cxrvit_edge.benchmark.options import OUTPUTS, Options
from cxrvit_edge.benchmark.words import told
from cxrvit_edge.errors import UsageError

if TYPE_CHECKING:
    from cxrvit_edge.benchmark.candidates import Contender
    from cxrvit_edge.benchmark.observe import Observed
    from cxrvit_edge.bundle import Bundle
    from cxrvit_edge.labels import Labelled
    from cxrvit_edge.parity import Observation

__all__ = ["Options", "run", "told", "write"]

SCHEMA = 1
CAVEAT = (
    "Measured on this box and on these images alone. A high AUC is no evidence of clinical performance: a network can "
    "tell sources of images apart instead of diseases."
)
SHARES = {"opening": 0.03, "films": 0.3, "in the network": 0.32, "end to end": 0.3, "figures": 0.05}  # of the time

Say = Callable[[str], None]
Report = dict[str, Any]
Observations = dict[str, list["Observation"]]


@dataclass
class _Phases:
    """Tells where it is. update: fraction of the phase -> progress of the whole."""

    say: Say
    progress: Callable[[str, float], None]
    name: str = ""
    before: float = 0.0
    start: float = field(default_factory=perf_counter)

    def begin(self, name: str) -> None:
        self.end()
        self.name, self.start = name, perf_counter()
        self.update(0.0)

    def update(self, fraction: float) -> None:
        self.progress(self.name, min(1.0, self.before + SHARES[self.name] * fraction))

    def end(self, text: str = "") -> None:
        if self.name and text:
            self.say(f"{self.name}: {text} ({perf_counter() - self.start:.1f} s)")
        if self.name and not text:
            self.before += SHARES[self.name]


def run(
    options: Options, say: Say = lambda _: None, progress: Callable[[str, float], None] = lambda _, __: None
) -> tuple[Report, Observations]:
    """The report (report.json) and what each candidate said of each labelled image.

    say: a line a phase; progress: phase, 0 to 1 of the whole. What a box or the data do not give is null in the report
    and named in its notes, problems and passed_over. UsageError, BundleError; EngineError, ParityError if nothing runs.
    """
    from cxrvit_edge import labels
    from cxrvit_edge.benchmark import candidates, judged, outputs
    from cxrvit_edge.benchmark.environment import environment, load
    from cxrvit_edge.benchmark.sensors import Sensors
    from cxrvit_edge.bundle import Bundle
    from cxrvit_edge.guard_head import head_of

    start, created = load(), datetime.now(timezone.utc)
    _require_writable(Path(options.out))
    phases = _Phases(say, progress)
    phases.begin("opening")
    bundle = Bundle.open(None if options.bundle is None else os.fspath(options.bundle))
    head_of(bundle)
    stored = None if options.reference is None else outputs.read_outputs(options.reference, bundle.manifest.classes)
    notes = [note for note in [stored and outputs.require_same(stored, bundle)] if note]
    data = None
    if options.data is not None:
        data = labels.read(os.fspath(options.data), options.split, options.images, options.seed)
        if not data.studies:
            why = "; ".join(line for problem in data.problems for line in problem.first[:2]) or "no row is of it"
            raise UsageError(f"--data {os.fspath(options.data)}: no image to measure, split {options.split} ({why})")
    contenders, passed = candidates.gather(bundle, options)
    phases.end(f"{', '.join(c.name for c in contenders)} past the golden check")
    for missing in passed:
        say(f"passed over: {missing.name}: {missing.why}")
    with Sensors(gpu=any(c.on_gpu for c in contenders)) as sensors:
        seen, latency, end_to_end, failed = _measured(options, bundle, contenders, data, sensors, phases)
    phases.begin("figures")
    accuracy, parity, more = judged.figures(options, bundle, contenders, data, seen, stored)
    around = environment(sensors, start)
    around["notes"] += [*notes, *more]
    report = {
        "schema": SCHEMA,
        "tool": {"name": "cxrvit-edge", "version": _version()},
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **_about(bundle, options),
        "environment": around,
        "candidates": [c.to_dict() for c in contenders],
        "passed_over": [{"name": name, "why": why} for name, why, *_ in [*passed, *failed]],
        "latency": latency,
        "end_to_end": end_to_end,
        "accuracy": accuracy,
        "parity": parity,
    }
    phases.end(f"{len(accuracy['by_candidate'])} candidates over the labels" if accuracy else "no labelled data given")
    plain: Report = _plain(report)
    return plain, {} if seen is None else seen.by_candidate


def _measured(
    options: Options,
    bundle: Bundle,
    contenders: Sequence[Contender],
    data: Labelled | None,
    sensors: Any,
    phases: _Phases,
) -> tuple[Observed | None, Report, Report, list[tuple[str, str]]]:
    from cxrvit_edge.benchmark import endtoend, scenarios
    from cxrvit_edge.benchmark.observe import observe
    from cxrvit_edge.runtime import golden

    seen, failed = None, dict[str, str]()
    if data is not None:
        phases.begin("films")
        seen = observe({c.name: c.sessions for c in contenders}, data.studies, bundle, phases.update)
        failed |= seen.failed
        phases.end(f"{len(seen.studies)} of {len(data.studies)} judged by each candidate")
    left = [c for c in contenders if c.name not in failed]
    films = seen.inputs if seen else []
    if not films:
        graphs = sorted(set(bundle.manifest.views.values()))
        films = [scenarios.Film(graph, film) for film in golden.load_inputs(bundle) for graph in graphs]
    phases.begin("in the network")
    latency, more = scenarios.measure(left, films, sensors, seconds=options.seconds, progress=phases.update)
    failed |= more
    phases.end(", ".join(f"{n} {f['single_stream']['p50_ms']:.1f} ms" for n, f in latency.items()) or "nothing ran")
    left = [c for c in left if c.name not in failed]
    phases.begin("end to end")
    with ExitStack() as stack:
        if seen and seen.studies:
            files = endtoend.chosen([s.path for s in seen.studies], "films of --data")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cxrvit-edge-benchmark-"))
            files = endtoend.write_phantoms(Path(folder))
        end_to_end, more = endtoend.measure(left, bundle, files, progress=phases.update)
    failed |= more
    told = ", ".join(f"{name} {f['images_a_second']:.1f} images a second" for name, f in end_to_end.items())
    phases.end(told or "nothing ran")
    return seen, latency, end_to_end, list(failed.items())


def _about(bundle: Bundle, options: Options) -> Report:
    from cxrvit_edge.benchmark.outputs import weights_sha256
    from cxrvit_edge.report.run import RESEARCH_USE

    m = bundle.manifest
    return {
        "research_use": RESEARCH_USE,
        "caveat": CAVEAT,
        "bundle": {
            "name": m.name,
            "sha256": bundle.sha256,
            "weights_sha256": weights_sha256(bundle),
            "classes": list(m.classes),
            "operating_points": dict(m.operating_points),
            "temperature": m.temperature,
            "variants": list(m.variants),
        },
        "settings": {
            "seconds": options.seconds,
            "data": None if options.data is None else os.fspath(options.data),
            "split": options.split,
            "images": options.images,
            "reference": None if options.reference is None else os.fspath(options.reference),
            "draws": options.draws,
            "seed": options.seed,
        },
    }


def write(report: Report, observations: Observations, out: str | os.PathLike[str]) -> list[Path]:
    """report.json, report.html and the CSV files under `out`. UsageError if they cannot be written."""
    from cxrvit_edge.benchmark import outputs, page, tables

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "report.json", folder / "report.html"]
        paths[0].write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        paths[1].write_text(page.render(report), encoding="utf-8")
        paths += tables.write(report, folder)
        if observations:
            paths.append(folder / OUTPUTS)
            outputs.write_outputs(
                paths[-1],
                observations,
                classes=report["bundle"]["classes"],
                precisions={c["name"]: c["precision"] for c in report["candidates"]},
                bundle=report["bundle"]["sha256"],
                weights=report["bundle"]["weights_sha256"],
            )
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); give another folder") from error
    return paths


def _require_writable(out: Path) -> None:
    """Before minutes of measuring, not after. UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from error


def _version() -> str:
    try:
        return version("cxrvit-edge")
    except PackageNotFoundError:
        return "not installed"


def _plain(value: Any) -> Any:
    """JSON's own types; what is no finite number is None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else None
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
