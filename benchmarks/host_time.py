"""Host time an image: python -m benchmarks.host_time FOLDER... [--images 64] [--bundle DIR] [--rounds 3] [--record]

Wall time of a whole run (read, judge, journal, thumbnails, worklist, report) less the time inside `Session.run`, over
the images, with a session that returns at once. PNG and JPEG apart from DICOM. Files are copied up to the number asked
for; the median round counts. The first run, which imports the readers, does not. The processor time, over all threads,
tells on a shared box how much of the wall time was waiting for others.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.radiograph import read
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Outputs
from cxrvit_edge.summary import Summary
from cxrvit_edge.triage import Triage

KINDS = {"raster": (".png", ".jpg", ".jpeg"), "DICOM": (".dcm", ".dicom")}


class InstantSession:
    """Outputs made once, with lungs and a map that cost as much to judge as real ones."""

    backend, version, precision = "instant", "1", "fp32"

    def __init__(self) -> None:
        y, x = np.mgrid[0:256, 0:256] / 256
        lungs = [((x - at) / 0.14) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1 for at in (0.3, 0.7)]
        self._lungs = np.stack(lungs).astype(np.float32)[None]  # (1, 2, 256, 256)
        noise = np.random.default_rng(0).random((16, 16), dtype=np.float32)
        self._map = np.kron(noise, np.ones((16, 16), np.float32))[None, None]  # (1, 1, 256, 256)
        self.seconds = 0.0

    def run(self, batch: Float32) -> Outputs:
        start = time.perf_counter()
        n = len(batch)
        logits = np.zeros((n, 3), np.float32)
        outputs = Outputs(
            logits, np.broadcast_to(self._map, (n, 1, 256, 256)), np.broadcast_to(self._lungs, (n, 2, 256, 256))
        )
        self.seconds += time.perf_counter() - start
        return outputs


def readable(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files of a kind that triage would judge."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            try:
                read(path)
            except InputError:
                continue
            yield path


def copies(paths: list[Path], count: int, into: Path) -> None:
    into.mkdir()
    for i in range(count):
        source = paths[i % len(paths)]
        shutil.copy(source, into / f"{i:04d}{source.suffix}")


def measure(bundle: Bundle, folder: Path, out: Path) -> tuple[float, float, Summary]:
    """Host milliseconds an image of one run, processor milliseconds an image, summary."""
    session = InstantSession()
    graphs = dict.fromkeys(bundle.manifest.views.values(), session)
    start, cpu = time.perf_counter(), time.process_time()
    summary = Triage(bundle, Sessions("instant", "1", "fp32", graphs)).run(folder, out, fresh=True)
    wall, cpu = time.perf_counter() - start - session.seconds, time.process_time() - cpu
    return wall * 1e3 / summary.run.done, cpu * 1e3 / summary.run.done, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--bundle", type=Path, help="for its preprocessing; the embedded one by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/host_time.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    rows = []
    for folder in options.folder:
        for kind, suffixes in KINDS.items():
            with tempfile.TemporaryDirectory() as temporary:
                work = Path(temporary)
                paths = list(readable(folder, suffixes))[: options.images]
                if not paths:
                    continue
                copies(paths, options.images, work / kind)
                measure(bundle, work / kind, work / "out")
                rounds = [measure(bundle, work / kind, work / "out") for _ in range(options.rounds)]
            wall, cpu, summary = sorted(rounds, key=lambda r: r[0])[len(rounds) // 2]
            low, high = min(r[0] for r in rounds), max(r[0] for r in rounds)
            stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in summary.run.stage_ms.items())
            print(f"{folder} {kind}: {wall:.1f} ms an image ({low:.1f} to {high:.1f}), {cpu:.1f} ms of processor time")
            print(f"  {len(paths)} different files, {summary.statuses}")
            print(f"  mean milliseconds in each stage, threads overlap: {stages}")
            figures = {"ms_an_image": wall, "least": low, "most": high, "processor_ms": cpu}
            row = {"folder": folder.name, "kind": kind, "images": options.images, "different": len(paths)}
            rows.append({**row, **{name: round(value, 1) for name, value in figures.items()}})
    if options.record and rows:
        print(record("host_time", rows, ("numpy", "opencv-python-headless", "pydicom")))


if __name__ == "__main__":
    main()
