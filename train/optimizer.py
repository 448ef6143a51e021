"""A recipe's optimiser and arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cxrvit_edge.errors import UsageError
from train.recipe import Recipe


def optimizer_of(module: nn.Module, r: Recipe) -> torch.optim.Optimizer:
    """Over what is trained of `module`; weight decay for matrices and kernels only."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": r.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if r.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum)
    return (torch.optim.Adam if r.optimizer == "adam" else torch.optim.AdamW)(groups, lr=r.lr)


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """What autocast computes in; float32 turns it off. UsageError for fp16 on a CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        raise UsageError("--precision fp16 is for a GPU; use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
