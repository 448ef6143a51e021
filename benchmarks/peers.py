"""This project beside its peers, the table of the README: python -m benchmarks peers [--images 16] [--out peers]

Every peer is a process of its own that stays alive and answers commands, so that blocks go round all of them in turns
and the best of each counts: on a shared box, A B A B. First-result times and memory are of fresh processes.

network       milliseconds an image inside the session, batches of 1 and 8, real films already preprocessed
end to end    images a second from files to written results, sessions warm, in batches of the peer's better size
memory        peak of the summed PSS of the process and its children, from its start to the end of such a run (Linux)
first result  seconds from process start to the first film's result
install       megabytes of the packages it needs here, ours with its bundle, the others without weights

`apart` is the largest difference of a probability from ours in fp32 over the films: the same network, or not. Real
films come from ../shared/data where it is there. Writes results/NAME.csv unless --quick, --only or --no-record.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, PeerError, closure, folder_mb, installed_mb
from benchmarks.peer_list import Peer
from benchmarks.peer_run import Candidate, Run
from benchmarks.pipeline import installed
from benchmarks.record import record
from cxrvit_edge import __file__ as own_package

OURS = "cxrvit-edge"
PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "monai", "opencv-python-headless")


def own_requirements() -> list[str]:
    """Base dependencies of this project."""
    try:
        return [text for text in requires("cxrvit-edge") or () if "extra ==" not in text]
    except PackageNotFoundError:  # used from a checkout
        return [str(text) for text in project()["dependencies"]]


def project() -> dict[str, Any]:
    """Of pyproject.toml."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def install_mb(peer: Peer) -> float:
    if peer.kind != "ours":
        return installed_mb(closure(peer.needs).values())
    return installed_mb(closure([*own_requirements(), *peer.needs]).values()) + folder_mb(Path(own_package).parent)


def rows(run: Run) -> list[dict[str, Any]]:
    """A line a candidate. Ratios are how many times as fast, or as small, ours is: over 1 we are ahead."""
    ours = next((c for c in run.candidates if c.peer.name == OURS), None)
    own_network = ours.network if ours else {}
    own_speed = ours.images_a_second if ours else None
    optimised = "; ".join(f"{name} fused {made['fused']}" for name, made in run.optimised.items())
    found = []
    for c in run.candidates:
        same = [o.images_a_second for o in run.candidates if o.peer.kind == "ours" and _family(o) == _family(c)]
        notes = [*([f"kept: {c.way}"] if c.way else []), *([c.told] if c.told else []), *c.problems]
        notes += [optimised] if "optimiser" in c.peer.name else []
        ahead = {
            "network_ratio_1": _ratio(c.network.get(1), own_network.get(1)),
            "network_ratio_8": _ratio(c.network.get(8), own_network.get(8)),
            "end_to_end_ratio": _ratio(own_speed, c.images_a_second),
            "end_to_end_ratio_same_precision": _ratio(max(filter(None, same), default=None), c.images_a_second),
        }
        try:
            size: float | None = install_mb(c.peer)
        except PeerError:
            size = None
        found.append(
            {
                "name": c.peer.name,
                "kind": c.peer.kind,
                "version": _version(c.peer),
                "precision": _precision(c),
                "network_ms_1": _figure(c.network.get(1)),
                "network_ms_8": _figure(c.network.get(8)),
                "images_a_second": _figure(c.images_a_second),
                "memory_mb": _figure(c.peak.together if c.peak else None),
                "first_result_s": _figure(c.first_s),
                "install_mb": _figure(size),
                **{name: "" if ratio is None else round(ratio, 3) for name, ratio in ahead.items()},
                "apart": "" if c.apart is None else f"{c.apart:.1e}",
                "images": run.images.what,
                "films": c.films,
                "batch": c.batch if c.network and c.peer.kind == "network" else "",
                "settings": c.peer.settings,
                "why": c.peer.why,
                "note": "; ".join(notes),
                "bundle": run.bundle.sha256[:12],
            }
        )
    return found


def _precision(c: Candidate) -> str:
    """As it runs: `auto` says what it chose."""
    return c.told.split()[1] if c.peer.precision == "auto" and c.told else c.peer.precision


def _family(c: Candidate) -> str:
    return "int8" if "int8" in _precision(c) else "fp32"


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def _figure(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.4g}")


def _version(peer: Peer) -> str:
    name = peer.needs[0] if peer.kind != "ours" else "cxrvit-edge"
    try:
        return version(name)
    except PackageNotFoundError:
        if peer.kind != "ours":
            return ""
    return str(project()["version"])


def show(found: Sequence[dict[str, Any]]) -> None:
    figures = ("network_ms_1", "network_ms_8", "images_a_second", "memory_mb", "first_result_s", "install_mb")
    names = ("name", *figures, "end_to_end_ratio", "apart")
    cells = [list(names), *([str(row[name]) for name in names] for row in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in found:
        if row["note"]:
            print(f"{row['name']}: {row['note']}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each that count")
    parser.add_argument("--starts", type=int, default=2, help="fresh processes of each for the first result")
    parser.add_argument("--seconds", type=float, default=0.5, help="least length of a block in the network alone")
    parser.add_argument("--only", action="append", help="peers whose name holds this; may be given again")
    parser.add_argument("--no-build", action="store_true", help="leave out `cxrvit-edge build`, which comes first")
    parser.add_argument("--no-record", action="store_true", help="only print")
    parser.add_argument("--quick", action="store_true", help="8 images, one round, only print")
    parser.add_argument("--out", default="peers", help="name under benchmarks/results; peers is the README's")
    options = parser.parse_args(argv)
    if options.quick:
        options.images, options.rounds, options.starts, options.seconds = 8, 1, 1, 0.1
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        run = Run(options, Path(temporary))
        run.start(stack)
        run.network()
        run.end_to_end()
        stack.close()
        run.fresh()
        found = rows(run)
    show(found)
    if not (options.quick or options.only or options.no_record):
        print(record(options.out, found, installed(PACKAGES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
