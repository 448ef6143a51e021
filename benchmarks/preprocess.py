"""Decoding and preprocessing, stage by stage: python -m benchmarks.preprocess DATA [--images 64] [--rounds 9]

DATA holds images/ (JPEG), originals/ and may hold more. Three tables, each of least times over interleaved rounds:
stages    milliseconds of each step of one file, beside the plain calls of the same result with fresh buffers
pool      two threads over JPEG and PNG files: all that triage does to a film but the network and the journal, against
          cv2 calls written by hand (imread, equalizeHist, GaussianBlur, normalise, resize, paste) in another process
beside    the same films while a session of two threads runs: OpenCV with its own threads against one
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.host_time import InstantSession
from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.findings import judge
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.preprocess import Float32, Geometry, PreprocessConfig, equalisation_table, preprocess
from cxrvit_edge.radiograph import Limits, Radiograph
from cxrvit_edge.readers.containers import walk
from cxrvit_edge.readers.raster import decode_raster
from cxrvit_edge.report import thumbnails
from cxrvit_edge.runtime.select import open_sessions

Call = Callable[[], object]


def least(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, the least of interleaved rounds after one that does not count."""
    best = dict.fromkeys(calls, float("inf"))
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def plain_preprocess(pixels: NDArray[Any], config: PreprocessConfig) -> Float32:
    """The same tensor, image by image through fresh full-size float arrays."""
    table = (255.0 * equalisation_table(pixels) - config.offset) / config.scale
    soft = cv2.GaussianBlur(table[pixels] if pixels.dtype == np.uint16 else cv2.LUT(pixels, table), (3, 3), 0.8)
    return pasted(soft, Geometry.fit(pixels.shape[0], pixels.shape[1], config.size, config.aspect))


def pasted(image: NDArray[Any], g: Geometry) -> Float32:
    out = np.zeros((1, g.size, g.size), np.float32)
    content = cv2.resize(image, (g.content_width, g.content_height), interpolation=cv2.INTER_AREA)
    out[0, g.top : g.top + g.content_height, g.left : g.left + g.content_width] = content
    return out


def plain_thumbnail(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    ratio = min(1.0, thumbnails.LONGEST_SIDE / max(pixels.shape))
    size = round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.percentile(small[::3, ::3], (0.5, 99.5))
    return np.asarray(np.clip((small - low) * (255 / max(high - low, 1e-6)) + 0.5, 0, 255).astype(np.uint8))


def by_hand(path: Path) -> Float32:
    """What a user would write; squares of 512 as the default bundle has them."""
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert gray is not None
    soft = cv2.GaussianBlur(cv2.equalizeHist(gray).astype(np.float32), (3, 3), 0.8)
    return pasted((soft - 128) / 64, Geometry.fit(gray.shape[0], gray.shape[1], 512, "pad"))


class Film:
    """All that happens to a film in triage, but for the network and the journal."""

    def __init__(self, bundle: Bundle, pictures: Path) -> None:
        self.bundle, self.pictures, self.limits = bundle, pictures, Limits()
        self.config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
        self.outputs = InstantSession().run(np.zeros((1, 1, 512, 512), np.float32))
        self.saved = itertools.count()

    def judge(self, geometry: Geometry) -> object:
        return judge(self.outputs, 0, self.bundle, "PA", geometry)

    def save(self, key: str, thumbnail: NDArray[np.uint8], geometry: Geometry) -> None:
        severity, lungs = self.outputs.severity_map[0, 0], self.outputs.lung_mask[0]
        key = f"{key}-{next(self.saved)}"  # of a new file each time, as in a run
        thumbnails.save(self.pictures, key, thumbnail, geometry, severity, lungs)

    def __call__(self, path: Path) -> Float32:
        data = path.read_bytes()
        key = hashlib.sha256(data).hexdigest()
        radiograph = decode_raster(data, self.limits)
        check_pixels(radiograph)
        thumbnail = thumbnails.thumbnail(radiograph)
        tensor, geometry = preprocess(radiograph, self.config)
        self.judge(geometry)
        self.save(key, thumbnail, geometry)
        return tensor

    def stages(self, path: Path | None, pixels: NDArray[Any]) -> dict[str, Call]:
        r = Radiograph(pixels)
        thumbnail, (_, g) = thumbnails.thumbnail(r), preprocess(r, self.config)
        calls: dict[str, Call] = {}
        if path is not None:
            data = path.read_bytes()
            calls = {
                "read": path.read_bytes,
                "sha256": lambda: hashlib.sha256(data).hexdigest(),
                "walk": lambda: walk(data),
                "decode, walk in it": lambda: decode_raster(data, self.limits),
                "cv2.imdecode alone": lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
            }
        return calls | {
            "guard": lambda: check_pixels(r),
            "thumbnail": lambda: thumbnails.thumbnail(r),
            "thumbnail, plain": lambda: plain_thumbnail(pixels),
            "preprocess": lambda: preprocess(r, self.config),
            "preprocess, plain": lambda: plain_preprocess(pixels, self.config),
            "judge": lambda: self.judge(g),
            "save thumbnail and overlay": lambda: self.save("k", thumbnail, g),
        }


def stage_rows(film: Film, inputs: dict[str, tuple[Path | None, NDArray[Any]]], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, (path, pixels) in inputs.items():
        for stage, ms in least(film.stages(path, pixels), rounds).items():
            shape = f"{pixels.shape[0]} x {pixels.shape[1]} {pixels.dtype}"
            rows.append({"input": name, "pixels": shape, "stage": stage, "ms": round(ms, 3)})
    return rows


def serve(hand: bool, paths: Sequence[Path], pictures: Path, pipe: Connection) -> None:
    """A process of its own, as a user's script would be: milliseconds of wall and processor time a film, on demand."""
    work: Callable[[Path], object] = by_hand if hand else Film(Bundle.open(None), pictures)
    with ThreadPoolExecutor(2) as pool:
        while pipe.recv():
            start, cpu = time.perf_counter(), time.process_time()
            for _ in pool.map(work, paths):
                pass
            pipe.send(
                ((time.perf_counter() - start) * 1e3 / len(paths), (time.process_time() - cpu) * 1e3 / len(paths))
            )


def pool_rows(folders: dict[str, list[Path]], pictures: Path, rounds: int) -> list[dict[str, Any]]:
    rows = []
    context = get_context("spawn")
    for kind, paths in folders.items():
        pipes: dict[str, Connection] = {}
        times: dict[str, list[tuple[float, float]]] = {}
        for name in ("now", "hand"):
            pipes[name], other = context.Pipe()
            context.Process(target=serve, args=(name == "hand", paths, pictures, other), daemon=True).start()
            times[name] = []
        for _ in range(rounds + 1):
            for name, pipe in pipes.items():
                pipe.send(True)
                times[name].append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(False)
        (now, now_cpu), (hand, hand_cpu) = (np.min(times[name][1:], axis=0) for name in ("now", "hand"))
        row = {"kind": kind, "images": len(paths), "ms": now, "ms_by_hand": hand, "ratio": now / hand}
        row |= {"processor_ms": now_cpu, "processor_ms_by_hand": hand_cpu, "processor_ratio": now_cpu / hand_cpu}
        rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def beside_rows(film: Film, paths: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Films a second and session runs a second, both at work for the same time."""
    session = open_sessions(film.bundle, backend="onnxruntime")[film.bundle.graph_for("unknown")]
    batch = np.zeros((1, 1, 512, 512), np.float32)
    default, stop = cv2.getNumThreads(), threading.Event()
    totals: dict[int, list[tuple[float, float]]] = {default: [], 1: []}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            for threads in totals:
                cv2.setNumThreads(threads)
                stop.clear()
                futures = [pool.submit(_until, stop, film, paths[i::2]) for i in range(2)]
                start, runs = time.perf_counter(), 0
                while time.perf_counter() - start < 3:
                    session.run(batch)
                    runs += 1
                seconds = time.perf_counter() - start
                stop.set()
                totals[threads].append((sum(f.result() for f in futures) / seconds, runs / seconds))
    cv2.setNumThreads(default)
    medians = {n: np.median(np.array(pairs), axis=0) for n, pairs in totals.items()}
    return [
        {"opencv_threads": n, "films_a_second": round(float(f), 1), "session_runs_a_second": round(float(s), 3)}
        for n, (f, s) in medians.items()
    ]


def _until(stop: threading.Event, work: Callable[[Path], object], paths: list[Path]) -> int:
    done = 0
    while not stop.is_set():
        work(paths[done % len(paths)])
        done += 1
    return done


def inputs(data: Path, work: Path, count: int) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    jpegs = sorted((data / "images").rglob("*.jpg"))
    jpegs = jpegs[:: max(1, len(jpegs) // count)][:count]
    pngs = []
    for i, path in enumerate(jpegs):
        pngs.append(work / f"{i:04d}.png")
        cv2.imwrite(str(pngs[-1]), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    large = max((p for p in (data / "originals").iterdir() if p.suffix != ".csv"), key=lambda p: p.stat().st_size)
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.random((2000, 1800), np.float32), (0, 0), 30)
    deep = ((smooth - smooth.min()) / np.ptp(smooth) * 32000 + rng.normal(300, 60, smooth.shape)).astype(np.uint16)
    square = next(p for p in jpegs if decode_raster(p.read_bytes(), Limits()).pixels.shape == (768, 768))
    files = {"JPEG": square, "PNG": pngs[jpegs.index(square)], "large JPEG": large}
    read = {name: (path, decode_raster(path.read_bytes(), Limits()).pixels) for name, path in files.items()}
    return {**read, "15 bit array": (None, deep)}, {"JPEG": jpegs, "PNG": pngs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--beside", action="store_true", help="the third table too, 18 s a pair of rounds")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/preprocess_*.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        film = Film(Bundle.open(None), work / "pictures")
        single, folders = inputs(options.data, work, options.images)
        tables = {
            "stages": stage_rows(film, single, options.rounds),
            "pool": pool_rows(folders, work / "pool", options.rounds),
        }
        if options.beside:
            tables["beside"] = beside_rows(film, folders["JPEG"], 3)
    for name, rows in tables.items():
        print(name)
        for row in rows:
            print("  " + "  ".join(str(value) for value in row.values()))
        if options.record:
            print(record(f"preprocess_{name}", rows, ("numpy", "opencv-python-headless")))


if __name__ == "__main__":
    main()
