"""The guard's head fitted end to end on generated films of two sources, and written into a bundle."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_bundle import Exported, forget_embedding

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.guard_head import Expert, Head, head_of, read_head
from cxrvit_edge.ood import familiar_of
from export import base, graph
from train import guard, guard_drawn
from train.data import manifest
from train.data.record import Record
from train.guard_films import part, turned, vary
from train.guard_samples import Amounts, negatives

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FEW = Amounts(frontal=1, phantoms=2, drawn=1, lateral=2, real=1, runs=1, run_negatives=2)


@pytest.fixture(scope="module")
def data(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The films of the small bundle, two thirds of them to learn from, of two sources; one may not be learned from."""
    folder = tmp_path_factory.mktemp("guard") / "data"
    shutil.copytree(exported.data, folder)
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for i, row in enumerate(rows):
        row["source"], row["split"] = ("here", "there")[i % 2], ("train", "val", "train")[i % 3]
    rows[0]["reuse"] = "unknown"
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "negatives").mkdir()
    for kind in ("page", "limb"):
        cv2.imwrite(str(folder / "negatives" / f"{kind}.png"), guard_drawn.draw(kind, 1))
    return folder


@pytest.fixture(scope="module")
def records(data: Path) -> list[Record]:
    return manifest.read(data)


def test_a_head_is_fitted_and_is_the_same_again(
    data: Path, exported: Exported, records: list[Record], tmp_path: Path
) -> None:
    said: list[str] = []
    bundle = Bundle.open(exported.bundle)
    fits = [guard.fit(records, data / "negatives", bundle, amounts=FEW, say=said.append) for _ in range(2)]
    out = [guard.write(fit, tmp_path / f"{i}.npz") for i, fit in enumerate(fits)]
    assert out[0].read_bytes() == out[1].read_bytes()
    assert np.isfinite(read_head(out[0]).threshold) and fits[0].threshold == read_head(out[0]).threshold
    assert any(line.startswith("here left out, 6 films") for line in said)
    films = next(line for line in said if line.startswith("films: frontal"))
    frontal = 12 - 1 - 4  # one may not be learned from, four are val
    assert films.startswith(f"films: frontal {frontal * 2 + 2 * 3}, lateral 2, turned {(frontal + 2) * 6}")

    folder = tmp_path / "bundle"
    shutil.copytree(exported.bundle, folder)
    assert guard.write(fits[0], folder) == folder / guard.FILE
    again = Bundle.open(folder)
    assert again.manifest.guard.head == guard.FILE
    assert head_of(again) is not None
    familiar, entry = familiar_of(again), again.manifest.guard.ood
    assert familiar is not None and entry is not None and fits[0].familiar is not None
    assert (folder / entry["file"]).stat().st_size < 300_000
    assert entry["films"] == frontal and entry["val"] == {"images": 4, "over": 0.0}
    assert set(entry["left_out"]) == {"here", "there"} and entry["left_out"]["here"]["images"] == 6
    assert any(line.startswith("familiar films without there") for line in said)
    assert fits[1].familiar is not None and fits[1].familiar.record == fits[0].familiar.record
    for name, value in vars(familiar).items():
        np.testing.assert_array_equal(value, getattr(fits[1].familiar.familiar, name))
    assert {**again.manifest.raw, "guard": 0, "files": 0} == {**bundle.manifest.raw, "guard": 0, "files": 0}

    work = tmp_path / "exported again"
    work.mkdir()
    made = base.from_bundle(folder, work, None, said.append)
    assert made.raw["guard"] == again.manifest.raw["guard"]
    for file in (guard.FILE, guard.OOD_FILE):
        assert (work / file).read_bytes() == (folder / file).read_bytes()


def test_a_bundle_older_than_the_embedding_gets_no_score_until_it_is_exported_again(
    exported: Exported, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Expert(*[np.zeros(1, np.float32)] * 6)
    monkeypatch.setattr(guard, "threshold", lambda *_: 0.0)  # heads are not what this is about, and take long
    monkeypatch.setattr(guard, "fit_head", lambda *_: Head(nothing, nothing, 0.0))
    monkeypatch.setattr(graph, "trace", lambda *_, **__: exported.graph)
    old, said = tmp_path / "old", list[str]()
    shutil.copytree(exported.bundle, old, copy_function=os.link)
    forget_embedding(old)
    fit = guard.fit(records, None, Bundle.open(old), amounts=FEW, say=said.append)
    assert fit.familiar is None and any("export it again to have a score" in line for line in said)
    (tmp_path / "work").mkdir()
    base.from_bundle(old, tmp_path / "work", None, said.append)
    with np.load(tmp_path / "work" / "golden_fp32.npz") as new, np.load(exported.bundle / "golden_fp32.npz") as first:
        assert set(new.files) == set(first.files)
        np.testing.assert_allclose(new["shared.embedding"], first["shared.embedding"], atol=1e-5)
        np.testing.assert_array_equal(new["shared.severity_map"], first["shared.severity_map"])


def test_what_cannot_be_fitted_is_told(data: Path, exported: Exported, records: list[Record], tmp_path: Path) -> None:
    bundle, say = Bundle.open(exported.bundle), (lambda _: None)
    one = [r for r in records if r.source == "here"]
    with pytest.raises(UsageError, match="of one source"):
        guard.fit(one, None, bundle, amounts=FEW, say=say)
    with pytest.raises(UsageError, match="may be learned from"):
        guard.fit([r for r in records if r.split == "val"], None, bundle, amounts=FEW, say=say)
    with pytest.raises(UsageError, match="no image in it"):
        negatives(data / "masks" / "absent")
    with pytest.raises(UsageError, match="no bundle's folder"):
        nothing = Expert(*[np.zeros(1, np.float32)] * 6)
        guard.write(guard.Guard(Head(nothing, nothing, 0.0), None), tmp_path)


def test_six_ways_to_turn_a_film_are_six() -> None:
    film = np.arange(12, dtype=np.uint8).reshape(3, 4)
    ways = [turned(film, way) for way in range(6)]
    assert [w.shape for w in ways] == [(4, 3), (3, 4), (4, 3), (3, 4), (4, 3), (4, 3)]
    whole = {film.tobytes(), film[:, ::-1].tobytes()} | {w.tobytes() for w in ways}
    assert len(whole) == 8, "with the film and its mirror image all eight"


@pytest.mark.parametrize("kind", guard_drawn.KINDS)
def test_drawn_kinds_are_seeded_images(kind: str) -> None:
    one, same, other = (guard_drawn.draw(kind, seed) for seed in (1, 1, 2))
    assert one.dtype == np.uint8 and one.ndim == 2 and min(one.shape) >= 64
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(np.unique(one)) >= 16


def test_films_vary_and_parts_are_parts() -> None:
    film = np.random.default_rng(0).integers(0, 256, (300, 260)).astype(np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert 0.5 < vary(film, rng).size / film.size < 2.6
        small = part(film, rng)
        local = small - cv2.blur(small.astype(np.float32), (9, 9))  # the film is noise, what is collimated away is not
        shown = float((cv2.blur(local**2, (9, 9)) > 400).sum())
        assert 0 < shown <= 0.51 * film.size
