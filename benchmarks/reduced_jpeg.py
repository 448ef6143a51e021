"""What decoding large JPEGs at 1/2, 1/4 or 1/8 would change: python -m benchmarks.reduced_jpeg FOLDER... [--record]

Files of more than 1024 pixels on the longer side; what is no JPEG is made one of quality 92 first. Each is preprocessed
from the full picture and from libjpeg's reduced ones that still cover the network's square, and judged by the default
bundle. Differences are of 255 gray levels, before normalisation; time is of decoding and preprocessing together.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError
from cxrvit_edge.preprocess import Float32, PreprocessConfig, equalisation_table, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from cxrvit_edge.runtime.select import open_sessions

REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}


def as_jpeg(path: Path) -> NDArray[np.uint8] | None:
    """Bytes of a JPEG of this film, (n,); None if it is no film or too small to be reduced."""
    try:
        pixels = read(path).pixels
    except InputError:
        return None
    if max(pixels.shape) <= 1024:
        return None
    data = np.fromfile(path, np.uint8)
    if data[:3].tobytes() == b"\xff\xd8\xff":
        return data
    gray = pixels if pixels.dtype == np.uint8 else np.rint(255 * equalisation_table(pixels)[pixels]).astype(np.uint8)
    return np.asarray(cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]).ravel()


def tensor(data: NDArray[np.uint8], flag: int, config: PreprocessConfig) -> tuple[Float32, float, int]:
    """Network input (1, S, S), milliseconds, and the longer side decoded."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        pixels = np.asarray(cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)
        found, _ = preprocess(Radiograph(pixels), config)
        best = min(best, (time.perf_counter() - start) * 1e3)
    return found, best, max(pixels.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/reduced_jpeg.csv")
    options = parser.parse_args()
    bundle = Bundle.open(None)
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    sessions = open_sessions(bundle, backend="onnxruntime", precision="fp32")
    session = sessions[bundle.graph_for("PA")]
    rows: list[dict[str, Any]] = []
    for path in sorted(p for folder in options.folder for p in folder.rglob("*") if p.is_file() and p.suffix != ".csv"):
        data = as_jpeg(path)
        if data is None:
            continue
        full, full_ms, longest = tensor(data, cv2.IMREAD_GRAYSCALE, config)
        logits = session.run(full[None]).logits
        for by, flag in REDUCED.items():
            if longest / by < config.size:
                break
            small, ms, side = tensor(data, flag, config)
            apart = np.abs(small - full) * config.scale
            row = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "reduced_by": by, "longest_side": side}
            figures = {
                "mean": apart.mean(),
                "p99_9": np.percentile(apart, 99.9),
                "most": apart.max(),
                "within_2": (apart <= 2).mean(),
                "logits": np.abs(session.run(small[None]).logits - logits).max(),
                "ms_full": full_ms,
                "ms": ms,
            }
            rows.append(row | {name: round(float(value), 4) for name, value in figures.items()})
            print("  ".join(str(value)[:12] for value in rows[-1].values()), flush=True)
    if options.record and rows:
        print(record("reduced_jpeg", rows, ("numpy", "opencv-python-headless", "onnxruntime")))


if __name__ == "__main__":
    main()
