"""Any network of the paper from its config, and from a checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.triage_net import TriageNet


def build(config: NetworkConfig) -> nn.Module:
    """The network that config.network names, in training mode. UsageError for a setting that is the cxrvit's alone."""
    if config.network == "cxrvit":
        return TriageNet(config)
    for name, only in (("stride", 32), ("trunk_size", 0), ("corpus", "before"), ("folded", False)):
        if (value := getattr(config, name)) != only:
            raise UsageError(f"{config.network}: {name} {value!r} is for the cxrvit network; leave it at {only!r}")
    if config.network == "unet":
        from train.networks.unet import UNet

        return UNet(config)
    if config.network == "adain":
        from train.networks.adain import AdaINSegmenter

        return AdaINSegmenter(config)
    if config.network in ("vit", "hybrid"):
        from train.networks.vit import HybridViT, ViT

        return ViT(config) if config.network == "vit" else HybridViT(config)
    from train.networks.convolutional import Convolutional

    return Convolutional(config)


def load(path: Path) -> tuple[nn.Module, NetworkConfig, dict[str, Any]]:
    """Network in eval mode, config and extras of a checkpoint. BundleError if its weights do not fit its config."""
    tensors, config, extra = checkpoint.load(path)
    if config.network == "cxrvit":
        return checkpoint.network(tensors, config, name=str(path)), config, extra
    net = build(config)
    _fill(net, tensors, f"{path}: weights do not fit the network {config.network!r}")
    if bad := [k for k, v in net.state_dict().items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
        raise BundleError(f"{path}: weights are not finite in {bad[:3]}; training diverged, take an earlier checkpoint")
    return net.eval(), config, extra


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], fault: str) -> None:
    own = net.state_dict()
    if other := [k for k, v in tensors.items() if k in own and v.shape != own[k].shape]:
        raise BundleError(f"{fault}: other shapes in {other[:3]}; it was written by another version, train it again")
    missing, unexpected = net.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise BundleError(
            f"{fault}: missing {missing[:3]}, unexpected {list(unexpected)[:3]}; "
            "it was written by another version, train it again"
        )
