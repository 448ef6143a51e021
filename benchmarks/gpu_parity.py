"""What an engine or torch says on the card beside torch in float32 on the processor, image by image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError
from cxrvit_edge.preprocess import Float32, PreprocessConfig
from cxrvit_edge.runtime.session import Outputs, joined

Run = Callable[[Float32], Outputs]
Say = Callable[[str], None]


def films(bundle: Bundle, folder: Path | None, count: int, say: Say) -> tuple[Float32, list[str], str]:
    """Network inputs (N, 1, S, S), a SHA-256 for each, and what they are.

    Of the files of a folder that can be read, else generated; where OpenCV is not installed, the bundle's golden set.
    """
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    try:
        found = list(_read(folder, count, config, say) if folder else _generated(count, config))
    except ImportError as error:
        say(f"passed over: films ({error.name} is not installed): the bundle's golden set stands in")
        return (*_golden(bundle, config), "the bundle's golden set")
    if not found:
        raise SystemExit(f"{folder}: no file in it can be read; name a folder of chest radiographs")
    what = f"real or given films of {folder.name}" if folder else "generated films"
    return np.stack([image for image, _ in found]), [sha for _, sha in found], what


def _read(folder: Path, count: int, config: PreprocessConfig, say: Say) -> list[tuple[Float32, str]]:
    from cxrvit_edge.preprocess import preprocess
    from cxrvit_edge.radiograph import read

    found: list[tuple[Float32, str]] = []
    refused = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if len(found) == count:
            break
        try:
            found.append((preprocess(read(path), config)[0], hashlib.sha256(path.read_bytes()).hexdigest()))
        except InputError:
            refused += 1
    if refused:
        say(f"{refused} files passed over that are no readable radiograph")
    return found


def _generated(count: int, config: PreprocessConfig) -> list[tuple[Float32, str]]:
    from cxrvit_edge.phantom import make_phantom
    from cxrvit_edge.preprocess import preprocess
    from cxrvit_edge.radiograph import Radiograph

    found = []
    for i in range(count):
        pixels = make_phantom(i, lesions=(0.0, 0.3, 0.8)[i % 3]).pixels
        found.append((preprocess(Radiograph(pixels), config)[0], hashlib.sha256(pixels.tobytes()).hexdigest()))
    return found


def _golden(bundle: Bundle, config: PreprocessConfig) -> tuple[Float32, list[str]]:
    from cxrvit_edge.runtime.golden import normalised

    with np.load(bundle.file(bundle.manifest.golden_inputs), allow_pickle=False) as stored:
        before = stored["inputs"]  # (N, S, S) uint8
    return normalised(before, config), [hashlib.sha256(image.tobytes()).hexdigest() for image in before]


def outputs(run: Run, images: Float32, size: int) -> Outputs:
    """Of all images, in batches of `size`; the last is filled up."""
    parts = []
    for at in range(0, len(images), size):
        rows = np.minimum(np.arange(at, at + size), len(images) - 1)
        parts.append(run(np.ascontiguousarray(images[rows])))
    return joined(parts).rows(slice(len(images)))


def rows(
    bundle: Bundle, candidate: str, found: Outputs, reference: Outputs, sha256: Sequence[str]
) -> list[dict[str, Any]]:
    """One an image: largest differences of logits and probabilities, mean ones of the maps, flips. NaN stays NaN."""
    m = bundle.manifest
    p, q = _softmax(found.logits, m.temperature), _softmax(reference.logits, m.temperature)  # (N, 3)
    points = np.array([m.operating_points[name] for name in m.classes])
    table = []
    for i, sha in enumerate(sha256):
        table.append(
            {
                "candidate": candidate,
                "image": sha,
                "logits": _short(np.abs(found.logits[i] - reference.logits[i]).max()),
                "probabilities": _short(np.abs(p[i] - q[i]).max()),
                "severity_map": _short(np.abs(found.severity_map[i] - reference.severity_map[i]).mean()),
                "lung_mask": _short(np.abs(found.lung_mask[i] - reference.lung_mask[i]).mean()),
                "label_flipped": int(p[i].argmax() != q[i].argmax()),
                "flags_flipped": int(((p[i] >= points) != (q[i] >= points)).sum()),
            }
        )
    return table


def summary(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over the images of one candidate: the largest of each difference, flips counted."""
    worst = {name: max(float(row[name]) for row in table) for name in ("logits", "probabilities")}
    if any(np.isnan(float(row["logits"])) for row in table):
        worst = dict.fromkeys(worst, float("nan"))
    maps = {name: max(float(row[name]) for row in table) for name in ("severity_map", "lung_mask")}
    flips = {name: sum(row[name] for row in table) for name in ("label_flipped", "flags_flipped")}
    return {"candidate": table[0]["candidate"], "images": len(table), **worst, **maps, **flips}


def _softmax(logits: Float32, temperature: float) -> Any:
    z = logits.astype(np.float64) / temperature
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")
