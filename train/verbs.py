"""The verbs beside the stages: default, crossval, summary, evaluate, figures, guard, pack, carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model import checkpoint
from train.choose import selected
from train.runs import find_weights

Say = Callable[[str], None]


def default(values: Mapping[str, Any], say: Say, write: Say) -> None:
    from train import default as of

    write(str(of.run(values, say)))


def pack(values: Mapping[str, Any], say: Say, write: Say) -> None:
    from train.pack import MB
    from train.pack import pack as of

    options = {k: values[k] for k in ("size", "quality", "limit_mb", "all_licences")}
    packed = of(values["data"], values["out"], **options, say=say)
    write(f"{values['out']}: {packed.images} images, {packed.masks} masks, {packed.size / MB:.1f} MB")


def carry_split(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.carry import split

    for path in split(values["source"], values["out"], values["part_mb"]):
        write(str(path))


def carry_join(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.carry import join

    write(str(join(values["parts"], values["out"])))


def crossval(values: Mapping[str, Any], say: Say, write: Say) -> None:
    from train.crossval import crossval as of

    write(of(values, _device(values), say))


def summary(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.summary import summary as of

    records, counts = selected(values)
    write(of(records, counts))


def evaluate(values: Mapping[str, Any], say: Say, write: Say) -> None:
    from train.evaluate import evaluate_run
    from train.evaluation_text import text
    from train.tables import tables

    found = []
    for run in values["runs"]:
        splits = splits_of(run, values)
        if values["severity"] is not None and splits_of(values["severity"], values) != splits:
            raise UsageError(
                f"--severity {values['severity']}: its data was split otherwise; evaluate it as a run of its own"
            )
        records, _ = selected({**values, **splits})
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
                broken=values["absent"],
                say=say,
            )
        )
        write(text(found[-1]))
    write(tables(found))


def splits_of(run: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """How the run's own data was split: an image that it learned from must not be in its test.

    UsageError where the command line says otherwise.
    """
    about = checkpoint.load(find_weights(run))[2].get("about", {})
    out = {}
    for name, default in (("leave_out", None), ("split_seed", 0)):
        own, asked = about.get(name, default) or default, values[name] or default
        if asked != default and asked != own:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} {asked}: {run} was trained with {own}; leave it out to test on what it never saw"
            )
        out[name] = own
    return out


def figures(values: Mapping[str, Any], say: Say, write: Say) -> None:  # noqa: ARG001
    from train.figures import KINDS
    from train.figures import figures as draw
    from train.runs import combine, load_run

    records, _ = selected({**values, **splits_of(values["run"], values)})
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
        broken=values["absent"],
    )
    for path in paths:
        write(str(path))


def guard(values: Mapping[str, Any], say: Say, write: Say) -> None:
    import torch

    from cxrvit_edge.bundle import Bundle
    from train import guard as of

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    records, _ = selected(values)
    bundle = Bundle.open(values["bundle"])
    head = of.fit(records, values["negatives"], bundle, share=values["share"], seed=values["seed"], say=say)
    write(f"{of.write(head, values['out'])}: threshold {head.threshold}")


def _device(values: Mapping[str, Any]) -> str:
    import torch

    if values["threads"]:
        torch.set_num_threads(values["threads"])
    if values["device"] == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(values["device"])
