"""Latency, throughput, and where the time goes from files to results, on the benchmark page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cxrvit_edge.benchmark import bars
from cxrvit_edge.benchmark.charts import candidate, places
from cxrvit_edge.benchmark.scenarios import FEW
from cxrvit_edge.report.html import shown
from cxrvit_edge.report.markup import chip, column, picture, pictures, table

MARKS = {"median": "p50_ms", "p90": "p90_ms", "p99": "p99_ms"}


def speed(report: Mapping[str, Any]) -> str:
    latency = report["latency"]
    if not latency:
        return '<p class="none">No candidate could be timed.</p>'
    place = places(report)
    streams = {name: found["single_stream"] or {} for name, found in latency.items()}
    offline = {name: found["offline"] or {} for name, found in latency.items()}
    energy = {name: found["energy"] for name, found in latency.items()}
    columns = {
        "Median<br>ms": [s.get("p50_ms") for s in streams.values()],
        "90 % within<br>ms": [s.get("p90_ms") for s in streams.values()],
        "99 % within<br>ms": [s.get("p99_ms") for s in streams.values()],
        "Best<br>ms": [s.get("best_ms") for s in streams.values()],
        "In batches<br>images/s": [o.get("images_a_second") for o in offline.values()],
        "Best time over<br>the fastest&#8217;s": [found["ratio"] for found in latency.values()],
    }
    if any(energy.values()):
        columns["Energy<br>J a study"] = [e["joules_a_study"] if e else None for e in energy.values()]
    cells = [column(values) for values in columns.values()]
    rows = []
    for i, name in enumerate(latency):
        fastest = f" {chip('fastest', True)}" if latency[name]["ratio"] == 1 and len(latency) > 1 else ""
        rows.append([candidate(name, place[name]) + fastest, *(values[i] for values in cells)])
    caption = "An image alone, the next when it is done (single stream), and as fast as batches go (offline)"
    sensors = {f"{e['sensor']}, {e['method']}" for e in energy.values() if e}
    told = f"Energy: {shown('; '.join(sorted(sensors)))}." if sensors else "Energy was not measured: see Environment."
    samples = [s["samples"] for s in streams.values() if s]
    few, most = min(samples, default=0), max(samples, default=0)
    many = f" {few:,}{f' to {most:,}' if most > few else ''} images alone were timed for each." if samples else ""
    if 0 < few < FEW:
        many += f" Of fewer than {FEW}, 99 % is the slowest."
    return (
        table(["Candidate", *columns], rows, caption)
        + f'<p class="read">Lower times are better. The ratio compares best times: 2 is half as fast.{many} {told}</p>'
        + pictures(_drawn(streams, offline, place), "pair")
    )


def _drawn(streams: Mapping[str, Any], offline: Mapping[str, Any], place: Mapping[str, int]) -> list[str]:
    rows = [
        bars.Histogram(name, h["edges_ms"], h["counts"], {k: s[v] for k, v in MARKS.items()}, place[name])
        for name, s in streams.items()
        if s and (h := s["histogram"])
    ]
    batches = [(name, o.get("images_a_second"), place[name]) for name, o in offline.items()]
    note = "Each to its own height. Lines: median, 90 % (dashed), 99 % (dotted)."
    return [
        picture(bars.histograms(rows, "Latency"), "Time of one image", note),
        picture(bars.plain(batches, "Throughput", "Images a second"), "Images a second, in batches"),
    ]


def end_to_end(report: Mapping[str, Any]) -> str:
    runs = report["end_to_end"]
    if not runs:
        return '<p class="none">Whole runs from files were not timed.</p>'
    place = places(report)
    single = any(run["single_file_ms"] for run in runs.values())
    columns: dict[str, list[float | None]] = {
        "Images": [run["images"] for run in runs.values()],
        "Seconds": [run["seconds"] for run in runs.values()],
        "Images/s": [run["images_a_second"] for run in runs.values()],
        "First result<br>s": [run["first_result_s"] for run in runs.values()],
    }
    for key, words in (("p50", "One file,<br>median ms"), ("p99", "One file,<br>99 % ms")) if single else ():
        columns[words] = [(run["single_file_ms"] or {}).get(key) for run in runs.values()]
    cells = [column(values) for values in columns.values()]
    cells[0] = [f"{run['images']:,}" for run in runs.values()]
    states = [", ".join(f"{n:,} {shown(s)}" for s, n in run["statuses"].items()) for run in runs.values()]
    rows = [[candidate(name, place[name]), *(values[i] for values in cells), states[i]] for i, name in enumerate(runs)]
    files = {shown(run["files"]) for run in runs.values()}
    head = ["Candidate", *columns, "Results"]
    stages = [(name, {k: v for k, v in run["stage_ms"].items() if k != "queue"}) for name, run in runs.items()]
    shares = [(name, {k: 100 * v for k, v in run["shares"].items()}) for name, run in runs.items()]
    return table(head, rows, f"Whole runs as triage does them: {'; '.join(sorted(files))}") + pictures(
        [
            picture(
                bars.stacked(stages, "Stages", "Milliseconds an image"),
                "Work on one image, by stage",
                "Stages of several images overlap, so a run takes less than their sum. Waiting is left out.",
            ),
            picture(
                bars.stacked(shares, "Shares", "Per cent of the run", whole=100, decimals=0),
                "Where the network&#8217;s thread spent the run",
                "All network: only a faster network helps. Waiting for films: reading them holds it up.",
            ),
        ],
        "pair",
    )
