"""Films unlike those learned from: python -m benchmarks.ood --data DIR [--negatives DIR] [--cache FILE] [--record]

The score of `train/ood.py`, fitted as `python -m train guard` does, with other numbers of components, with and without
what lies outside them. AUROC of what is made of val's films (turned, inverted, cut to a part, degraded, varied as
another hospital would send it), of phantoms, of drawn images and of real ones (--negatives, as for benchmarks.guard)
against val's films as they are, and the share over the threshold that 2 % of val are over; `let_in` counts those that
the input guard does not turn away before. For each source left out of the fit: the share of its films that are over,
and their AUROC against val's other films. Embeddings are the reference network's; where a variant's graph has the
output, the mean and RMS shift of val's scores by its rounding, in units of the threshold. The test split is not read.
--cache keeps the embeddings, a second or so each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.errors import BundleError, InputError
from cxrvit_edge.findings import judge
from cxrvit_edge.guard import check_pixels, describe
from cxrvit_edge.ood import Familiar
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.torch import TorchSession
from train import guard_drawn
from train.data.manifest import REUSABLE
from train.data.record import Record
from train.data.sources import open_records
from train.guard_films import inverted, part, turned, vary
from train.guard_samples import eight_bits, negatives, read_negative
from train.ood import DIMENSIONS, SHARE, fit_familiar, threshold

PHANTOMS, DRAWN = 24, 10
CHOICES = ((4, True), (8, True), (16, True), (32, True), (64, True), (16, False), (64, False))  # components, rest
COLUMNS = ("kind", "source", "split", "label", "learned", "let_in")
Gray = NDArray[np.uint8]


class Seen(NamedTuple):
    """Of N images: embedding (N, D); text (N, 6) by COLUMNS."""

    embedding: NDArray[np.float32]
    text: NDArray[np.str_]

    def column(self, name: str) -> NDArray[np.str_]:
        return self.text[:, COLUMNS.index(name)]


def degraded(film: Gray, rng: np.random.Generator) -> Gray:
    """Out of focus and noisy, as a photograph of a film."""
    blurred = cv2.GaussianBlur(film, (0, 0), 0.008 * film.shape[1])
    return np.clip(blurred + rng.normal(0, 12, film.shape), 0, 255).astype(np.uint8)


def images(records: list[Record], folder: Path | None) -> Iterator[tuple[str, Record | None, Radiograph]]:
    for item in records:
        yield "plain", item, read(item.path)
    val = [item for item in records if item.split == "val"]
    for k, item in enumerate(val):
        film, rng = eight_bits(read(item.path)), np.random.default_rng(k)
        made = {"varied": vary(film, rng), "degraded": degraded(film, rng), "turned": turned(film, k % 6)}
        made |= {"inverted": inverted(film), "part": part(film, rng)}
        for kind, pixels in made.items():
            yield kind, item, Radiograph(pixels)
    for i in range(PHANTOMS):
        lesions = ("none", "focal", "diffuse", 0.7)[i % 4]
        phantom = make_phantom(i, lesions=lesions, view="AP" if i // 4 % 2 else "PA")  # type: ignore[arg-type]
        yield "phantom", None, Radiograph(phantom.pixels)
    for kind in guard_drawn.KINDS:
        for i in range(DRAWN):
            yield "drawn", None, Radiograph(guard_drawn.draw(kind, 1000 + i))
    for path in negatives(folder):
        image = read_negative(path)
        if image is not None:
            yield "real", None, Radiograph(image)


def seen(bundle: Bundle, records: list[Record], folder: Path | None, threads: int) -> Seen:
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    session = TorchSession(bundle.file(WEIGHTS), threads=threads)
    embeddings, rows = [], []
    for kind, item, radiograph in images(records, folder):
        try:
            check_pixels(radiograph)
        except InputError:
            continue
        tensor, geometry = preprocess(radiograph, config)
        outputs = session.run(tensor[None])
        try:
            judge(outputs, 0, bundle, "unknown", geometry, describe(tensor, geometry))
            let_in = "yes"
        except InputError as error:
            let_in = error.reason.value
        assert outputs.embedding is not None
        embeddings.append(outputs.embedding[0])
        learned = item is not None and item.split == "train" and item.reuse in REUSABLE and item.label is not None
        about = ("", "", "") if item is None else (item.source, item.split, "" if item.label is None else item.label)
        rows.append([kind, *map(str, about), "yes" if learned else "no", let_in])
        if len(rows) % 100 == 0:
            print(f"{len(rows)} embeddings", flush=True)
    return Seen(np.stack(embeddings), np.array(rows))


def cached(bundle: Bundle, records: list[Record], folder: Path | None, threads: int, cache: Path | None) -> Seen:
    key = f"{bundle.manifest.files[WEIGHTS]} {bundle.manifest.files.get(bundle.manifest.guard.head or '')} {folder}"
    if cache is not None and cache.is_file():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                return Seen(stored["embedding"], stored["text"])
    found = seen(bundle, records, folder, threads)
    if cache is not None:
        np.savez(cache, key=key, **found._asdict())
    return found


def auroc(strange: NDArray[np.floating], known: NDArray[np.floating]) -> float:
    """Chance that a strange one has the higher score; a tie counts half."""
    over = (strange[:, None] > known).mean() + 0.5 * (strange[:, None] == known).mean()
    return round(float(over), 4)


def fitted(data: Seen, rows: NDArray[np.bool_], val: NDArray[np.bool_], k: int, rest: bool) -> Familiar:
    labels = data.column("label")[rows].astype(int)
    found, _ = fit_familiar(data.embedding[rows], labels, dimensions=k, residual=rest)
    return replace(found, threshold=threshold(found.scores(data.embedding[val]), SHARE))


def judged(data: Seen, k: int, rest: bool) -> list[dict[str, Any]]:
    kind, source, let_in = data.column("kind"), data.column("source"), data.column("let_in") == "yes"
    plain = kind == "plain"
    learned, val = plain & (data.column("learned") == "yes"), plain & (data.column("split") == "val")
    fit = fitted(data, learned, val, k, rest)
    scores, table = fit.scores(data.embedding), []

    def row(name: str, rows: NDArray[np.bool_], its: Familiar, found: Any, known: NDArray[np.bool_]) -> None:
        inside = rows & let_in
        over = found > its.threshold
        table.append(
            {
                "components": k,
                "rest": "yes" if rest else "no",
                "chosen": "yes" if (k, rest) == (DIMENSIONS, True) else "",
                "kind": name,
                "images": int(rows.sum()),
                "auroc": auroc(found[rows], found[known]),
                "over": round(float(over[rows].mean()), 4),
                "let_in": int(inside.sum()),
                "over_of_let_in": round(float(over[inside].mean()), 4) if inside.any() else "",
                "threshold": its.threshold,
            }
        )

    row("train, fitted", learned, fit, scores, val)
    row("val", val, fit, scores, val)
    for name in dict.fromkeys(kind[~plain].tolist()):
        row(name, kind == name, fit, scores, val)
    for name in sorted(set(source[learned].tolist())):
        here = source == name
        its = fitted(data, learned & ~here, val & ~here, k, rest)
        row(f"source left out of the fit: {name}", plain & here, its, its.scores(data.embedding), val & ~here)
    return table


def rounding(bundle: Bundle, records: list[Record], data: Seen, every: int) -> Iterator[str]:
    """How far each variant's rounding moves the score of val's films, by a row of figures each."""
    config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
    plain, learned = data.column("kind") == "plain", data.column("learned") == "yes"
    val = plain & (data.column("split") == "val")
    fit = fitted(data, plain & learned, val, DIMENSIONS, True)
    films = [preprocess(read(r.path), config)[0][None] for r in records if r.split == "val"][::every]
    reference = TorchSession(bundle.file(WEIGHTS))
    before = np.array([fit.scores(_embedding(reference, film))[0] for film in films])
    for name, variant in bundle.manifest.variants.items():
        session = OnnxRuntimeSession(
            bundle.file(variant.files[bundle.graph_for("unknown")]), precision=name, exact=True
        )
        try:
            after = np.array([fit.scores(_embedding(session, film))[0] for film in films])
        except BundleError as error:
            yield f"{name}: {error}"
            continue
        gap = (after - before) / fit.threshold
        crossed = int(((after > fit.threshold) != (before > fit.threshold)).sum())
        rms = float(np.sqrt((gap**2).mean()))
        yield f"{name}: {len(films)} films, mean shift {gap.mean():+.4f}, RMS {rms:.4f}, crossed {crossed}"


def _embedding(session: TorchSession | OnnxRuntimeSession, film: NDArray[np.float32]) -> NDArray[np.float32]:
    found = session.run(film).embedding
    if found is None:
        raise BundleError("its graph has no embedding; export the bundle again")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--negatives", type=Path)
    parser.add_argument("--bundle", type=Path, help="the embedded one by default")
    parser.add_argument("--cache", type=Path, help="file of embeddings, read if it is of this bundle, else written")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--every", type=int, default=4, help="of val's films through each variant; 0: none")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/ood.csv")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    records = [r for r in open_records(options.data) if r.split != "test"]
    data = cached(bundle, records, options.negatives, options.threads, options.cache)
    rows = [row for k, rest in CHOICES for row in judged(data, k, rest)]
    for row in rows:
        print(
            f"{row['components']:3} components{' and the rest' if row['rest'] == 'yes' else '':13} {row['kind']:38} "
            f"{row['images']:4} AUROC {row['auroc']:.3f}, over {row['over']:6.1%}; let in {row['let_in']}"
        )
    if options.every:
        for line in rounding(bundle, records, data, options.every):
            print(line)
    if options.record:
        print(record("ood", rows, ("numpy", "opencv-python-headless", "torch")))


if __name__ == "__main__":
    main()
