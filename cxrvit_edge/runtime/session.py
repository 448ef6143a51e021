"""The one protocol of every back end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class Outputs(NamedTuple):
    logits: Float32  # (B, 3)
    severity_map: Float32  # (B, 1, 256, 256) in [0, 1]
    lung_mask: Float32  # (B, 2, 256, 256) in [0, 1], image-left lung, image-right lung


class Session(Protocol):
    """One graph of one variant, ready to run.

    backend: onnxruntime, tensorrt, tensorrt-rtx or torch; version: of that back end; precision: fp32, fp16 or int8.
    fingerprint: what else its outputs depend on, such as settings, an engine's hash, the GPU and its driver; may be "".
    batch_sizes: those that run code of their own, so that each must be proven; empty if all run the same.
    notes: what the user should know of how it runs; may grow while it runs.
    """

    backend: str
    version: str
    precision: str
    fingerprint: str

    @property
    def batch_sizes(self) -> Sequence[int]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def run(self, batch: Float32) -> Outputs:
        """batch (B, 1, S, S) float32, C-contiguous. Not for two threads at once. EngineError if the back end fails."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """A session that can also say which patches spoke for a class; those of a graph cannot, they have no gradients."""

    def explain(self, batch: Float32, classes: Sequence[int]) -> Float32:
        """batch (B, 1, S, S) and a class an image -> relevance (B, g, g), 0 or more, to be compared within a map.

        Not for two threads at once. EngineError if the back end fails.
        """
        ...
