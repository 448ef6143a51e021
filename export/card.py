"""`python -m export.card`: the figures of MODEL_CARD.md, from the bundle's own manifest, between its two markers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError

BEGIN, END = "<!-- figures: python -m export.card -->", "<!-- /figures -->"


def figures(bundle: Bundle) -> str:
    """Markdown tables of the val and test evaluation in the manifest."""
    raw = bundle.manifest.raw
    parts = []
    for split, title in (("val", "Validation (operating points and temperature chosen here)"), ("test", "Test")):
        if split in raw["evaluation"]:
            parts.append(_split(title, raw["evaluation"][split], raw["operating_points"]))
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


def _split(title: str, e: Mapping[str, Any], points: Mapping[str, float]) -> str:
    lines = [
        f"### {title}",
        "",
        f"{e['images']} images, {e['labelled']} of them with a diagnosis label, from {e['patients']} patients.",
        "",
        "| AUC, one against the rest | value | 95 % interval |",
        "| --- | --- | --- |",
        *(f"| {name} | {_row(v)} |" for name, v in e["auc"].items()),
        "",
        "| AUC inside one source (images of each class) | value | 95 % interval |",
        "| --- | --- | --- |",
        *(
            f"| {name} ({v['images'][0]} and {v['images'][1]}) | {_row(v)} |"
            for name, v in e["auc_within_source"].items()
        ),
        "",
        "| Operating point | threshold | sensitivity | specificity | accuracy |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {points[name]:.3f} | {v['sensitivity']:.3f} | {v['specificity']:.3f} | {v['accuracy']:.3f} |"
            for name, v in e["operating_points"].items()
        ),
        "",
        "| Severity (0-6) against Brixia zones | images | MSE | 95 % interval | best constant's MSE | MAE | CC | R2 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_severity(name, v) for name, v in e["severity"].items()),
        "",
        "| Lung Dice by mask convention | images | value | 95 % interval |",
        "| --- | --- | --- | --- |",
        *(f"| {kind} | {v['images']} | {_row(v)} |" for kind, v in e["lung_dice"].items()),
    ]
    if "refused_by_guard" in e:
        lines += ["", f"Turned away by the input guard: {e['refused_by_guard']} of {e['images']}."]
    return "\n".join(lines)


def _row(v: Mapping[str, Any]) -> str:
    if v["low"] is None:
        return f"{_number(v['value'])} | not defined"
    return f"{_number(v['value'])} | {v['low']:.3f} to {v['high']:.3f}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _severity(name: str, v: Mapping[str, Any]) -> str:
    if not v["images"]:
        return f"| {name} | 0 | not measured | | | | | |"
    i = v["mse_interval"]
    interval = "not defined" if i["low"] is None else f"{i['low']:.2f} to {i['high']:.2f}"
    rest = f"{v['mse_constant']:.2f} | {v['mae']:.2f} | {v['cc']:.2f} | {v['r2']:.2f}"
    return f"| {name} | {v['images']} | {v['mse']:.2f} | {interval} | {rest} |"


def update(card: Path, bundle: Bundle) -> bool:
    """Put the figures into the card; True if it changed. UsageError if the markers are gone."""
    text = card.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UsageError(f"{card}: the lines {BEGIN!r} and {END!r} must mark where the figures go")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    new = f"{head}{BEGIN}\n\n{figures(bundle)}\n\n{END}{tail}"
    card.write_text(new, encoding="utf-8")
    return new != text


if __name__ == "__main__":
    path = Path(__file__).parent.parent / "MODEL_CARD.md"
    print(f"{path.name} {'updated' if update(path, Bundle.open()) else 'unchanged'}")
