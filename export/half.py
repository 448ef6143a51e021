"""The reference network in half precision, without a GPU: float32 arithmetic, every result rounded to half.

ONNX Runtime's CPU does not round between operations and so hides overflow; here infinities stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cxrvit_edge.errors import EngineError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.runtime.session import Float32, Outputs

HALF_MAX = 65504.0
# Move or choose values that are rounded already: rounding them again changes nothing.
EXACT = {"cat", "relu", "max_pool2d", "reshape", "flatten", "view", "transpose", "permute", "select", "slice", "unbind"}
EXACT |= {"expand", "clone", "contiguous", "detach", "alias", "to", "_to_copy"}


class HalfSession:
    """`weights` in half, each operation's floating output rounded to half.

    One operation is what an engine keeps in registers: a convolution or a linear layer with its bias, LayerNorm,
    softmax(QK^T)V; BatchNorm is a product and a sum, as in the exported graph. `peaks`: largest absolute value before
    rounding over all runs, by the module that computed it; NaN counts as infinite. `NAME.scores` is the largest scaled
    QK^T of an attention, which only an engine that does not fuse it would round.
    """

    backend = "torch"
    precision = "fp16"
    fingerprint = "float32, rounded to half"
    batch_sizes: Sequence[int] = ()
    notes: Sequence[str] = ()

    def __init__(self, weights: Path, *, device: str = "cpu") -> None:
        tensors, config, _ = checkpoint.load(weights)
        net = checkpoint.network(tensors, config, name=str(weights))
        for name, module in list(net.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                net.set_submodule(name, _Affine(module))
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(_rounded(value))
        self._net = net.to(device)
        self._device = device
        self._running: list[str] = []  # modules, the innermost last
        self.peaks: dict[str, float] = {}
        self.version: str = torch.__version__
        for name, module in self._net.named_modules():
            module.register_forward_pre_hook(self._enter(name or "network"))
            module.register_forward_hook(self._leave, always_call=True)

    def run(self, batch: Float32) -> Outputs:
        try:
            with torch.inference_mode():
                image = _rounded(torch.from_numpy(batch).to(self._device))
                with _Rounding(self._saw):
                    values = self._net(image)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(f"torch failed on a batch of shape {batch.shape} ({error})") from error
        return Outputs(*(v.cpu().numpy() for v in values))

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _inputs: self._running.append(name)

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._running.pop()

    def _saw(self, value: Tensor, part: str = "") -> None:
        low, high = (float(v) for v in torch.aminmax(value))
        peak = max(-low, high) if low == low and high == high else float("inf")
        name = (self._running[-1] if self._running else "network") + part
        self.peaks[name] = max(peak, self.peaks.get(name, 0.0))


def overflow_margin(session: HalfSession) -> tuple[float, str]:
    """How many times the largest value fits into half, and the module it came from.

    Under 1 if something overflowed.
    """
    inside = {name: peak for name, peak in session.peaks.items() if not name.endswith(".scores")}
    name = max(inside, key=inside.__getitem__)
    return HALF_MAX / inside[name] if inside[name] else float("inf"), name


class _Affine(nn.Module):
    """BatchNorm in eval mode as x scale + shift, computed in float64: a variance of 1e-9 has no half, its scale has."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            shift = norm.bias.double() - norm.running_mean.double() * scale
        self.register_buffer("scale", scale.float().view(-1, 1, 1))
        self.register_buffer("shift", shift.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class _Rounding(TorchDispatchMode):
    """Rounds what each operation gives; `saw` is told of it before."""

    def __init__(self, saw: Callable[..., None]) -> None:
        super().__init__()
        self._saw = saw

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in EXACT:
            return out
        if "scaled_dot_product" in name:
            query, key = args[0], args[1]
            self._saw(query @ key.transpose(-2, -1) * (kwargs.get("scale") or query.shape[-1] ** -0.5), ".scores")
        if isinstance(out, Tensor):
            return self._half(out, args)
        return type(out)(self._half(v, args) for v in out) if isinstance(out, (tuple, list)) else out

    def _half(self, value: Any, args: tuple[Any, ...]) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        self._saw(value)
        half = _rounded(value)
        return value.copy_(half) if any(value is a for a in args) else half  # an operation in place stays one


def _rounded(value: Tensor) -> Tensor:
    return value.half().float()
