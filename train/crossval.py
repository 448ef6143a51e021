"""A stage trained on all folds but one, for each fold, and judged on the fold held out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.errors import UsageError
from train import stages
from train.choose import check
from train.crossval_figures import against, figures, text
from train.crossval_plan import Plan, load, paired, part_of, plan_of, save
from train.data.manifest import REUSABLE
from train.data.split import VAL
from train.options import CROSSED, OWN, RUN, SHARED
from train.predict import Predictions, predict_files
from train.runs import combine, load_run

STAGES = {  # and what is judged of them
    "joint": ("diagnosis", "severity", "lungs"),
    "diagnosis": ("diagnosis",),
    "severity": ("severity",),
}
CHOICES = {"stage": tuple(STAGES), "by": ("patient", "source"), "judged": ("all", "reusable")}
APART = {*RUN, "data", "cache", "absent"}  # may differ between machines that share a cross-validation
STARTS = ("init", "teacher")  # what a fold learns from beside its images
MADE = ("name", "seconds", "commit", "checkpoint", "rows", "folds")  # of a fold beside settings and recipe
PREDICTIONS, STATE, RESULT = "predictions.npz", "fold.json", "crossval.json"
Say = Callable[[str], None]


def crossval(values: Mapping[str, Any], device: str, say: Say) -> str:
    """Trains and judges the folds asked for, and pools them when all are there; the text that is shown.

    `--out` gets fold-0, fold-1, ..., each a run with its predictions.npz, then predictions.npz of all and
    crossval.json. A fold that is there is not made again. UsageError where a fold is of other settings or data.
    """
    check(values)
    for option, allowed in CHOICES.items():
        if values[option] not in allowed:
            raise UsageError(f"--{option} {values[option]}: choose one of {', '.join(allowed)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("crossval runs in one process; start one a GPU, each with other --fold, instead of torchrun")
    settings = settings_of(values)
    plan = plan_of(values)
    folds = range(len(plan.names))
    if wrong := [k for k in values["fold"] or () if k not in folds]:
        raise UsageError(f"--fold {wrong[0]}: from 0 to {len(folds) - 1}")
    for k in (values["fold"] or folds) if values["fresh"] else ():
        for name in (PREDICTIONS, STATE):
            (values["out"] / f"fold-{k}" / name).unlink(missing_ok=True)
    for k in values["fold"] or folds:
        make_fold(plan, k, settings, values, device, lambda told, k=k: say(f"fold {k}: {told}"))  # type: ignore[misc]
    missing = [k for k in folds if not (values["out"] / f"fold-{k}" / PREDICTIONS).is_file()]
    if missing and not (values["partial"] and len(missing) < len(folds)):
        asked = " ".join(f"--fold {k}" for k in missing)
        return f"{len(folds) - len(missing)} of {len(folds)} folds are there; still to make: {asked}"
    return pool(plan, settings, values, say)


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the weights, but for data; of a path its end. UsageError for an option that is not the stage's."""
    own = OWN[values["stage"]]
    for name, (_, default) in CROSSED.items():
        if name not in own and values[name] != default:
            raise UsageError(f"--{name.replace('_', '-')} is no option of stage {values['stage']}; leave it out")
    names = ["stage", "by", "folds", *(k for k in {**SHARED, **own} if k in values and k not in APART)]
    return {k: _plain(values[k]) for k in names}


def make_fold(
    plan: Plan, k: int, settings: Mapping[str, Any], values: Mapping[str, Any], device: str, say: Say
) -> None:
    """Train fold k and predict what it holds out, as far as that is not done."""
    folder = values["out"] / f"fold-{k}"
    state = _state(folder, {"settings": dict(settings), "rows": plan.digest(), "name": plan.names[k]})
    if (folder / PREDICTIONS).is_file():
        say("is there")
        return
    weights = folder / "model.safetensors"
    if not weights.is_file() or state["checkpoint"] != _sha256(weights):
        own = {name: _of_fold(values[name], k) for name in {**SHARED, **OWN[values["stage"]]} if name in values}
        state["folds"] = plan.folds_digest()
        for name in STARTS:
            _check_start(name, own.get(name), k, state["folds"], say)
        recipe = stages.recipe_of(values["stage"], own)
        state["recipe"] = json.loads(json.dumps(recipe.to_dict()))
        _check_recipes([*_recipes(values["out"], len(plan.names)), state["recipe"]], values["out"])
        own["leave_out"] = plan.held_out(k, VAL if recipe.patience else 0.0)
        own |= {"out": folder, "cache": values["cache"] or values["out"].parent / "cache"}
        _write(folder / STATE, state)
        began = time.monotonic()
        try:
            stages.run(values["stage"], own, say)
            state |= {"checkpoint": _sha256(weights), "commit": _commit()}
        finally:
            state["seconds"] += round(time.monotonic() - began, 1)
            _write(folder / STATE, state)
    held = [i for i, fold in enumerate(plan.fold) if fold == k]
    run = load_run(folder, device)
    p = predict_files(
        replace(combine(run)[0], findings=None),
        [plan.records[i] for i in held],
        pooling=run.pooling,
        broken=values["absent"],
        progress=lambda done, n: say(f"judged {done} of {n} images") if done == n else None,
    )
    row = {plan.records[i].path: i for i in held}
    save(folder / PREDICTIONS, plan, p, [row[r.path] for r in p.records])
    (folder / "last.safetensors").unlink(missing_ok=True)  # four times the weights, and nothing goes on from it


def pool(plan: Plan, settings: Mapping[str, Any], values: Mapping[str, Any], say: Say) -> str:
    out: Path = values["out"]
    states, parts, there = [], [], []
    for k, name in enumerate(plan.names):
        folder = out / f"fold-{k}"
        if values["partial"] and not (folder / PREDICTIONS).is_file():
            continue
        there.append(k)
        states.append(_state(folder, {"settings": dict(settings), "rows": plan.digest(), "name": name}))
        parts.append(load(folder / PREDICTIONS))
    _check_recipes(_recipes(out, len(plan.names)), out)
    p, rows = paired(plan, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    save(out / PREDICTIONS, plan, p, rows)
    held = [plan.held_out(k).split(plan.records) for k in range(len(plan.names))]
    tasks = STAGES[values["stage"]]

    def kept(of: Predictions, at: Sequence[int]) -> list[tuple[int, int]]:
        """Rows that are judged, as (row of the predictions, row of the plan)."""
        whole = values["judged"] == "all"
        return [(i, j) for i, j in enumerate(at) if whole or of.records[i].reuse in REUSABLE]

    chosen = kept(p, rows)
    say(f"figures of {len(chosen)} images")
    judged = part_of(p, [i for i, _ in chosen])
    result: dict[str, Any] = {
        "schema": 1,
        "settings": dict(settings),
        "judged": values["judged"],
        "recipe": states[0]["recipe"],
        "folds": [
            {"fold": k, "images": int((plan.fold == k).sum()), **{f: s[f] for f in MADE}}
            for k, s in zip(there, states, strict=True)
        ],
        "partial": len(there) < len(plan.names),
        "training_seconds": round(sum(s["seconds"] for s in states), 1),
        "unpredicted": int(np.isin(plan.fold, there).sum()) - len(rows),
        **figures(judged, [held[plan.fold[j]] for _, j in chosen], tasks, view=values["view"]),
        "against": {},
    }
    for other in values["against"] or ():
        q, theirs = paired(plan, load(other / PREDICTIONS))
        both = {j: i for i, j in kept(q, theirs)}
        common = [(i, both[j]) for i, j in chosen if j in both]
        if not common:
            raise UsageError(f"--against {other}: has no image of this data; name a cross-validation on the same")
        ours, also = part_of(p, [i for i, _ in common]), part_of(q, [i for _, i in common])
        result["against"][_name(other, result["against"])] = against(ours, also, tasks, view=values["view"])
    (out / RESULT).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return f"{text(result)}\nwrote {out / RESULT}"


def _name(path: Path, taken: Mapping[str, Any]) -> str:
    name = path.resolve().name
    return name if name not in taken else f"{name} ({len(taken) + 1})"


def restore(out: Path, plan: Plan, found: Mapping[str, Any], made: Mapping[int, tuple[Predictions, list[int]]]) -> None:
    """Folds in `out` as if they had been made there: of a crossval.json and, by fold, predictions and their rows of the
    plan. UsageError if it is of other data."""
    for fold in found["folds"]:
        k = fold["fold"]
        if fold["rows"] != plan.digest() or fold["folds"] != plan.folds_digest():
            raise UsageError(f"{out}: fold {k} was made with other data; name the same")
        if (out / f"fold-{k}" / STATE).is_file():
            raise UsageError(f"{out}: has a fold-{k}, which would be lost; name another folder")
        state = {"settings": found["settings"], "recipe": found["recipe"], **{f: fold[f] for f in MADE}}
        _write(out / f"fold-{k}" / STATE, state)
        save(out / f"fold-{k}" / PREDICTIONS, plan, *made[k])


def _of_fold(value: Any, k: int) -> Any:
    """{fold} in text and paths is the number of the fold."""
    if isinstance(value, list):
        return [_of_fold(v, k) for v in value]
    if isinstance(value, (str, Path)) and "{fold}" in str(value):
        return type(value)(str(value).replace("{fold}", str(k)))
    return value


def _check_start(option: str, given: Any, k: int, folds: str, say: Say) -> None:
    """UsageError if a fold would learn from weights of another fold, or of folds that hold out other patients."""
    for path in given if isinstance(given, list) else [given] if given else ():
        about = (path if path.is_dir() else path.parent) / STATE
        state = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
        if "folds" not in state:
            say(f"--{option} {path}: if it learned from images that are held out here, no figure is out of fold")
            continue
        if state["folds"] != folds or about.parent.name != f"fold-{k}":
            raise UsageError(
                f"--{option} {path}: learned from images that fold {k} holds out; use fold-{{fold}} of a "
                "cross-validation with the same data, --by, --folds and --split-seed"
            )


def _plain(value: Any) -> Any:
    """For JSON; of a path the last two names, which are the same on another machine."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return "/".join(value.parts[-2:]) if isinstance(value, Path) else value


def _state(folder: Path, same: Mapping[str, Any]) -> dict[str, Any]:
    """fold.json, or a new one. UsageError if it is of another cross-validation; options it lacks have their default."""
    path = folder / STATE
    if not path.is_file():
        return {**same, "seconds": 0.0, "commit": None, "checkpoint": None}
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    defaults = {k: default for k, (_, default) in {**SHARED, **OWN[same["settings"]["stage"]]}.items()}
    before, now = ({**defaults, **s} for s in (state["settings"], same["settings"]))
    other = [f"--{k.replace('_', '-')}" for k, v in now.items() if before.get(k) != v]
    if state["rows"] != same["rows"] or state["name"] != same["name"]:
        other.append("data")
    if other:
        raise UsageError(
            f"{folder}: made with another {' and '.join(other)}; name another --out, or --fresh to drop it"
        )
    return state


def _recipes(out: Path, folds: int) -> list[Any]:
    """Of the folds that are made or begun."""
    paths = (out / f"fold-{k}" / STATE for k in range(folds))
    states = (json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file())
    return [state["recipe"] for state in states if state.get("recipe")]


def _check_recipes(recipes: Sequence[Any], out: Path) -> None:
    """A preset's recipe may have changed between two calls with the same options."""
    if any(r != recipes[0] for r in recipes[1:]):
        raise UsageError(
            f"{out}: its folds differ in their recipes; make them again with --fresh, or name another --out"
        )


def _write(path: Path, state: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit() -> str | None:
    """Of the checkout that trains, with -dirty where it was changed since; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
