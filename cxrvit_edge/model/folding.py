"""BatchNorm folded into the convolution before it, or settled: the stored weights are those that every engine uses.

An engine that folds for itself rounds the product to half again; folded and rounded once, all agree with the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def settle(norm: nn.BatchNorm2d) -> None:
    """The same function in eval mode, in place: weight is the scale, bias the shift, mean 0, variance and eps 1."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale, shift = _affine(norm)
    with torch.no_grad():
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale, norm.bias.double() - norm.running_mean.double() * scale


def unfold(net: TriageNet, images: Iterable[Tensor]) -> TriageNet:
    """The same function with BatchNorm again, so that training can go on: statistics are those of `images`.

    images: batches (B, 1, H, W) as training gives them. A convolution's bias moves into the normalisation after it;
    scale and shift of every normalisation undo the statistics.
    """
    if not net.config.folded:
        return net
    plain = TriageNet(replace(net.config, folded=False))
    state, folded = plain.state_dict(), net.state_dict()
    state.update({k: v for k, v in folded.items() if k in state})
    norms = {name: m for name, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for conv, norm in _pairs(plain):
        state[f"{norm}.weight"].fill_(1.0)
        state[f"{norm}.bias"].copy_(folded[f"{conv}.bias"])
        state[f"{norm}.running_var"].fill_(1 - norms[norm].eps)
    plain.load_state_dict(state)
    for module in norms.values():
        settle(module)  # scale and shift alone, until its input has been seen
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, x: Tensor) -> None:
        mean, square = x.double().mean((0, 2, 3)), x.double().square().mean((0, 2, 3))
        seen.setdefault(name, []).append(torch.stack([mean, square]))

    hooks = [
        m.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0])) for name, m in norms.items()
    ]
    with torch.inference_mode():
        for batch in images:
            plain.eval()(batch)
    for hook in hooks:
        hook.remove()
    for name, module in norms.items():
        assert module.running_mean is not None and module.running_var is not None
        mean, square = torch.stack(seen[name]).mean(0)
        variance = (square - mean.square()).clamp_min(1e-8)
        with torch.no_grad():
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            mean, variance = module.running_mean.double(), module.running_var.double()  # as they are stored
            scale = module.weight.double()
            module.bias.copy_(module.bias.double() + scale * mean)
            module.weight.copy_(scale * (variance + module.eps).sqrt())
    return plain
