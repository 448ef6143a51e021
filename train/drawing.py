"""How each figure looks; matplotlib on its Agg canvas, without pyplot and its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.report.thumbnails import palette
from cxrvit_edge.zones import split_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE = "research use only; not for localisation"
OURS, THEIRS, LUNGS = "#ffd400", "#33dd55", "#60d6f0"  # the paper's Fig. 7: radiologist green, model yellow
MOST_FILMS = 8  # over a course; the first, the last and some between
Gray = NDArray[np.uint8]
Bool = NDArray[np.bool_]


def _figure(width: float, height: float, caption: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.supxlabel(f"{caption}\n{NOTE}", fontsize=8, color="#333333")
    return figure


def _film(ax: Axes, shown: Gray, title: str) -> None:
    ax.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


def _outline(ax: Axes, mask: Bool, colour: str, width: float = 1.3) -> None:
    if mask.any() and not mask.all():
        ax.contour(mask.astype(np.float32), levels=[0.5], colors=[colour], linewidths=[width])


def draw_saliency(
    shown: Gray, maps: Mapping[str, NDArray[np.float32]], probabilities: NDArray[np.float64] | None, label: str | None
) -> Figure:
    """shown (h, w), a map (h, w) of relevance by class: Fig. 5."""
    tall = 2.9 * shown.shape[0] / shown.shape[1]
    caption = "Relevance propagated through the transformer; each map from 0 to its own largest value"
    figure = _figure(2.9 * (1 + len(maps)), tall + 0.9, caption)
    axes = figure.subplots(1, 1 + len(maps))
    _film(axes[0], shown, "radiograph" if label is None else f"radiograph, labelled {label}")
    for k, (ax, (name, values)) in enumerate(zip(axes[1:], maps.items(), strict=True)):
        chance = "" if probabilities is None else f", p = {probabilities[k]:.2f}"
        _film(ax, shown, name + chance)
        largest = float(values.max())
        share = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
        drawn = ax.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * np.sqrt(share))
    bar = figure.colorbar(drawn, ax=list(axes), fraction=0.015, pad=0.01, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("relevance, of the largest", fontsize=7)
    return figure


def draw_severity(
    shown: Gray,
    severity: NDArray[np.float32] | None,
    lungs: Bool | None,
    lesion: Bool | None,
    array: NDArray[np.float32],
    truth: NDArray[np.float64],
    threshold: float,
    brixia_threshold: float,
) -> Figure:
    """Fig. 6: radiograph, map inside the lungs (h, w), contour at the threshold with the zones, array (3, 2)."""
    from matplotlib.colors import ListedColormap

    found = bool(np.isfinite(array).all())
    score = f"severity {array.sum():.2f} of 6" if found else "no score: two lungs were not found"
    if np.isfinite(truth).all():
        score += f"; radiologist {truth.sum():.0f} (a zone counts from Brixia {brixia_threshold:g})"
    tall = 2.9 * shown.shape[0] / shown.shape[1]
    reached = "" if lesion is not None and lesion.any() else ", which no pixel reaches"
    figure = _figure(13.2, tall + 0.9, f"{score}. Contour: severity map >= {threshold:g} inside the lungs{reached}")
    axes = figure.subplots(1, 4, width_ratios=[1, 1.15, 1, 0.9])
    _film(axes[0], shown, "radiograph")
    _film(axes[1], shown, "severity map")
    colours = ListedColormap([tuple(c) for c in palette()[:-1] / 255])
    if severity is not None:
        drawn = axes[1].imshow(np.ma.masked_equal(severity, 0), cmap=colours, vmin=0, vmax=1)
        figure.colorbar(drawn, ax=axes[1], fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    _film(axes[2], shown, "zones and contour")
    for lung in () if lungs is None else lungs:
        _zones(axes[2], lung)
    if lesion is not None:
        _outline(axes[2], lesion, OURS, 1.6)
    _array(axes[3], array, truth, colours)
    return figure


def _zones(ax: Axes, lung: Bool) -> None:
    _outline(ax, lung, LUNGS, 0.9)
    rows = split_rows(lung)
    for row in rows[1:3] if rows else ():
        columns = np.flatnonzero(lung[min(row, lung.shape[0] - 1)])
        if columns.size:
            ax.plot([columns[0], columns[-1]], [row, row], color=LUNGS, linewidth=0.9, linestyle="--")


def _array(ax: Axes, array: NDArray[np.float32], truth: NDArray[np.float64], colours: Any) -> None:
    ax.imshow(np.nan_to_num(array), cmap=colours, vmin=0, vmax=1, aspect="equal")
    for row in range(3):
        for side in range(2):
            value, known = array[row, side], truth[row, side]
            text = f"{value:.2f}" if np.isfinite(value) else "none"
            if np.isfinite(known):
                text += f"\n({known:.0f})"
            ax.text(side, row, text, ha="center", va="center", fontsize=10)
    ax.set_xticks([0, 1], ["image-left", "image-right"], fontsize=8)
    ax.set_yticks([0, 1, 2], ["upper", "middle", "lower"], fontsize=8)
    ax.set_xticks([0.5], minor=True)
    ax.set_yticks([0.5, 1.5], minor=True)
    ax.grid(which="minor", color="#666666", linewidth=0.8)
    ax.tick_params(which="both", length=0)
    ax.set_title("severity array" + (" (radiologist)" if np.isfinite(truth).any() else ""), fontsize=9)


def draw_contour(shown: Gray, ours: Bool, theirs: Bool, overlap: float, iou: float, threshold: float) -> Figure:
    """Fig. 7: the contour of the map beside the radiologist's outline, all (h, w)."""
    from matplotlib.lines import Line2D

    caption = f"Dice {overlap:.2f}, IoU {iou:.2f}; model's contour: severity map >= {threshold:g} inside the lungs"
    figure = _figure(7.4, 3.5 * shown.shape[0] / shown.shape[1] + 1.0, caption)
    axes = figure.subplots(1, 2)
    _film(axes[0], shown, "radiograph")
    _film(axes[1], shown, "areas of involvement")
    _outline(axes[1], theirs, THEIRS)
    _outline(axes[1], ours, OURS)
    model = "model" if ours.any() else "model: nothing reaches it"
    lines = [Line2D([], [], color=THEIRS, label="radiologist"), Line2D([], [], color=OURS, label=model)]
    axes[1].legend(handles=lines, loc="lower right", fontsize=7, framealpha=0.7)
    return figure


def draw_course(
    films: Sequence[Gray],
    days: NDArray[np.float64],
    scores: NDArray[np.float64],
    truth: NDArray[np.float64],
    brixia_threshold: float,
) -> Figure:
    """films (h, w) each, days and scores (N,), the radiologist's (N,), NaN where unknown; oldest first."""
    chosen = np.unique(np.linspace(0, len(films) - 1, min(len(films), MOST_FILMS)).round().astype(int))
    caption = "Severity of one patient over time"
    if np.isfinite(truth).any():
        caption += f"; radiologist: zones counted from Brixia {brixia_threshold:g}"
    if missing := int((~np.isfinite(scores)).sum()):
        caption += f"; {missing} of {len(scores)} images without a score: two lungs were not found"
    figure = _figure(max(6.0, 1.5 * len(chosen)), 5.2, caption)
    grid = figure.add_gridspec(2, len(chosen), height_ratios=[1, 1.8])
    for k, i in enumerate(chosen):
        _film(figure.add_subplot(grid[0, k]), films[i], f"day {days[i]:g}")
    ax = figure.add_subplot(grid[1, :])
    known = np.isfinite(scores)
    ax.plot(days[known], scores[known], "-o", color="#b3202c", label="network")
    known = np.isfinite(truth)
    if known.any():
        ax.plot(days[known], truth[known], "s", color="#1f5fa8", fillstyle="none", markersize=8, label="radiologist")
    ax.set_ylim(-0.2, 6.2)
    ax.set_xlabel("day", fontsize=9)
    ax.set_ylabel("severity score, 0-6", fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure
