"""How large activations get on the calibration images, and the scale that an estimator makes of it.

One pass per graph: |x| of every tensor to be quantised goes into a histogram whose range doubles as it must, and the
largest |x| of every channel is kept for migration (export/migrate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError
from cxrvit_edge.preprocess import Float32
from export import surgery
from export.quantise import LEVELS, UNSIGNED_LEVELS, Form, Scale

if TYPE_CHECKING:
    import onnx

BINS = 4096
LEAST = 1e-30  # of a first limit: BINS over less than that is no float32
STRIDE = 3  # every third element of a row into the histogram; maxima see all
ESTIMATORS = ("minmax", "entropy", "percentile", "mse")


@dataclass
class Range:
    """|x| of one tensor: counts (BINS,) over [0, limit), largest value, largest of each channel, whether it is signed.

    channel_max (C,): axis 1 of (B, C, H, W), the last axis of (B, T, C).
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0
    largest: float = 0.0
    signed: bool = False
    channel_max: NDArray[np.float32] | None = None

    def add(self, x: Float32) -> None:
        """UsageError if it is not finite: nothing can be said of the range then."""
        axes = tuple(i for i in range(x.ndim) if i != (1 if x.ndim == 4 else x.ndim - 1))
        low, high = x.min(axis=axes), x.max(axis=axes)
        channels = np.maximum(np.abs(low), np.abs(high))
        top = float(channels.max())
        if not np.isfinite(top):
            raise UsageError("an activation is not finite on a calibration image; the network has diverged")
        self.signed |= bool(low.min() < 0)
        self.channel_max = channels if self.channel_max is None else np.maximum(self.channel_max, channels)
        self.largest = max(self.largest, top)
        if top == 0.0:
            return
        if self.limit == 0.0:
            self.limit = max(top, LEAST) * 1.0001
        while top >= self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        sample = np.abs(x.reshape(-1)[::STRIDE])
        index = (sample * np.float32(BINS / self.limit)).astype(np.int32)
        self.counts += np.bincount(np.minimum(index, BINS - 1), minlength=BINS)

    @property
    def centres(self) -> NDArray[np.floating]:
        return (np.arange(BINS) + 0.5) * (self.limit / BINS)


def collect(model: onnx.ModelProto, tensors: Sequence[str], images: Iterable[Float32]) -> dict[str, Range]:
    """Run `model` (float32) on each image (1, 1, S, S) and note `tensors`."""
    session = tapped(model, tensors)
    found = {name: Range() for name in tensors}
    for image in images:
        for name, value in zip(tensors, session.run(list(tensors), {"image": image}), strict=True):
            found[name].add(value)
    return found


def tapped(model: onnx.ModelProto, tensors: Sequence[str]) -> Any:
    """An ONNX Runtime session with `tensors` among its outputs."""
    import onnx
    import onnxruntime as ort

    open_ = surgery.copy(model)
    have = {o.name for o in open_.graph.output}
    for name in tensors:
        if name not in have:
            open_.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(open_.SerializeToString(), options, providers=["CPUExecutionProvider"])


def threshold(r: Range, estimator: str, *, percentile: float = 99.99, levels: int = 127) -> float:
    """Largest |x| that is kept: what lies above is clipped to it. `levels` steps on each side of zero."""
    if r.largest == 0.0:
        return 1.0
    if estimator == "minmax":
        return r.largest
    if estimator == "percentile":
        cumulative = np.cumsum(r.counts) / r.counts.sum()
        k = int(np.searchsorted(cumulative, percentile / 100))
        return min(r.largest, (k + 1) * r.limit / BINS)
    if estimator == "entropy":
        return min(r.largest, _entropy(r, levels))
    if estimator == "mse":
        return min(r.largest, _least_error(r, levels))
    raise UsageError(f"--range {estimator}: choose one of {', '.join(ESTIMATORS)}")


def _least_error(r: Range, levels: int) -> float:
    """Candidate with the least squared error of rounding and clipping over the histogram."""
    x, n = r.centres, r.counts.astype(np.float64)
    best, chosen = np.inf, r.largest
    for t in r.largest * np.geomspace(0.02, 1.0, 120):
        step = t / levels
        error = (np.minimum(np.rint(x / step), levels) * step - x) ** 2
        loss = float((error * n).sum())
        if loss < best:
            best, chosen = loss, float(t)
    return chosen


def _entropy(r: Range, levels: int) -> float:
    """Least Kullback-Leibler divergence between the clipped histogram and its rounding to `levels` steps (Migacz 2017).

    On one side of zero, as the tensors are symmetric or not negative; zeros themselves cost nothing and are left out.
    ONNX Runtime's own search gives a threshold too, at a second a tensor: 170 seconds here against one.
    """
    counts = r.counts.astype(np.float64)
    counts[0] = counts[1]
    best, chosen = np.inf, r.largest
    top = min(BINS, int(np.ceil(r.largest / r.limit * BINS)))
    for stop in np.unique(np.linspace(levels, top, 160).astype(int)):
        p = counts[:stop].copy()
        p[-1] += counts[stop:].sum()
        edges = (np.arange(levels) * stop) // levels  # first bin of each step
        filled = counts[:stop] > 0
        mass, members = np.add.reduceat(counts[:stop], edges), np.add.reduceat(filled, edges)
        q = np.repeat(mass / np.maximum(members, 1), np.diff([*edges, stop])) * filled
        if q.sum() == 0 or p.sum() == 0:
            continue
        seen = p > 0
        p, q = p[seen] / p.sum(), np.maximum(q[seen] / q.sum(), 1e-12)
        loss = float((p * np.log(p / q)).sum())
        if loss < best:
            best, chosen = loss, float(stop * r.limit / BINS)
    return chosen


def scales(ranges: Mapping[str, Range], estimator: str, *, percentile: float = 99.99, form: Form) -> dict[str, Scale]:
    """What `quantise` takes, of every tensor in `ranges`."""
    found = {}
    for name, r in ranges.items():
        levels = UNSIGNED_LEVELS if form == "onnxruntime" and not r.signed else LEVELS
        found[name] = Scale(threshold(r, estimator, percentile=percentile, levels=levels), not r.signed)
    return found
