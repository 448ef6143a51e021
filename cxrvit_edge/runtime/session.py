"""The one protocol of every back end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


OUTPUTS = ("logits", "severity_map", "lung_mask")  # of every graph
EMBEDDING = "embedding"  # of graphs that have it


class Outputs(NamedTuple):
    """embedding: the class token after the encoder; None of a graph without that output."""

    logits: Float32  # (B, 3)
    severity_map: Float32  # (B, 1, 256, 256) in [0, 1]
    lung_mask: Float32  # (B, 2, 256, 256) in [0, 1], image-left lung, image-right lung
    embedding: Float32 | None = None  # (B, D)

    def rows(self, at: Any) -> Outputs:
        """Of a slice or an array of indices."""
        embedding = None if self.embedding is None else self.embedding[at]
        return Outputs(self.logits[at], self.severity_map[at], self.lung_mask[at], embedding)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """One after the other; without embedding where one part has none."""
    if len(parts) == 1:
        return parts[0]
    logits, maps, lungs = (np.concatenate(values) for values in zip(*(part[:3] for part in parts), strict=True))
    embeddings = [part.embedding for part in parts if part.embedding is not None]
    return Outputs(logits, maps, lungs, np.concatenate(embeddings) if len(embeddings) == len(parts) else None)


def named(names: Sequence[str]) -> list[str]:
    """Of a graph's outputs those that are `Outputs`, in their order."""
    return [*OUTPUTS, *([EMBEDDING] if EMBEDDING in names else [])]


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
