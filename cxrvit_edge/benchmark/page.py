"""report.html of a benchmark: one self-contained page, no script, made to be read by a clinician and printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from cxrvit_edge.benchmark import page_accuracy, page_parity, page_speed
from cxrvit_edge.benchmark.environment import BUSY
from cxrvit_edge.benchmark.scenarios import FEW
from cxrvit_edge.plain_text import count
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.markup import bullets, figure, interval, listed, pairs, table
from cxrvit_edge.report.page import date, page, printed_style

_HERE = Path(__file__).parent


def render(report: Mapping[str, Any]) -> str:
    """HTML of a report as report.schema.json has it. What the report does not hold is said in words.

    Charts show at most charts.ROC_POINTS and charts.POINTS points each and say so: the page of 1,200 images stays under
    1.5 MB. Images are named by SHA-256 alone.
    """
    bundle = report["bundle"]
    name, created = shown(bundle["name"]), shown(date(report["created"]))
    body = Template((_HERE / "page.html").read_text("utf-8")).substitute(
        name=name,
        date=created,
        tool=shown(f"{report['tool']['name']} {report['tool']['version']}"),
        box=shown(report["environment"]["box"]["processor"]),
        research_use=shown(report["research_use"]),
        caveat=shown(report["caveat"]),
        headline="".join(f"<div><dd>{v}</dd><dt>{k}</dt></div>" for k, v in _headline(report)),
        summary=pairs(_summary(report)),
        speed=page_speed.speed(report),
        end_to_end=page_speed.end_to_end(report),
        accuracy=page_accuracy.accuracy(report),
        parity=page_parity.parity(report),
        environment=_environment(report),
    )
    return page(f"Benchmark of bundle {name}, {created}", printed_style(), body)


def _fastest(report: Mapping[str, Any]) -> str | None:
    timed = {name: found["ratio"] for name, found in report["latency"].items() if found["ratio"] is not None}
    return min(timed, key=lambda name: timed[name]) if timed else None


def _mean_auc(report: Mapping[str, Any], name: str | None) -> Mapping[str, Any] | None:
    blocks = (report["accuracy"] or {}).get("by_candidate", {})
    return blocks[name]["auc"]["mean"] if name in blocks else None


def _headline(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    fastest = _fastest(report)
    if fastest is not None:
        found = report["latency"][fastest]
        if found["single_stream"]:
            yield "an image, the fastest candidate, median", figure(found["single_stream"]["p50_ms"], "ms")
        if found["offline"]:
            yield "images a second, in batches", figure(found["offline"]["images_a_second"])
        if fastest in report["end_to_end"]:
            yield "images a second, from files to results", figure(report["end_to_end"][fastest]["images_a_second"])
    mean = _mean_auc(report, fastest)
    if mean and mean["value"] is not None:
        yield f"mean AUC ({interval(mean, 2)})", f"{mean['value']:.3f}"
    int8 = [r for r in report["parity"] if page_parity.is_int8(report, r["variant"])]
    if int8:
        worst = max((page_parity.whole(r) for r in int8), key=lambda found: found["flips"]["images"])
        yield f"of {worst['images']:,} images judged otherwise by INT8", f"{worst['flips']['images']:,}"


def _summary(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    box, bundle = report["environment"]["box"], report["bundle"]
    names = [shown(c["name"]) for c in report["candidates"]]
    cards = "".join(f", {shown(gpu['name'])}" for gpu in box["gpus"])
    ways = f"in {count(len(names), 'way')} of running it ({listed(names)})" if names else "but nothing could run it"
    passed = len(report["passed_over"])
    could = f" {count(passed, 'further way')} could not be run and {'is' if passed == 1 else 'are'} listed below."
    yield (
        "What was tested",
        (
            f"Bundle {shown(bundle['name'])} {ways}, on this box: {shown(box['processor'])}, "
            f"{count(box['cores'], 'core')}{cards}.{could if passed else ''}"
        ),
    )
    yield "How fast it is", _speed(report)
    yield "Did INT8 change a diagnosis?", page_parity.answer(report)
    yield "How well it tells the classes apart", page_accuracy.answer(report, _fastest(report))
    yield (
        "What this is not",
        (
            "Evidence of clinical performance, or of safety. In public data, images of a disease often come from other "
            "sources than those without it, and a network that tells sources apart has a high AUC on them. Times hold "
            "for this box in the state in which it was."
        ),
    )


def _speed(report: Mapping[str, Any]) -> str:
    fastest = _fastest(report)
    if fastest is None:
        return "No candidate could be timed."
    found, out = report["latency"][fastest], [f"The fastest is {shown(fastest)}."]
    if stream := found["single_stream"]:
        many, slow = stream["samples"], figure(stream["p99_ms"], "ms")
        last = f"one in a hundred takes longer than {slow}" if many >= FEW else f"the slowest of {many:,} took {slow}"
        out.append(f"An image that comes alone takes {figure(stream['p50_ms'], 'ms')}; {last}.")
    if batches := found["offline"]:
        rate = figure(batches["images_a_second"])
        out.append(f"In batches of {batches['batch_size']} it does {rate} images a second.")
    if whole := report["end_to_end"].get(fastest):
        images, took = count(whole["images"], "image"), figure(whole["seconds"], "s")
        rate = figure(whole["images_a_second"])
        out.append(f"With reading, preparing and writing, {images} took {took}: {rate} a second.")
    load = report["environment"]["load"]["start"]
    if load is not None and load > BUSY:
        out.append(f"<b>Others were at work on the box (load {load:.1f} a core): measure again at rest.</b>")
    return " ".join(out)


def _environment(report: Mapping[str, Any]) -> str:
    return "".join(
        (
            '<div class="pair">',
            f"<div><h3>Box</h3>{pairs(_box(report['environment']))}</div>",
            f"<div><h3>Software and settings</h3>{pairs(_software(report))}</div></div>",
            _ran(report),
            _titled("Not measured, and why", [shown(n) for n in report["environment"]["notes"]]),
            _titled("Passed over", [f"<b>{shown(p['name'])}</b>: {shown(p['why'])}" for p in report["passed_over"]]),
        )
    )


def _titled(title: str, lines: list[str]) -> str:
    return f"<h3>{title}</h3>{bullets(lines)}" if lines else ""


def _box(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    box, clock, heat = environment["box"], environment["clock"], environment["temperature_c"]
    yield "Processor", f"{shown(box['processor'])}, {count(box['cores'], 'core')}, {shown(box['machine'])}"
    if box["cpu_flags"]:
        yield "Instructions", shown(", ".join(box["cpu_flags"]))
    for gpu in box["gpus"]:
        memory = "" if gpu["memory_mb"] is None else f", {gpu['memory_mb']:,} MB"
        yield "GPU", f"{shown(gpu['name'])}, SM {shown(gpu['sm'])}{memory}, driver {shown(gpu['driver'])}"
    yield "Memory", "not known" if box["memory_mb"] is None else f"{box['memory_mb']:,} MB"
    yield "System", shown(box["os"])
    mhz = clock["mhz"]
    speed = f"{figure(mhz['start'])} MHz at the start, {figure(mhz['end'])} at the end" if mhz else "not readable"
    yield "Clock", speed + (f", governor {shown(clock['governor'])}" if clock["governor"] else "")
    yield "Power mode", shown(environment["power_mode"] or "the box tells none")
    yield (
        "Temperature",
        (
            f"{heat['start']:.0f} °C at the start, {heat['end']:.0f} at the end, {heat['most']:.0f} at most "
            f"({shown(heat['sensor'])})"
            if heat
            else "no sensor that could be read"
        ),
    )
    load = environment["load"]["start"]
    yield "Load", "not known" if load is None else f"{load:.2f} a core at the start (0: idle, 1: all busy)"


def _software(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings, bundle = report["settings"], report["bundle"]
    versions = {"Python": report["environment"]["box"]["python"], **report["environment"]["versions"]}
    yield "Versions", shown(", ".join(f"{k} {v}" for k, v in versions.items()))
    yield "Timed", f"{settings['seconds']:g} s at least for each scenario and candidate, in turns"
    yield "Images", shown(f"{settings['data']}, split {settings['split']}") if settings["data"] else "none (--data)"
    yield "Intervals", f"95 %; bootstrap of {settings['draws']:,} draws, seed {settings['seed']}"
    points = ", ".join(f"{shown(c)} {t:.3f}" for c, t in bundle["operating_points"].items())
    yield "Operating points", points or "none"
    yield "Temperature of the softmax", figure(bundle["temperature"])
    yield "Bundle", f'<span class="hash">{shown(bundle["sha256"])}</span>'
    if bundle.get("weights_sha256"):
        yield "Weights", f'<span class="hash">{shown(bundle["weights_sha256"])}</span>'


def _ran(report: Mapping[str, Any]) -> str:
    rows, threads = [], all("threads" in c for c in report["candidates"])
    for c in report["candidates"]:
        golden = c["golden"]
        held = "not checked" if golden is None else ("passed" if golden["passed"] else "<b>failed</b>")
        if golden and golden["logits"] is not None:
            held += f"<small>logits {golden['logits']:.2g}, maps {golden['maps']:.2g}</small>"
        notes = "".join(f"<small>{shown(n)}</small>" for n in c["notes"])
        rows.append(
            [
                f'<span class="cand">{shown(c["name"])}</span>',
                shown(f"{c['backend']} {c['version']}"),
                shown(c["variant"]) + notes,
                held,
                f"{c['batch_size']}",
                *([str(c["threads"] or "")] if threads else []),
            ]
        )
    head = ["Candidate", "Back end", "Graph", "Golden check", "Batch", *(["Threads"] if threads else [])]
    return table(head, rows, "Candidates as they were run", texts=4) if rows else ""
