"""A graph in its own exact arithmetic on real images: what estimators and blocks are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime.onnxruntime import arithmetic
from export.decisions import softmax

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Measured:
    """Against the float32 graph. flips: images whose label or a flag is another; logits_rms: of the logits' standard
    deviation inside each class; probability: largest difference; maps: mean difference of the map of severity."""

    flips: int
    logits_rms: float
    probability: float
    maps: float


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
        self._logits, self._maps = self._run(model)
        spread = self._logits.astype(np.float64).var(axis=0).mean() if len(images) > 1 else self._logits.var()
        self._spread = float(np.sqrt(spread))

    def measure(self, model: onnx.ModelProto, *, exact: bool = True) -> Measured:
        """exact: in its own arithmetic; else by ONNX Runtime's integer kernels, as int8-cpu runs."""
        logits, maps = self._run(model, exact)
        p, q = softmax(self._logits, self._temperature), softmax(logits, self._temperature)
        changed = (p.argmax(1) != q.argmax(1)) | ((p >= self._points) != (q >= self._points)).any(axis=1)
        return Measured(
            flips=int(changed.sum()),
            logits_rms=float(np.sqrt(((logits - self._logits) ** 2).mean())) / self._spread,
            probability=float(np.abs(p - q).max()),
            maps=float(np.abs(maps - self._maps).mean()),
        )

    def _run(self, model: onnx.ModelProto, exact: bool = True) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        session = _session(model.SerializeToString(), arithmetic("int8", exact=exact))
        out = [session.run(["logits", "severity_map"], {"image": image}) for image in self._images]
        return np.concatenate([o[0] for o in out]).astype(np.float64), np.concatenate([o[1] for o in out])


def _session(graph: bytes, settings: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
