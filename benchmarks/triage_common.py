"""What the parts of benchmarks/pipeline.py share: films, sessions that are watched or return at once, rows."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.preprocess import Float32
from cxrvit_edge.runtime import golden, tuning
from cxrvit_edge.runtime.candidates import VARIANTS
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Outputs, Session

DATA = Path(__file__).parents[2] / "shared" / "data"
PHANTOMS = 12  # different ones, where there are no real films


@dataclass(frozen=True)
class Options:
    """images: None takes each part's own number; quick: fewer rounds and inputs."""

    images: int | None = None
    quick: bool = False

    def count(self, whole: int, quick: int) -> int:
        return self.images or (quick if self.quick else whole)

    def rounds(self, whole: int, quick: int = 1) -> int:
        return quick if self.quick else whole


@dataclass(frozen=True)
class Films:
    """paths: files to triage; what: real or generated, how many different, the hash of the hashes of their content."""

    paths: list[Path]
    what: str


def jpegs(count: int, work: Path) -> Films:
    """Real JPEGs drawn from every source in turn (seed 0), or phantoms where there are none."""
    sources = [sorted(folder.glob("*.jpg")) for folder in sorted(DATA.glob("images/*"))]
    if not any(sources):
        return _phantom_jpegs(count, work)
    rng = random.Random(0)
    drawn = [rng.sample(paths, len(paths)) for paths in sources]
    turns = [paths[i] for i in range(max(map(len, drawn))) for paths in drawn if i < len(paths)]
    paths = turns[:count] if count <= len(turns) else copies(turns, count, work / "jpeg")
    return Films(paths, described("real JPEG", turns[:count]))


def pngs(count: int, work: Path) -> Films:
    """The films of `jpegs`, written anew as PNG."""
    import cv2

    source = jpegs(count, work)
    folder = work / "png"
    folder.mkdir()
    paths = [folder / f"{i:05d}.png" for i in range(len(source.paths))]
    for path, film in zip(paths, source.paths, strict=True):
        cv2.imwrite(str(path), cv2.imread(str(film), cv2.IMREAD_GRAYSCALE))
    return Films(paths, f"{source.what}, written anew as PNG")


def dicoms(count: int, work: Path) -> Films:
    """The real DICOM films under so many names, or phantoms in several transfer syntaxes."""
    real = sorted(DATA.glob("dicom/*.dcm"))
    different = real or _phantom_dicoms(work / "phantoms")
    kind = "real DICOM" if real else "phantom DICOM"
    return Films(copies(different, count, work / "dicom"), described(kind, different[:count]))


def copies(paths: Sequence[Path], count: int, into: Path) -> list[Path]:
    """So many names in turn for these files, each file copied once and linked then."""
    into.mkdir(parents=True)
    kept = into.parent / f"{into.name}-kept"
    kept.mkdir()
    sources = [Path(shutil.copy(path, kept / f"{i}{path.suffix}")) for i, path in enumerate(paths[:count])]
    made = []
    for i, source in enumerate(islice(cycle(sources), count)):
        made.append(into / f"study{i:06d}{source.suffix}")
        os.link(source, made[-1])
    return made


def described(kind: str, different: Sequence[Path]) -> str:
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in different)
    return f"{len(hashes)} different {kind}, set {hashlib.sha256(''.join(hashes).encode()).hexdigest()[:12]}"


def _phantom_jpegs(count: int, work: Path) -> Films:
    import cv2

    from cxrvit_edge.phantom import make_phantom

    folder = work / "phantoms"
    folder.mkdir()
    for i in range(min(PHANTOMS, count)):
        pixels = (make_phantom(i, height=768, width=640 + 16 * i).pixels >> 4).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    different = sorted(folder.iterdir())
    return Films(copies(different, count, work / "jpeg"), described("phantom JPEG", different))


def _phantom_dicoms(folder: Path) -> list[Path]:
    from cxrvit_edge.phantom import make_phantom
    from tests.readers import reader_files as files

    folder.mkdir()
    pixels = make_phantom(0, height=1536, width=1408).pixels  # (H, W) uint16, 12 bits
    ds = files.data_set(pixels, BitsStored=12)
    gray = (pixels >> 4).astype(np.uint8)
    contents = [files.part10(ds, syntax) for syntax in (files.IMPLICIT, files.EXPLICIT)]
    syntaxes = (files.RLE, files.JPEG_LS, files.J2K_LOSSLESS, files.JPEG_LOSSLESS_SV1)
    contents += [files.compressed(ds, syntax, [files.ENCODERS[syntax](pixels, 12)]) for syntax in syntaxes]
    baseline = files.raster(gray, "JPEG", quality=92)
    contents.append(files.compressed(files.data_set(gray), files.JPEG_BASELINE, [baseline]))
    paths = [folder / f"{i}.dcm" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


class InstantSession:
    """Returns the bundle's stored golden outputs in turn, so that judging has its full work and running has none."""

    backend, precision, fingerprint = "onnxruntime", "fp32", ""  # by that name the pipeline forms the same batches
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle, graph: str) -> None:
        self.version = "stub"
        self._outputs = golden.load_outputs(bundle, "fp32", graph)  # of N films
        self._batches: dict[int, Outputs] = {}

    def run(self, batch: Float32) -> Outputs:
        n = len(batch)
        if n not in self._batches:
            rows = np.arange(n) % len(self._outputs.logits)
            self._batches[n] = self._outputs.rows(rows)
        return self._batches[n]


class TimedSession:
    """Another session, and how long it ran. batches: their sizes in turn."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.backend, self.version, self.precision = session.backend, session.version, session.precision
        self.fingerprint = session.fingerprint
        self.batch_sizes, self.notes = tuple(session.batch_sizes), tuple(session.notes)
        self.seconds = 0.0
        self.batches: list[int] = []

    def run(self, batch: Float32) -> Outputs:
        start = perf_counter()
        outputs = self._session.run(batch)
        self.seconds += perf_counter() - start
        self.batches.append(len(batch))
        return outputs


def instant(bundle: Bundle) -> Sessions:
    by_graph = {graph: InstantSession(bundle, graph) for graph in set(bundle.manifest.views.values())}
    return Sessions("onnxruntime", "stub", "fp32", by_graph)


def told(bundle: Bundle, sessions: Sessions) -> str:
    """Back end, precision, and whether `build` has tuned it on this box."""
    variant = VARIANTS[sessions.backend][sessions.precision]
    tuned = "as tuned by build" if tuning.find(bundle, sessions.backend, variant) else "not tuned by build"
    return f"{sessions.backend} {sessions.precision} {tuned}"


@contextmanager
def cv2_threads(count: int) -> Iterator[None]:
    """OpenCV's own threads for a peer; ours finds them as they were."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def row(
    name: str,
    unit: str,
    ours: float,
    peer: float,
    *,
    n: int,
    images: str,
    note: str,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """A line of the table. ratio: ours / peer; without a bound it is only told."""
    ratio = ours / peer
    bound = f"<= {at_most}" if at_most is not None else f">= {at_least}" if at_least is not None else ""
    held = (at_most is None or ratio <= at_most) and (at_least is None or ratio >= at_least)
    return {
        "name": name,
        "unit": unit,
        "ours": float(f"{ours:.4g}"),
        "peer": float(f"{peer:.4g}"),
        "ratio": round(ratio, 3),
        "bound": bound,
        "holds": ("yes" if held else "NO") if bound else "",
        "n": n,
        "images": images,
        "note": note,
    }


def absent(name: str, bound: str, why: str) -> dict[str, Any]:
    """A line for what could not be measured."""
    values = dict.fromkeys(("unit", "ours", "peer", "ratio", "n", "images"), "")
    return {"name": name, **values, "bound": bound, "holds": "not measured", "note": why}
