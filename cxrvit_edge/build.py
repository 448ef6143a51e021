"""What `build` does: this box made ready for a bundle.

With a GPU, or for one, its GPU variants are compiled to engines, proven fused, and run where the GPU is at hand;
without one, sessions on the processor are tuned by measurement and proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import Bundle, cache_dir
from cxrvit_edge.errors import CxrVitError, EngineError, ParityError, UsageError
from cxrvit_edge.host import Gpu, gpus
from cxrvit_edge.runtime import builder, engines, fusion, tuning
from cxrvit_edge.runtime.builder import NAMES
from cxrvit_edge.runtime.candidates import VARIANTS as RUNS
from cxrvit_edge.runtime.engines import Engine, Key
from cxrvit_edge.runtime.layers import parse

VARIANTS = ("fp16", "int8")  # that run on GPUs
ON_CPU = ("onnxruntime", "openvino")
WHY_NOT = {
    "fp32": "attention does not fuse in FP32",
    "int8-cpu": "it is INT8 for processors; the one for GPUs is int8",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """fresh: compiled now, not found; state: whether it has run here."""

    engine: Engine
    graph: str
    fresh: bool
    state: str

    def to_dict(self) -> dict[str, Any]:
        key = self.engine.key
        return {
            "target": f"sm{key.sm}",
            "precision": key.precision,
            "graph": self.graph,
            "backend": key.backend,
            "version": key.version,
            "key": key.digest,
            "path": str(self.engine.plan),
            "bytes": self.engine.sidecar["plan"]["bytes"],
            "seconds": self.engine.sidecar["seconds"],
            "built_now": self.fresh,
            "state": self.state,
            **{k: v for k, v in self.engine.fusion.summary().items() if k != "blocks"},
        }


@dataclass(frozen=True)
class TunedHere:
    """A variant on the processor of this box; fresh: measured now, not found."""

    backend: str
    version: str
    precision: str
    tuned: tuning.Tuned
    fresh: bool

    def to_dict(self) -> dict[str, Any]:
        t = self.tuned
        return {
            "target": "cpu",
            "precision": self.precision,
            "backend": self.backend,
            "version": self.version,
            "settings": vars(t.settings) if self.backend == "onnxruntime" else None,
            "arithmetic": t.arithmetic,
            "batch_size": t.batch_size,
            "images_a_second": round(t.images_a_second, 3),
            "gain": round(t.gain, 3),
            "first_seconds": round(t.first_seconds, 3),
            "optimised_graph": bool(t.graphs),
            "built_now": self.fresh,
            "state": "golden check passed on this box",
        }


@dataclass(frozen=True)
class Plan:
    """Which back end, for which GPUs, into which folder. gpu: the one of this box, if it is for that."""

    backend: str
    version: str
    sms: tuple[str, ...]
    place: Path
    gpu: Gpu | None


def build(
    bundle: Bundle,
    *,
    targets: Sequence[str] = (),
    precisions: Sequence[str] = (),
    backend: str = "auto",
    batch_size: int = 4,
    require_fused: bool = True,
    rebuild: bool = False,
    say: Say = lambda _: None,
    progress: builder.Step | None = None,
) -> Sequence[Built | TunedHere]:
    """Compile what is missing. targets: RTX targets such as sm86; none is this box's GPU. batch_size: the largest.

    Engines for this box are then run through the golden check. EngineError if one cannot be built or its attention is
    not fused; ParityError if one does not reproduce the golden outputs; UsageError for a setting without sense. With
    backend onnxruntime or openvino, or auto on a box without a GPU, sessions on the processor are tuned instead.
    """
    if backend in ON_CPU and targets:
        raise UsageError(f"--target {targets[0]}: {backend} runs on this box's processor; leave one of them out")
    if backend in ON_CPU or (backend == "auto" and not targets and "fp16" not in precisions and not gpus()):
        return _tune(bundle, precisions, backend, rebuild, say)
    variants = choose(bundle, precisions)
    plan = decide(bundle, targets, backend, say)
    made = [
        _one(bundle, variant, graph, sm, plan, batch_size, require_fused, rebuild, say, progress)
        for sm in plan.sms
        for variant in variants
        for graph in sorted(set(bundle.manifest.views.values()))
    ]
    return list(_run(bundle, made, plan)) if plan.gpu else made


def _tune(bundle: Bundle, precisions: Sequence[str], backend: str, rebuild: bool, say: Say) -> list[TunedHere]:
    """Each variant that runs on a processor, on each back end that is installed; then the choice among them."""
    from cxrvit_edge.runtime import search
    from cxrvit_edge.runtime.select import open_sessions

    names = [name for name in ON_CPU if name == backend or (backend == "auto" and name in _installed())]
    made: list[TunedHere] = []
    failed: list[ParityError] = []
    for name in names:
        version = tuning.version(name)
        for precision, variant in _on_cpu(bundle, name, precisions).items():
            tuned = None if rebuild else tuning.find(bundle, name, variant)
            fresh = tuned is None
            try:
                tuned = tuned or search.tune(bundle, name, precision, variant, say=say)
            except ParityError as error:
                failed.append(error)
                say(f"{name} {precision} left as it is: {error}")
                continue
            made.append(TunedHere(name, version, precision, tuned, fresh))
    if failed and (precisions or not made):
        raise failed[0]
    for name in names:
        if len([t for t in made if t.backend == name]) > 1:
            for note in open_sessions(bundle, backend=name, verify=any(t.fresh for t in made)).notes:
                say(f"{name}: {note}")
    return made


def _installed() -> list[str]:
    return [name for name in ON_CPU if find_spec(name) is not None]


def _on_cpu(bundle: Bundle, backend: str, precisions: Sequence[str]) -> dict[str, str]:
    """Precision -> variant of those asked for, or of all that the bundle has and that were exported within bounds."""
    for name in precisions:
        if name not in RUNS[backend]:
            raise UsageError(f"--precision {name}: {backend} runs {' or '.join(RUNS[backend])}")
        bundle.variant(RUNS[backend][name])
    runs = {name: variant for name, variant in RUNS[backend].items() if name in (precisions or RUNS[backend])}
    there = {name: variant for name, variant in runs.items() if variant in bundle.manifest.variants}
    if not there:
        raise EngineError(f"{bundle.root}: no variant for processors and no GPU on this box; {_elsewhere()}")
    return there


def choose(bundle: Bundle, precisions: Sequence[str]) -> list[str]:
    """Variants to compile: those asked for, or all for GPUs that the bundle has. UsageError if one is not for GPUs."""
    for name in precisions:
        if name not in VARIANTS:
            why = WHY_NOT.get(name, "no such variant")
            raise UsageError(f"--precision {name}: {why}; choose {' or '.join(VARIANTS)}")
        bundle.variant(name)
    chosen = list(dict.fromkeys(precisions)) or [name for name in VARIANTS if name in bundle.manifest.variants]
    if not chosen:
        have = ", ".join(bundle.manifest.variants)
        raise UsageError(f"{bundle.root}: no variant for GPUs (it has {have}); `python -m export` makes fp16 and int8")
    return chosen


def decide(bundle: Bundle, targets: Sequence[str], backend: str, say: Say = lambda _: None) -> Plan:
    """UsageError or EngineError, with the next step, where there is nothing to compile with or for."""
    if backend not in ("auto", *builder.MODULES):
        raise UsageError(f"--backend {backend}: it needs no engine; choose auto, {', '.join(builder.MODULES)}")
    if targets:
        if backend == "tensorrt":
            raise UsageError(
                f"--target {targets[0]}: TensorRT builds for the GPU of its own box; leave one of them out"
            )
        sms = tuple(dict.fromkeys(map(builder.target, targets)))
        place, why = engines.ahead_of_time(bundle)
        if why:
            say(f"{why}: engines go to {place}")
        return Plan("tensorrt-rtx", builder.version("tensorrt-rtx"), sms, place, None)
    gpu = next(iter(gpus()), None)
    if gpu is None:
        raise EngineError(f"no GPU, or no driver for it, on this box; {_elsewhere()}")
    chosen = _backend(gpu, backend)
    return Plan(chosen, builder.version(chosen), (gpu.sm,), engines.places(bundle)[1], gpu)


def _elsewhere() -> str:
    if "tensorrt-rtx" not in builder.installed():
        return "run `cxrvit-edge build` on the box with the GPU, or pip install 'cxrvit-edge[rtx]' and name a --target"
    return f"name a --target: {', '.join(f'sm{sm}' for sm in builder.targets())}; {builder.NOT_RTX}"


def _backend(gpu: Gpu, asked: str) -> str:
    """TensorRT where it is installed, else RTX if it knows this GPU."""
    have = builder.installed()
    if asked != "auto":
        builder.load(asked)
        have = [asked]
    if "tensorrt" in have:
        return "tensorrt"
    if "tensorrt-rtx" not in have:
        raise EngineError(
            "neither TensorRT nor TensorRT for RTX is installed: pip install 'cxrvit-edge[rtx]' on a PC with RTX; "
            "on a Jetson TensorRT comes with JetPack (make the venv with --system-site-packages)"
        )
    if gpu.sm not in builder.targets():
        known = ", ".join(f"sm{sm}" for sm in builder.targets())
        raise EngineError(f"{gpu.name} is sm{gpu.sm}, TensorRT for RTX has {known}; {builder.NOT_RTX}")
    return "tensorrt-rtx"


def _one(
    bundle: Bundle,
    variant: str,
    graph: str,
    sm: str,
    plan: Plan,
    batch_size: int,
    require_fused: bool,
    rebuild: bool,
    say: Say,
    progress: builder.Step | None,
) -> Built:
    backend, version = plan.backend, plan.version
    key = Key.of(bundle, variant, graph, backend=backend, version=version, sm=sm, most=batch_size)
    name = f"{variant} for sm{sm}"
    path = bundle.file(bundle.variant(variant).files[graph])
    with engines.building(plan.place, key, say):
        found = (
            None
            if rebuild
            else engines.find(bundle, variant, graph, backend=backend, version=version, sm=sm, most=batch_size)
        )
        if isinstance(found, Engine):
            if require_fused:
                fusion.require_fused(found.fusion, where=str(found.plan), least=_least(bundle))
            return Built(found, graph, False, str(found.sidecar.get("state", engines.NOT_RUN)))
        say(f"rebuilding {name}: {found}" if found and _stale(found, plan) else f"building {name}")
        compiled = builder.compile_onnx(
            path,
            backend=backend,
            sm=sm if backend == "tensorrt-rtx" else None,
            profile=builder.Profile(*key.profile),
            timing_cache=cache_dir() / "timing" / f"{backend}-{version}-sm{sm}.cache",
            progress=progress,
        )
        seen = fusion.fusion(parse(compiled.lines), compiled.sources)
        if variant == "int8" and "Int8" not in seen.convolutions:  # RTX 1.7 does so on Turing
            say(f"note: {NAMES[backend]} runs no convolution in INT8 on sm{sm}; fp16 may be the better choice there")
        if require_fused:
            fusion.require_fused(seen, where=f"{path}, {name}", least=_least(bundle))
        about = {
            "state": engines.NOT_RUN,
            "gpu": plan.gpu.name if plan.gpu else None,
            "driver": plan.gpu.driver if plan.gpu else None,
            "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256, "graph": graph, "file": path.name},
        }
        return Built(engines.write(plan.place, key, compiled, about), graph, True, engines.NOT_RUN)


def _stale(reason: str, plan: Plan) -> bool:
    """Ahead of time, an engine for another GPU is no reason."""
    return reason != engines.ABSENT and (plan.gpu is not None or not reason.startswith(engines.OTHER_GPU))


def _least(bundle: Bundle) -> int:
    """Encoder layers of the network, so that attention that is not even recognised counts as unfused."""
    network = bundle.manifest.raw.get("network")
    stated = network.get("layers") if isinstance(network, dict) else None
    return stated if isinstance(stated, int) else 1


def _run(bundle: Bundle, made: Sequence[Built], plan: Plan) -> Iterator[Built]:
    """The golden check of each precision, noted in the sidecars. ParityError after all have been tried."""
    where = plan.gpu.name if plan.gpu else "this box"
    precisions = dict.fromkeys(b.engine.key.precision for b in made)
    results = {precision: _checked(bundle, plan.backend, precision) for precision in precisions}
    for built in made:
        error = results[built.engine.key.precision]
        if error is None:
            state = f"golden check passed on {where}"
        else:
            state = f"{'golden check failed' if isinstance(error, ParityError) else 'built, not run'}: {error}"
        yield Built(engines.note(built.engine, state=state), built.graph, built.fresh, state)
    for error in results.values():
        if isinstance(error, ParityError):
            raise error


def _checked(bundle: Bundle, backend: str, precision: str) -> CxrVitError | None:
    from cxrvit_edge.runtime.select import open_sessions

    try:
        open_sessions(bundle, backend=backend, precision=precision, verify=True)
    except CxrVitError as error:
        return error
    return None


def told(built: Sequence[Built | TunedHere]) -> Iterator[str]:
    """An engine, or a variant on the processor, a paragraph, for people."""
    for b in built:
        if isinstance(b, TunedHere):
            yield from _tuned_told(b)
            continue
        d, found = b.to_dict(), b.engine.fusion
        how = f"compiled in {d['seconds']:.1f} s" if b.fresh else "there already"
        size = f"{d['bytes'] / 1e6:.1f} MB"
        yield f"{d['precision']} for {d['target']}, {b.graph}: {size}, {how}, {d['backend']} {d['version']}"
        precision = f" in {', '.join(found.precisions)}" if found.precisions else ""
        yield f"  attention: {d['attention_fused']} blocks fused{precision}"
        for what, counts in (("convolutions", found.convolutions), ("MatMuls", found.matmuls)):
            yield f"  {what}: {', '.join(f'{n} in {kind}' for kind, n in counts.items()) or 'none'}"
        yield f"  {found.layers} layers, {found.reformats} of them only reformat, {found.requantisations} requantise"
        yield f"  {b.state}"
        yield f"  {b.engine.plan}"


def _tuned_told(b: TunedHere) -> Iterator[str]:
    t = b.tuned
    how = "measured now" if b.fresh else "measured before, see --rebuild"
    yield f"{b.precision} on this processor: {b.backend} {b.version}, {how}"
    yield f"  about {t.images_a_second:.1f} images a second in batches of {t.batch_size}, files' decoding beside it"
    if b.backend == "onnxruntime":
        gain = f"{100 * (t.gain - 1):.0f} % faster than" if t.gain > 1 else "no settings are faster than"
        yield f"  {t.settings.told()}: {gain} ONNX Runtime's own"
    elif t.arithmetic != "f32":
        yield f"  bfloat16 where the graph has float32: {100 * (t.gain - 1):.0f} % faster, golden check passed with it"
    yield f"  {t.first_seconds:.1f} s to open it and run one image; golden check passed on this box"
