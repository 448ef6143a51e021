"""safetensors in and out, the config in the header. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet


def save(
    path: Path, tensors: Mapping[str, Tensor], config: NetworkConfig, extra: Mapping[str, Any] | None = None
) -> None:
    """Write atomically: a reader sees the old file or the new one, never a part."""
    from safetensors.torch import save_file

    metadata = {"config": config.to_json(), "extra": json.dumps(dict(extra or {})), "format": "cxrvit-edge"}
    temporary = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
        _sort_metadata(temporary)
        temporary.chmod(0o644)  # safetensors writes 0600, which other users of a box could not read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """safetensors writes its metadata in hash order, another each run; sorted, equal content gives equal files."""
    with path.open("r+b") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = f.read(length).decode()
        start = len('{"__metadata__":')
        metadata, end = json.JSONDecoder().raw_decode(header, start)
        ordered = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False)
        if len(ordered) == end - start:  # or its escapes differ, and it stays as it is
            f.seek(8 + start)
            f.write(ordered.encode())


def load(path: Path) -> tuple[dict[str, Tensor], NetworkConfig, dict[str, Any]]:
    """Tensors, config and extras. BundleError if the file is not one of ours or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such checkpoint; name the .safetensors file that training wrote") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error}); name a .safetensors file that you may read") from error
    except SafetensorError as error:
        raise BundleError(f"{path}: damaged or not a safetensors file ({error}); copy it again") from error
    if "config" not in metadata:
        raise BundleError(f"{path}: no network config in its header; it was not written by this project")
    try:
        return tensors, NetworkConfig.from_json(metadata["config"]), json.loads(metadata.get("extra", "{}"))
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: its header is damaged ({error}); copy it again") from error


def network(tensors: Mapping[str, Tensor], config: NetworkConfig, *, name: str = "checkpoint") -> TriageNet:
    """The network in eval mode, float32 arithmetic on the stored weights. A head that it never reads may be absent."""
    net = TriageNet(config)
    own = net.state_dict()
    if other := [k for k, v in tensors.items() if k in own and v.shape != own[k].shape]:
        raise BundleError(f"{name}: weights do not fit preset {config.preset!r}: other shapes in {other[:3]}")
    missing, unexpected = net.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    spare = () if net.weighing else ("pcam.",)
    missing = [k for k in missing if not k.startswith(spare) and not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise BundleError(
            f"{name}: weights do not fit preset {config.preset!r}: "
            f"missing {missing[:3]}, unexpected {list(unexpected)[:3]}"
        )
    if bad := [k for k, v in net.state_dict().items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
        raise BundleError(f"{name}: weights are not finite in {bad[:3]}; training diverged, take an earlier checkpoint")
    return net.eval()
