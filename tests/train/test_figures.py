"""Figures drawn from generated films: what is in them, how they are named, and where they may not go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import InputError, UsageError
from cxrvit_edge.metrics import dice
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import PreprocessConfig
from train import drawing, figures
from train.data.record import Record
from train.figures import KINDS, ROOT, _judge, _outline
from train.films import films
from train.predict import Networks, run

P64 = PreprocessConfig(size=64)
SIDE = 32


class Painter(nn.Module):
    """Heads that say what is in the image: lungs where it was painted so, severity on their lower half."""

    def __init__(self, *, lungs: bool = True) -> None:
        super().__init__()
        self.has_lungs = lungs
        self.weight = nn.Parameter(torch.zeros(1))

    def diagnose(self, image: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0, 3.0]]).repeat(len(image), 1)

    def segment(self, image: Tensor) -> Tensor:
        out = torch.full((len(image), 2, SIDE, SIDE), -9.0)
        if self.has_lungs:
            out[:, 0, 6:26, 4:13] = 9.0
            out[:, 1, 6:26, 18:27] = 9.0
        return out

    def grade(self, image: Tensor) -> Tensor:
        out = torch.full((len(image), 1, SIDE, SIDE), -9.0)
        out[:, :, 16:] = 9.0
        return out

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.diagnose(image), self.grade(image).sigmoid(), self.segment(image).sigmoid()


def networks(*, lungs: bool = True) -> Networks:
    net = Painter(lungs=lungs)
    return Networks(net, net, net, preprocessing=dict.fromkeys(("diagnosis", "severity", "lungs"), P64))


def explain(net: nn.Module, image: Tensor, class_index: int) -> Tensor:
    out = torch.zeros(len(image), 2, 2)
    out[:, 0, 1] = class_index  # nothing at all for the first class
    return out


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Two patients, three and two films; the first patient's are dated, two of them scored, one outlined."""
    folder = tmp_path_factory.mktemp("films")
    out = []
    for i in range(5):
        phantom = make_phantom(i, height=128, width=112, lesions="diffuse" if i % 2 else "none")
        path = folder / f"patient-{i}.png"
        cv2.imwrite(str(path), (phantom.pixels >> 4).astype(np.uint8))
        opacity = None
        if i == 1:
            opacity = folder / "outline.png"
            cv2.imwrite(str(opacity), phantom.lesions.astype(np.uint8) * 255)
        out.append(
            Record(
                path, "s", "Doe^Jane" if i < 3 else "Roe^Rick", "test", label=i % 3, opacity=opacity,
                day=float(9 - i) if i < 3 else None,
                brixia=np.full((3, 2), i, np.float32) if i in (1, 2) else None,
            )
        )  # fmt: skip
    return out


def name(record: Record) -> str:
    return hashlib.sha256(record.path.read_bytes()).hexdigest()[:12]


def test_every_kind_is_drawn_and_named_by_hash(records: list[Record], tmp_path: Path) -> None:
    paths = figures.figures(records, networks(), tmp_path / "out", KINDS, explain=explain, limit=1)
    expected = [f"{kind}-{name(records[0])}.png" for kind in ("saliency", "severity")]
    expected += [f"contour-{name(records[1])}.png", f"course-{name(records[2])}.png"]  # day 7 is the oldest
    assert sorted(p.name for p in paths) == sorted(expected)
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    for path in paths:
        image = cv2.imread(str(path))
        assert image is not None
        assert min(image.shape[:2]) > 300
        assert image.std() > 20
        assert b"Doe" not in path.read_bytes()


def texts(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> list[str]:
    """Every word of the figures that are drawn meanwhile."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen: list[str] = []

    def save(figure: Figure, path: Path) -> Path:
        seen.extend(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text))
        return path

    monkeypatch.setattr(figures, "_save", save)
    draw()
    return seen


def test_captions_say_what_is_known_and_no_name(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = texts(monkeypatch, lambda: figures.figures(records, networks(), tmp_path, KINDS, explain=explain))
    whole = "\n".join(said)
    assert whole.count("research use only; not for localisation") == 12
    assert "Doe" not in whole and "patient-" not in whole
    p = np.exp([0, 1, 3]) / np.exp([0, 1, 3]).sum()
    for k, label in enumerate(("normal", "other_infection", "covid19")):
        assert f"{label}, p = {p[k]:.2f}" in said
    assert "radiograph, labelled covid19" in said
    assert "radiologist 6 (a zone counts from Brixia 1)" in whole
    assert ">= 0.5" in whole
    assert {"day 7", "day 8", "day 9"} < set(said)


def judged(record: Record, n: Networks) -> figures.Judged:
    film = next(films([record], [P64], lungs=True))
    images = dict.fromkeys(n.tasks, torch.from_numpy(film.tensors[0])[None])
    return _judge(film, n, run(n, images), 0.5, "max")


def test_lesion_is_the_map_over_the_threshold_inside_the_lungs(records: list[Record]) -> None:
    """In the film's own pixels: 128 x 112 in a square of 64, 4 columns of padding on each side."""
    one = judged(records[1], networks())
    assert one.lesion is not None and one.lungs is not None and one.severity is not None
    assert one.lesion.shape == (128, 112)
    square = np.zeros((SIDE, SIDE), bool)
    square[16:26, 4:13] = square[16:26, 18:27] = True
    expected = cv2.resize(square[:, 2:30].astype(np.uint8), (112, 128), interpolation=cv2.INTER_NEAREST) > 0
    assert dice(one.lesion, expected) > 0.97
    assert not one.severity[~one.lungs.any(0)].any()
    # rows 6 to 25: upper to 14, middle to 19, lower; the map is high from row 16
    np.testing.assert_allclose(one.array[:, 0], [0, 1, 1], atol=0.01)
    assert one.score == pytest.approx(4, abs=0.05)


def test_dice_in_the_caption_is_of_the_outline(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = judged(records[1], networks())
    assert one.lesion is not None and records[1].opacity is not None
    truth = _outline(records[1].opacity, (128, 112))
    assert truth.sum() == make_phantom(1, height=128, width=112, lesions="diffuse").lesions.sum()
    overlap, union = (one.lesion & truth).sum(), (one.lesion | truth).sum()
    assert 0 < overlap < union
    said = texts(monkeypatch, lambda: figures.figures(records, networks(), tmp_path, ("contour",)))
    expected = f"Dice {2 * overlap / (one.lesion.sum() + truth.sum()):.2f}, IoU {overlap / union:.2f}; "
    assert any(expected in text for text in said)


def test_without_lungs_a_figure_says_so(records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = networks(lungs=False)
    said = texts(monkeypatch, lambda: figures.figures(records[:3], n, tmp_path, ("severity", "course")))
    assert sum("no score: two lungs were not found" in text for text in said) == 3
    assert any("3 of 3 images without a score" in text for text in said)


def test_a_long_course_shows_some_of_its_films() -> None:
    shown = [np.full((40, 30), i, np.uint8) for i in range(20)]
    figure = drawing.draw_course(shown, np.arange(20.0), np.full(20, 2.0), np.full(20, np.nan), 1.0)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == drawing.MOST_FILMS
    assert (titles[0], titles[-1]) == ("day 0", "day 19")


def test_limit(records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_save", lambda figure, path: path)
    paths = figures.figures(records, networks(), tmp_path, ("severity",), limit=2)
    assert [p.name for p in paths] == [f"severity-{name(r)}.png" for r in records[:2]]


def test_nothing_is_written_into_the_repository(records: list[Record]) -> None:
    out = ROOT / "tests" / "never"
    with pytest.raises(UsageError, match="outside it"):
        figures.figures(records, networks(), out, ("severity",))
    assert not out.exists()
    assert (ROOT / "train" / "figures.py").is_file()


def test_a_broken_file_ends_it_or_its_figures_are_left_out(records: list[Record], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    some = [records[0], replace(records[1], path=broken, opacity=None), *records[2:4]]
    kinds = ("severity", "course")
    with pytest.raises(InputError):
        figures.figures(some, networks(), tmp_path / "out", kinds)
    paths = figures.figures(some, networks(), tmp_path / "out", kinds, broken="skip")
    expected = [f"severity-{name(some[i])}.png" for i in (0, 2, 3)] + [f"course-{name(some[2])}.png"]
    assert [p.name for p in paths] == expected
    # a course needs two films
    paths = figures.figures(some[:2], networks(), tmp_path / "out", kinds, broken="skip")
    assert [p.name for p in paths] == expected[:1]
    with pytest.raises(UsageError, match="none of the 1 images to draw can be read"):
        figures.figures(some[1:2], networks(), tmp_path / "out", ("severity",), broken="skip")


def test_what_cannot_be_drawn(records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose from saliency"):
        figures.figures(records, networks(), tmp_path, ("fig5",))
    with pytest.raises(UsageError, match="none of the 1 images"):
        figures.figures(records[:1], networks(), tmp_path, ("contour", "course"))
    with pytest.raises(UsageError, match="through the transformer"):
        figures.figures(records[:1], networks(), tmp_path, ("saliency",))
    with pytest.raises(UsageError, match="cannot read this outline"):
        _outline(tmp_path / "absent.png", (4, 4))
