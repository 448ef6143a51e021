"""The measurements of benchmarks/peers.py: the fastest way of each peer, network, end to end, memory, first result."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import peer_list
from benchmarks.harness import ROOT, Peak, PeerError, Process, closure, in_turn, watched
from benchmarks.peer_list import Peer
from benchmarks.triage_common import Films, jpegs
from benchmarks.triage_overlap import prepared
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.runtime.candidates import VARIANTS

REFERENCE = "cxrvit-edge on ONNX Runtime, fp32"  # whose probabilities the others' are held against
BATCHES = (1, 8)
SLOW = 10.0  # seconds to a first result that need not be measured again
MODULE = "benchmarks.peer_process"


@dataclass
class Candidate:
    """A peer on this box, and what was measured of it."""

    peer: Peer
    job: dict[str, Any]
    out: Path
    process: Process | None = None
    way: str = ""
    network: dict[int, float] = field(default_factory=dict)  # batch -> ms an image
    images_a_second: float | None = None
    films: int = 0
    apart: float | None = None
    peak: Peak | None = None
    first_s: float | None = None
    told: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int:
        return min(self.network, key=lambda n: self.network[n]) if self.network else 1

    def begin(self) -> Process:
        return Process(MODULE, [json.dumps({"peer": self.peer.of, **self.job})])

    def start(self) -> Process:
        """Once it has given its first result. PeerError if it cannot."""
        process = self.begin()
        try:
            process.answer()
        except PeerError:
            process.close()
            raise
        return process


class Run:
    """The measurements, one after another; a candidate that fails says why and is left out from then on."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.bundle = options, Bundle.open()
        if not options.no_build:
            subprocess.run([sys.executable, "-m", "cxrvit_edge", "build"], cwd=ROOT, check=True)
        self.images: Films = jpegs(options.images, work)
        tensors = work / "tensors.npy"
        np.save(tensors, prepared(self.bundle, self.images.paths[: max(BATCHES)]))
        manifest = self.bundle.manifest
        variants = {p: self.bundle.variant(v) for p, v in VARIANTS["onnxruntime"].items() if v in manifest.variants}
        graph = next(iter(manifest.views.values()))
        self._graphs = {p: str(self.bundle.file(variant.files[graph])) for p, variant in variants.items()}
        self._common = {
            "weights": str(self.bundle.file(str(manifest.raw["weights"][graph]))),
            "torchscript": str(work / "network.ts"),
            "tensors": str(tensors),
            "preprocessing": manifest.preprocessing,
            "temperature": manifest.temperature,
            "first": str(self.images.paths[0]),
        }
        self.optimised = self._made(work)
        listed = peer_list.peers(find_spec("openvino") is not None, self.optimised)
        chosen = [p for p in listed if not options.only or any(part.lower() in p.name.lower() for part in options.only)]
        self.candidates = [
            Candidate(p, self._job(p.job, work / f"first{i}"), work / f"out{i}") for i, p in enumerate(chosen)
        ]

    def _job(self, own: dict[str, Any], out: Path) -> dict[str, Any]:
        job = {**self._common, **own, "out": str(out)}
        if "graph" in job:
            job["graph"] = self._graphs.get(job["graph"], job["graph"])
        return job

    def _made(self, work: Path) -> dict[str, dict[str, Any]]:
        """What peers need made beforehand, in a process of its own; what cannot be made is then absent."""
        network = self.bundle.manifest.raw["network"]
        shared: dict[str, Any] = next(iter(network.values())) if "heads" not in network else network
        weights, script = self._common["weights"], self._common["torchscript"]
        size = self.bundle.manifest.preprocessing["size"]
        graph, folder, heads, width = self._graphs["fp32"], str(work), shared["heads"], shared["width"]
        calls = {
            "TorchScript": f"save_torchscript({weights!r}, {script!r}, {size})",
            "optimiser": f"save_optimised({graph!r}, {folder!r}, {heads}, {width})",
        }
        made: dict[str, dict[str, Any]] = {}
        for name, call in calls.items():
            code = f"import json; from benchmarks.peer_tools import *; print(json.dumps({call}))"
            ended = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=False, text=True
            )
            if ended.returncode:
                print(f"{name}: could not be made, exit code {ended.returncode}")
            elif name == "optimiser":
                made = json.loads(ended.stdout.splitlines()[-1])
        return made

    def _failed(self, name: str, error: Exception) -> None:
        candidate = next(c for c in self.candidates if c.peer.name == name)
        candidate.problems.append(str(error))
        print(f"  {name}: {error}", flush=True)

    def _alive(self) -> list[Candidate]:
        return [c for c in self.candidates if not c.problems]

    def _rounds(
        self, what: str, figure: Callable[[Candidate], float], rounds: int, among: Sequence[Candidate]
    ) -> dict[str, list[float]]:
        start = perf_counter()
        runs = {c.peer.name: partial(figure, c) for c in among}
        found = in_turn(runs, rounds, self._failed)
        print(f"{what}: {perf_counter() - start:.0f} s", flush=True)
        return found

    def start(self, stack: ExitStack) -> None:
        """A process a candidate, its fastest way kept."""
        begun = perf_counter()
        for candidate in self.candidates:
            self._attempt(candidate, partial(self._start, candidate, stack))
        print(f"started: {perf_counter() - begun:.0f} s", flush=True)

    def _start(self, candidate: Candidate, stack: ExitStack) -> None:
        closure(candidate.peer.needs)
        candidate.process = self._choose(candidate) if candidate.peer.ways else candidate.start()
        stack.callback(candidate.process.close)
        candidate.told = candidate.process.ask("told")

    def _attempt(self, candidate: Candidate, part: Callable[[], None]) -> None:
        try:
            part()
        except (PeerError, OSError) as error:
            self._failed(candidate.peer.name, error)

    def _choose(self, candidate: Candidate) -> Process:
        paths = [str(path) for path in self.images.paths[: max(BATCHES)]]
        failed: list[str] = []

        def no(way: str, error: Exception) -> None:
            failed.append(f"{way} failed ({error})")

        ways = candidate.peer.ways.items()
        jobs = {way: self._job({**candidate.peer.job, **own}, candidate.out) for way, own in ways}
        opened: dict[str, Process] = {}
        for way, job in jobs.items():
            opened |= opened_if_it_can(way, replace(candidate, job=job), no)

        def films(process: Process) -> float:
            return float(process.ask("films", paths=paths, out=str(candidate.out), batch=len(paths)))

        times = in_turn({way: partial(films, p) for way, p in opened.items()}, 3, no)  # the first warms up
        best = {way: min(seconds[1:]) for way, seconds in times.items()}
        way = min(best, key=lambda name: best[name], default="")
        for name, process in opened.items():
            if name != way:
                process.close()
        if not way:
            raise PeerError("; ".join(failed))
        candidate.job = jobs[way]
        others = [
            f"{name} takes {seconds / best[way]:.2f} times as long" for name, seconds in best.items() if name != way
        ]
        candidate.way = f"{way} ({'; '.join([*others, *failed])})"
        return opened[way]

    def network(self) -> None:
        among = [c for c in self._alive() if c.peer.loaded]
        for batch in BATCHES:

            def alone(c: Candidate, batch: int = batch) -> float:
                assert c.process is not None
                return float(c.process.ask("network", batch=batch, seconds=self.options.seconds))

            for name, figures in self._rounds(f"network, batch {batch}", alone, self.options.rounds, among).items():
                next(c for c in among if c.peer.name == name).network[batch] = min(figures)
            among = [c for c in among if not c.problems]

    def end_to_end(self) -> None:
        def whole(c: Candidate) -> float:
            assert c.process is not None
            paths = self._films(c)
            c.films = len(paths)
            return len(paths) / float(c.process.ask("films", paths=paths, out=str(c.out), batch=c.batch))

        alive = self._alive()
        for name, figures in self._rounds("end to end", whole, self.options.rounds, alive).items():
            next(c for c in alive if c.peer.name == name).images_a_second = max(figures)
        given = {c.peer.name: c.process.ask("results") for c in self._alive() if c.process is not None}
        for c in self._alive():
            pairs = zip(given[c.peer.name], given.get(REFERENCE, ()), strict=False)
            apart = [abs(a - b) for mine, theirs in pairs if mine and theirs for a, b in zip(mine, theirs, strict=True)]
            c.apart = max(apart, default=None)

    def _memory(self, c: Candidate) -> None:
        with c.begin() as process, watched(process.pid) as peak:
            process.answer()
            process.ask("films", paths=self._films(c), out=str(c.out), batch=c.batch)
        c.peak = peak if peak.together else None

    def _films(self, c: Candidate) -> list[str]:
        return [str(path) for path in self.images.paths[: c.peer.films or None]]

    def fresh(self) -> None:
        """Memory of one fresh process each, alone; then the time to the first result, in turns."""
        start = perf_counter()
        for c in self._alive():
            self._attempt(c, partial(self._memory, c))
        print(f"memory: {perf_counter() - start:.0f} s", flush=True)

        def first(c: Candidate) -> float:
            if c.first_s is not None and c.first_s > SLOW:
                return c.first_s
            process = c.start()
            seconds = perf_counter() - process.started
            process.close()
            c.first_s = min(seconds, c.first_s or seconds)
            return seconds

        self._rounds("first result", first, self.options.starts, self._alive())


def opened_if_it_can(way: str, candidate: Candidate, no: Callable[[str, Exception], None]) -> dict[str, Process]:
    try:
        return {way: candidate.start()}
    except PeerError as error:
        no(way, error)
        return {}
