"""What a film and the network's outputs for it say of the kind of image, by a small head that a bundle may carry.

Two experts, perceptrons of one hidden layer, look at `guard.describe` and at `describe_outputs`. Their logits of KINDS
add up; the image is turned away where the log odds of frontal against the rest are under the head's threshold. The file
is a .npz of float16 and float32 arrays, read without pickle; `train/guard.py` fits it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.arrays import UNREADABLE, read_arrays
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import BundleError, InputError, Reason
from cxrvit_edge.guard import DESCRIBED
from cxrvit_edge.preprocess import Float32, Geometry
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.zones import lung_extent

KINDS = ("frontal", "lateral", "turned", "inverted", "other")
GRID = 12  # cells a side of the lung masks
SEEN = 3 * GRID * GRID + 14  # length of a description of outputs
MAX_BYTES = 1 << 20  # of a head's file, and of each array in it
MAX_HIDDEN = 256

_REASONS: Mapping[str, tuple[Reason, str]] = {
    "lateral": (
        Reason.LATERAL_VIEW,
        "looks like a lateral view, not a frontal one; send the frontal view, or look at it",
    ),
    "turned": (
        Reason.ROTATED,
        "looks turned: on its side or upside down; turn it upright and send it again, or look at it",
    ),
    "inverted": (
        Reason.INVERTED,
        "looks inverted: air bright, bone dark; send it with bone bright (MONOCHROME2), or look at it",
    ),
    "other": (
        Reason.NOT_A_CHEST,
        "does not look like a whole frontal chest radiograph: something else or a small part; look at it",
    ),
}


@dataclass(frozen=True)
class Expert:
    """centre, scale (n,); hidden (n, k), hidden_bias (k,); out (k, kinds), out_bias (kinds,): all float32."""

    centre: Float32
    scale: Float32
    hidden: Float32
    hidden_bias: Float32
    out: Float32
    out_bias: Float32

    def logits(self, seen: Float32) -> NDArray[np.float64]:
        """(n,) -> logits of KINDS."""
        first = np.maximum((seen - self.centre) / self.scale @ self.hidden + self.hidden_bias, 0)
        return (first @ self.out + self.out_bias).astype(np.float64)


@dataclass(frozen=True)
class Head:
    """threshold: of the log odds of frontal."""

    film: Expert
    outputs: Expert
    threshold: float

    def logits(self, film: Float32, outputs: Float32) -> NDArray[np.float64]:
        """Descriptions (DESCRIBED,), (SEEN,) -> logits of KINDS."""
        return self.film.logits(film) + self.outputs.logits(outputs)

    def check(self, film: Float32, outputs: Float32) -> None:
        """InputError lateral_view, rotated, inverted or not_a_chest if this looks like no upright frontal chest."""
        logits = self.logits(film, outputs)
        if log_odds(logits) < self.threshold:
            reason, message = _REASONS[KINDS[1 + int(np.argmax(logits[1:]))]]
            raise InputError(reason, message)


def log_odds(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., kinds) logits -> log odds of frontal against all other kinds."""
    rest = np.asarray(logits[..., 1:], np.float64)
    return np.asarray(logits[..., 0] - np.logaddexp.reduce(rest, axis=-1), np.float64)


def describe_outputs(outputs: Outputs, index: int, geometry: Geometry) -> Float32:
    """Row `index` -> (SEEN,) float32: the masks of either lung and of both on 12 x 12 cells of the radiograph, then
    area, centre and spread of each lung, area of both, confidence, overlap and share of half-hearted pixels.

    Neither logits nor severity: they tell disease and source, which must not decide who is let in.
    """
    import cv2

    lungs = np.ascontiguousarray(geometry.content(outputs.lung_mask[index]), np.float32)  # (2, h, w)
    small = [cv2.resize(side, (GRID, GRID), interpolation=cv2.INTER_AREA) for side in lungs]
    area, confidence = lung_extent(lungs)
    faint = float(((lungs > 0.2) & (lungs < 0.8)).mean())
    overlap = float(np.minimum(small[0], small[1]).mean())
    rest = [*_shape(small[0]), *_shape(small[1]), 2 * area, confidence, 4 * overlap, 4 * faint]
    grids = [small[0].ravel(), small[1].ravel(), np.maximum(small[0], small[1]).ravel()]
    return np.concatenate([*grids, rest]).astype(np.float32)


def _shape(mask: Float32) -> list[float]:
    """Of a (g, g) mask: area, centre (x, y) and spread (x, y), in shares of the side; 0 where there is none."""
    total = float(mask.sum())
    if total < 1e-3:
        return [0.0] * 5
    at = (np.arange(mask.shape[0]) + 0.5) / mask.shape[0]
    columns, rows = mask.sum(0) / total, mask.sum(1) / total
    x, y = float(columns @ at), float(rows @ at)
    return [total / mask.size, x, y, float(columns @ (at - x) ** 2) ** 0.5, float(rows @ (at - y) ** 2) ** 0.5]


def head_of(bundle: Bundle) -> Head | None:
    """The bundle's head, read once; None if it has none. BundleError if its file is no head."""
    name = bundle.manifest.guard.head
    return None if name is None else _load(bundle.file(name), bundle.manifest.files[name])


@lru_cache(maxsize=8)
def _load(path: Path, sha256: str) -> Head:  # noqa: ARG001  the hash tells one file from a later one of its name
    return read_head(path)


def read_head(path: Path) -> Head:
    """BundleError if the file cannot be read or is no head of this version."""
    try:
        arrays = read_arrays(path, MAX_BYTES)
        kinds = tuple(str(kind) for kind in arrays["kinds"])
        if kinds != KINDS:
            raise ValueError(f"kinds {kinds}")
        threshold = float(arrays["threshold"])
        head = Head(_expert(arrays, "film", DESCRIBED), _expert(arrays, "outputs", SEEN), threshold)
        if fault := next(_faults(head), None):
            raise ValueError(fault)
    except UNREADABLE as error:
        raise BundleError(
            f"{path}: no input guard that this version reads ({error}); export the bundle again"
        ) from error
    return head


def write_head(path: Path, head: Head) -> None:
    """Weights as float16, so fit with what `read_head` gives back."""
    arrays: dict[str, Any] = {"kinds": np.array(KINDS), "threshold": np.float64(head.threshold)}
    for name, expert in (("film", head.film), ("outputs", head.outputs)):
        for part, values in vars(expert).items():
            arrays[f"{name}.{part}"] = values.astype(np.float16 if part == "hidden" else np.float32)
    with path.open("wb") as f:  # np.savez appends .npz to a name without it
        np.savez_compressed(f, **arrays)


def _expert(arrays: Mapping[str, NDArray[Any]], name: str, n: int) -> Expert:
    k = arrays[f"{name}.hidden_bias"].size
    shapes = {"centre": (n,), "scale": (n,), "hidden": (n, k), "hidden_bias": (k,)}
    shapes |= {"out": (k, len(KINDS)), "out_bias": (len(KINDS),)}
    if k > MAX_HIDDEN:
        raise ValueError(f"{name}: {k} hidden units")
    parts = {}
    for part, shape in shapes.items():
        values = arrays[f"{name}.{part}"]
        if values.shape != shape or values.dtype.kind != "f":
            raise ValueError(f"{name}.{part} is {values.dtype} {values.shape}, not float {shape}")
        parts[part] = np.ascontiguousarray(values, np.float32)
    return Expert(**parts)


def _faults(head: Head) -> Iterator[str]:
    numbers = [v for e in (head.film, head.outputs) for v in vars(e).values()]
    if not (np.isfinite(head.threshold) and all(np.isfinite(v).all() for v in numbers)):
        yield "numbers that are not finite"
    if min(head.film.scale.min(), head.outputs.scale.min()) <= 0:
        yield "a scale of 0 or less"
