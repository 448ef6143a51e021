"""What `python -m train crossval` hands to the training of a fold, and what it will not begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from crossval_files import make_crossval_folder, run

from cxrvit_edge.errors import UsageError
from train import crossval, options, stages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_crossval_folder(tmp_path_factory.mktemp("crossval") / "data").root


class SeenError(Exception):
    pass


def handed(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """What the first fold's training is given."""
    got: list[dict[str, Any]] = []

    def train(stage: str, values: dict[str, Any], say: object) -> Path:
        got.append(values)
        raise SeenError

    monkeypatch.setattr(stages, "run", train)
    assert isinstance(run(data, out, *arguments).exception, SeenError)
    return got[0]


def test_a_fold_has_its_own_start_and_val_only_for_patience(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = handed(monkeypatch, data, tmp_path / "a", "--fold", "1", "--init", "runs/first/fold-{fold}")
    assert values["init"] == Path("runs/first/fold-1")
    assert values["out"] == tmp_path / "a" / "fold-1"
    assert values["cache"] == tmp_path / "cache"
    assert values["leave_out"] == ["fold 1/2"] and values["leave_out"].val == 0
    assert "label_smoothing" not in values and "normal_weight" in values
    assert handed(monkeypatch, data, tmp_path / "b", "--patience", "3")["leave_out"].val == 0.1


def test_an_option_that_the_stage_gains_is_handed_on_and_held_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of paths, with the fold in each; a fold made before there was such an option had its default."""
    given = {k: default for k, (_, default) in options.VERBS["crossval"].items()}
    given |= {"data": [str(data)], "out": tmp_path / "cv", "image_size": 64, "folds": 2, "schedule": "64:2:4"}
    before = crossval.settings_of(given)
    folder = tmp_path / "cv" / "fold-0"
    same = {"rows": "r", "name": "0/2"}
    crossval._write(folder / "fold.json", {**same, "settings": before, "seconds": 1.0, "checkpoint": None})
    monkeypatch.setitem(options.OWN["joint"], "guides", options._option(list[Path] | None, None, "Guides.", panel="x"))
    unset = crossval.settings_of({**given, "guides": None})
    assert crossval._state(folder, {**same, "settings": unset})["seconds"] == 1.0
    guides = [tmp_path / "one" / "fold-{fold}", Path("two")]
    after = crossval.settings_of({**given, "guides": guides})
    assert after["guides"] == ["one/fold-{fold}", "two"]
    with pytest.raises(UsageError, match=r"made with another --guides; name another --out"):
        crossval._state(folder, {**same, "settings": after})
    assert crossval._of_fold(guides, 1) == [tmp_path / "one" / "fold-1", Path("two")]


def test_a_fold_starts_from_no_weights_that_know_what_it_holds_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in "01":
        handed(monkeypatch, data, tmp_path / "cv", "--fold", k)
    made = tmp_path / "cv"
    own = f"{made}/fold-{{fold}}"
    assert handed(monkeypatch, data, tmp_path / "a", "--init", own)["init"] == made / "fold-0"
    for other in ((f"{made}/fold-0", "--fold", "1"), (own, "--by", "source"), (own, "--split-seed", "5")):
        found = run(data, tmp_path / "b", "--init", *other).exception
        assert isinstance(found, UsageError)
        assert "learned from images that fold" in str(found)
    said = run(data, tmp_path / "c", "--init", str(tmp_path))
    assert isinstance(said.exception, SeenError)
    assert "if it learned from images that are held out here, no figure is out of fold" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stage", "lungs"), "--stage lungs: choose one of joint, diagnosis"),
        (("--by", "view"), "--by view: choose one of patient, source"),
        (("--judged", "some"), "--judged some: choose one of all, reusable"),
        (("--fold", "2"), "--fold 2: from 0 to 1"),
        (("--fold", "-1"), "--fold -1: from 0 to 1"),
        (("--folds", "99"), "--folds 99: from 2 to the number of patients, 20"),
        (("--view", "up"), "--view up: choose one of any, PA, AP"),
        (("--stage", "diagnosis", "--normal-weight", "0.5"), "--normal-weight is no option of stage diagnosis"),
    ],
)
def test_wrong_values_are_named_before_anything_is_trained(
    arguments: tuple[str, ...], message: str, data: Path, tmp_path: Path
) -> None:
    found = run(data, tmp_path / "cv", *arguments).exception
    assert isinstance(found, UsageError)
    assert message in str(found)
    assert not (tmp_path / "cv").exists()
