"""Checkpoint -> weights.safetensors of a bundle: every value one that FP16 has, so that an FP16 graph rounds no weight.

BatchNorm is folded where it follows a convolution; one that stands alone is stored as its scale and shift. Rounded by
an engine instead, they would shift each channel the same way for every film, more than all else that it rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrvit_edge.errors import BundleError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.folding import fold, settle
from cxrvit_edge.model.triage_net import TriageNet

TRAINING_ONLY = ("pcam.",)
HALF_MAX, HALF_LEAST = 65504.0, 2.0**-14  # what lies between has eleven significant bits in half


def write_weights(net: TriageNet, path: Path, extra: Mapping[str, Any]) -> TriageNet:
    """Store `net` at `path`; returns the reference: the network of the stored weights, in float32 arithmetic.

    One-dimensional parameters are float32 on disk. BundleError if a weight does not fit in FP16.
    """
    folded = fold(net)
    for module in folded.modules():
        if isinstance(module, nn.BatchNorm2d):
            settle(module)
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
        elif not name.endswith(("running_mean", "running_var")):
            value = _in_half(value)
        tensors[name] = value
    checkpoint.save(path, tensors, folded.config, extra)
    stored, config, _ = checkpoint.load(path)
    return checkpoint.network(stored, config, name=str(path))


def _in_half(value: Tensor) -> Tensor:
    """Rounded to what half has; what is too large or small for it stays."""
    size = value.abs()
    return torch.where((size >= HALF_LEAST) & (size <= HALF_MAX), value.half().float(), value)
