"""The relevance map in the report: drawn where the session explains itself, captioned, and absent everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from fakes import SIZE, FakeSession, make_bundle, sessions, write_films
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError
from cxrvit_edge.preprocess import Float32, Geometry
from cxrvit_edge.report import thumbnails as t
from cxrvit_edge.runtime.session import Explainer
from cxrvit_edge.triage import Triage

SEVERITY = "Severity map: forward pass, not specific to a class; not for localisation."
LEGEND = "by relevance propagation through the transformer"


class Explaining(FakeSession):
    """One patch of 4 x 4 is relevant: its column is the class's index."""

    fails = False

    def explain(self, batch: Float32, classes: Sequence[int]) -> Float32:
        if self.fails:
            raise EngineError("made to fail")
        assert batch.shape == (1, 1, SIZE, SIZE)
        out = np.zeros((1, 4, 4), np.float32)
        out[0, 1, classes[0]] = 0.003  # relevance has no unit
        return out


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def redness(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w) of a BGR picture."""
    return image[..., 2].astype(np.float32) - image[..., 0]


def test_a_session_that_explains_itself_gives_each_judged_row_its_class_map(tmp_path: Path, bundle: Bundle) -> None:
    films = write_films(tmp_path / "in", 3)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    session, out = Explaining(), tmp_path / "out"
    assert isinstance(session, Explainer) and not isinstance(FakeSession(), Explainer)
    Triage(bundle, sessions(session)).run(films[0].parent, out)
    page = (out / "report.html").read_text("utf-8")
    pictures = sorted((out / "thumbnails").glob("*.relevance.jpg"))
    assert len(pictures) == 3
    assert page.count('<figure class="rel">') == 3 and page.count(SEVERITY) == 3 and LEGEND in page
    found = {f.sha256: f for f in Triage(bundle, sessions(session))(films[0].parent)}
    names = {"normal": "Normal", "other_infection": "Other infection", "covid19": "COVID-19"}
    for picture in pictures:
        label = found[picture.name.partition(".")[0]].label
        assert label is not None
        said = f"Relevance to {names[label]}, by relevance propagation (fake back end); not for localisation."
        assert said in page
        image = cv2.imread(str(picture))
        assert image is not None and image.shape == (96, 80, 3)
        y, x = np.unravel_index(redness(cv2.GaussianBlur(image, (5, 5), 0)).argmax(), image.shape[:2])
        column = list(names).index(label)  # the film is 64 x 53 of the square; 24 pixels of it a patch
        assert abs(float(x) - ((column + 0.5) * 24 - 8)) < 6 and abs(float(y) - 1.5 * 24) < 6


def test_other_sessions_are_not_asked_and_nothing_is_said_of_relevance(tmp_path: Path, bundle: Bundle) -> None:
    films = write_films(tmp_path / "in", 2)
    Triage(bundle, sessions(FakeSession())).run(films[0].parent, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count(SEVERITY) == 2 and "Relevance" not in page
    assert not list((tmp_path / "out" / "thumbnails").glob("*.relevance.jpg"))


def test_without_pictures_nothing_is_explained(tmp_path: Path, bundle: Bundle) -> None:
    session = Explaining()
    session.explain = None  # type: ignore[assignment, method-assign]
    assert all(f.status == "ok" for f in Triage(bundle, sessions(session))(write_films(tmp_path / "in", 2)))


def test_a_map_that_fails_costs_no_result(tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    films, session = write_films(tmp_path / "in", 2), Explaining()
    session.fails = True
    summary = Triage(bundle, sessions(session)).run(films[0].parent, tmp_path / "out")
    assert summary.statuses["ok"] == 2
    assert sorted(r.getMessage() for r in caplog.records) == [
        f"no relevance of {film.as_posix()} (EngineError)" for film in films
    ]


def test_starting_afresh_drops_the_maps(tmp_path: Path, bundle: Bundle) -> None:
    films, out = write_films(tmp_path / "in", 2), tmp_path / "out"
    Triage(bundle, sessions(Explaining())).run(films[0].parent, out)
    Triage(bundle, sessions(FakeSession())).run(films[0], out, fresh=True)
    names = [p.name.partition(".")[2] for p in sorted((out / "thumbnails").iterdir())]
    assert names == ["jpg", "overlay.png"]


def test_saving_again_without_relevance_drops_the_old_one(tmp_path: Path) -> None:
    geometry, thumb = Geometry.fit(90, 60, 512, "pad"), np.full((90, 60), 90, np.uint8)
    maps = np.ones((256, 256), np.float32), np.ones((2, 256, 256), np.float32)
    t.save(tmp_path, "k", thumb, geometry, *maps, np.eye(4, dtype=np.float32))
    data = t.load(t.relevance_path(tmp_path, "k"))
    assert data is not None and data[1:] == (90, 60)
    t.save(tmp_path, "k", thumb, geometry, *maps)
    assert t.load(t.relevance_path(tmp_path, "k")) is None and t.load(t.paths(tmp_path, "k")[1]) is not None


def test_the_overlay_is_red_at_its_most_and_clear_at_nothing() -> None:
    film = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (80, 1))  # (80, 100)
    values = np.tile(np.linspace(0, 7e-5, 80, dtype=np.float32)[:, None], (1, 100))
    drawn = t.overlay(film, values)
    assert drawn.shape == (80, 100, 3) and drawn.dtype == np.uint8
    assert np.array_equal(drawn[0], np.stack([film[0]] * 3, axis=-1))  # nothing there
    red, green = drawn[..., 0].astype(int), drawn[..., 1].astype(int)
    assert (np.diff((red - green).mean(axis=1)) >= -1).all()
    assert (red[-1] - green[-1]).min() > 90
    assert np.array_equal(t.overlay(film, values * 1e4), drawn)
    assert np.array_equal(t.overlay(film, np.zeros_like(values))[..., 2], film)
