"""A recipe's optimiser and arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cxrvit_edge.errors import UsageError
from train.recipe import Recipe


def optimizer_of(module: nn.Module, r: Recipe) -> torch.optim.Optimizer:
    """Over what is trained of `module`; weight decay for matrices and kernels only. `rate` of a group is its share of
    the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            rate = r.encoder_rate if "encoder" in name.split(".") else 1.0
            groups.setdefault((rate, r.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    kinds: list[dict[str, Any]] = [{"params": p, "rate": k[0], "weight_decay": k[1]} for k, p in groups.items()]
    if r.optimizer == "sgd":
        return torch.optim.SGD(kinds, lr=r.lr, momentum=r.momentum)
    return (torch.optim.Adam if r.optimizer == "adam" else torch.optim.AdamW)(kinds, lr=r.lr)


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """What autocast computes in; float32 turns it off. UsageError for fp16 on a CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        raise UsageError("--precision fp16 is for a GPU; use fp32 or bf16 on a CPU")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
