"""From files to a worklist, as triage does it, and from one file to its finding; candidates in turn."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from cxrvit_edge.benchmark.candidates import Contender
from cxrvit_edge.benchmark.options import ROUNDS
from cxrvit_edge.benchmark.scenarios import percentile
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found, discover
from cxrvit_edge.errors import UsageError
from cxrvit_edge.host import cores
from cxrvit_edge.pipeline import Pipeline
from cxrvit_edge.prepare import place
from cxrvit_edge.stages import Plan
from cxrvit_edge.summary import Progress, Summary
from cxrvit_edge.triage import Triage

MOST = 100  # files of a run, evenly spaced over those there are
ALONE = 24  # files that are timed one at a time
WARM = 2


@dataclass(frozen=True)
class Files:
    """paths: each once; told: what they are, in words."""

    paths: list[Path]
    told: str


def chosen(paths: Sequence[Path], told: str, most: int = MOST) -> Files:
    """At most so many, evenly spaced, so that every source is among them."""
    if len(paths) <= most:
        return Files(list(paths), f"{_kinds(paths)}: {told}")
    some = [paths[i * len(paths) // most] for i in range(most)]
    return Files(some, f"{_kinds(some)}: evenly spaced over {len(paths)} {told}")


def _kinds(paths: Sequence[Path]) -> str:
    names = {".jpg": "JPEG", ".jpeg": "JPEG", ".dcm": "DICOM", ".dicom": "DICOM", ".tif": "TIFF"}
    counts = Counter(names.get(p.suffix.lower(), p.suffix[1:].upper() or "files without suffix") for p in paths)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


@dataclass
class _Best:
    rate: float = 0.0
    seconds: float = 0.0
    first: float = 0.0
    summary: Summary | None = None
    alone: list[float] = field(default_factory=list)


def measure(
    contenders: Sequence[Contender],
    bundle: Bundle,
    files: Files,
    *,
    rounds: int = ROUNDS,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Name -> its figures (report.json, "end_to_end"), of the best of `rounds`, and name -> why one has none.

    Each run begins in an empty folder, with worklist, report and thumbnails written; the first run of all, over a few
    files, does not count. A file alone: from its path to its finding in memory, everything warm, nothing written.
    """
    best = {c.name: _Best() for c in contenders}
    failed: dict[str, str] = {}
    order, steps = list(contenders), len(contenders) * (rounds + 1)
    done = 0
    for number in range(-1, rounds):
        for c in order:
            if c.name not in failed:
                try:
                    _round(c, bundle, files.paths[:WARM] if number < 0 else files.paths, best[c.name], number)
                except (UsageError, OSError) as error:
                    failed[c.name] = f"end to end: {error}"
            if number >= 0:
                done += 1
                progress(done / steps)
        order.reverse()
    for name, own in best.items():
        if own.summary is not None and own.summary.statuses.get("failed", 0) == own.summary.run.done:
            failed[name] = f"end to end: all {own.summary.run.done} files failed, so that its speed would be none"
    _one_by_one([c for c in contenders if c.name not in failed], bundle, files.paths, best)
    progress(1.0)
    return {name: _figures(own, files) for name, own in best.items() if name not in failed}, failed


def _round(contender: Contender, bundle: Bundle, paths: list[Path], best: _Best, number: int) -> None:
    first: list[float] = []

    def note(_: Progress) -> None:
        if not first:
            first.append(perf_counter() - start)

    with tempfile.TemporaryDirectory(prefix="cxrvit-edge-benchmark-") as folder:
        triage = Triage(bundle, contender.sessions)
        start = perf_counter()
        summary = triage.run(list(paths), Path(folder) / "out", progress=note)
        seconds = perf_counter() - start
    rate = summary.run.done / seconds
    if number >= 0 and rate > best.rate:
        best.rate, best.seconds, best.first, best.summary = rate, seconds, first[0], summary


def _one_by_one(contenders: Sequence[Contender], bundle: Bundle, paths: Sequence[Path], best: dict[str, _Best]) -> None:
    """Blocks of a few files, candidates in turn."""
    some = [paths[i % len(paths)] for i in range(max(ALONE, min(len(paths), 2 * ALONE)))]
    found = [next(iter(discover([path]))) for path in some]
    block = ALONE // 4
    warm = list({place(f.path): f for f in reversed(found)}.values())  # one that a worker process reads, if any is
    order = list(contenders)
    for at in range(0, len(found), block):
        for c in order:
            best[c.name].alone += _alone(c, bundle, warm, found[at : at + block])
        order.reverse()


def _alone(contender: Contender, bundle: Bundle, warm: list[Found], found: list[Found]) -> list[float]:
    """Seconds of each file that got a judgement."""
    triage = Triage(bundle, contender.sessions, mode="latency")
    plan = Plan(bundle, contender.sessions, triage.owner, workers=cores(), most=1, mode="latency")
    given, times = _Given([*warm, *found]), []
    with closing(Pipeline(plan).run(given)) as findings:
        for number in range(len(warm) + len(found)):
            start = perf_counter()
            given.give()
            finding = next(findings)
            if number >= len(warm) and finding.status == "ok":
                times.append(perf_counter() - start)
    return times


class _Given:
    """Inputs that come one at a time, when `give` is called."""

    def __init__(self, found: Sequence[Found]) -> None:
        self._found, self._room, self._stopped = found, threading.Semaphore(0), False

    def __iter__(self) -> Iterator[Found]:
        for found in self._found:
            self._room.acquire()
            if self._stopped:
                return
            yield found

    def give(self) -> None:
        self._room.release()

    def stop(self) -> None:
        self._stopped = True
        self._room.release()


def _figures(best: _Best, files: Files) -> dict[str, Any]:
    summary = best.summary
    assert summary is not None
    ordered = sorted(1e3 * seconds for seconds in best.alone)
    alone = {f"p{100 * q:.0f}": round(percentile(ordered, q), 3) for q in (0.5, 0.9, 0.99)} if ordered else None
    return {
        "images": len(files.paths),
        "files": files.told,
        "seconds": round(best.seconds, 3),
        "images_a_second": round(best.rate, 4),
        "first_result_s": round(best.first, 4),
        "stage_ms": summary.run.stage_ms,
        "shares": {name: round(share, 4) for name, share in summary.ledger.shares.items()},
        "statuses": summary.statuses,
        "single_file_ms": alone,
    }


def write_phantoms(folder: Path, count: int = 8) -> Files:
    """Generated films where nobody gave any: each as DICOM and PNG of 12 bits, and as JPEG of 8."""
    import cv2

    from cxrvit_edge.phantom import make_phantom

    lesions, paths = ("none", "focal", "diffuse"), []
    for number in range(count):
        view = "AP" if number % 4 == 3 else "PA"
        film = make_phantom(number, lesions=lesions[number % 3], view=view)  # type: ignore[arg-type]
        own = [folder / f"phantom{number:02d}{suffix}" for suffix in (".dcm", ".png", ".jpg")]
        _write_dicom(own[0], film.pixels, view)
        for path, pixels in ((own[1], film.pixels << 4), (own[2], (film.pixels >> 4).astype("uint8"))):
            path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        paths += own
    return Files(paths, f"{_kinds(paths)}: phantoms of 1024 x 896, drawn by this package, not of patients")


def _write_dicom(path: Path, pixels: Any, view: str) -> None:
    """Digital X-ray, 12 bits, not compressed, without a patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    ds, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, ds.file_meta = ExplicitVRLittleEndian, meta
    ds.SOPClassUID = meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", view
    ds.PatientOrientation, ds.PresentationLUTShape = ["L", "F"], "IDENTITY"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds.save_as(os.fspath(path), enforce_file_format=True)
