"""Where a run's weights start: another run's or a bundle's (public ones: train/networks/public_weights.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.bundle import WEIGHTS
from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.folding import unfold

POSITION = "encoder.position"


def start_from(net: nn.Module, path: Path, images: Callable[[], Iterable[Tensor]]) -> str:
    """Load what `path` (a checkpoint, a run's folder or a bundle) shares with `net`, by name and shape; in words.

    A bundle's BatchNorm is folded: it is unfolded on `images` ((B, 1, S, S), of training), which keeps the function.
    A position embedding of another grid is resampled. UsageError if nothing of its trunk fits.
    """
    if path.is_dir():
        path = path / (WEIGHTS if (path / WEIGHTS).is_file() else "model.safetensors")
    tensors, config, extra = checkpoint.load(path)
    if config.folded:
        folded = checkpoint.network(tensors, config, name=str(path))
        absent = {k for k in folded.state_dict() if k not in tensors and not k.endswith("num_batches_tracked")}
        tensors = {k: v for k, v in unfold(folded, images()).state_dict().items() if k not in absent}
    prefix = "objective.net."  # last.safetensors of a run
    if any(k.startswith(prefix) for k in tensors):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return _load(net, {k: v.float() for k, v in tensors.items()}, f"{path} ({extra.get('stage', 'bundle')})")


def _load(net: nn.Module, tensors: dict[str, Tensor], name: str) -> str:
    own = net.state_dict()
    if POSITION in tensors and POSITION in own and tensors[POSITION].shape != own[POSITION].shape:
        tensors[POSITION] = _resampled(tensors[POSITION], own[POSITION])
    fits = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    trunk = [k for k in own if k.startswith("backbone.")] or list(own)
    if not any(k in fits for k in trunk):
        raise UsageError(f"{name}: nothing in it fits this network; name weights of the same --network")
    net.load_state_dict(fits, strict=False)
    learned = sum(v.numel() for v in own.values())
    loaded = sum(v.numel() for v in fits.values())
    rest = sorted({k.split(".")[0] for k in own if k not in fits})
    return f"weights from {name}: {loaded / learned:.0%}" + (f"; anew: {', '.join(rest)}" if rest else "")


def _resampled(position: Tensor, like: Tensor) -> Tensor:
    """(1, 1 + g g, D) on another grid; as it is of another width, which will not fit."""
    if position.shape[-1] != like.shape[-1]:
        return position
    first, rest = position[:, :1], position[:, 1:]
    g, h = round(rest.shape[1] ** 0.5), round((like.shape[1] - 1) ** 0.5)
    grid = rest.transpose(1, 2).reshape(1, -1, g, g)
    grid = F.interpolate(grid, (h, h), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)
