"""A comparison in plain words, for the terminal and the head of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cxrvit_edge.labels import LABELS
from cxrvit_edge.plain_text import count, printable
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.report.words import CLASS_NAMES, REASONS

LISTED = 10  # flips that are named on the terminal
STATUS_WORDS = {"ok": "judged"}


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """The closing words of a comparison, line by line; results and tables of others give no control characters."""
    return map(printable, _told(report))


def _told(report: Mapping[str, Any]) -> Iterator[str]:
    for letter in "ab":
        yield f"{letter.upper()}: {what(report[letter])}"
    yield from (sentence for _, sentence in sentences(report))
    named = list(flips(report))
    for kind, image, before, after in named[:LISTED]:
        yield f"flip: {kind}: {printable(image['file'])} ({(image['sha256'] or '')[:12]}): {before} -> {after}"
    if len(named) > LISTED:
        yield f"flip: {len(named) - LISTED:,} more"
    for note in report["notes"]:
        yield f"note: {note}"
    yield RESEARCH_USE


def what(side: Mapping[str, Any]) -> str:
    """One side in a line."""
    runs = " ".join(filter(None, (side["backend"], side["version"], side["precision"])))
    read = ", results of an earlier run" if side["results"] else ""
    return f"{printable(side['name'])}: {side['bundle']}, {runs}{read}"


def sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was found, each under the question that it answers, the most important first."""
    images, worklist = report["images"], report["worklist"]
    told = [report["same"]] if report["same"] else []
    if report["data"]:
        split = f" (split {report['data']['split']})" if report["data"]["split"] else ""
        told.append(f"Images: {report['data']['path']}{split}.")
    alike = report["identical"]
    told.append(
        f"{count(images['matched'], 'image')} on both sides, {images['judged']:,} judged by both; "
        f"{f'{alike:,}' if alike else 'none'} with the same result to the last digit."
    )
    if not images["matched"]:
        told.append("Nothing can be compared: no image is on both sides.")
    told += [_alone(images[f"only_in_{letter}"], letter.upper()) for letter in "ab"]
    yield "What was compared", " ".join(filter(None, told))
    if images["matched"]:
        yield "Do decisions change?", _changed(report["flips"], images["judged"])
        yield "Is the worklist the same?", " ".join(_order(worklist))
        yield "How far are the figures apart?", _sizes(report["differences"])
    if report["labels"]:
        yield "Which is right?", _right(report["labels"])


def _alone(found: Mapping[str, Any], side: str) -> str:
    if not found["count"]:
        return ""
    rest = found["count"] - len(found["first"])
    named = ", ".join(map(printable, found["first"])) + (f" and {rest:,} more" if rest else "")
    return f"{count(found['count'], 'image')} in {side} only: {named}."


def _changed(flips: Mapping[str, Any], judged: int) -> str:
    flags = sum(len(found) for found in flips["flags"].values())
    if not flips["images"] and not judged:
        return "Not known: no image was judged by both."
    if not flips["images"]:
        return f"No: label, flags and priority of all {count(judged, 'image')} that both judged stay, and every status."
    several = (
        count(flags, "flag"),
        count(len(flips["priority"]), "priority", "priorities"),
        count(len(flips["status"]), "status", "statuses"),
    )
    words = [f"{len(flips['label']):,} of {judged:,} changed their label"]
    words.append(f"{several[0]}, {several[1]} and {several[2]} changed")
    if flips["severity"]:
        words.append(f"{count(len(flips['severity']), 'score')} appeared or vanished")
    return f"{'; '.join(words)}."


def _order(worklist: Mapping[str, Any]) -> Iterator[str]:
    moved, rho, tau = worklist["moved"], worklist["spearman"], worklist["kendall"]
    if rho is None:
        yield f"No correlation is defined: {worklist['why']}."
    else:
        start = f"{count(moved, 'image')} changed place" if moved else "Yes, image by image"
        yield f"{start}: Spearman's rho {correlation(rho)}, Kendall's tau-b {correlation(tau)}."
    if not moved:
        return
    if worklist["overlap"]:
        shares = [f"{top['shared']} of the first {top['first']}" for top in worklist["overlap"]]
        yield f"Both have {', '.join(shares)} in common."
    move = worklist["largest_move"]
    yield f"The largest move: {printable(move['file'])}, from place {move['rank'][0]:,} to {move['rank'][1]:,}."


def _sizes(found: Mapping[str, Any]) -> str:
    largest = [gap["largest"] for gap in found["probabilities"].values() if gap["largest"] is not None]
    severity = found["severity"]
    if not largest:
        return "There is no image that both judged."
    score = "no image has a score on both sides"
    if severity["count"]:
        score = f"the score (0 to 6) by {size(severity['mae'])} on average and {size(severity['largest'])} at most"
    return f"Probabilities differ by at most {size(max(largest))}; {score}."


def _right(found: Mapping[str, Any]) -> str:
    flips, right, p = found["flips"], found["right"], found["mcnemar_p"]
    total = sum(flips.values())
    words = f"Of {count(found['images'], 'labelled image')} A calls {right['a']:,} rightly, B {right['b']:,}."
    if not total:
        return words
    told = f"A is right in {flips['a_right']}, B in {flips['b_right']}, neither in {flips['both_wrong']}"
    test = "" if p is None else f" (McNemar's exact test: p = {p:.2g})"
    return f"{words} Of the {count(total, 'label flip')} {told}{test}."


def flips(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str, str]]:
    """Kind, image, and what is said on each side; by kind, then as A's worklist has them."""
    found = report["flips"]
    for image in found["label"]:
        yield "label", image, class_name(image["from"]), class_name(image["to"])
    for name, images in found["flags"].items():
        for image in images:
            yield f"flag {class_name(name)}", image, *("flagged" if on else "not flagged" for on in _ends(image))
    for image in found["priority"]:
        yield "priority", image, *map(str, _ends(image))
    for image in found["status"]:
        yield "status", image, *map(standing_words, _ends(image))
    for image in found["severity"]:
        yield "severity", image, *("not measured" if value is None else f"{value:.2f}" for value in _ends(image))


def _ends(image: Mapping[str, Any]) -> tuple[Any, Any]:
    return image["from"], image["to"]


def standing_words(code: str) -> str:
    return "judged" if code == "ok" else str(REASONS.get(code, code))


def class_name(name: str | None) -> str:
    return "no label" if name is None else CLASS_NAMES.get(name, name.replace("_", " "))


def truth(image: Mapping[str, Any]) -> str:
    """What an image is labelled, by whoever labelled it."""
    names = {LABELS[name]: words for name, words in CLASS_NAMES.items() if name in LABELS}
    return names.get(image.get("truth"), "none")


def correlation(value: float | None) -> str:
    """Three decimals, never rounded up to 1."""
    if value is None:
        return "none"
    return "over 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def gap(a: float | None, b: float | None) -> str:
    """B less A with its sign; nothing where one is absent."""
    return "" if a is None or b is None else signed(b - a)


def signed(value: float) -> str:
    return f"{'-' if value < 0 else '+' if value > 0 else ''}{size(abs(value))}"


def size(value: float) -> str:
    """A difference: 0, or two significant digits."""
    if value < 5e-8:
        return "0"
    return f"{value:.3f}" if value >= 0.1 else f"{float(f'{value:.2g}'):.7f}".rstrip("0")
