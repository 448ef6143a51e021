"""The golden set: generated films as raw pixels, their preprocessed tensors, and the outputs each variant must give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime.golden import MAP_STEPS, normalised
from cxrvit_edge.runtime.session import EMBEDDING, Outputs

FILMS = (  # seed, height, width, lesions, view, bits: both depths, both aspects, shrunk and enlarged
    (101, 560, 512, "none", "PA", 16),
    (102, 480, 420, "focal", "PA", 8),
    (103, 448, 544, "diffuse", "AP", 16),
    (104, 640, 600, 0.5, "AP", 8),
)


def write_inputs(path: Path, config: PreprocessConfig) -> Float32:
    """Store pixels and tensors; returns the tensors as stored, (N, 1, S, S): golden outputs are theirs."""
    arrays: dict[str, NDArray[np.generic]] = {}
    tensors = []
    for i, (seed, height, width, lesions, view, bits) in enumerate(FILMS):
        film = make_phantom(seed, height=height, width=width, lesions=lesions, view=view)  # type: ignore[arg-type]
        pixels = film.pixels if bits == 16 else (film.pixels >> 4).astype(np.uint8)
        arrays[f"pixels_{i}"] = pixels
        tensors.append(preprocess(Radiograph(pixels), config)[0])
    stacked = np.stack(tensors)
    before = np.clip(np.rint(stacked[:, 0] * config.scale + config.offset), 0, 255).astype(np.uint8)
    np.savez_compressed(path, inputs=before, **arrays)  # type: ignore[arg-type]
    return normalised(before, config)


def write_outputs(path: Path, outputs: Mapping[str, Outputs]) -> None:
    """Store the outputs of each graph; maps as uint16, 1/65535 a step; the embedding where there is one."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for graph, values in outputs.items():
        arrays[f"{graph}.logits"] = values.logits.astype(np.float32)
        for name in ("severity_map", "lung_mask"):
            arrays[f"{graph}.{name}"] = np.rint(getattr(values, name) * MAP_STEPS).astype(np.uint16)
        if values.embedding is not None:
            arrays[f"{graph}.{EMBEDDING}"] = values.embedding.astype(np.float32)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
