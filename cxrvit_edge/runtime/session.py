"""The one protocol of every back end."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class Outputs(NamedTuple):
    logits: Float32  # (B, 3)
    severity_map: Float32  # (B, 1, 256, 256) in [0, 1]
    lung_mask: Float32  # (B, 2, 256, 256) in [0, 1], image-left lung, image-right lung


class Session(Protocol):
    """One graph of one variant, ready to run.

    backend: onnxruntime, tensorrt, tensorrt-rtx or torch; version: of that back end; precision: name of the variant.
    """

    backend: str
    version: str
    precision: str

    def run(self, batch: Float32) -> Outputs:
        """batch (B, 1, S, S) float32, C-contiguous. Not for two threads at once. EngineError if the back end fails."""
        ...
