"""Figures 5 to 7 of the paper, and the course of one patient's severity, drawn for given images.

A file is named by the first 12 hex digits of its image's SHA-256; neither names nor captions hold a patient's id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import dice
from cxrvit_edge.model.config import CLASSES
from cxrvit_edge.report.thumbnails import thumbnail
from cxrvit_edge.zones import clean_lung
from train.data.record import Record
from train.drawing import draw_contour, draw_course, draw_saliency, draw_severity
from train.films import Broken, Film, Float32, films
from train.predict import Networks, Outputs, Pooling, array_of, lungs_of, resized, run
from train.severity_eval import brixia_scores, zone_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("saliency", "severity", "contour", "course")
ROOT = Path(__file__).resolve().parents[1]
Explain = Callable[[nn.Module, Tensor, int], Tensor]  # network, image (B, 1, S, S), class -> relevance (B, g, g)


@dataclass(frozen=True)
class Judged:
    """A film with what the networks say of it. All maps lie over the thumbnail (h, w), source over the image (H, W).

    lesion: severity map at or over the threshold, inside the lungs; array (3, 2), NaN where no lungs were found.
    """

    film: Film
    name: str  # of the file, by its SHA-256
    shown: NDArray[np.uint8]  # (h, w)
    probabilities: NDArray[np.float64] | None  # (3,)
    severity: Float32 | None  # (h, w), 0 outside the lungs
    lungs: NDArray[np.bool_] | None  # (2, h, w)
    lesion: NDArray[np.bool_] | None  # (H, W)
    array: Float32

    @property
    def score(self) -> float:
        return float(self.array.sum())


def figures(
    records: Sequence[Record],
    networks: Networks,
    out: Path,
    kinds: Sequence[str] = KINDS,
    *,
    threshold: float = 0.5,
    brixia_threshold: float = 1.0,
    pooling: Pooling = "max",
    limit: int = 12,
    explain: Explain | None = None,
    broken: Broken = "error",
) -> list[Path]:
    """Draw each kind for the first `limit` records (patients, for "course") that have what it needs; PNG files.

    saliency (Fig. 5): relevance for each class; severity (Fig. 6): score, array, map, contour; contour (Fig. 7): beside
    the radiologist's outline (Record.opacity); course: score over the days of a patient with images of two days.
    threshold: of the severity map, for contours (ours; the paper states none). explain: cxrvit_edge.model.relevance.
    broken: a file that cannot be read is an InputError, or its figures are left out.
    UsageError if `out` lies in this repository, for a kind there is not, or if nothing can be drawn.
    """
    if out.resolve().is_relative_to(ROOT):
        raise UsageError(f"{out}: lies in this repository, where no patient's image may be; name a folder outside it")
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"figure {sorted(unknown)[0]!r}: choose from {', '.join(KINDS)}")
    wanted = {kind: _suited(kind, records, networks)[:limit] for kind in kinds}
    if not any(wanted.values()):
        raise UsageError(
            f"none of the {len(records)} images suits {', '.join(kinds)}: saliency needs a diagnosis network, severity "
            "one of severity and lungs, contour an outline as well, course two dated images of a patient"
        )
    if wanted.get("saliency") and explain is None:
        explain = _relevance(networks)
    out.mkdir(parents=True, exist_ok=True)
    seen = sorted({i for groups in wanted.values() for rows in groups for i in rows})
    tasks = networks.tasks
    configs = list(dict.fromkeys(networks.config(task) for task in tasks))
    judged: dict[int, Judged] = {}
    paths = []
    rows_read = iter(seen)
    for film in films([records[i] for i in seen], configs, lungs=True, broken=broken):
        i = next(i for i in rows_read if records[i] is film.record)
        tensors = [torch.from_numpy(t)[None] for t in film.tensors]
        images = {task: tensors[configs.index(networks.config(task))] for task in tasks}
        one = _judge(film, networks, run(networks, images), threshold, pooling)
        for kind in ("saliency", "severity", "contour"):
            if [i] in wanted.get(kind, []):
                if kind == "saliency":
                    assert explain is not None and networks.diagnosis is not None
                    figure = _saliency(one, networks.diagnosis, images["diagnosis"], explain)
                elif kind == "severity":
                    figure = _severity(one, threshold, brixia_threshold)
                else:
                    figure = _contour(one, threshold)
                paths.append(_save(figure, out / f"{kind}-{one.name}.png"))
        if any(i in rows for rows in wanted.get("course", [])):
            judged[i] = one
    for rows in wanted.get("course", []):
        course = [judged[i] for i in rows if i in judged]
        if len({one.film.record.day for one in course}) < 2:  # the others could not be read
            continue
        paths.append(_save(_course(course, brixia_threshold), out / f"course-{course[0].name}.png"))
    if not paths:
        raise UsageError(f"none of the {len(seen)} images to draw can be read; look at them with inspect")
    return paths


def _suited(kind: str, records: Sequence[Record], n: Networks) -> list[list[int]]:
    """Rows of each figure of the kind: one image, or a patient's, oldest first."""
    if kind == "saliency":
        return [[i] for i in range(len(records))] if n.diagnosis is not None else []
    if n.severity is None:
        return []
    usable = [i for i, r in enumerate(records) if n.lungs is not None or r.lungs is not None]
    if kind == "severity":
        return [[i] for i in usable]
    if kind == "contour":
        return [[i] for i in usable if records[i].opacity is not None]
    patients: dict[str, list[int]] = {}
    for i in usable:
        if records[i].day is not None:
            patients.setdefault(records[i].patient, []).append(i)
    courses = [sorted(rows, key=lambda i: records[i].day or 0.0) for rows in patients.values()]
    return [rows for rows in courses if len({records[i].day for i in rows}) > 1]


def _relevance(networks: Networks) -> Explain:
    from cxrvit_edge.model.relevance import relevance
    from cxrvit_edge.model.triage_net import TriageNet

    if not isinstance(networks.diagnosis, TriageNet):
        raise UsageError("saliency is propagated through the transformer of a cxrvit network; name such a run")
    return relevance  # type: ignore[return-value]


def _judge(film: Film, networks: Networks, out: Outputs, threshold: float, pooling: Pooling) -> Judged:
    shown = thumbnail(film.radiograph)
    h, w = shown.shape
    probabilities = None
    if out.logits is not None:
        z = np.exp(out.logits[0].astype(np.float64) - out.logits[0].max())
        probabilities = z / z.sum()
    masks = lungs_of(networks, film, out)
    severity = lungs = lesion = None
    if out.maps is not None and masks is not None:
        lungs = _lungs(film, masks, h, w)
        severity = np.clip(film.geometry.to_source(out.maps[0], h, w), 0, 1) * lungs.any(0)
        inside = _lungs(film, masks, film.geometry.height, film.geometry.width).any(0)
        lesion = (film.geometry.to_source(out.maps[0]) >= threshold) & inside
    return Judged(
        film,
        hashlib.sha256(film.record.path.read_bytes()).hexdigest()[:12],
        shown,
        probabilities,
        severity,
        lungs,
        lesion,
        array_of(None if out.maps is None else out.maps[0], masks, pooling),
    )


def _lungs(film: Film, masks: Float32, height: int, width: int) -> NDArray[np.bool_]:
    return np.stack([clean_lung(film.geometry.to_source(m, height, width) >= 0.5) for m in masks])


def _saliency(one: Judged, net: nn.Module, image: Tensor, explain: Explain) -> Figure:
    maps = {}
    device = next((p.device for p in net.parameters()), image.device)
    for k, name in enumerate(CLASSES):
        relevance = explain(net, image.to(device), k)[0].detach().float().cpu().numpy()  # (g, g)
        maps[name] = one.film.geometry.to_source(np.ascontiguousarray(relevance), *one.shown.shape)
    label = one.film.record.label
    return draw_saliency(one.shown, maps, one.probabilities, None if label is None else CLASSES[label])


def _severity(one: Judged, threshold: float, brixia_threshold: float) -> Figure:
    truth = zone_truth([one.film.record], brixia_threshold)[0]
    lesion = None if one.lesion is None else _shrunk(one.lesion, one.shown.shape)
    return draw_severity(one.shown, one.severity, one.lungs, lesion, one.array, truth, threshold, brixia_threshold)


def _contour(one: Judged, threshold: float) -> Figure:
    assert one.lesion is not None and one.film.record.opacity is not None
    truth = _outline(one.film.record.opacity, one.lesion.shape)
    overlap = dice(one.lesion, truth)
    shown = [_shrunk(m, one.shown.shape) for m in (one.lesion, truth)]
    return draw_contour(one.shown, shown[0], shown[1], overlap, overlap / (2 - overlap), threshold)


def _outline(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(H, W) of a mask file at the size of the image. UsageError if it cannot be read."""
    import cv2

    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise UsageError(f"{path.name}: cannot read this outline; it must be a one-channel image")
    if mask.shape != shape:
        mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(mask > 0)


def _shrunk(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    pair = np.stack([mask, mask]).astype(np.float32)
    return np.asarray(resized(pair, shape)[0] >= 0.5)


def _course(course: Sequence[Judged], brixia_threshold: float) -> Figure:
    records = [one.film.record for one in course]
    truth = brixia_scores(records, brixia_threshold)
    days = np.array([float(r.day or 0.0) for r in records])
    return draw_course(
        [one.shown for one in course], days, np.array([one.score for one in course]), truth, brixia_threshold
    )


def _save(figure: Figure, path: Path) -> Path:
    metadata: Mapping[str, Any] = {"Software": None}
    figure.savefig(path, dpi=150, metadata=metadata, facecolor="white")
    return path
