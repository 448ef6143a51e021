"""Checkpoint -> weights.safetensors of a bundle: BatchNorm folded, FP16, one-dimensional parameters float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cxrvit_edge.errors import BundleError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet

TRAINING_ONLY = ("pcam.",)
HALF_MAX = 65504.0


def write_weights(net: TriageNet, path: Path, extra: Mapping[str, Any]) -> TriageNet:
    """Store `net` at `path`; returns the reference: the network of the stored weights, in float32 arithmetic.

    BundleError if a weight does not fit in FP16.
    """
    folded = fold(net)
    tensors = {}
    for name, value in folded.state_dict().items():
        if name.startswith(TRAINING_ONLY) or name.endswith("num_batches_tracked"):
            continue
        if value.ndim > 1:
            if float(value.abs().max()) > HALF_MAX:
                raise BundleError(
                    f"{name}: a weight of {float(value.abs().max()):.3g} does not fit FP16; train with decay"
                )
            value = value.to(torch.float16)
        tensors[name] = value
    checkpoint.save(path, tensors, folded.config, extra)
    stored, config, _ = checkpoint.load(path)
    return checkpoint.network(stored, config, name=str(path))
