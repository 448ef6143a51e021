"""`python -m export.card`: the figures of MODEL_CARD.md between its two markers, and its plots in docs/model_card.

From the bundle's own manifest and, where they are committed, benchmarks/results/crossval_edge.json,
crossval_by_source.json and those of what edge was held against (`python -m benchmarks crossval`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import RATES
from cxrvit_edge.selective import GUARANTEE
from export import card_plots
from export.card_crossval import RESULTS, blocks
from export.card_words import number, row, said

BEGIN, END = "<!-- figures: python -m export.card -->", "<!-- /figures -->"


def generated(bundle: Bundle, results: Path = RESULTS) -> str:
    """All that stands between the markers; what is not committed in `results` is left out."""
    return "\n\n".join(part for part in (figures(bundle), *blocks(results), card_plots.block(results)) if part)


def figures(bundle: Bundle) -> str:
    """Markdown tables of the val and test evaluation in the manifest."""
    raw = bundle.manifest.raw
    parts = []
    chosen = "operating points, prediction sets" if raw.get("selective") else "operating points"
    for split, title in (("val", f"Validation ({chosen} and temperature chosen here)"), ("test", "Test")):
        if split in raw["evaluation"]:
            parts.append(_split(title, raw["evaluation"][split], raw))
    parts.append(_variants(raw["variants"]))
    parts.append(f"Temperature {raw['temperature']:.3f}.")
    return "\n\n".join(parts)


def _variants(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Each variant against the reference, on val and test together."""
    held = {name: v["parity"] for name, v in variants.items() if v["parity"]}
    first = next(iter(held.values()))
    lines = [
        "### Variants against the reference",
        "",
        (
            f"Reference: {first['reference']}. {first['splits']['both']['images']} images of val and test. Flips: "
            "images whose label, a flag or status is another."
        ),
        "",
        (
            "| variant | flips | largest probability difference | RMS logit difference, of their std | severity MAE "
            "| mean AUC, difference | 95 % interval | measured on |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in held.items():
        found = record["splits"]["both"]
        gap = found["auc"]["mean"]["difference"]
        lines.append(
            f"| {name} | {found['flips']['images']} | {found['probabilities']['largest']:.2g} "
            f"| {found['logits']['rms_of_std']:.2%} | {found['severity']['mae']:.2g} | {gap['value']:+.5f} "
            f"| {gap['low']:+.5f} to {gap['high']:+.5f} | {record['executor']} |"
        )
    for v in variants.values():
        if q := v.get("quantisation"):  # the same of int8 and int8-cpu
            lines.append("")
            lines.append(
                f"INT8: {q['int8_operations']} of {q['operations']} weighted operations and "
                f"{q['int8_multiply_adds']:.1%} of {q['multiply_adds'] / 1e9:.1f} G multiply-adds; range: "
                f"{q['range']['tensorrt']} (for processors {q['range']['onnxruntime']}), chosen on val; calibrated on "
                f"{v['calibration']['chosen']} images of the training split."
            )
            break
    return "\n".join(lines)


def _split(title: str, e: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    lines = [
        f"### {title}",
        "",
        f"{e['images']} images, {e['labelled']} of them with a diagnosis label, from {e['patients']} patients.",
        "",
        "| AUC, one against the rest | value | 95 % interval |",
        "| --- | --- | --- |",
        *(f"| {name} | {row(v)} |" for name, v in e["auc"].items()),
        "",
        "| AUC inside one source (images of each class) | value | 95 % interval |",
        "| --- | --- | --- |",
        *(
            f"| {name} ({v['images'][0]} and {v['images'][1]}) | {row(v)} |"
            for name, v in e["auc_within_source"].items()
        ),
        "",
        *_rates("Operating point", e["operating_points"], raw["operating_points"]),
        *(
            _rates("At 95 % sensitivity (`--sensitivity 95`)", e["sensitive_points"], raw["sensitive_points"])
            if "sensitive_points" in e
            else ()
        ),
        *(_selective(e["selective"]) if "selective" in e else ()),
        "| Severity (0-6) against Brixia zones | images | MSE | 95 % interval | best constant's MSE | MAE | CC | R2 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_severity(name, v) for name, v in e["severity"].items()),
        "",
        "| Lung Dice by mask convention | images | value | 95 % interval |",
        "| --- | --- | --- | --- |",
        *(f"| {kind} | {v['images']} | {row(v)} |" for kind, v in e["lung_dice"].items()),
    ]
    if "refused_by_guard" in e:
        lines += ["", f"Turned away by the input guard: {e['refused_by_guard']} of {e['images']}."]
    return "\n".join(lines)


def _rates(title: str, found: Mapping[str, Any], points: Mapping[str, float]) -> list[str]:
    return [
        f"| {title} | threshold | sensitivity | specificity | accuracy |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {points[name]:.3f} | {' | '.join(number(v[rate]) for rate in RATES)} |"
            for name, v in found.items()
        ),
        "",
    ]


def _selective(e: Mapping[str, Any]) -> list[str]:
    least = 1 - e["threshold"]
    shares = [("all", e), *e["by_class"].items(), *((f"source {name}", v) for name, v in e["by_source"].items())]
    return [
        (
            f"| Prediction sets (`--selective`): classes with a probability of at least {least:.3f}, for a coverage of "
            f"{100 * (1 - e['alpha']):g} % | images | coverage | 95 % interval | sets of one class | 95 % interval |"
        ),
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {name} | {v['images']} | {row(v['coverage'])} | {row(v['single'])} |" for name, v in shares),
        "",
        (
            f"The label is right on {said(e['accuracy'])} of all, on {said(e['accuracy_single'])} of those with a "
            f"set of one class; area under the curve of risk and coverage {said(e['aurc'])}. {GUARANTEE}"
        ),
        "",
    ]


def _severity(name: str, v: Mapping[str, Any]) -> str:
    if not v["images"]:
        return f"| {name} | 0 | not measured | | | | | |"
    i = v["mse_interval"]
    interval = "not defined" if i["low"] is None else f"{i['low']:.2f} to {i['high']:.2f}"
    rest = " | ".join(number(v[name], 2) for name in ("mse_constant", "mae", "cc", "r2"))
    return f"| {name} | {v['images']} | {v['mse']:.2f} | {interval} | {rest} |"


def update(card: Path, bundle: Bundle, results: Path = RESULTS) -> bool:
    """Put the figures into the card and its plots beside it; True if its text changed.

    UsageError if the markers are gone.
    """
    text = card.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UsageError(f"{card}: the lines {BEGIN!r} and {END!r} must mark where the figures go")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    new = f"{head}{BEGIN}\n\n{generated(bundle, results)}\n\n{END}{tail}"
    card_plots.write(card.parent, results)
    card.write_text(new, encoding="utf-8")
    return new != text


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "MODEL_CARD.md"
    print(f"{path.name} {'updated' if update(path, Bundle.open()) else 'unchanged'}")
