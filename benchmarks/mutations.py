"""Damaged and hostile files through triage: python -m benchmarks.mutations [FOLDER...] [--files 5000] [--record]

Writes the files of tests/readers/mutations.py, made from generated ones and from those of each FOLDER, into one folder
and runs `cxrvit-edge triage` on it once. Holds the run to its word: exit code 0 or 1, one result an input, no INTERNAL
among the reasons. Prints what came of each kind, the wall time, the slowest decode, the peak memory of the largest
process. Ends with 1 if a word was broken.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.record import record

TESTS = Path(__file__).resolve().parent.parent / "tests" / "readers"


def written(into: Path, seed: int, count: int, folders: list[Path]) -> dict[str, str]:
    """Kind of each file by its name."""
    sys.path.insert(0, str(TESTS))
    mutations = importlib.import_module("mutations")
    kinds = {}
    for index, suffix, kind, data in mutations.mutations(seed, 0, count, folders):
        name = f"{index:06d}{suffix}"
        (into / name).write_bytes(data)
        kinds[name] = kind
    return kinds


def triaged(
    folder: Path, out: Path, bundle: Path | None, options: list[str]
) -> tuple[list[dict[str, Any]], int, float]:
    """Results, exit code and seconds of one run."""
    command = [sys.executable, "-m", "cxrvit_edge", "triage", str(folder), "--out", str(out), "--quiet", *options]
    command += ["--bundle", str(bundle)] if bundle else []
    start = time.perf_counter()
    ended = subprocess.run(command, stderr=subprocess.PIPE, check=False, cwd=TESTS.parent.parent)
    seconds = time.perf_counter() - start
    if ended.returncode not in (0, 1):
        sys.stderr.write(ended.stderr.decode(errors="replace"))
    lines = (out / "results.jsonl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [json.loads(line) for line in lines], ended.returncode, seconds


def broken_words(results: list[dict[str, Any]], names: set[str], code: int) -> list[str]:
    files = Counter(Path(result["file"]).name for result in results if "file" in result)
    said = [] if code in (0, 1) else [f"exit code {code}"]
    said += [f"no result: {name}" for name in sorted(names - set(files))]
    said += [f"{count} results: {name}" for name, count in files.items() if count > 1]
    return said + [
        f"internal: {result['file']}: {result['reason']['message']}"
        for result in results
        if result.get("reason") and result["reason"]["code"] == "internal"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="*")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--bundle", type=Path, help="a small one saves time; the embedded one by default")
    parser.add_argument("--option", action="append", default=[], help="one more argument for triage")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/mutations.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "in", Path(temporary) / "out"
        folder.mkdir()
        kinds = written(folder, options.seed, options.files, options.folder)
        results, code, seconds = triaged(folder, out, options.bundle, options.option)
    results = [result for result in results if "file" in result]
    table: dict[str, Counter[str]] = {}
    for result in results:
        reason = result["reason"]["code"] if result["reason"] else "ok"
        table.setdefault(kinds.get(Path(result["file"]).name, "not ours"), Counter())[reason] += 1
    for kind, counts in sorted(table.items()):
        print(f"{kind:45} {sum(counts.values()):5}  " + ", ".join(f"{r} {n}" for r, n in counts.most_common()))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
    slowest = max((result["timings_ms"]["decode"] or 0.0 for result in results), default=0.0)
    total = Counter(reason for counts in table.values() for reason in counts.elements())
    print(f"{len(results)} results of {len(kinds)} files: {dict(total.most_common())}")
    print(f"exit code {code}, {seconds:.0f} s, slowest decode {slowest / 1e3:.1f} s, largest process {peak:.0f} MB")
    broken = broken_words(results, set(kinds), code)
    print("\n".join(broken[:20]) or "kept: one result an input, none internal")
    if options.record:
        figures = {"exit_code": code, "seconds": round(seconds), "slowest_decode_s": round(slowest / 1e3, 1)}
        figures |= {"largest_process_mb": round(peak), "broken_words": len(broken)}
        rows = [
            {"kind": kind, "reason": reason, "files": count, **figures}
            for kind, counts in sorted(table.items())
            for reason, count in counts.most_common()
        ]
        print(record("mutations", rows, ("numpy", "opencv-python-headless", "pydicom", "pyjpegls", "python-gdcm")))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
