"""What each block costs when it alone is INT8, and the ladder: the worst go back to FP16 until the bounds hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export import surgery
from export.count import multiply_adds
from export.exact import Measured, Yardstick
from export.quantise import Form, Scale, quantisable, quantise

if TYPE_CHECKING:
    import onnx

_UNIT = re.compile(
    r"backbone\.features\.(denseblock\d+\.denselayer\d+|transition\d+)|encoder\.blocks\.\d+\.(attn|fc)|encoder\.\w+"
    r"|severity\.blocks\.\d+|lungs\.\w+"
)


@dataclass(frozen=True)
class Rung:
    """A step of the ladder. kept: units left in FP16, the worst first; operations: weighted nodes in INT8."""

    kept: tuple[str, ...]
    operations: int
    of: int
    multiply_adds: float  # share of all that are INT8
    flips: int
    logits_rms: float
    probability: float
    severity_mae: float
    within: bool

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kept": list(self.kept)}

    def __str__(self) -> str:
        last = f", {self.kept[-1]} in FP16" if self.kept else ""
        return (
            f"{self.operations} of {self.of} in INT8 ({self.multiply_adds:.1%} of the multiply-adds): "
            f"{self.flips} flips, RMS {self.logits_rms:.2%}, "
            f"largest probability difference {self.probability:.4f}, severity MAE {self.severity_mae:.4f}{last}"
        )


def unit(node: str) -> str:
    """The block that a weighted node belongs to: a dense layer, a transition, an attention, an MLP, a decoder stage."""
    match = _UNIT.match(node)
    return match.group(0) if match else node


def units(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Unit -> its nodes that may be INT8, in graph order."""
    found: dict[str, list[str]] = {}
    for w in quantisable(model):
        found.setdefault(unit(w.node), []).append(w.node)
    return found


def costs(
    model: onnx.ModelProto,
    scales: Mapping[str, Scale],
    yardstick: Yardstick,
    cost: Callable[[Measured], float] = lambda m: m.logits_rms,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Unit -> cost when it alone is INT8; the worst first."""
    found = {}
    parts = units(model)
    for done, (name, nodes) in enumerate(parts.items(), 1):
        alone = surgery.copy(model)
        quantise(alone, nodes, scales, "tensorrt")
        found[name] = cost(yardstick.measure(alone))
        if progress:
            progress(done, len(parts))
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1], nan=np.inf)))


def ladder(
    model: onnx.ModelProto,
    scales: Mapping[str, Scale],
    yardstick: Yardstick,
    order: Sequence[str],
    within: Callable[[Measured], bool],
    form: Form = "tensorrt",
) -> Iterator[Rung]:
    """Everything in INT8, then ever more units of `order` in FP16, until `within` or nothing is left.

    The form for ONNX Runtime is measured by its integer kernels, the other in exact arithmetic.
    """
    parts, work = units(model), multiply_adds(model)
    everything = [n for nodes in parts.values() for n in nodes]
    for count in _steps(len(order)):
        kept = tuple(order[:count])
        left_out = {n for name in kept for n in parts[name]}
        nodes = [n for n in everything if n not in left_out]
        step = surgery.copy(model)
        quantise(step, nodes, scales, form)
        found = yardstick.measure(step, exact=form == "tensorrt")
        holds = within(found)
        share = sum(work[n] for n in nodes) / sum(work.values())
        told = (found.flips, found.logits_rms, found.probability, found.severity_mae)
        yield Rung(kept, len(nodes), len(everything), share, *told, holds)
        if holds:
            return


def _steps(n: int) -> Iterator[int]:
    """0, 1, 2, 3, 4, 6, 8, 11, ... n: one at a time while each still tells something."""
    count = 0
    while count < n:
        yield count
        count += 1 + count // 4
    yield n
