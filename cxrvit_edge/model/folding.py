"""BatchNorm folded into the convolution before it: the stored weights are those that every engine multiplies by.

An engine that folds for itself rounds the product to half again; folded and rounded once, all agree with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from cxrvit_edge.model.densenet import DenseLayer
from cxrvit_edge.model.triage_net import TriageNet


def _pairs(net: TriageNet) -> Iterator[tuple[str, str]]:
    """Names of (convolution, BatchNorm right after it)."""
    yield "backbone.features.conv0", "backbone.features.norm0"
    for name, module in net.named_modules():
        if isinstance(module, DenseLayer):
            yield f"{name}.conv1", f"{name}.norm2"
        elif isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            yield f"{name}.0", f"{name}.1"


def fold(net: TriageNet) -> TriageNet:
    """The same function in eval mode, with config.folded set."""
    if net.config.folded:
        return net
    state = dict(net.state_dict())
    for conv, norm in _pairs(net):
        module = net.get_submodule(norm)
        assert isinstance(module, nn.BatchNorm2d)
        scale, shift = _affine(module)
        weight = state[f"{conv}.weight"].double()
        state[f"{conv}.weight"] = (weight * scale.view(-1, 1, 1, 1)).float()
        state[f"{conv}.bias"] = shift.float()
        for key in [k for k in state if k.startswith(f"{norm}.")]:
            del state[key]
    folded = TriageNet(replace(net.config, folded=True))
    folded.load_state_dict(state)
    return folded.eval()


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale, norm.bias.double() - norm.running_mean.double() * scale
