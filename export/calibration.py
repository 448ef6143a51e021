"""Which images quantisation is calibrated on: frontal, stratified, seeded, and named by hash in the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.guard import check_pixels
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Limits, Radiograph, View
from cxrvit_edge.readers import decode, load
from export.candidates import Candidate, Kind, find

MIN_IMAGES = 16  # ranges of fewer are those of single films


class Chosen(NamedTuple):
    path: Path
    sha256: str
    view: View
    stratum: str


@dataclass(frozen=True)
class Calibration:
    """images: in the order of choice, strata in turn: the first n are those of a choice of n.

    folder: name of the source's folder; passed_over: images left out, by Reason or as "duplicate"
    """

    images: tuple[Chosen, ...]
    kind: Kind
    folder: str
    split: str | None
    seed: int
    asked: int
    passed_over: Mapping[str, int]

    def record(self) -> dict[str, Any]:
        """For the manifest: how they were chosen, and the SHA-256 of each file's bytes; no path, no patient.

        list_sha256: of these hashes in hex, in their order, joined by newlines
        """
        hashes = [image.sha256 for image in self.images]
        return {
            "source": self.kind,
            "folder": self.folder,
            "split": self.split,
            "seed": self.seed,
            "asked": self.asked,
            "chosen": len(hashes),
            "strata": dict(sorted(Counter(image.stratum for image in self.images).items())),
            "passed_over": dict(sorted(self.passed_over.items())),
            "sha256": hashes,
            "list_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        }


def choose(path: Path, *, images: int = 128, seed: int = 0, split: str | None = "train") -> Calibration:
    """Up to `images` frontal radiographs of `path`; each is read, and passed over where the edge would turn it away.

    path: a CheXpert folder, or a table in it; a folder of ours or its manifest.csv; another CSV with a column path or
        file (relative to the CSV) and, where known, view, sex, label, split, patient; or any folder of images
    split: of tables that have one; None takes all
    Strata: view, sex and rarest finding (CheXpert); view, source and label (manifest); view, sex and label (CSV);
    view and sex of the DICOM header (folder).
    Raises UsageError: nothing there, a broken table, no frontal image, fewer than MIN_IMAGES.
    """
    if images < MIN_IMAGES:
        raise UsageError(f"{images} calibration images: ranges need at least {MIN_IMAGES}; 128 is usual")
    passed: Counter[str] = Counter()
    source = find(path, split, passed)
    where = path if source.split is None else f"{path}, split {source.split}"
    if not source.candidates:
        raise UsageError(f"{where}: no frontal image ({_counts(passed)}); name another folder, CSV or split")
    by_hash: dict[str, Chosen] = {}

    def accept(candidate: Candidate) -> bool:
        try:
            radiograph, sha256 = _read(candidate.path)
            check_pixels(radiograph)
        except InputError as error:
            passed[error.reason.value] += 1
            return False
        if sha256 in by_hash:
            passed["duplicate"] += 1
            return False
        view = radiograph.view if candidate.view == "unknown" else candidate.view
        by_hash[sha256] = Chosen(candidate.path, sha256, view, candidate.stratum)
        return True

    pick(source.candidates, images, seed, accept)
    chosen = tuple(by_hash.values())
    if len(chosen) < MIN_IMAGES:
        raise UsageError(
            f"{where}: {len(chosen)} usable frontal images ({_counts(passed)}), and ranges need at least {MIN_IMAGES}; "
            "add images, or name another folder, CSV or split"
        )
    name = source.folder.resolve().name
    return Calibration(chosen, source.kind, name, source.split, seed, images, dict(passed))


def pick(
    candidates: Iterable[Candidate], images: int, seed: int, accept: Callable[[Candidate], bool]
) -> list[Candidate]:
    """Up to `images` of the candidates that `accept` takes, from the stratum with the fewest so far each time.

    Inside a stratum by a hash of seed and key: the choice depends on neither machine nor order, and one candidate more
    displaces at most one while patients have one image each. No patient comes again before all came as often, save
    where a stratum has no other patient to be represented by.
    """

    def order(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode("utf-8", "surrogateescape")).digest()

    waiting: dict[str, deque[Candidate]] = defaultdict(deque)
    for candidate in sorted(candidates, key=lambda c: order(c.key)):
        waiting[candidate.stratum].append(candidate)
    strata = sorted(waiting, key=order)
    chosen: list[Candidate] = []
    of_stratum: Counter[str] = Counter()
    of_patient: Counter[str] = Counter()

    def take(candidate: Candidate) -> None:
        if accept(candidate):
            chosen.append(candidate)
            of_stratum[candidate.stratum] += 1
            of_patient[candidate.patient] += 1

    most = 1  # images a patient
    while waiting and len(chosen) < images:
        later: dict[str, deque[Candidate]] = defaultdict(deque)
        while len(chosen) < images and (left := [s for s in strata if waiting[s]]):
            stratum = min(left, key=lambda s: of_stratum[s])
            candidate = waiting[stratum].popleft()
            if of_patient[candidate.patient] < most:
                take(candidate)
            else:
                later[stratum].append(candidate)
            while not waiting[stratum] and not of_stratum[stratum] and later[stratum]:
                take(later[stratum].popleft())  # rather a patient twice than a stratum without
        waiting, most = later, most + 1
    return chosen


def tensors(calibration: Calibration, config: PreprocessConfig) -> Iterator[Float32]:
    """Network inputs (1, 1, S, S) float32 as on the edge, in the order of choice; one is read ahead.

    UsageError if a file is no longer what was chosen.
    """

    def load_one(image: Chosen) -> Float32:
        try:
            radiograph, sha256 = _read(image.path)
        except InputError as error:
            raise UsageError(f"{error} (it could be read when it was chosen; choose again)") from error
        if sha256 != image.sha256:
            raise UsageError(f"{image.path}: has changed since it was chosen; choose again")
        return preprocess(radiograph, config)[0][None]

    with ThreadPoolExecutor(1) as pool:
        ahead: deque[Future[Float32]] = deque()
        for image in calibration.images:
            ahead.append(pool.submit(load_one, image))
            if len(ahead) > 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read(path: Path) -> tuple[Radiograph, str]:
    data = load(path, Limits())
    return decode(data, path.name, Limits()), hashlib.sha256(data).hexdigest()


def _counts(passed: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(passed.items())) or "none passed over"
