"""The paper's Tables 4 to 10 beside ours: python -m benchmarks paper [EVALUATION.json|report.json ...] [--bundle DIR]

EVALUATION.json: what `python -m train evaluate` writes of a run; report.json: what `cxrvit-edge benchmark` writes of a
bundle, each of its candidates a line. Without any, results/paper_default.json: the default bundle on the test split,
made by `python -m train evaluate cxrvit_edge/bundles/default --data ../shared/data --out OUT`. What nobody has measured
reads "not measured: needs ..." or "no run".

The paper's figures are of three hospitals whose images are not public; ours are of public images whose source and label
are confounded, and the default network is `edge`, a smaller one. So a row is no comparison of methods: it shows what
was measured here, with its interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError

DEFAULT = "paper_default.json"
NOTE = (
    "No row compares methods: the paper's images are of three hospitals and not public, ours are public images whose "
    "source and label are confounded, and ours have other sizes, labels and splits."
)
CUT = "brixia>=1"  # as severity.csv is read by `benchmark`


def load(path: Path, bundle: Path | None = None) -> list[Mapping[str, Any]]:
    """Evaluations in a file: one of a run, or one a candidate of a report. UsageError if it is neither."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}); name an evaluation or a report.json") from error
    if isinstance(body, dict) and {"run", "groups", "caveat"} <= body.keys():
        return [body]
    if isinstance(body, dict) and {"accuracy", "bundle", "candidates"} <= body.keys():
        if body["accuracy"] is None:
            raise UsageError(f"{path}: a report without accuracy; run `cxrvit-edge benchmark` with --data")
        return list(of_report(body, Bundle.open(bundle), str(path)))
    raise UsageError(
        f"{path}: neither an evaluation of `python -m train evaluate` nor a report of `cxrvit-edge benchmark`"
    )


def of_report(report: Mapping[str, Any], bundle: Bundle, where: str) -> Iterator[Mapping[str, Any]]:
    """What the tables read of an evaluation, of each candidate of a benchmark report.

    UsageError if the report is of another bundle: the size and the training of its network are not in it.
    """
    if report["bundle"]["sha256"] != bundle.sha256:
        raise UsageError(
            f"{where}: of bundle {report['bundle']['name']} {report['bundle']['sha256'][:12]}, not of "
            f"{bundle.manifest.name} {bundle.sha256[:12]}; name it with --bundle"
        )
    raw, data = bundle.manifest.raw, report["accuracy"]["data"]
    learned = raw.get("training", {}).get("sources") or {}
    learned = dict(learned) if isinstance(learned, Mapping) else dict.fromkeys(learned, 0)
    for name, block in report["accuracy"]["by_candidate"].items():
        sources = sorted(block.get("by_source") or {}) or ["the labelled images"]
        external = not set(sources) & set(learned) if learned else None
        together = ", ".join(sources)
        views = {("AP, all" if v == "AP" else v): part for v, part in (block.get("by_view") or {}).items()}
        shown = {
            view: {"diagnosis": {"images": part["images"], "auc": part["auc"], "own": None, "fixed": None}}
            for view, part in views.items()
        }
        scored = block.get("severity") or {"images": 0}
        yield {
            "split": data["split"],
            "run": {
                "name": f"{bundle.manifest.name}, {name}",
                "stage": "joint",
                "network": raw["network"].get("network", "cxrvit"),
                "preset": raw["network"]["preset"],
                "config": {"corpus": "before", **raw["network"]},
                "options": {},
                "sources": learned,
            },
            "with": {},
            "pooling": "max",
            "sources": dict.fromkeys(sources, 0),
            "external": {"diagnosis": external, "severity": external},
            "severity": {CUT: scored},
            "groups": {
                "view": shown,
                "source and view": {f"{together}, {view}": part for view, part in shown.items()},
                "source": {together: {"severity": {CUT: scored}}},
            },
            "caveat": report["caveat"],
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="*", type=Path, metavar="JSON")
    parser.add_argument("--bundle", type=Path, help="that a report.json is of; the embedded one by default")
    options = parser.parse_args(argv)
    committed = record.RESULTS / DEFAULT
    files = options.evaluations or ([committed] if committed.is_file() else [])
    from train.tables import tables

    try:
        found = [evaluation for path in files for evaluation in load(path, options.bundle)]
    except UsageError as error:
        print(error)
        return 2
    print(tables(found) + NOTE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
