"""What got slower beside its peers: python -m benchmarks check [--only NAME ...] [--tolerance 0.10] [--record]

Measures ratios again, in quick forms, and compares them with stored ones: never absolute times, which are of a box and
its load. A ratio that is worse by more than the tolerance is measured once more, and only what is worse both times is
named; the exit code is then 1. By hand and before a release, not in CI. What cannot be compared is told: stored on
another box, of another bundle or another number of images, or a package that is not here; exit code 2 if that is all.

Stored ratios are those of results/NAME.csv where the quick form does the same work, else those of results/check.csv,
which --record writes anew from what it measures.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import record as recording
from benchmarks.check_ratios import REGISTRY, Benchmark, MeasureError, Ratio, read, stored
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores, processor

STORE = "check"  # results/check.csv
PACKAGES = ("numpy", "onnxruntime")


@dataclass(frozen=True)
class Verdict:
    """state: "same", "better", "worse", "new" or "not compared"; why: of the last two."""

    name: str
    key: str
    was: float | None
    now: float | None
    state: str
    why: str = ""

    def line(self) -> list[str]:
        shown = ["" if v is None else f"{v:.3f}" for v in (self.was, self.now)]
        change = f"{100 * (self.now / self.was - 1):+.0f} %" if self.was and self.now else ""
        return [self.name, self.key, *shown, change, self.state, self.why]


def obstacle(was: Ratio, now: Ratio, box: str, bundle: str) -> str:
    """Why two ratios are not of the same thing; "" if they are."""
    if was.box != box:
        return f"stored on another box ({was.box})"
    if was.bundle and not bundle.startswith(was.bundle):
        return f"stored of another bundle ({was.bundle})"
    if was.work != now.work:
        return f"stored of other work ({was.work or 'not told'}; now {now.work or 'not told'})"
    return ""


def worse(was: Ratio, now: float, tolerance: float) -> bool:
    """By more than the tolerance, in either direction of better."""
    return now > was.value * (1 + tolerance) if was.better == "lower" else now * (1 + tolerance) < was.value


def compared(
    name: str,
    fresh: Sequence[Ratio],
    again: Callable[[], Sequence[Ratio]],
    before: Sequence[Ratio],
    *,
    tolerance: float,
    box: str,
    bundle: str,
) -> list[Verdict]:
    """Of each ratio measured now, and of each stored that was not. again: measures once more, called at most once."""
    verdicts, second = [], None
    for now in fresh:
        if now.why:
            verdicts.append(Verdict(name, now.key, None, None, "not compared", now.why))
            continue
        alike = [was for was in before if was.key == now.key and not was.why]
        usable = [was for was in alike if not obstacle(was, now, box, bundle)]
        if not usable:
            why = obstacle(alike[0], now, box, bundle) if alike else "nothing stored"
            verdicts.append(Verdict(name, now.key, None, now.value, "not compared" if alike else "new", why))
            continue
        was, value = usable[0], now.value
        if worse(was, value, tolerance):
            second = again() if second is None else second
            values = [r.value for r in second if r.key == now.key and not r.why]
            value = (min if was.better == "lower" else max)([value, *values])
        state = "worse" if worse(was, value, tolerance) else "same"
        if worse(Ratio(now.key, value, was.better), was.value, tolerance):
            state = "better"
        changed = "; ".join(_versions(was))
        verdicts.append(Verdict(name, now.key, was.value, value, state, changed))
    measured = {now.key for now in fresh}
    gone = dict.fromkeys(was.key for was in before if was.key not in measured and was.box == box and not was.why)
    return verdicts + [Verdict(name, key, None, None, "not compared", "not measured now") for key in gone]


def _versions(was: Ratio) -> list[str]:
    """Packages that have changed since: "onnxruntime 1.31.0 -> 1.32.0"."""
    now = {package: installed(package) or "not installed" for package in was.versions}
    return [f"{package} {then} -> {now[package]}" for package, then in was.versions.items() if then != now[package]]


def installed(package: str) -> str:
    """Its version; "" if it is not here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def run(
    registry: Mapping[str, Benchmark], names: Sequence[str], tolerance: float, bundle: str
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Verdicts, and the ratios measured as rows of check.csv."""
    box = f"{processor()}, {cores()} cores"
    verdicts: list[Verdict] = []
    rows: list[dict[str, Any]] = []
    for name in names:
        benchmark = registry[name]
        if absent := [package for package in benchmark.needs if not installed(package)]:
            verdicts.append(Verdict(name, "", None, None, "not compared", f"{', '.join(absent)} is not installed"))
            continue

        def measure(benchmark: Benchmark = benchmark) -> list[Ratio]:
            with tempfile.TemporaryDirectory() as temporary:
                return benchmark.ratios(benchmark.measure(Path(temporary)))

        try:
            fresh = measure()
            before = [*stored(STORE, name), *benchmark.stored_ratios()]
            found = compared(name, fresh, measure, before, tolerance=tolerance, box=box, bundle=bundle)
        except MeasureError as error:
            found, fresh = [Verdict(name, "", None, None, "not compared", str(error))], []
        verdicts += found
        for line in found:
            print("  ".join(filter(None, line.line())), flush=True)
        rows += [r.row(name, bundle[:12]) for r in fresh if not r.why]
    return verdicts, rows


def keep(rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write results/check.csv; of benchmarks that were not measured now the rows stay as they were."""
    names = {row["benchmark"] for row in rows}
    others = [row for row in read(recording.RESULTS / f"{STORE}.csv") if row["benchmark"] not in names]
    path = recording.record(STORE, [dict(row) for row in rows], PACKAGES)
    with path.open("a", newline="", encoding="utf-8") as f:
        columns = list(read(path)[0])
        csv.DictWriter(f, columns, extrasaction="ignore", lineterminator="\n").writerows(others)
    return path


def main(argv: list[str] | None = None, registry: Mapping[str, Benchmark] = REGISTRY) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=registry, action="append", help="this one; may be given again")
    parser.add_argument("--tolerance", type=float, default=0.10, help="of a ratio; 0.10 is ten per cent")
    parser.add_argument("--record", action="store_true", help="write results/check.csv, the others' rows kept")
    options = parser.parse_args(argv)
    bundle = Bundle.open().sha256
    verdicts, rows = run(registry, options.only or list(registry), options.tolerance, bundle)
    from benchmarks.floor import table

    columns = ("benchmark", "what", "stored", "now", "change", "state", "why")
    print("\n" + table([dict(zip(columns, v.line(), strict=True)) for v in verdicts]))
    if options.record and rows:
        print(keep(rows))
    counts = {state: sum(v.state == state for v in verdicts) for state in ("same", "better", "worse", "new")}
    skipped = sum(v.state == "not compared" for v in verdicts)
    print(", ".join(f"{n} {state}" for state, n in counts.items()) + f", {skipped} not compared")
    for v in verdicts:
        if v.state == "worse":
            print(f"WORSE: {v.name}: {v.key}: {v.was:.3f} -> {v.now:.3f}" + (f" ({v.why})" if v.why else ""))
    if counts["worse"]:
        return 1
    return 0 if counts["same"] + counts["better"] or options.record else 2


if __name__ == "__main__":
    raise SystemExit(main())
