"""Reading DICOM, stage by stage: python -m benchmarks.dicom FOLDER... [--rounds 15] [--record]

Milliseconds of one thread, each the least of interleaved rounds: the header alone, the header and the first frame's
stored words, all of `decode`, `preprocess`; beside them pydicom's header (with the same values taken from it) and
pydicom's own `pixel_array`, which applies no sign, lookup table or polarity. Files of FOLDER are named by SHA-256; a
phantom of 2 megapixels in every transfer syntax that can be written here is added. What the header turns away has no
times beyond it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import pydicom

from benchmarks.preprocess import least
from benchmarks.record import record
from cxrvit_edge.errors import InputError
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Limits
from cxrvit_edge.readers import decode
from cxrvit_edge.readers.dicom import read_header
from cxrvit_edge.readers.dicom_elements import KNOWN
from cxrvit_edge.readers.dicom_pixels import decode_first_frame

TESTS = Path(__file__).resolve().parent.parent / "tests" / "readers"


def phantoms() -> dict[str, bytes]:
    """A phantom of 12 bits (JPEG: 8) in each transfer syntax."""
    sys.path.insert(0, str(TESTS))
    rf = importlib.import_module("reader_files")
    pixels = make_phantom(1, height=1600, width=1280).pixels
    ds = rf.data_set(pixels, BitsStored=12)
    files = {syntax: rf.part10(ds, syntax) for syntax in (rf.IMPLICIT, rf.EXPLICIT, rf.DEFLATED, rf.BIG_ENDIAN)}
    for syntax, encode in rf.ENCODERS.items():
        files[syntax] = rf.compressed(ds, syntax, [encode(pixels, 12)])
    gray = cv2.convertScaleAbs(pixels, alpha=255 / 4095)
    files[rf.JPEG_BASELINE] = rf.compressed(rf.data_set(gray), rf.JPEG_BASELINE, [rf.raster(gray, "JPEG", quality=92)])
    return {f"phantom, {pydicom.uid.UID(syntax).name}": data for syntax, data in files.items()}


def pydicom_header(data: bytes) -> list[Any]:
    ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    return [ds.get(keyword) for keyword in KNOWN if not keyword.startswith("Overlay")]


def measure(data: bytes, rounds: int) -> dict[str, float]:
    """Milliseconds by stage; NaN for one that this file does not reach."""
    limits, config = Limits(), PreprocessConfig()
    calls: dict[str, Any] = {
        "header": lambda: read_header(data, limits),
        "pydicom_header": lambda: pydicom_header(data),
    }

    def words() -> object:
        header, body, at = read_header(data, limits)
        return decode_first_frame(body, at, header)

    try:
        radiograph = decode(data, "x.dcm", limits)
    except InputError:
        pass
    else:
        calls |= {
            "header_and_words": words,
            "decode": lambda: decode(data, "x.dcm", limits),
            "preprocess": lambda: preprocess(radiograph, config),
            "pydicom_pixels": lambda: pydicom.dcmread(io.BytesIO(data), force=True).pixel_array,
        }
        try:
            calls["pydicom_pixels"]()
        except Exception:  # what pydicom cannot decode with the plugins here
            del calls["pydicom_pixels"]
    stages = ("header", "header_and_words", "decode", "preprocess", "pydicom_header", "pydicom_pixels")
    return dict.fromkeys(stages, math.nan) | least(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/dicom.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    files = {}
    for folder in options.folder:
        for path in sorted(folder.glob("*.dcm")):
            data = path.read_bytes()
            files[hashlib.sha256(data).hexdigest()] = data
    rows = []
    for name, data in (files | phantoms()).items():
        header, _, _ = read_header(data, Limits())
        times = measure(data, options.rounds)
        facts = {"file": name, "syntax": header.syntax, "rows": header.rows, "columns": header.columns}
        rows.append(facts | {stage: "" if math.isnan(ms) else round(ms, 3) for stage, ms in times.items()})
        shown = ", ".join(f"{stage} {ms:.2f}" for stage, ms in times.items() if not math.isnan(ms))
        print(f"{name[:44]:44} {header.rows} x {header.columns}: {shown}")
    if options.record:
        print(record("dicom", rows, ("numpy", "opencv-python-headless", "pydicom", "pyjpegls", "python-gdcm")))


if __name__ == "__main__":
    main()
