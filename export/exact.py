"""A graph in its own exact arithmetic on real images: what estimators and blocks are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.metrics import softmax
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.zones import severity_array, zone_masks
from export.parity import Bounds

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Measured:
    """Against the float32 graph.

    flips: images whose label or a flag is another, or whose severity score came or went; logits_rms: of the logits'
    standard deviation inside each class; probability: largest difference; maps: mean difference of the severity map and
    the lung masks; severity_mae: of the score, 0-6.
    """

    flips: int
    logits_rms: float
    probability: float
    maps: float
    severity_mae: float = 0.0

    def share(self, bounds: Bounds) -> float:
        """Of the bound that is nearest: over 1 is outside. Flips do not count: on few images they are chance."""
        pairs = (
            (self.logits_rms, bounds.logits_rms),
            (self.probability, bounds.probability),
            (self.severity_mae, bounds.severity_mae),
        )
        shares = [value / bound if bound else (0.0 if value == 0 else np.inf) for value, bound in pairs]
        return float(np.max(shares))  # keeps NaN, as max() does not

    def within(self, bounds: Bounds) -> bool:
        return self.flips <= bounds.flips and self.share(bounds) <= 1  # not so if one is NaN


class Yardstick:
    """`model` (float32) on `images` (N of (1, 1, S, S)), and any graph of the same network held against it.

    With one image the standard deviation is of its three logits.
    """

    def __init__(
        self, model: onnx.ModelProto, images: Sequence[Float32], temperature: float, points: Mapping[str, float]
    ) -> None:
        self._images = images
        self._temperature = temperature
        self._points = np.array(list(points.values()))
        self._logits, self._maps, self._scores = self._run(model)
        spread = self._logits.astype(np.float64).var(axis=0).mean() if len(images) > 1 else self._logits.var()
        self._spread = float(np.sqrt(spread))

    def measure(self, model: onnx.ModelProto, *, exact: bool = True) -> Measured:
        """exact: in its own arithmetic; else by ONNX Runtime's integer kernels, as int8-cpu runs."""
        logits, maps, scores = self._run(model, exact)
        p, q = softmax(self._logits, self._temperature), softmax(logits, self._temperature)
        changed = (p.argmax(1) != q.argmax(1)) | ((p >= self._points) != (q >= self._points)).any(axis=1)
        changed |= np.isnan(scores) != np.isnan(self._scores)
        gaps = np.abs(scores - self._scores)
        both = np.isfinite(gaps)
        return Measured(
            flips=int(changed.sum()),
            logits_rms=float(np.sqrt(((logits - self._logits) ** 2).mean())) / self._spread,
            probability=float(np.abs(p - q).max()),
            maps=float(np.abs(maps - self._maps).mean()),
            severity_mae=float(gaps[both].mean()) if both.any() else 0.0,
        )

    def _run(
        self, model: onnx.ModelProto, exact: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float64]]:
        """Logits (N, K), the three maps (N, 3, S / 2, S / 2), severity scores (N,) with NaN where no lungs are."""
        session = OnnxRuntimeSession(model.SerializeToString(), precision="int8", exact=exact)
        out = [session.run(image) for image in self._images]
        maps = np.concatenate([np.concatenate((o.severity_map, o.lung_mask), axis=1) for o in out])
        scores = np.array([_score(m[0], m[1:]) for m in maps], np.float64)
        return np.concatenate([o[0] for o in out]).astype(np.float64), maps, scores


def _score(severity_map: NDArray[np.float32], lungs: NDArray[np.float32]) -> float:
    zones = zone_masks(lungs)
    return float("nan") if zones is None else float(severity_array(severity_map, zones).sum())
