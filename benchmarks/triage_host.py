"""Part of benchmarks/pipeline.py: images a second with a session that returns at once, beside loops written by hand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import children
from benchmarks.triage_common import Films, Options, cv2_threads, dicoms, instant, jpegs, pngs, row
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.host import cores
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import read
from cxrvit_edge.triage import Triage

BATCH = 8
DICOM_BOUND, RASTER_BOUND = 1.7, 1.0
SKIPPED = 0.25  # of the results, before the steady state is timed


def measure(options: Options) -> list[dict[str, Any]]:
    rows = []
    bundle = Bundle.open()
    for make, kind, n in ((dicoms, "DICOM", (384, 24)), (jpegs, "JPEG", (512, 64)), (pngs, "PNG", (512, 64))):
        with tempfile.TemporaryDirectory() as temporary:
            films = make(options.count(*n), Path(temporary))
            rows += compare(bundle, kind, films, Path(temporary), options.rounds(3))
    return rows


@dataclass
class Best:
    """Of several rounds: images a second of the whole and in its steady state, milliseconds of processor an image."""

    whole: float = 0.0
    steady: float = 0.0
    processor_ms: float = float("inf")

    def take(self, run: Callable[[list[float]], object], n: int) -> None:
        """Time a run that leaves the moment of each result in the list it is given."""
        marks: list[float] = []
        start, before = perf_counter(), processor()
        run(marks)
        end, used = perf_counter(), processor() - before
        self.whole = max(self.whole, n / (end - start))
        self.processor_ms = min(self.processor_ms, used / n * 1e3)
        if marks and len(marks) != n:
            raise SystemExit(f"{len(marks)} results of {n} inputs")
        if marks:
            first = int(SKIPPED * n)
            self.steady = max(self.steady, (n - 1 - first) / (marks[-1] - marks[first]))


def compare(bundle: Bundle, kind: str, films: Films, work: Path, rounds: int) -> list[dict[str, Any]]:
    """Interleaved rounds, the best of each; a first round over a few files does not count."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    loop: Callable[[list[Path], PreprocessConfig], None] = plain_loop if kind == "DICOM" else cv2_pool
    n = len(films.paths)
    ours, peers, started = {}, {}, ""
    for paths, count in ((films.paths[:BATCH], 1), (films.paths, rounds)):
        ours = {"iterated": Best(), "written": Best()}
        peers = {"OpenCV's own threads": Best(), "OpenCV on one thread": Best()}
        for _ in range(count):
            before, seen = workers(), set[int]()
            ours["iterated"].take(partial(iterate, Triage(bundle, instant(bundle)), paths, seen), len(paths))
            ours["written"].take(partial(write, Triage(bundle, instant(bundle)), paths, work / "out"), len(paths))
            shutil.rmtree(work / "out")
            started = "start of workers included" if seen - before else "no worker had to be started"
            for (_, best), threads in zip(peers.items(), (cores(), 1), strict=True):
                with cv2_threads(threads):
                    best.take(lambda _: loop(paths, config), len(paths))  # noqa: B023  called at once
    name, peer = max(peers.items(), key=lambda pair: pair[1].whole)
    what = "plain loop of read and preprocess" if kind == "DICOM" else f"ThreadPoolExecutor({cores()}) of cv2"
    bound: dict[str, Any] = {"at_least": DICOM_BOUND if kind == "DICOM" else RASTER_BOUND}
    rows = []
    for way, best in ours.items():
        extra = "; ours writes journal, thumbnails, worklist, report" if way == "written" else ""
        how = (
            f"best of {rounds} rounds in turn; processor time an image {best.processor_ms:.2f} ms (workers that go on "
            f"left out), peer {peer.processor_ms:.2f}; peer: {what} ({name}, the better), nothing judged or written"
        )
        common: dict[str, Any] = {"n": n, "images": films.what}
        told = f"{started}{extra}; {how}"
        rows.append(row(f"{kind} {way}", "images/s", best.whole, peer.whole, note=told, **bound, **common))
        told = f"after the first {SKIPPED:.0%} of the results; {how}"
        rows.append(row(f"{kind} {way}, steady", "images/s", best.steady, peer.whole, note=told, **common))
    return rows


def iterate(triage: Triage, paths: list[Path], seen: set[int], marks: list[float]) -> None:
    """seen: gets the workers that were there at the first result."""
    for _ in triage(paths):
        marks.append(perf_counter())
        if len(marks) == 1:
            seen.update(workers())


def write(triage: Triage, paths: list[Path], out: Path, marks: list[float]) -> None:
    triage.run(paths, out, progress=lambda _: marks.append(perf_counter()))


def workers() -> set[int]:
    """Child processes but the one that multiprocessing keeps for itself."""
    found = set()
    for pid in children():
        with suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def processor() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def plain_loop(paths: list[Path], config: PreprocessConfig) -> None:
    for path in paths:
        preprocess(read(path), config)


def cv2_pool(paths: list[Path], config: PreprocessConfig) -> None:
    """What one would write by hand: 8-bit cv2 calls in threads, stacked into batches."""
    with ThreadPoolExecutor(cores()) as pool:
        batch: list[Float32] = []
        for image in pool.map(lambda path: by_hand(path, config), paths):
            batch.append(image)
            if len(batch) == BATCH:
                np.stack(batch)
                batch = []


def by_hand(path: Path, config: PreprocessConfig) -> Float32:
    import cv2

    image = cv2.equalizeHist(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    image = cv2.GaussianBlur(image, (config.blur_kernel, config.blur_kernel), config.blur_sigma)
    ratio = config.size / max(image.shape)
    height, width = (max(1, round(side * ratio)) for side in image.shape)
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, (width, height), interpolation=how)
    out = np.zeros((1, config.size, config.size), np.float32)
    top, left = (config.size - height) // 2, (config.size - width) // 2
    out[0, top : top + height, left : left + width] = (image.astype(np.float32) - config.offset) / config.scale
    return out
