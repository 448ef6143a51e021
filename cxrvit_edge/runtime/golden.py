"""The golden check: a session must reproduce the bundle's golden outputs on this box before it is used.

A pass is recorded in the user's cache under the engine's key, so it is repeated only when graph, back end, version,
machine or golden set change, or when asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import zipfile
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle, Tolerance, cache_dir
from cxrvit_edge.errors import BundleError, ParityError
from cxrvit_edge.host import processor
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime import records
from cxrvit_edge.runtime.session import EMBEDDING, Outputs, Session, joined

PREPROCESS_TOLERANCE = 2 / 255  # before normalisation: other builds of OpenCV round otherwise
MAP_STEPS = 65535  # maps are stored as uint16
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what np.load raises


@dataclass(frozen=True)
class Difference:
    """Largest logit difference, mean map difference over the golden set, and that of the embedding: the largest RMS
    difference of a film over the standard deviation of all golden values, 0 where the golden set has none.

    An embedding's hundreds of values have one scale, that of the last LayerNorm, and are used together, as a distance:
    so a film's RMS counts, not the one value that rounding hit hardest.
    """

    logits: float = 0.0
    maps: float = 0.0
    embedding: float = 0.0

    def within(self, allowed: Tolerance) -> bool:
        """Not so if one is NaN."""
        return self.logits <= allowed.logits and self.maps <= allowed.maps and self.embedding <= allowed.embedding

    def worse(self, other: Difference) -> Difference:
        """The larger of each; NaN stays."""
        return Difference(*(float(np.maximum(a, b)) for a, b in zip(astuple(self), astuple(other), strict=True)))

    def against(self, allowed: Tolerance) -> str:
        """In a sentence's end."""
        parts = [
            f"logits differ by {self.logits:.2e} (at most {allowed.logits:.0e})",
            f"maps by {self.maps:.2e} on average (at most {allowed.maps:.0e})",
        ]
        if not self.embedding <= allowed.embedding:
            parts.append(f"the embedding by {self.embedding:.2e} of its spread (at most {allowed.embedding:.0e})")
        return ", ".join(parts)


def check(bundle: Bundle, variant: str, graph: str, session: Session, *, again: bool = False) -> bool:
    """ParityError if `session` departs from its own variant's golden outputs; quick if a pass is on record.

    Every batch size that runs code of its own is checked. Whether it was run: False if the record was enough.
    """
    record = cache_dir() / "golden" / f"{key(bundle, variant, graph, session)}.json"
    if not again and records.read(record) is not None:
        return False
    inputs, expected = load_inputs(bundle), load_outputs(bundle, variant, graph)
    allowed = bundle.variant(variant).tolerance
    worst = Difference()
    for size in session.batch_sizes or (len(inputs),):
        rows = np.arange(max(size, len(inputs))) % len(inputs)  # all films, in batches of `size` and a remainder
        parts = [session.run(inputs[rows[i : i + size]]) for i in range(0, len(rows), size)]
        found = compare(joined(parts), expected.rows(rows))
        worst = worst.worse(found)
        if found.within(allowed):
            continue
        with contextlib.suppress(OSError):
            record.unlink()
        where = f"on this box in batches of {size}" if session.batch_sizes else "on this box"
        raise ParityError(
            f"{session.backend} {session.version} {variant} does not reproduce the golden outputs {where}: "
            f"{found.against(allowed)}; do not use it here, take --backend onnxruntime --precision fp32"
        )
    body = {"backend": session.backend, "version": session.version, "precision": session.precision, **vars(worst)}
    records.write(record, body)
    return True


def key(bundle: Bundle, variant: str, graph: str, session: Session) -> str:
    """Hash of everything that a pass depends on."""
    files, spec = bundle.manifest.files, bundle.variant(variant)
    parts = (
        files[spec.files[graph]],
        *(files[name] for name in sorted(files) if name.endswith(".safetensors")),  # of every variant
        files[bundle.manifest.golden_inputs],
        files[spec.golden],
        json.dumps([dict(bundle.manifest.preprocessing), vars(spec.tolerance)], sort_keys=True),
        session.backend,
        session.version,
        session.fingerprint,
        variant,
        graph,
        platform.system(),
        platform.machine(),
        processor(),
        np.__version__,
        _cv2_version(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def load_inputs(bundle: Bundle) -> Float32:
    """The stored tensors, (N, 1, S, S): the same on every box, so that outputs depend on the session alone.

    ParityError if this box's preprocessing of the golden radiographs departs from them by more than 2/255 before
    normalisation: the input scale is part of the contract.
    """
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    path = bundle.file(bundle.manifest.golden_inputs)
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as stored:
            expected = stored["inputs"]  # (N, S, S) uint8: 255 x before normalisation
            pixels = [stored[f"pixels_{i}"] for i in range(len(expected))]
    except UNREADABLE as error:
        raise BundleError(f"{path}: not a golden set ({error}); export the bundle again") from error
    tensors = np.stack([preprocess(Radiograph(p), config)[0] for p in pixels])
    before = (tensors[:, 0] * config.scale + config.offset) / 255.0
    worst = float(np.abs(before - expected / 255.0).max())
    if not worst <= PREPROCESS_TOLERANCE:
        raise ParityError(
            f"preprocessing on this box departs from the bundle's by {worst:.4f} of full scale (at most "
            f"{PREPROCESS_TOLERANCE:.4f}); OpenCV {_cv2_version()} is at fault: install another version of it"
        )
    return normalised(expected, config)


def normalised(before: NDArray[np.uint8], config: PreprocessConfig) -> Float32:
    """Stored (N, S, S) -> network input (N, 1, S, S)."""
    return ((before[:, None].astype(np.float32) - config.offset) / config.scale).astype(np.float32)


def load_outputs(bundle: Bundle, variant: str, graph: str) -> Outputs:
    """Stored outputs of a variant's own exact arithmetic; without embedding where the bundle has none."""
    path = bundle.file(bundle.variant(variant).golden)
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as stored:
            severity, lungs = (
                stored[f"{graph}.{name}"].astype(np.float32) / MAP_STEPS for name in ("severity_map", "lung_mask")
            )
            return Outputs(stored[f"{graph}.logits"], severity, lungs, stored.get(f"{graph}.{EMBEDDING}"))
    except UNREADABLE as error:
        raise BundleError(f"{path}: not golden outputs ({error}); export the bundle again") from error


def compare(outputs: Outputs, expected: Outputs) -> Difference:
    """NaN if any output has one, infinite if a shape is another. An embedding that is not expected is not looked at."""
    pairs = [(a, b) for a, b in zip(outputs, expected, strict=True) if b is not None]
    if any(a is None or a.shape != b.shape for a, b in pairs):
        return Difference(*[float("inf")] * 3)
    maps = [
        np.abs(outputs.severity_map - expected.severity_map).mean(),
        np.abs(outputs.lung_mask - expected.lung_mask).mean(),
    ]
    embedding = 0.0
    if outputs.embedding is not None and expected.embedding is not None:
        gap = (outputs.embedding - expected.embedding).astype(np.float64)
        embedding = float(np.sqrt((gap**2).mean(axis=1).max()) / max(float(expected.embedding.std()), 1e-12))
    return Difference(float(np.abs(outputs.logits - expected.logits).max()), float(np.max(maps)), embedding)


def _cv2_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("opencv-python-headless")
    except PackageNotFoundError:  # built with the system, as on Jetson
        import cv2

        return str(cv2.__version__)
