"""What the input guard's head learns from: frontal films in other guises, and everything that is none, described."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.guard import describe
from cxrvit_edge.guard_head import KINDS, describe_outputs
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from cxrvit_edge.runtime.session import Session
from train import guard_drawn
from train.cache import read_record
from train.data.manifest import REUSABLE
from train.data.record import Record
from train.guard_films import inverted, part, turned, vary

FRONTAL, LATERAL, TURNED, INVERTED, OTHER = range(len(KINDS))
SMALL = 384  # longest side at which films are varied: descriptions see nothing finer than 96 pixels
Gray = NDArray[np.uint8]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Amounts:
    """How many of each kind: of a film, of a phantom, of a drawn kind, of a real negative."""

    frontal: int = 16
    phantoms: int = 160
    drawn: int = 450
    lateral: int = 1500
    real: int = 6
    runs: int = 24  # of a drawn kind, through the network
    run_negatives: int = 330


@dataclass(frozen=True)
class Sample:
    """label: index into KINDS; source: of the film it is made of, "" for what is no film; learned: may be fitted."""

    pixels: Gray
    label: int
    source: str
    learned: bool = True
    plain: bool = False  # a film as it is
    record: Record | None = None  # of a plain film


def eight_bits(radiograph: Radiograph) -> Gray:
    pixels = radiograph.pixels
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    top = max(int(pixels.max()), 1)
    return (pixels.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)


def small(image: Gray) -> Gray:
    ratio = SMALL / max(image.shape)
    if ratio >= 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA), np.uint8)


def negatives(folder: Path | None) -> list[Path]:
    """Image files under it, sorted. UsageError if there is none."""
    if folder is None:
        return []
    ends = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ends and p.is_file())
    if not paths:
        raise UsageError(f"{folder}: no image in it; name a folder of images that are no frontal chest radiograph")
    return paths


def read_negative(path: Path) -> Gray | None:
    """None if triage would turn it away unread: the guard's head never sees it."""
    try:
        return eight_bits(read(path))
    except InputError:
        return None


def film_samples(records: Sequence[Record], folder: Path | None, amounts: Amounts, seed: int) -> Iterator[Sample]:
    """For the expert on films: every record as it is, those that may be fitted in many guises; then all other kinds."""
    rng = np.random.default_rng([seed, 0])
    for record in records:
        film = small(eight_bits(read_record(record)))
        learned = learnable(record)
        yield Sample(film, FRONTAL, record.source, learned, plain=True, record=record)
        if learned:
            yield from guises(film, record.source, amounts.frontal, rng)
    for i in range(amounts.phantoms):
        lesions = ("none", "focal", "diffuse", 0.7)[i % 4]
        view: Literal["PA", "AP"] = "AP" if i // 4 % 2 else "PA"
        phantom = make_phantom(5000 + i, height=300, width=270, lesions=lesions, view=view)  # type: ignore[arg-type]
        yield from guises((phantom.pixels >> 4).astype(np.uint8), "", 3, rng)
    for kind in guard_drawn.KINDS:
        label = LATERAL if kind == "lateral" else OTHER
        for i in range(amounts.lateral if label == LATERAL else amounts.drawn):
            image = guard_drawn.draw(kind, 20_000 + i)
            image = vary(image, rng) if rng.random() < 0.6 else image
            yield Sample(inverted(image) if label == OTHER and rng.random() < 0.2 else image, label, "")
    for path in negatives(folder):
        whole = read_negative(path)
        if whole is None:
            continue
        image = small(whole)
        yield Sample(image, OTHER, "")
        for _ in range(amounts.real):
            other = vary(image, rng, turn=20, crop=0.2)
            other = inverted(other) if rng.random() < 0.3 else other
            yield Sample(np.ascontiguousarray(np.rot90(other, int(rng.choice([0, 0, 1, 2, 3])))), OTHER, "")


def guises(film: Gray, source: str, n: int, rng: np.random.Generator) -> Iterator[Sample]:
    for _ in range(n):
        yield Sample(vary(film, rng), FRONTAL, source)
    for way in range(6):
        yield Sample(turned(vary(film, rng, turn=15) if rng.random() < 0.7 else film, way), TURNED, source)
    for _ in range(max(1, n // 2)):
        image = inverted(vary(film, rng) if rng.random() < 0.7 else film)
        turns = int(rng.integers(4)) if rng.random() < 0.3 else 0
        yield Sample(np.ascontiguousarray(np.rot90(image, turns)), INVERTED, source)
    for _ in range(max(1, n // 2)):
        image = part(film, rng)
        image = vary(image, rng) if min(image.shape) > 60 and rng.random() < 0.3 else image
        yield Sample(inverted(image) if rng.random() < 0.2 else image, OTHER, source)


def output_samples(records: Sequence[Record], folder: Path | None, amounts: Amounts, seed: int) -> Iterator[Sample]:
    """For the expert on outputs, fewer, since each is a run of the network, at full size."""
    rng = np.random.default_rng([seed, 1])
    for k, record in enumerate(records):
        film = eight_bits(read_record(record))
        learned, source = learnable(record), record.source
        yield Sample(film, FRONTAL, source, learned, plain=True, record=record)
        if not learned:
            continue
        if rng.random() < 0.5:
            yield Sample(vary(film, rng), FRONTAL, source)
        if rng.random() < 0.35:
            yield Sample(turned(vary(film, rng) if rng.random() < 0.5 else film, k % 6), TURNED, source)
        if rng.random() < 0.17:
            image = inverted(vary(film, rng) if rng.random() < 0.5 else film)
            yield Sample(np.ascontiguousarray(np.rot90(image, int(rng.choice([0, 0, 1, 2, 3])))), INVERTED, source)
        if rng.random() < 0.17:
            yield Sample(part(film, rng), OTHER, source)
    for kind in guard_drawn.KINDS:
        for i in range(amounts.runs):
            image = guard_drawn.draw(kind, i)
            image = vary(image, rng) if rng.random() < 0.5 else image
            yield Sample(image, LATERAL if kind == "lateral" else OTHER, "")
    paths = negatives(folder)
    for i in rng.permutation(len(paths))[: amounts.run_negatives]:
        whole = read_negative(paths[int(i)])
        if whole is not None:
            yield Sample(whole, OTHER, "")


def learnable(record: Record) -> bool:
    return record.split == "train" and record.reuse in REUSABLE


@dataclass(frozen=True)
class Described:
    """seen (N, n) float32, label (N,), source (N,), learned (N,), plain (N,) of one expert's samples.

    films: of the plain ones, in order; embedding (films, D): of the same, None by the films alone, or from a graph that
    has no such output.
    """

    seen: Float32
    label: NDArray[np.int64]
    source: NDArray[np.str_]
    learned: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    films: list[Record]
    embedding: Float32 | None = None


def described(samples: Iterator[Sample], config: PreprocessConfig, session: Session | None, say: Say) -> Described:
    """By the film alone, or by the session's outputs. What holds no more than one value is left out."""
    seen, kept, films = list[Float32](), [], list[Record]()
    embeddings: list[Float32 | None] = []
    for sample in samples:
        if min(sample.pixels.shape) < 24 or sample.pixels.min() == sample.pixels.max():
            continue
        tensor, geometry = preprocess(Radiograph(np.ascontiguousarray(sample.pixels)), config)
        if session is None:
            seen.append(describe(tensor, geometry))
        else:
            outputs = session.run(tensor[None])
            seen.append(describe_outputs(outputs, 0, geometry))
            if sample.record is not None:
                embeddings.append(outputs.embedding)
        if sample.record is not None:
            films.append(sample.record)
        kept.append((sample.label, sample.source, sample.learned, sample.plain))
        if len(kept) % (200 if session else 5000) == 0:
            say(f"{len(kept)} {'outputs' if session else 'films'}")
    label, source, learned, plain = zip(*kept, strict=True)
    known = [e for e in embeddings if e is not None]
    columns = (np.array(label), np.array(source), np.array(learned), np.array(plain))
    return Described(np.stack(seen), *columns, films, np.concatenate(known) if known else None)
