"""How each plot of the model card looks; matplotlib on its own canvas, without pyplot and its global state.

Colours are Okabe and Ito's, told apart by the colour-blind; lines and marks differ by dash and shape too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrvit_edge.benchmark.charts import style
from cxrvit_edge.discrimination import LEAST_IMAGES, MEAN
from cxrvit_edge.model.config import CLASSES
from export.card_crossval import VIEWS, Found, pooled, within
from export.card_words import said

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.0  # inches; 600 px on a page
GREY, LINE = "#56616b", "#c9d0d5"
LEGEND = {"frameon": True, "framealpha": 0.85, "edgecolor": "none", "borderpad": 0.2, "handlelength": 1.6}


def _axes(height: float, panels: int = 1, **more: Any) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = np.ravel(figure.subplots(1, panels, **more)).tolist()
    for ax in axes:
        ax.grid(color=LINE, linewidth=0.6, alpha=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(ax: Axes, x: Sequence[float], e: Found, index: int, label: str, alpha: float = 0.16) -> None:
    colour, dash = style(index)
    dashes = [float(v) for v in dash.split()] if dash else []
    value, low, high = (np.array([np.nan if v is None else v for v in e[k]]) for k in ("value", "low", "high"))
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    ax.plot(x, value, color=colour, linewidth=1.5, linestyle=(0, dashes) if dashes else "-", label=label)


def _words(name: str) -> str:
    """Of a class or a pair of classes, as people write it."""
    return name.replace("other_infection", "other infection").replace("covid19", "COVID-19")


def draw_roc(c: Found, _: Found | None) -> Figure:
    roc = c["curves"]["roc"]
    figure, axes = _axes(3.5, 2, sharey=True)
    for i, name in enumerate(CLASSES):
        label = f"{_words(name)}\n{said(pooled(c, name), 2)}"
        _line(axes[0], roc["rates"], roc["curves"][name], i, label)
    for i, (pair, e) in enumerate(c["auc_within_source"].items()):
        _line(axes[1], roc["rates"], roc["curves"][pair], i + len(CLASSES), _pair(pair) + f"\n{said(e, 2)}")
    for ax, title in zip(axes, ("pooled: a class against the rest", "inside one source"), strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel="false positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        ax.legend(loc="lower right", **LEGEND)
    axes[0].set_ylabel("sensitivity")
    return figure


def _pair(pair: str) -> str:
    source, _, classes = pair.partition(": ")
    return f"{source}: {_words(classes).replace(' against ', chr(10) + 'against ')}"


def draw_reliability(c: Found, _: Found | None) -> Figure:
    figure, axes = _axes(3.4, 2, sharey=True)
    titles = {"as_trained": "as trained", "scaled": "with temperature"}
    for i, (ax, (key, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        e, colour = c["curves"]["reliability"][key], style(i)[0]
        bins = [b for b in e["bins"] if b["count"] >= LEAST_IMAGES]
        most = max((b["count"] for b in bins), default=1)
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for b in bins:
            if b["low"] is not None:
                ax.plot([b["confidence"]] * 2, [b["low"], b["high"]], color=colour, linewidth=1.2)
        sizes = [14 + 70 * b["count"] / most for b in bins]
        ax.scatter([b["confidence"] for b in bins], [b["value"] for b in bins], sizes, colour, edgecolor="white")
        ax.text(0.98, 0.04, f"ECE {said(e['ece'])}", ha="right", transform=ax.transAxes)
        ax.set(title=title, xlabel="highest probability", xlim=(0.3, 1.01), ylim=(0.0, 1.02))
    axes[0].set_ylabel("share with the right label")
    return figure


def draw_selective(c: Found, _: Found | None) -> Figure:
    found = c["curves"]["selective"]
    figure, (ax,) = _axes(3.3)
    for i, (name, e) in enumerate(found["groups"].items()):
        what = "all films" if name == "all" else f"{name} alone"
        _line(ax, found["shares"], e["curve"], i, f"{what}: {e['images']}", 0.13)
        if e["single"]["value"] is not None and e["error_single"]["value"] is not None:
            place = ([e["single"]["value"]], [e["error_single"]["value"]])
            ax.plot(*place, "o", color=style(i)[0], markeredgecolor="white", markersize=8)
    ax.plot([], [], "o", color=GREY, markeredgecolor="white", markersize=8, label="sets of one class")
    half = [
        v for e in found["groups"].values() for v in e["curve"]["high"][len(found["shares"]) // 2 :] if v is not None
    ]
    ax.set(xlabel="share of films decided, the surest first", ylabel="share of those with a wrong label")
    ax.set(xlim=(0.04, 1.01), ylim=(0, 1.05 * max(half, default=1.0) or 1.0))
    figure.legend(loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    return figure


def draw_severity(c: Found, _: Found | None) -> Figure:
    cuts = {name: e for name, e in c["severity"].items() if e["images"] and name in c["curves"]["severity"]}
    figure, axes = _axes(3.6, len(cuts), sharey=True)
    for ax, (cut, e) in zip(axes, cuts.items(), strict=True):
        ax.plot([0, 6], [0, 6], color=GREY, linewidth=0.8, linestyle=":")
        rows = c["curves"]["severity"][cut]["by_score"]
        for i, (who, shift) in enumerate((("network", -0.14), ("second", 0.14))):
            for b in (b for b in rows if b[who]):
                _spread(ax, b["score"] + shift, b[who]["five"], i)
        for i, label in enumerate(scorers(e)):
            ax.plot([], [], "os"[i], color=style(i)[0], linewidth=4, label=label)
        counts = [f"{b['score']}\n{b['network']['images']}" for b in rows]
        ax.set_xticks([b["score"] for b in rows], counts)
        ax.set(title=f"a zone counts from {cut.replace('brixia>=', 'Brixia ')}", ylim=(-0.2, 7.9), yticks=range(7))
        ax.set_xlabel("senior's score; films")
        ax.legend(loc="upper left", **LEGEND)
    axes[0].set_ylabel("score, 0-6")
    return figure


def scorers(e: Found) -> list[str]:
    labels = [f"network, MSE {said(e['mse'], 2)}"]
    if r := e["radiologists"]:
        labels.append(f"junior, MSE {said(r['second_against_first']['mse'], 2)}")
    return labels


def _spread(ax: Axes, x: float, five: Sequence[float], index: int) -> None:
    """Least to largest, quartiles thick, the median a mark."""
    colour = style(index)[0]
    ax.plot([x, x], [five[0], five[4]], color=colour, linewidth=0.9)
    ax.plot([x, x], [five[1], five[3]], color=colour, linewidth=4, alpha=0.75, solid_capstyle="butt")
    ax.plot([x], [five[2]], "os"[index], color=colour, markeredgecolor="white", markersize=6)


def draw_zones(c: Found, _: Found | None) -> Figure:
    figure, (ax,) = _axes(3.2)
    found = {cut: e["zones"] for cut, e in c["curves"]["severity"].items()}
    names = list(next(iter(found.values())))
    for i, (cut, zones) in enumerate(found.items()):
        for row, name in enumerate(names):
            _dot(ax, zones[name], -row + 0.14 - 0.28 * i, i, "os"[i % 2])
        whole = said(c["severity"][cut]["zone_auc"], 2)
        what = cut.replace("brixia>=", "affected from Brixia ")
        ax.plot([], [], "os"[i % 2] + "-", color=style(i)[0], label=f"{what}; all zones {whole}")
    affected = [" / ".join(str(zones[name]["affected"]) for zones in found.values()) for name in names]
    ax.set_yticks([-row for row in range(len(names))], [f"{n}: {a}" for n, a in zip(names, affected, strict=True)])
    _auc_axis(ax, "AUC of the zone's value (films with the zone affected, by cut)")
    figure.legend(loc="outside upper center", ncols=1, fontsize=8.5, frameon=False)
    return figure


def draw_sources(c: Found, by_source: Found | None) -> Figure:
    """Pooled figures next to those inside a source, and inside a source and view."""
    rows: list[tuple[str, Found | None, Found | None, int]] = [
        (f"pooled: {_words(name) if name != MEAN else 'mean of three'}", pooled(c, name), None, 0)
        for name in (MEAN, *CLASSES)
    ]
    for pair in c["auc_within_source"]:
        for view in ("", *VIEWS):
            e = within(c, pair, view)
            if e is not None:
                source, _, classes = pair.partition(": ")
                counts = f"{e['images'][1]} and {e['images'][0]}"
                short = _words(classes).replace("against", "v.")
                label = f"{source}, {view} alone: {counts}" if view else f"{source}: {short}: {counts}"
                rows.append((label, e, within(by_source, pair, view) if by_source else None, 2 if view else 1))
    marks = {"s": "pooled over sources", "o": "inside one source", "^": "inside one source and view"}
    if by_source is not None:
        marks["D"] = "source left out of training"
    figure, (ax,) = _axes(0.9 + 0.29 * len(rows))
    for row, (_, e, left_out, index) in enumerate(rows):
        if e is not None:
            _dot(ax, e, -row + (0.14 if left_out else 0), index, "so^"[index])
        if left_out is not None:
            _dot(ax, left_out, -row - 0.16, 3, "D")
    ax.set_yticks([-row for row in range(len(rows))], [label for label, *_ in rows])
    for index, (mark, label) in enumerate(marks.items()):
        ax.plot([], [], mark + "-", color=style(index)[0], label=label)
    _auc_axis(ax, "AUC, 95 % interval")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    return figure


def _dot(ax: Axes, e: Found, y: float, index: int, mark: str) -> None:
    if e["value"] is None:
        return
    colour = style(index)[0]
    if e["low"] is not None:
        ax.plot([e["low"], e["high"]], [y, y], color=colour, linewidth=1.8)
    ax.plot([e["value"]], [y], mark, color=colour, markeredgecolor="white", markersize=7)


def _auc_axis(ax: Axes, label: str) -> None:
    least = min((x for line in ax.lines for x in np.atleast_1d(line.get_xdata())), default=0.5)
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel=label, xlim=(min(0.48, float(least) - 0.02), 1.005))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
