"""What is made of data and runs beside training: summary, evaluate, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.choose import selected

Say = Callable[[str], None]


def summary(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.summary import summary as of

    records, counts = selected(values)
    write(of(records, counts))


def evaluate(values: Mapping[str, Any], say: Say, write: Say) -> None:
    from train.evaluate import evaluate_run
    from train.evaluation_text import text
    from train.tables import tables

    records, _ = selected(values)
    found = []
    for run in values["runs"]:
        out: Path | None = values["out"]
        if out is not None and len(values["runs"]) > 1:
            out = out / run.resolve().name
        found.append(
            evaluate_run(
                *(run, records),
                split=values["split"],
                severity=values["severity"],
                lungs=values["lungs"],
                out=out,
                device=_device(values),
                say=say,
            )
        )
        write(text(found[-1]))
    write(tables(found))


def figures(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.figures import KINDS
    from train.figures import figures as draw
    from train.runs import combine, load_run

    records, _ = selected(values)
    device = _device(values)
    others = (None if path is None else load_run(path, device) for path in (values["severity"], values["lungs"]))
    main = load_run(values["run"], device)
    networks, given, _ = combine(main, *others)
    paths = draw(
        [r for r in records if r.split == values["split"]],
        networks,
        values["out"],
        tuple(values["kind"] or KINDS),
        threshold=values["threshold"],
        pooling=given.get("severity", main).pooling,
        limit=values["limit"],
    )
    for path in paths:
        write(str(path))


def _device(values: Mapping[str, Any]) -> str:
    import torch

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    if values["device"] == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(values["device"])
