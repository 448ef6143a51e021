"""What networks say of records: logits, severity arrays, Dice of the lungs, findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import dice
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.zones import severity_array, zone_masks
from train.data.record import Record
from train.films import Broken, Film, Float32, films

Pooling = Literal["max", "average"]
TASKS = ("diagnosis", "severity", "lungs", "findings")


@dataclass(frozen=True)
class Networks:
    """Up to one network a task, in eval mode; one with all heads may serve several. preprocessing is per task.

    diagnosis.diagnose(image) -> (B, 3), severity.grade -> (B, 1, h, w), lungs.segment -> (B, 2, h, w),
    findings.find -> (B, 10), all of them logits; image (B, 1, S, S).
    true_masks: where an image has a human's lung masks, its severity stands on them and not on the network's.
    """

    diagnosis: nn.Module | None = None
    severity: nn.Module | None = None
    lungs: nn.Module | None = None
    findings: nn.Module | None = None
    preprocessing: Mapping[str, PreprocessConfig] = field(default_factory=dict)
    true_masks: bool = False

    def __post_init__(self) -> None:
        if len({c.aspect for c in self.preprocessing.values()}) > 1:
            raise UsageError("networks trained with aspect 'pad' and 'squash' cannot be combined; train one again")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(t for t in TASKS if getattr(self, t) is not None)

    def config(self, task: str) -> PreprocessConfig:
        return self.preprocessing.get(task, PreprocessConfig())


@dataclass(frozen=True)
class Predictions:
    """records (N); logits (N, 3); zones (N, 3, 2), NaN where no lungs were found; lung_dice (N,), NaN where unknown;
    findings: logits (N, 10). NaN throughout where no network gives it."""

    records: Sequence[Record]
    logits: Float32
    zones: Float32
    lung_dice: Float32
    findings: Float32 | None = None

    @property
    def probabilities(self) -> NDArray[np.float64]:
        z = self.logits.astype(np.float64)
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array([-1 if r.label is None else r.label for r in self.records])

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N,) severity, 0-6."""
        return self.zones.sum((1, 2)).astype(np.float64)


class Outputs(NamedTuple):
    """Of a batch, where a network gives them: logits (B, 3), maps (B, h, w) and lungs (B, 2, h, w) in 0-1,
    findings (B, 10)."""

    logits: Float32 | None
    maps: Float32 | None
    lungs: Float32 | None
    findings: Float32 | None


def run(networks: Networks, images: Mapping[str, Tensor]) -> Outputs:
    """Images by task, since networks may differ in size; a network of several tasks is run once where they agree."""
    n, nets = networks, {id(getattr(networks, task)) for task in TASKS if getattr(networks, task) is not None}
    with torch.inference_mode():
        alike = len({id(images[task]) for task in n.tasks}) == 1
        if n.diagnosis is not None and len(nets) == 1 and alike and n.tasks[:3] == TASKS[:3]:
            image = _to(images["diagnosis"], n.diagnosis)
            if n.findings is None:
                logits, maps, lungs, *_ = n.diagnosis(image)
                return Outputs(_array(logits), _array(maps)[:, 0], _array(lungs), None)
            logits, maps, lungs, findings = n.diagnosis.training_forward(image)  # type: ignore[operator]
            return Outputs(_array(logits), _array(maps.sigmoid())[:, 0], _array(lungs.sigmoid()), _array(findings))
        out: dict[str, Float32 | None] = dict.fromkeys(TASKS)
        for task, method in zip(TASKS, ("diagnose", "grade", "segment", "find"), strict=True):
            net = getattr(n, task)
            if net is not None:
                given = getattr(net, method)(_to(images[task], net))
                out[task] = _array(given.sigmoid() if task in ("severity", "lungs") else given)
    graded = out["severity"]
    return Outputs(out["diagnosis"], None if graded is None else graded[:, 0], out["lungs"], out["findings"])


def _to(image: Tensor, net: nn.Module) -> Tensor:
    weight = next(net.parameters(), None)
    moved = image if weight is None else image.to(weight.device)
    return moved.contiguous(memory_format=torch.channels_last)


def _array(t: Tensor) -> Float32:
    return np.asarray(t.float().cpu().numpy(), np.float32)


def predict_files(
    networks: Networks,
    records: Sequence[Record],
    *,
    batch: int = 8,
    pooling: Pooling = "max",
    workers: int = 0,
    broken: Broken = "error",
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """From the images' files, read and preprocessed as on the edge (a training cache rounds to 8 bits).

    broken: a file that cannot be read is an InputError, or its record is left out of the predictions.
    workers: reading threads, 0 for one a core, at most 8.
    """
    configs = {task: networks.config(task) for task in networks.tasks}
    distinct = sorted(dict.fromkeys(configs.values()), key=lambda c: -c.size)  # true masks are read on the finest grid

    logits: list[Float32] = []
    said: list[Float32] = []
    read, zones, dices = [], [], []
    ahead = films(records, distinct, workers=workers, lungs=True, broken=broken)
    while group := list(islice(ahead, batch)):
        tensors = [torch.from_numpy(np.stack([f.tensors[i] for f in group])) for i in range(len(distinct))]
        out = run(networks, {task: tensors[distinct.index(config)] for task, config in configs.items()})
        read += [f.record for f in group]
        logits.append(np.full((len(group), 3), np.nan, np.float32) if out.logits is None else out.logits)
        if out.findings is not None:
            said.append(out.findings)
        for i, film in enumerate(group):
            truth = None if film.record.lungs is None else film.lungs
            lungs = lungs_of(networks, film, out, i)
            zones.append(array_of(None if out.maps is None else out.maps[i], lungs, pooling))
            dices.append(np.nan if out.lungs is None or truth is None else _dice(out.lungs[i], truth))
        if progress:
            progress(len(read), len(records))
    return Predictions(
        read,
        np.concatenate(logits) if logits else np.zeros((0, 3), np.float32),
        np.array(zones, np.float32).reshape(-1, 3, 2),
        np.array(dices, np.float32),
        np.concatenate(said) if said else None,
    )


def lungs_of(n: Networks, film: Film, out: Outputs, row: int = 0) -> Float32 | None:
    """Masks (2, h, w) that the severity of the film, a row of the outputs, stands on; None without any."""
    truth = None if film.record.lungs is None else film.lungs
    if out.lungs is None or (n.true_masks and truth is not None):
        return truth
    return np.asarray(out.lungs[row])


def array_of(severity_map: Float32 | None, lungs: Float32 | None, pooling: Pooling = "max") -> Float32:
    """Severity array (3, 2) of a map (h, w) under masks (2, h', w'), brought to the map's grid; NaN without either."""
    nothing = np.full((3, 2), np.nan, np.float32)
    if severity_map is None or lungs is None:
        return nothing
    found = zone_masks(resized(lungs, severity_map.shape))
    return nothing if found is None else severity_array(severity_map, found, pooling=pooling)


def resized(masks: Float32, shape: tuple[int, ...]) -> Float32:
    """(2, h, w) -> (2, *shape); as it is where that is its shape."""
    if masks.shape[1:] == tuple(shape):
        return masks
    how = cv2.INTER_AREA if masks.shape[1] > shape[0] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(m, (shape[1], shape[0]), interpolation=how) for m in masks])


def _dice(lungs: Float32, truth: Float32) -> float:
    """Of the union of both lungs, on the truth's grid."""
    return dice(resized(lungs, truth.shape[1:]).max(0) >= 0.5, truth.max(0) >= 0.5)
