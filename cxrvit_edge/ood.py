"""How far a film lies from the films that the network learned from, by its embedding, where a bundle carries the fit.

The score is a class-conditional Mahalanobis distance with one covariance (Lee et al. 2018), in the first principal
components of those films' embeddings, and the distance from these components in units of its own spread:

    score^2 = min over classes c of |(p - mean_c) W|^2  +  |rest|^2 / residual

A film over the threshold is unlike all that the probabilities are known for. The file is a .npz of float32 arrays, read
without pickle; `train/ood.py` fits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.arrays import UNREADABLE, read_arrays
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import BundleError

MAX_BYTES = 1 << 20  # of the file, and of what it unzips to
_SHAPES: Mapping[str, int] = {"centre": 1, "axes": 2, "whiten": 2, "means": 2}


@dataclass(frozen=True)
class Familiar:
    """centre (D,): mean embedding; axes (D, k), orthonormal: the components p is measured in; whiten (k, k): W; means
    (C, k): of each class in whitened components; residual: mean square outside them, 0 to leave that out; threshold: of
    the score, as it is reported."""

    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    whiten: NDArray[np.float32]
    means: NDArray[np.float32]
    residual: float
    threshold: float

    def scores(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, D) -> (N,), each 0 or more."""
        x = np.asarray(embeddings, np.float64) - self.centre
        p = x @ self.axes.astype(np.float64)  # (N, k)
        gaps = (p @ self.whiten.astype(np.float64))[:, None] - self.means  # (N, C, k)
        squares = (gaps**2).sum(axis=2).min(axis=1)
        if self.residual:
            squares += np.maximum((x**2).sum(axis=1) - (p**2).sum(axis=1), 0.0) / self.residual
        return np.asarray(np.sqrt(squares), np.float64)

    def score(self, embedding: NDArray[np.floating]) -> float:
        """(D,) -> the score as it is reported."""
        return round(float(self.scores(embedding[None])[0]), 4)


@dataclass(frozen=True)
class Ood:
    """What is said of one film."""

    score: float
    threshold: float

    @property
    def over(self) -> bool:
        return self.score > self.threshold

    @property
    def warning(self) -> str:
        return (
            f"unlike the films the network learned from: its features lie {self.score:.1f} from them, and nearly all "
            f"films known to it within {self.threshold:.1f}; what it says of this film is not to be relied on"
        )


def familiar_of(bundle: Bundle) -> Familiar | None:
    """The bundle's fit, read once; None if it has none. BundleError if its file is no such fit."""
    fitted = bundle.manifest.guard.ood
    return None if fitted is None else _load(bundle.file(fitted["file"]), bundle.manifest.files[fitted["file"]])


@lru_cache(maxsize=8)
def _load(path: Path, sha256: str) -> Familiar:  # noqa: ARG001  the hash tells one file from a later one of its name
    return read(path)


def read(path: Path) -> Familiar:
    """BundleError if the file cannot be read or is no fit of this version."""
    try:
        arrays = read_arrays(path, MAX_BYTES)
        parts = {name: _array(arrays, name) for name in _SHAPES}
        found = Familiar(**parts, residual=float(arrays["residual"]), threshold=float(arrays["threshold"]))
        _require_sound(found)
    except UNREADABLE as error:
        raise BundleError(
            f"{path}: no fit of familiar films that this version reads ({error}); export the bundle again"
        ) from error
    return found


def write(path: Path, found: Familiar) -> None:
    """As float32: `read` gives back what was given."""
    arrays: dict[str, Any] = {name: getattr(found, name).astype(np.float32) for name in _SHAPES}
    with path.open("wb") as f:  # np.savez appends .npz to a name without it
        np.savez_compressed(f, **arrays, residual=np.float64(found.residual), threshold=np.float64(found.threshold))


def _array(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    values = arrays[name]
    if values.ndim != _SHAPES[name] or values.dtype.kind != "f":
        raise ValueError(f"{name} is {values.dtype} {values.shape}")
    return np.ascontiguousarray(values, np.float32)


def _require_sound(found: Familiar) -> None:
    d, k = found.axes.shape
    if found.centre.shape != (d,) or found.whiten.shape != (k, k) or found.means.shape[1:] != (k,):
        raise ValueError("shapes that do not belong together")
    if not (1 <= k <= d and len(found.means)):
        raise ValueError(f"{k} components of {d}, {len(found.means)} classes")
    numbers = (found.centre, found.axes, found.whiten, found.means, found.residual, found.threshold)
    if not all(np.isfinite(v).all() for v in numbers):
        raise ValueError("numbers that are not finite")
    if found.residual < 0 or found.threshold <= 0:
        raise ValueError(f"residual {found.residual}, threshold {found.threshold}")
