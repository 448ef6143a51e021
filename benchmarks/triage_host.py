"""Part of benchmarks/pipeline.py: images a second with a session that returns at once, beside loops written by hand."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.triage_common import Films, Options, children, cv2_threads, dicoms, instant, jpegs, pngs, row
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
    for make, kind, n in ((dicoms, "DICOM", (192, 24)), (jpegs, "JPEG", (512, 64)), (pngs, "PNG", (512, 64))):
        with tempfile.TemporaryDirectory() as temporary:
            films = make(options.count(*n), Path(temporary))
            rows += compare(bundle, kind, films, Path(temporary), options.rounds(3))
    return rows


def compare(bundle: Bundle, kind: str, films: Films, work: Path, rounds: int) -> list[dict[str, Any]]:
    """Interleaved rounds, the best rate of each; a first round over a few files does not count."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    loop: Callable[[list[Path], PreprocessConfig], None] = plain_loop if kind == "DICOM" else cv2_pool
    iterated: list[tuple[float, float]] = []
    written: list[tuple[float, float]] = []
    peers: dict[str, float] = {}
    running: set[int] = set()  # workers that were there before a run, or in it
    started = "no workers in use"
    for i in range(rounds + 1):
        paths = films.paths if i else films.paths[:BATCH]
        running.update(children())
        kept = bool(running)
        a = iterate(Triage(bundle, instant(bundle)), paths, running)
        b = write(Triage(bundle, instant(bundle)), paths, work / "out")
        if running:
            started = "workers were already running" if kept else "worker start-up included"
            running.clear()
        times = {}
        for name, threads in (("OpenCV's own threads", cores()), ("OpenCV on one thread", 1)):
            with cv2_threads(threads):
                start = perf_counter()
                loop(paths, config)
                times[name] = len(paths) / (perf_counter() - start)
        if i:
            iterated.append(a)
            written.append(b)
            peers = {name: max(rate, peers.get(name, 0.0)) for name, rate in times.items()}
    best = max(peers, key=lambda name: peers[name])
    what = "plain loop of read and preprocess" if kind == "DICOM" else f"ThreadPoolExecutor({cores()}) of cv2"
    peer = f"{what} ({best}, the better), nothing judged or written"
    how = f"best of {rounds} rounds in turn; peer: {peer}"
    bound: dict[str, Any] = {"at_least": DICOM_BOUND if kind == "DICOM" else RASTER_BOUND}
    common: dict[str, Any] = {"n": len(films.paths), "images": films.what}
    rows = []
    for name, runs in (("iterated", iterated), ("written", written)):
        whole, steady = max(run[0] for run in runs), max(run[1] for run in runs)
        extra = "; ours writes journal, thumbnails, worklist, report" if name == "written" else ""
        told = f"{started}{extra}; {how}"
        rows.append(row(f"{kind} {name}", "images/s", whole, peers[best], note=told, **bound, **common))
        after = f"after the first {SKIPPED:.0%} of the results; {how}"
        rows.append(row(f"{kind} {name}, steady", "images/s", steady, peers[best], note=after, **common))
    return rows


def iterate(triage: Triage, paths: list[Path], running: set[int]) -> tuple[float, float]:
    """Images a second of the whole, and in its steady state; the processes that worked on it are added."""
    marks: list[float] = []
    start = perf_counter()
    for _ in triage(paths):
        marks.append(perf_counter())
        if len(marks) == 1:
            running.update(children())
    return rates(start, marks, perf_counter(), len(paths))


def write(triage: Triage, paths: list[Path], out: Path) -> tuple[float, float]:
    """The same for a run into a fresh folder; the steady state ends with the last result."""
    marks: list[float] = []
    start = perf_counter()
    triage.run(paths, out, progress=lambda _: marks.append(perf_counter()))
    found = rates(start, marks, perf_counter(), len(paths))
    shutil.rmtree(out)
    return found


def rates(start: float, marks: list[float], end: float, n: int) -> tuple[float, float]:
    if len(marks) != n:
        raise SystemExit(f"{len(marks)} results of {n} inputs")
    first = int(SKIPPED * n)
    return n / (end - start), (n - 1 - first) / (marks[-1] - marks[first])


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
