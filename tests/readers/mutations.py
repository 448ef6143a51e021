"""Damaged and hostile image files, made from whole ones: the same for the same seed on every box.

As a program it reads a part of them, one after another, and prints two lines of JSON for each: index, kind and size
before; what came of it, milliseconds and peak memory in MB after. `read_all` runs it and outlives its crashes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a program

import numpy as np
import reader_files as rf
from mutations_dicom import DICOM_KINDS, hostile_dicom
from mutations_raster import BMP_KINDS, CODE_STREAM_KINDS, JPEG_KINDS, PNG_KINDS, TIFF_KINDS, hostile_rasters

from cxrvit_edge.phantom import make_phantom

ROOT = Path(__file__).resolve().parents[2]
Mutation = Callable[[bytes, random.Random], bytes]
SYNTAXES = (rf.IMPLICIT, rf.EXPLICIT, rf.DEFLATED, rf.BIG_ENDIAN)


@dataclass(frozen=True)
class Source:
    """A whole file; stream: the code stream of its pixels and the syntax to wrap it again, of those generated here."""

    name: str
    data: bytes
    stream: bytes = b""
    syntax: str = ""


def flip(low: float, high: float) -> Mutation:
    """1 to 64 bits turned over between two shares of the file."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        out = bytearray(data)
        start, end = int(low * len(out)), max(int(high * len(out)), int(low * len(out)) + 1)
        for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
            out[rng.randrange(start, min(end, len(out)))] ^= 1 << rng.randrange(8)
        return bytes(out)

    return mutate


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut anywhere, or near the start or the end, where the structure is."""
    near = rng.choice((len(data), len(data), 2000, 300))
    at = rng.randrange(1, min(near, len(data)))
    return data[:at] if rng.random() < 0.7 else data[:-at]


def zeros(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096, 65536))
    filler = rng.choice((b"\x00", b"\xff"))
    return data[:start] + filler * min(length, len(data) - start) + data[start + length :]


def shuffle(data: bytes, rng: random.Random) -> bytes:
    """A piece removed, doubled, or changed with another."""
    size = rng.choice((1, 2, 7, 64, 512, 4096))
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    how = rng.randrange(3)
    if how == 0:
        return data[:a] + data[a + size :]
    if how == 1:
        return data[: a + size] + data[a:]
    first, second = data[a : a + size], data[b : b + size]
    return data[:a] + second + data[a + size : b] + first + data[b + size :]


def sizes(data: bytes, rng: random.Random) -> bytes:
    """A 2 or 4 byte number somewhere in the first kilobyte made extreme."""
    out, values = bytearray(data), (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
    at, width = rng.randrange(min(1024, len(out) - 4)), rng.choice("HI")
    struct.pack_into(rng.choice("<>") + width, out, at, rng.choice(values) & (0xFFFF if width == "H" else 0xFFFFFFFF))
    return bytes(out)


ANY: dict[str, Mutation] = {
    "bits anywhere": flip(0, 1),
    "bits in the first 2 %": flip(0, 0.02),
    "bits in the second half": flip(0.5, 1),
    "cut": cut,
    "zeros or ones": zeros,
    "pieces moved": shuffle,
    "numbers": sizes,
}


def kinds_of(source: Source) -> dict[str, Mutation]:
    """What can be done to a file, beyond what can be done to any."""
    data = source.data
    if data.startswith(b"\x89PNG"):
        return PNG_KINDS
    if data.startswith(b"\xff\xd8"):
        return JPEG_KINDS
    if data.startswith((b"II*\x00", b"MM\x00*")):
        return TIFF_KINDS
    if data.startswith(b"BM"):
        return BMP_KINDS
    return DICOM_KINDS


def generated(side: int = 96) -> list[Source]:
    """A phantom as every raster kind and in every transfer syntax that can be written here."""
    deep = make_phantom(1, height=side, width=side).pixels
    gray = (deep >> 4).astype(np.uint8)
    tinted = np.stack([gray] * 3, axis=-1)
    files = {
        "png": rf.raster(gray, "PNG"),
        "png16": rf.raster(deep, "PNG"),
        "png rgb": rf.raster(tinted, "PNG"),
        "jpeg": rf.raster(gray, "JPEG"),
        "jpeg rgb": rf.raster(tinted, "JPEG"),
        "jpeg progressive": rf.raster(gray, "JPEG", progressive=True),
        "jpeg restart": rf.raster(gray, "JPEG", restart_marker_rows=1),
        "tiff": rf.raster(gray, "TIFF"),
        "tiff 16": rf.tiff(deep),
        "tiff lzw": rf.raster(gray, "TIFF", compression="tiff_lzw"),
        "tiff deflate": rf.raster(deep, "TIFF", compression="tiff_deflate"),
        "bmp": rf.raster(gray, "BMP"),
    }
    sources = [Source(name, data) for name, data in files.items()]
    ds = rf.data_set(deep, BitsStored=12)
    sources += [Source(f"dicom {syntax}", rf.part10(ds, syntax)) for syntax in SYNTAXES]
    for syntax, encode in rf.ENCODERS.items():
        stream = encode(deep, 12)
        sources.append(Source(f"dicom {syntax}", rf.compressed(ds, syntax, [stream]), stream, syntax))
    stream = rf.raster(gray, "JPEG")
    sources.append(
        Source("dicom jpeg", rf.compressed(rf.data_set(gray), rf.JPEG_BASELINE, [stream]), stream, rf.JPEG_BASELINE)
    )
    return sources


def real(folders: list[Path]) -> list[Source]:
    paths = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() != ".csv")
    return [Source(f"real {path.suffix[1:].lower()}", path.read_bytes()) for path in paths]


def mutations(
    seed: int, first: int, count: int, folders: list[Path] | None = None
) -> Iterator[tuple[int, str, str, bytes]]:
    """(index, suffix, kind, content) of `count` files from index `first` on.

    One in 16 is made hostile from nothing, one in 6 has its code stream damaged inside a whole container; of the rest
    half are damaged as any file may be, half as their format may.
    """
    made, originals = generated(), real(folders or [])
    streams = [source for source in made if source.stream]
    hostile = sorted((hostile_dicom() | hostile_rasters()).items())
    for index in range(first, first + count):
        rng = random.Random(f"{seed}.{index}")
        if index % 16 == 0:
            kind, make = hostile[(index // 16) % len(hostile)]
            data = make(rng)
            yield index, ".dcm" if data[128:132] == b"DICM" else ".png", f"hostile: {kind}", data
            continue
        if index % 6 == 5:
            source = rng.choice(streams)
            kind, mutate = rng.choice(sorted((ANY | CODE_STREAM_KINDS).items()))
            pixels = rf.data_set(np.zeros((96, 96), np.uint8 if source.syntax == rf.JPEG_BASELINE else np.uint16))
            pixels.BitsStored, pixels.HighBit = (8, 7) if source.syntax == rf.JPEG_BASELINE else (12, 11)
            yield index, ".dcm", f"stream: {kind}", rf.compressed(pixels, source.syntax, [mutate(source.stream, rng)])
            continue
        source = rng.choice(originals if originals and rng.random() < 0.4 else made)
        kind, mutate = rng.choice(sorted((ANY if rng.random() < 0.5 else kinds_of(source)).items()))
        suffix = ".dcm" if "dicom" in source.name or "dcm" in source.name else ".png"
        yield index, suffix, kind, mutate(source.data, rng)


def read_all(
    seed: int, count: int, folders: Sequence[Path] = (), seconds: float = 10.0, memory: int = 4 << 30
) -> Iterator[dict[str, Any]]:
    """What came of each of the first `count` files: a child reads them, in `memory` bytes of address space.

    outcome: "ok", a Reason's value, "escaped" (another exception), "over N s", or "signal N" of a child that died.
    """
    index = 0
    while index < count:
        command = [sys.executable, __file__, str(seed), str(index), str(count - index), "--memory", str(memory)]
        command += [part for folder in folders for part in ("--real", str(folder))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as child:
            for begun, ended in _pairs(child, seconds):
                index = begun["index"] + 1
                yield begun | (ended or {"outcome": _end(child, seconds), "cause": "", "ms": 0.0, "peak_mb": 0})
        if child.returncode > 0:
            raise RuntimeError(f"the reading process ended with {child.returncode}")


def _pairs(child: subprocess.Popen[bytes], seconds: float) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The lines of each file; None for the second of one in which the child hung or died."""
    assert child.stdout is not None
    for line in child.stdout:
        begun = json.loads(line)
        watch = threading.Timer(seconds, child.kill)
        watch.start()
        ended = child.stdout.readline()
        watch.cancel()
        yield begun, json.loads(ended) if ended else None


def _end(child: subprocess.Popen[bytes], seconds: float) -> str:
    code = -child.wait()
    return f"over {seconds:g} s" if code == signal.SIGKILL else f"signal {code}"


def _peak_mb() -> int:
    """Of this process since it began: on Linux its ru_maxrss begins with what the parent held when it forked."""
    import resource

    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) >> 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--real", type=Path, action="append", default=[])
    parser.add_argument("--memory", type=int, default=4 << 30, help="address space in bytes")
    options = parser.parse_args()
    import resource

    from cxrvit_edge.errors import InputError, Reason
    from cxrvit_edge.preprocess import PreprocessConfig, preprocess
    from cxrvit_edge.radiograph import Limits
    from cxrvit_edge.readers import decode

    resource.setrlimit(resource.RLIMIT_AS, (options.memory, options.memory))
    for index, suffix, kind, data in mutations(options.seed, options.first, options.count, options.real):
        print(json.dumps({"index": index, "kind": kind, "bytes": len(data)}), flush=True)
        start, cause = time.perf_counter(), ""
        try:
            radiograph = decode(data, f"x{suffix}", Limits())
            preprocess(radiograph, PreprocessConfig())
            outcome = "ok"
        except InputError as error:
            outcome = error.reason.value
            cause = f"{error.__cause__!r}" if error.reason is Reason.INTERNAL else ""
        except BaseException as error:
            outcome, cause = "escaped", repr(error)
        peak = _peak_mb()
        ms = round((time.perf_counter() - start) * 1e3, 1)
        print(json.dumps({"index": index, "outcome": outcome, "cause": cause, "ms": ms, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main()
