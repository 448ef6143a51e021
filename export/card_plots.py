"""The model card's plots: SVG text of docs/model_card, from what `python -m benchmarks crossval` committed."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrvit_edge.discrimination import LEAST_IMAGES, MEAN
from export.card_crossval import BY_SOURCE, EDGE, RESULTS, Found, load, pooled
from export.card_drawing import (
    draw_reliability,
    draw_roc,
    draw_selective,
    draw_severity,
    draw_sources,
    draw_zones,
    scorers,
)
from export.card_words import said

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path("docs") / "model_card"  # from the root of the repository, as the card links it
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "cxrvit-edge",
    "svg.fonttype": "none",  # text stays text, in the reader's own font: a third of the size, and it can be searched
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],  # laid out in the widest
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Plot:
    """caption and draw: of the folds of patients, and of each source left out where that is there."""

    name: str
    needs: Callable[[Found], Any]
    alt: str
    caption: Callable[[Found, Found | None], str]
    draw: Callable[[Found, Found | None], Figure]

    @property
    def link(self) -> str:
        return f"{FOLDER.as_posix()}/{self.name}.svg"


def block(results: Path = RESULTS) -> str:
    """The plots with their captions, as Markdown; empty without a cross-validation."""
    c, by_source = load(EDGE, results), load(BY_SOURCE, results)
    found = [] if c is None else [p for p in PLOTS if p.needs(c)]
    if c is None or not found:
        return ""
    parts = [f"![{p.alt}]({p.link})\n\n{p.caption(c, by_source)}" for p in found]
    return "\n\n".join(["### Plots of the cross-validation", *parts])


def write(root: Path, results: Path = RESULTS) -> list[Path]:
    """Draw what `block` links, under the root of a repository; what is no longer linked goes."""
    c, by_source = load(EDGE, results), load(BY_SOURCE, results)
    folder, kept = root / FOLDER, []
    for plot in PLOTS:
        if c is not None and plot.needs(c):
            folder.mkdir(parents=True, exist_ok=True)
            kept.append(folder / f"{plot.name}.svg")
            kept[-1].write_text(svg(plot, c, by_source, digest(results)), encoding="utf-8")
    for old in {folder / f"{plot.name}.svg" for plot in PLOTS} - set(kept):
        old.unlink(missing_ok=True)
    return kept


def digest(results: Path = RESULTS) -> str:
    """SHA-256 of the JSONs that plots are drawn from; it stands in each of them."""
    paths = (results / f"crossval_{name}.json" for name in (EDGE, BY_SOURCE))
    return hashlib.sha256(b"\0".join(p.read_bytes() if p.is_file() else b"" for p in paths)).hexdigest()


def svg(plot: Plot, c: Found, by_source: Found | None, source: str) -> str:
    """The same bytes for the same figures and the same matplotlib."""
    from matplotlib import rc_context

    with rc_context(SETTINGS):
        out = io.StringIO()
        plot.draw(c, by_source).savefig(out, format="svg", metadata={"Date": None, "Source": f"sha256:{source}"})
    short = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), out.getvalue())
    return re.sub(r"[ \t]+\n", "\n", short)


def _roc_caption(c: Found, _: Found | None) -> str:
    inside = "; ".join(f"{pair} {said(e)}" for pair, e in c["auc_within_source"].items())
    return (
        f"ROC curves with pointwise 95 % bands. Pooled, mean AUC {said(pooled(c, MEAN))}: a network gains there by "
        f"telling sources apart. Inside one source: {inside}."
    )


def _reliability_caption(c: Found, _: Found | None) -> str:
    e = c["curves"]["reliability"]
    return (
        f"How often the label is right, over its probability, in bins of at least {LEAST_IMAGES} films (area: films): "
        f"expected calibration error {said(e['as_trained']['ece'])} as trained, {said(e['scaled']['ece'])} with a "
        "temperature fitted on the other folds."
    )


def _selective_caption(c: Found, _: Found | None) -> str:
    e = c["curves"]["selective"]["groups"]["all"]
    return (
        f"Wrong labels among the films that are decided, when the least sure are left to a person. All decided: "
        f"{said(e['error'])} wrong. Prediction sets name one class for {said(e['single'])} of the films; of those "
        f"{said(e['error_single'])} are wrong."
    )


def _severity_caption(c: Found, _: Found | None) -> str:
    said_of = []
    for cut, e in c["severity"].items():
        if e["images"]:
            said_of.append(f"{cut}: " + "; ".join([*scorers(e), f"constant, MSE {said(e['constant']['mse'], 2)}"]))
    return (
        "Severity score out of fold over the senior radiologist's, beside the junior's score of the same films "
        f"(median, quartiles, least and largest). {'. '.join(said_of)}."
    )


def _zones_caption(c: Found, _: Found | None) -> str:
    means = "; ".join(f"{cut} {said(e['zone_auc_mean'])}" for cut, e in c["severity"].items() if e["images"])
    return f"Whether a zone is affected, by the map's value there: AUC of each zone. Mean of the six: {means}."


def _sources_caption(c: Found, by_source: Found | None) -> str:
    inside = [e["value"] for e in c["auc_within_source"].values() if e["value"] is not None]
    gap = f" ({min(inside):.3f} to {max(inside):.3f})" if inside else ""
    return (
        f"The pooled figure (mean {said(pooled(c, MEAN))}) next to what remains where the source gives nothing away"
        f"{gap}, and where the view gives nothing away either"
        f"{', and of a source that was left out of training' if by_source is not None else ''}. Counts: films of each "
        "class."
    )


def _has(*keys: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda c: all(c.get("curves", {}).get(key) for key in keys)


PLOTS = (
    Plot("sources", _has("roc"), "AUC pooled, and inside each source and view", _sources_caption, draw_sources),
    Plot("roc", _has("roc"), "ROC curves, pooled and inside each source", _roc_caption, draw_roc),
    Plot("reliability", _has("reliability"), "Reliability diagram", _reliability_caption, draw_reliability),
    Plot("selective", _has("selective"), "Risk against coverage", _selective_caption, draw_selective),
    Plot("severity", _has("severity"), "Severity against the senior radiologist", _severity_caption, draw_severity),
    Plot("zones", _has("severity"), "AUC of each zone", _zones_caption, draw_zones),
)
