"""How sessions on the processor are set up on this box: found by `build`, kept in the user's cache, used from then on.

The graph as ONNX Runtime has optimised it is kept beside the record, since optimising it again at each start costs more
than the rest of opening it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cxrvit_edge.bundle import Bundle, cache_dir
from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import cores, cpu_flags, processor
from cxrvit_edge.runtime import openvino, records
from cxrvit_edge.runtime.onnxruntime import (
    LEVELS,
    OPTIMISED,
    OnnxRuntimeSession,
    Settings,
    arithmetic,
    fingerprint,
    save_optimised,
)
from cxrvit_edge.runtime.openvino import ARITHMETICS, OpenVinoSession
from cxrvit_edge.runtime.session import Session

BATCHES = (1, 2, 4, 8)
UNTUNED = Settings(spinning=False)  # spinning takes from decoding: half as much processor time again for nothing


@dataclass(frozen=True)
class Tuned:
    """settings and batch_size that were fastest; seconds: of a batch of each size, the films' decoding beside it.

    gain: seconds of a batch as the back end runs it by itself over those so tuned. first_seconds: to open a session
    and run one film. graphs: graph -> SHA-256 of the two files of its optimised form. arithmetic: OpenVINO's.
    """

    settings: Settings
    batch_size: int
    seconds: Mapping[int, float]
    gain: float = 1.0
    first_seconds: float = 0.0
    graphs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    arithmetic: str = "f32"

    @property
    def images_a_second(self) -> float:
        return self.batch_size / self.seconds[self.batch_size]


def find(bundle: Bundle, backend: str, variant: str) -> Tuned | None:
    """What `build` has found for this variant on this box; None if there is no such record, or one that is damaged."""
    try:
        body = records.read(_record(bundle, backend, variant)) or {}
        tuned = Tuned(
            settings=Settings(**body["settings"]),
            batch_size=body["batch_size"],
            seconds={int(size): float(value) for size, value in body["seconds"].items()},
            gain=float(body["gain"]),
            first_seconds=float(body["first_seconds"]),
            graphs={str(graph): [str(digest) for digest in pair] for graph, pair in body["graphs"].items()},
            arithmetic=str(body["arithmetic"]),
        )
        sound = 0 <= tuned.settings.threads <= cores() and tuned.batch_size in BATCHES and tuned.images_a_second > 0
    except (EngineError, KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None
    return tuned if sound and tuned.settings.level in LEVELS and tuned.arithmetic in ARITHMETICS else None


def keep(bundle: Bundle, backend: str, variant: str, precision: str, found: Tuned) -> None:
    body = {"bundle": bundle.sha256, "backend": backend, "variant": variant, "precision": precision, **asdict(found)}
    records.write(_record(bundle, backend, variant), body)


def open_session(
    bundle: Bundle, backend: str, variant: str, graph: str, precision: str, threads: int, tuned: Tuned | None
) -> Session:
    """A session as tuned, of the optimised graph if it is whole; else of the bundle's. EngineError if that fails."""
    path = bundle.file(bundle.variant(variant).files[graph])
    folder = _folder(bundle, backend, variant, graph)
    if backend == "openvino":
        chosen = tuned.arithmetic if tuned else ARITHMETICS[0]
        return OpenVinoSession(path, precision=precision, threads=threads, cache=folder, arithmetic=chosen)
    settings = tuned.settings if tuned else UNTUNED
    digests = tuned.graphs.get(graph, ()) if tuned else ()
    if len(digests) == len(OPTIMISED) and [_sha256(folder / name) for name in OPTIMISED] == list(digests):
        try:
            return OnnxRuntimeSession(
                folder / OPTIMISED[0],
                precision=precision,
                threads=threads,
                settings=settings,
                optimised=_joint(digests),
            )
        except EngineError:
            pass  # the bundle's own graph is as good, and only slower to open
    return OnnxRuntimeSession(path, precision=precision, threads=threads, settings=settings)


def about(backend: str, precision: str, tuned: Tuned | None) -> str:
    """What the speed of a variant depends on, beside the bundle."""
    if backend == "openvino":
        return tuned.arithmetic if tuned else ""
    if tuned is None:
        return fingerprint(arithmetic(precision))
    own = json.dumps([asdict(tuned.settings), sorted(_joint(pair) for pair in tuned.graphs.values())])
    return f"{fingerprint(arithmetic(precision))} tuned {hashlib.sha256(own.encode()).hexdigest()[:16]}".strip()


def forget(bundle: Bundle, backend: str, variant: str) -> None:
    """Drop the record and the optimised graphs, so that sessions are opened as if never tuned."""
    import shutil

    with contextlib.suppress(OSError):
        _record(bundle, backend, variant).unlink()
    for graph in sorted(set(bundle.manifest.views.values())):
        shutil.rmtree(_folder(bundle, backend, variant, graph), ignore_errors=True)


def optimise(bundle: Bundle, variant: str, graph: str, precision: str, settings: Settings) -> list[str]:
    """Save the optimised graph, whole or not at all: SHA-256 of its files, none if it cannot be kept."""
    import shutil
    import tempfile

    folder = _folder(bundle, "onnxruntime", variant, graph)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            path = bundle.file(bundle.variant(variant).files[graph])
            save_optimised(path, made, precision=precision, settings=settings)
            digests = [_sha256(made / name) for name in OPTIMISED]
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
    except (EngineError, OSError):
        return []
    return digests if all(digests) else []


def _key(bundle: Bundle, backend: str, variant: str, *more: object) -> str:
    """Hash of what settings and optimised graphs depend on."""
    files, spec = bundle.manifest.files, bundle.variant(variant)
    parts = [
        *(files[name] for name in sorted(spec.files.values())),
        *(files[name] for name in sorted(files) if name.endswith(".safetensors")),
        *(backend, version(backend), processor(), " ".join(cpu_flags()), cores(), variant, *more),
    ]
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:32]


def version(backend: str) -> str:
    """Of ONNX Runtime or OpenVINO. EngineError if it is not installed."""
    if backend == "openvino":
        return openvino.installed()
    import onnxruntime

    return str(onnxruntime.__version__)


def _record(bundle: Bundle, backend: str, variant: str) -> Path:
    return cache_dir() / "tuned" / f"{_key(bundle, backend, variant)}.json"


def _folder(bundle: Bundle, backend: str, variant: str, graph: str) -> Path:
    return cache_dir() / "optimised" / _key(bundle, backend, variant, graph)


def _joint(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    """Empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()
