"""A run on disk: everything that going on needs, in one safetensors file, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from train.data.record import Record


def data_digest(records: Sequence[Record]) -> str:
    """Of what a run learns from: files by name and size, splits and labels. Another digest is other data."""
    digest = hashlib.sha256()
    for r in records:
        known = [None if a is None else a.tolist() for a in (r.findings, r.brixia, r.zones)]
        what = (r.path.name, r.path.stat().st_size if r.path.is_file() else 0, r.source, r.split, r.label, r.lungs_kind)
        digest.update(f"{what}{known}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def save(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: NetworkConfig,
    extra: Mapping[str, Any],
) -> None:
    tensors: dict[str, Tensor] = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
    for i, entries in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in entries.items() if v is not None})
    checkpoint.save(path, tensors, config, {**extra, "scaler": scaler.state_dict()})


def restore(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: NetworkConfig,
    same: Mapping[str, Any],
) -> dict[str, Any]:
    """Load `path` and return its extra. UsageError where one of `same` is another there: it would not be one run."""
    tensors, found, extra = checkpoint.load(path)
    wanted = json.loads(json.dumps(dict(same)))
    other = [k for k, v in wanted.items() if extra.get(k) != v]
    if found != config:
        other.insert(0, "network")
    if other:
        raise UsageError(
            f"{path}: an unfinished run with another {' and '.join(other)}; name another --out, or --fresh to drop it"
        )
    for name, module in modules.items():
        start = f"{name}."
        module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if extra["scaler"]:
        scaler.load_state_dict(extra["scaler"])
    return extra
